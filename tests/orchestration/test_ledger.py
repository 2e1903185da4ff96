"""The ledger: chained, cut back to a checkpoint's mark, refused where it was changed, audited against the plan."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, Blame, EpisodeSpec, Failure, GateFailed
from frontier_tune.orchestration import ledger
from frontier_tune.orchestration.audit import audit, planned_groups
from frontier_tune.orchestration.ledger import Ledger, Mark
from tests.orchestration.test_batch import SPECS, played


def planned(number: int) -> list[EpisodeSpec]:
    return [replace(s, step=number - 1) for s in SPECS]


def step(book: Ledger, number: int, end: str = "trained") -> Mark:
    """One step of two groups of three."""
    specs = planned(number)
    book.issue(specs)
    book.finish([played(s) for s in specs])
    for group in (0, 1):
        if end == "trained":
            book.trained(ledger.key(number, group), step=number, version=number + 1)
        else:
            book.dropped(ledger.key(number, group), step=number, reason=end)
    return book.sync()


def test_rows_are_chained_by_the_digest_of_the_line_before(tmp_path: Path) -> None:
    book = Ledger.open(tmp_path / "ledger.jsonl")
    mark = step(book, 1)
    lines = book.path.read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["event"] for r in rows] == ["issued"] * 2 + ["finished"] * 2 + ["trained"] * 2
    assert [r["prev"] for r in rows[1:]] == [hashlib.sha256(line).hexdigest() for line in lines[:-1]]
    assert mark == Mark(6, book.path.stat().st_size, hashlib.sha256(lines[-1]).hexdigest())
    assert rows[0] | {"prev": ""} == {
        **{"n": 1, "event": "issued", "group": "1.0", "kind": "workflow", "attempt": 0, "members": 3, "prev": ""},
        **{"task": SPECS[0].task.hash, "seed": SPECS[0].seed},
    }
    assert rows[2]["versions"] == [1] and rows[2]["tokens"] == 6 and rows[2]["failed"] == 0


def test_resume_goes_back_to_the_mark_and_keeps_what_is_behind_it_aside(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    book = Ledger.open(path)
    mark = step(book, 1)
    step(book, 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 13, "eve')  # a killed run's last line
    again = Ledger.open(path, mark)
    assert path.read_bytes() == whole[: mark.size]
    assert (tmp_path / ledger.REPLAYED).read_bytes() == whole[mark.size :] + b'{"n": 13, "eve\n'
    step(again, 2)
    assert path.read_bytes() == whole  # rows carry nothing that a second time would change


@settings(max_examples=25)
@given(st.data())
def test_any_changed_byte_up_to_the_mark_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    book = Ledger.open(path)
    step(book, 1)
    mark = step(book, 2)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"row \d+"):
        Ledger.open(path, mark)
    assert path.read_bytes() == content  # nothing is cut where nothing is understood


def test_a_changed_row_is_named(tmp_path: Path) -> None:
    book = Ledger.open(tmp_path / "ledger.jsonl")
    mark = step(book, 1)
    book.path.write_text(book.path.read_text().replace('"tokens":6', '"tokens":7', 1))
    with pytest.raises(BadInput, match="row 3 or 4 was changed"):
        Ledger.open(book.path, mark)
    assert "row 3 or 4" in str(audit(book.path))


def test_the_last_row_is_held_by_the_checkpoint_alone(tmp_path: Path) -> None:
    book = Ledger.open(tmp_path / "ledger.jsonl")
    mark = step(book, 1)
    *before, last = book.path.read_text().splitlines(keepends=True)
    book.path.write_text("".join(before) + last.replace('"step":1', '"step":2'))
    with pytest.raises(BadInput, match="row 6 is not the one that the checkpoint was written with"):
        Ledger.open(book.path, mark)


@pytest.mark.parametrize("lines", [0, 5])
def test_a_ledger_that_is_shorter_than_the_checkpoint_says_is_refused(tmp_path: Path, lines: int) -> None:
    book = Ledger.open(tmp_path / "ledger.jsonl")
    mark = step(book, 1)
    book.path.write_bytes(b"".join(book.path.read_bytes().splitlines(keepends=True)[:lines]))
    with pytest.raises(BadInput, match=f"counts 6 rows, there are {lines} up to there"):
        Ledger.open(book.path, mark)


def test_a_group_is_trained_once_or_not_at_all(tmp_path: Path) -> None:
    book = Ledger.open(tmp_path / "ledger.jsonl")
    step(book, 1)
    with pytest.raises(GateFailed, match=r"group 1\.0 is trained and can't be trained"):
        book.trained("1.0", step=2, version=3)
    with pytest.raises(GateFailed, match="is trained and can't be dropped"):
        book.dropped("1.0", step=2, reason="stale")
    book.issue(planned(2))
    with pytest.raises(GateFailed, match=r"group 2\.0 is issued and can't be trained"):
        book.trained("2.0", step=2, version=3)
    assert audit(book.path).open == ["2.0", "2.1"]


def test_the_audit_compares_with_the_plan(tmp_path: Path) -> None:
    recipe = recipes.parse({"algorithm": {"groups_per_step": 2, "group_size": 3}})
    book = Ledger.open(tmp_path / "ledger.jsonl")
    step(book, 1)
    step(book, 2, "no difference in rewards")
    found = audit(book.path, planned_groups(recipe, 2))
    assert found.complete and (found.groups, found.trained, found.dropped) == (4, 2, {"no difference in rewards": 2})
    short = audit(book.path, planned_groups(recipe, 3))
    assert not short.complete and "2 planned groups were never issued, the first: 3.0" in short.problems[0]


def test_a_group_that_was_lost_may_be_issued_again_before_it_ends(tmp_path: Path) -> None:
    book = Ledger.open(tmp_path / "ledger.jsonl")
    book.issue(SPECS)
    book.issue(SPECS[:3], attempt=1)
    lost = Failure("sampler-error", Blame.INFRASTRUCTURE)
    book.finish([played(s, failure=lost if s.member == 2 else None) for s in SPECS], {0: 1})
    rows = [row for _, row in ledger.read(book.path)]
    assert [(r["group"], r["attempt"], r["failed"]) for r in rows if r["event"] == "finished"] == [("1.0", 1, 1), ("1.1", 0, 1)]
    assert audit(book.path).again == 1


def test_the_digest_of_episodes_tells_tokens_log_probabilities_and_rewards_apart() -> None:
    base, other = played(SPECS[0]), played(SPECS[0])
    other.logprobs = [0.0, 0.0, -1e-16]
    rewarded = played(SPECS[0], reward=1.0)
    assert len({ledger.episodes_digest([t]) for t in (base, other, rewarded)}) == 3
    assert ledger.episodes_digest([base]) == ledger.episodes_digest([played(SPECS[1])])


def test_a_step_settles_every_group_that_it_played(tmp_path: Path) -> None:
    """Learned from, left out because nothing differed, or lost to failures: stated for each."""
    broken = Failure("step-timeout", Blame.ENVIRONMENT)
    specs = [replace(s, group=g + s.group) for g in (0, 2) for s in SPECS]
    all_ = [played(s, failure=broken if s.group == 3 else None) for s in specs]
    book = Ledger.open(tmp_path / "ledger.jsonl")
    book.issue(specs)
    book.finish(all_)
    book.settle(1, 2, all_, [t for t in all_ if t.spec.group != 2])
    found = audit(book.path)
    assert found.complete and found.trained == 2
    assert found.dropped == {"rewards all equal": 1, "failed: step-timeout": 1}
    book.issue(planned(2))
    book.finish(again := [played(s) for s in planned(2)])
    book.settle(2, None, again, again)
    assert audit(book.path).dropped["no difference in the step's rewards"] == 2
    book.issue(specs := [replace(s, group=10 + s.group) for s in planned(2)])
    one_lost = [played(s, failure=broken if s.member == 0 else None) for s in specs]
    book.finish(one_lost)
    assert len({s.member for s in specs}) >= 3
    assert book.settle(3, None, one_lost, one_lost, "no update was taken") == 0  # what is left of each group could be compared
    assert audit(book.path).dropped["no update was taken"] == 2
