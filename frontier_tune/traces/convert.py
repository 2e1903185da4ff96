"""One trace into what it is good for: a demonstration, preference pairs, a proposed task. Or the reason why it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frontier_tune.contracts import BadInput, Task
from frontier_tune.traces import secrets
from frontier_tune.traces.dialogue import Dialogue, Turn, corrected, unroll
from frontier_tune.traces.replay import HeldOut, Workbench
from frontier_tune.traces.rows import Demonstration, Made, Pair, Proposal
from frontier_tune.traces.schema import Correction, Maker, Origin, Trace, Verdict


@dataclass(frozen=True)
class Converted:
    """What one trace gave. A trace without a review gives a proposed task alone."""

    trace: Trace
    demonstrations: tuple[Demonstration, ...]
    pairs: tuple[Pair, ...]
    proposal: Proposal | None
    notes: tuple[str, ...]


def convert(trace: Trace, bench: Workbench, held_out: HeldOut) -> Converted:
    """Raises BadInput, which names the trace and the turn, where it must not or can't be used."""
    try:
        return _convert(trace, bench, held_out)
    except BadInput as e:
        raise BadInput(f"trace '{trace.id}': {e}") from None


def _convert(trace: Trace, bench: Workbench, held_out: HeldOut) -> Converted:
    if found := secrets.find(trace):
        raise BadInput(found)
    task = Task(trace.task.kind, "train", trace.task.data, trace.task.family) if trace.task else None
    dialogue = unroll(trace, bench.signatures)
    if leak := held_out.leak(task, dialogue.opening):
        raise BadInput(f"{leak}; what is held out must not train")
    notes = list(dialogue.notes)
    if task is not None:
        dialogue = _in_the_environment(trace, task, dialogue, bench, notes)
    demonstrations, pairs = [], []
    if trace.verdict is Verdict.ACCEPTED:
        learn = (True,) * len(dialogue.turns)
        demonstrations.append(Demonstration(trace.id, dialogue.opening, dialogue.turns, learn, _made(trace, trace.origin, task)))
    for correction in trace.corrections:
        pair = _pair(trace, correction, dialogue, task, bench)
        pairs.append(pair)
        if trace.verdict is Verdict.CORRECTED:  # what came before was not found wanting
            turns = (*pair.turns, Turn(pair.chosen))
            learn = (False,) * len(pair.turns) + (True,)
            demonstrations.append(Demonstration(pair.id, pair.opening, turns, learn, pair.made))
    proposal = Proposal(task.hash if task else trace.id, task, dialogue.opening, (trace.id,), trace.origin, trace.license)
    return Converted(trace, tuple(demonstrations), tuple(pairs), proposal, tuple(notes))


def _in_the_environment(trace: Trace, task: Task, dialogue: Dialogue, bench: Workbench, notes: list[str]) -> Dialogue:
    """The dialogue as the environment plays it. An accepted trace that the environment grades as failed is a contradiction."""
    replayed = bench.replay(task, [t.said for t in dialogue.turns])
    if trace.verdict is Verdict.ACCEPTED:
        if replayed.success is None:
            raise BadInput(f"'{trace.reviewer}' accepted it, but its calls do not end the environment's episode")
        if not replayed.success:
            raise BadInput(
                f"'{trace.reviewer}' accepted it, but the environment grades it as failed (reward {replayed.reward:g})"
            )
    differing = [i for i, (a, b) in enumerate(zip(dialogue.turns, replayed.turns)) if a.answer and a.answer != b.answer]
    if differing:
        notes.append(f"turns {', '.join(map(str, differing))}: the environment answers in other words; its own are used")
    return Dialogue(replayed.opening, replayed.turns)


def _pair(trace: Trace, correction: Correction, dialogue: Dialogue, task: Task | None, bench: Workbench) -> Pair:
    context, turn = dialogue.turns[: correction.turn], dialogue.turns[correction.turn]
    if broken := [i for i, t in enumerate(context) if t.call is None]:
        raise BadInput(f"correction of turn {correction.turn}: turn {broken[0]} before it is no call of the environment's")
    chosen = corrected(correction, bench.signatures)
    if chosen == turn.call:
        raise BadInput(f"correction of turn {correction.turn}: it is what was done")
    if task is not None:
        after = bench.replay(task, [*(t.said for t in context), chosen]).turns[-1]
        refused = next((m.content for m in after.answer if m.content.startswith("error: ")), None)
        if refused:
            raise BadInput(f"correction of turn {correction.turn}: the environment answers with an {refused}")
    origin = correction.origin or Origin(kind=Maker.PERSON, name=trace.reviewer or "")
    made = _made(trace, origin, task, (trace.origin,))
    return Pair(f"{trace.id}#{correction.turn}", dialogue.opening, context, chosen, turn.said, made)


def _made(trace: Trace, origin: Origin, task: Task | None, others: Sequence[Origin] = ()) -> Made:
    return Made(trace.id, origin, trace.license, trace.reviewer or "", tuple(others), task, task is not None)
