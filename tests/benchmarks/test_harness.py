import json

import pytest

from benchmarks import harness


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    faster = harness.compare("step", [1.0, 2.0, 9.0], [4.0, 4.0, 6.0], "peer", "s", bar=1.5)
    assert (faster.ours, faster.baseline, faster.ratio, faster.samples, faster.gate, faster.min) == (2.0, 4.0, 2.0, 3, True, 1.5)
    more = harness.compare("rate", [30.0], [10.0], "peer", "tokens/s", higher_is_better=True)
    assert more.ratio == 3.0 and not more.gate and more.min is None


def test_the_document_has_the_agreed_keys_and_tells_whether_gates_hold(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [harness.compare("a", [1.0], [2.0], "peer", "s", bar=1.5), harness.compare("b", [1.0], [0.5], "peer", "s")]
    path = tmp_path / "deep" / "result.json"
    assert harness.report("name", rows, harness.machine(), {"threads": 2}, path)
    document = json.loads(path.read_text())
    assert set(document) >= {"name", "rows", "machine", "commit", "date"}
    keys = {"case", "ours", "baseline", "baseline_name", "unit", "ratio", "samples", "gate", "min"}
    assert all(set(row) == keys for row in document["rows"])
    assert document["machine"]["cores"] >= 1 and document["commit"] and "holds" in capsys.readouterr().out
    assert not harness.report("name", [harness.compare("a", [2.0], [2.0], "peer", "s", bar=1.5)], {}, {}, None)
