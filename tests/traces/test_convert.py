"""What a trace becomes, and by which reason it is refused: leaks, contradictions, duplicates, credentials, foreign models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frontier_tune.contracts import BadInput, Task
from frontier_tune.traces import importer, tokens
from frontier_tune.traces.convert import convert
from frontier_tune.traces.replay import HeldOut, Workbench, text_digest
from frontier_tune.traces.schema import Trace
from frontier_tune.traces.store import Store
from tests.traces.conftest import call, raw

Make = Callable[..., Trace]


def test_an_accepted_trace_is_a_demonstration_as_the_environment_plays_it(
    trace: Make, bench: Workbench, held_out: HeldOut
) -> None:
    other_words = raw(12, 5, 7)["messages"]
    other_words[2]["content"] = "running total is 5"
    found = convert(trace(12, 5, 7, messages=other_words), bench, held_out)
    (demonstration,) = found.demonstrations
    assert [t.answer[0].content for t in demonstration.turns] == ["total 5", "total 12", "thank you"]
    assert demonstration.learn == (True, True, True) and demonstration.made.replayed
    assert found.notes == ("turns 0: the environment answers in other words; its own are used",)
    assert found.proposal is not None and found.proposal.task == Task("count", "train", {"target": 12}, "train")


def test_a_correction_is_a_pair_and_its_turn_alone_is_demonstrated(trace: Make, bench: Workbench, held_out: HeldOut) -> None:
    fix = {"turn": 1, "tool_call": {"name": "add", "arguments": {"amount": 7}}}
    found = convert(trace(12, 5, 9, verdict="corrected", corrections=[fix]), bench, held_out)
    (pair,), (demonstration,) = found.pairs, found.demonstrations
    assert (pair.chosen.arguments, pair.rejected.arguments) == ({"amount": 7}, {"amount": 9})  # type: ignore[union-attr]
    assert len(pair.turns) == 1 and demonstration.learn == (False, True)
    assert pair.made.origin.name == "jane" and [o.name for o in pair.made.others] == ["close team"]
    rejected = convert(trace(12, 5, 9, verdict="rejected", corrections=[fix]), bench, held_out)
    assert len(rejected.pairs) == 1 and not rejected.demonstrations


def test_without_a_review_a_trace_proposes_a_task_alone(trace: Make, bench: Workbench, held_out: HeldOut) -> None:
    found = convert(trace(12, verdict=None, reviewer=None), bench, held_out)
    assert not found.demonstrations and not found.pairs and found.proposal is not None


@pytest.mark.parametrize(
    ("target", "added", "changes", "reason"),
    [
        (12, (11,), {}, "jane' accepted it, but the environment grades it as failed"),
        (12, (12,), {"messages": raw(12)["messages"][:3]}, "do not end the environment's episode"),
        (12, (1, 2, 3, 6), {"messages": [*raw(12)["messages"], call("submit")]}, "over after turn 1"),
        (10_001, (10_001,), {}, "held-out task"),
        (
            12,
            (12,),
            {"task": {"kind": "count", "data": {"target": 12}, "family": "heldout"}},
            "layout family 'heldout' of a held-out",
        ),
        (10_001, (10_001,), {"task": None}, "begins with the words of the held-out task"),
        (12, (12,), {"task": {"kind": "count", "data": {}}}, "can't begin"),
        (12, (5,), {"verdict": "corrected", "corrections": [{"turn": 0, "content": "add 5"}]}, "it is what was done"),
        (12, (5,), {"verdict": "corrected", "corrections": [{"turn": 0, "content": "add -3"}]}, "error: only upwards"),
        (12, (5,), {"verdict": "corrected", "corrections": [{"turn": 0, "content": "take 3"}]}, "unknown tool 'take'"),
    ],
)
def test_refused_by_name_and_reason(
    trace: Make, bench: Workbench, held_out: HeldOut, target: int, added: tuple[int, ...], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadInput, match=rf"trace 'count-{target}': .*({reason})"):
        convert(trace(target, *added, **changes), bench, held_out)


def test_the_same_words_are_no_leak_where_the_task_is_another(trace: Make, bench: Workbench) -> None:
    """A workflow may ask for everything in the same words."""
    words = bench.replay(Task("count", "train", {"target": 12}), ()).opening
    same = HeldOut(frozenset({"other"}), frozenset(), {text_digest(words): "other"})
    assert convert(trace(12), bench, same).demonstrations
    with pytest.raises(BadInput, match="does not say which task it is of"):
        convert(trace(12, task=None), bench, same)


def test_a_held_out_task_under_another_family_is_known_by_its_hash(trace: Make, bench: Workbench, held_out: HeldOut) -> None:
    leaked = trace(10_001, task={"kind": "count", "data": {"target": 10_001}})
    with pytest.raises(BadInput, match="of the held-out task"):
        convert(leaked, bench, held_out)


@pytest.mark.parametrize(
    "secret",
    ["AKIA" + "ABCDEFGHIJKLMNOP", "ghp_" + "a" * 36, "-----BEGIN RSA PRIVATE KEY-----", "postgres://app:hunter22@db/prod"],
)
def test_a_credential_is_refused_and_not_repeated(trace: Make, bench: Workbench, held_out: HeldOut, secret: str) -> None:
    messages = raw(12)["messages"]
    for content in (f"with {secret}", f"on a line of its own:\n{secret}", json.dumps({"log": f"in a tool's answer\t{secret}"})):
        messages[0]["content"] = content
        with pytest.raises(BadInput, match="message 0 holds what looks like") as e:
            convert(trace(12, messages=messages), bench, held_out)
        assert secret not in str(e.value)


def test_duplicates_are_refused_within_a_file_and_across_imports(store: Store, bench: Workbench, held_out: HeldOut) -> None:
    rows = [("t:1", raw(12)), ("t:2", raw(12, id="again")), ("t:3", raw(13, id="count-12")), ("t:4", raw(13))]
    found = importer.take("t", rows, store, bench, held_out)
    assert found.taken == ["count-12", "count-13"]
    assert [reason for _, reason in found.refused] == [
        "trace 'again': it says the same as trace 'count-12'",
        "trace 'count-12': another trace has this id already",
    ]
    store.save()
    again = importer.take("t", [("t:1", raw(12, id="third"))], Store.open(store.root), bench, held_out)
    assert not again.taken and "count-12" in again.refused[0][1]


def test_one_wrong_trace_does_not_stop_the_others(store: Store, bench: Workbench, held_out: HeldOut) -> None:
    rows = [("t:1", {"messages": 3}), ("t:2", "text"), ("t:3", raw(12))]
    found = importer.take("t", rows, store, bench, held_out)
    assert found.taken == ["count-12"] and len(found.refused) == len(store.refused) == 2


def test_a_review_file_makes_a_verdict(tmp_path: Path, store: Store, bench: Workbench, held_out: HeldOut) -> None:
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"trace": "count-12", "verdict": "accepted", "reviewer": "ravi"}\n')
    bare = raw(12, verdict=None, reviewer=None)
    importer.take("t", [("t:1", bare)], store, bench, held_out, reviewed=importer.reviews(path))
    assert store.demonstrations[0].made.reviewer == "ravi"
    path.write_text('{"trace": "a", "grade": 1}\n')
    with pytest.raises(BadInput, match="unknown field 'grade'"):
        importer.reviews(path)


def test_a_third_party_s_model_trains_only_by_name(trace: Make, bench: Workbench, held_out: HeldOut) -> None:
    foreign = {"origin": {"kind": "model", "name": "big-model-5"}}
    fix = [{"turn": 0, "content": "add 12"}]
    accepted = convert(trace(12, **foreign), bench, held_out)
    corrected = convert(trace(12, 5, **foreign, verdict="corrected", corrections=fix), bench, held_out)
    for row in (*accepted.demonstrations, *corrected.pairs):  # the rejected half of a pair is trained on, too
        with pytest.raises(BadInput, match=r"'big-model-5': 1 rows.*warm_start.allow_model_output: \[big-model-5\]"):
            tokens.require_allowed([row], ["another"], "warm_start.sft.traces")
        tokens.require_allowed([row], ["big-model-5"], "warm_start.sft.traces")
    own = convert(trace(12, origin={"kind": "own_policy", "name": "runs/3"}), bench, held_out)
    tokens.require_allowed(own.demonstrations, [], "here")


def test_the_golden_program_is_taken_like_any_other(store: Store, bench: Workbench, held_out: HeldOut) -> None:
    made = importer.golden(bench, bench.pool.tasks("train", 4, 5), "LicenseRef-Workspace")
    found = importer.take("golden", made, store, bench, held_out, propose=False)
    assert len(found.taken) == len(store.demonstrations) == 4 and not store.proposals
    assert {d.made.origin.kind for d in store.demonstrations} == {"program"}
