import json
import os
from pathlib import Path

import psutil
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


SIDE = """
import json, os, sys
sys.path.insert(0, {root!r})
from benchmarks import harness
task = json.loads(sys.argv[2])
go, done = harness.turns()
print("not of the protocol")  # a library's chatter
for n in range(task["steps"]):
    go()
    with open(task["order"], "a") as f:
        f.write(task["side"])
    done({{"step": n, "pid": os.getpid()}})
print(task["side"], "has had enough")
"""


@pytest.mark.parametrize("steps", [3, 2])
def test_sides_take_turns_warm_up_and_end_with_the_call(root: Path, tmp_path: Path, steps: int) -> None:
    """With too few steps a side ends early: its own words say why, and the other doesn't stay."""
    script, order = tmp_path / "side.py", tmp_path / "order"
    script.write_text(SIDE.format(root=str(root)))
    seen: list[int] = []

    def show(side: str, n: int, found: dict[str, float]) -> None:
        seen.append(int(found["pid"]))

    def run() -> dict[str, list[dict[str, float]]]:
        return harness.alternate(str(script), ("a", "b"), {"steps": steps, "order": str(order)}, 2, os.environ, show)

    if steps == 3:
        assert [[step["step"] for step in found] for found in run().values()] == [[1, 2], [1, 2]]
        assert order.read_text() == "ababab"
    else:
        with pytest.raises(SystemExit, match="a ended early:\nnot of the protocol\na has had enough"):
            run()
    assert len(seen) == 2 * steps and not any(psutil.pid_exists(pid) for pid in seen)
