"""Agents without a model that try to score without doing the work. A grader that pays them is broken: every evaluation asks.

- ``no_op`` does nothing until the episode is cut off; ``early_submitter`` submits at once.
- The environment's own (``WorkflowEnv.canary_scripts(task)``): constant filler, input overwriter, golden hunter and the like. One
  that is named like a canary above takes its place.
- ``best_blind_script``: per task kind the one fixed sequence of actions, taken from the golden programs of training tasks, that
  succeeds most often on the held-out tasks. It never looks, so it shows what guessing is worth. Not expected to be 0.

They are played through the same EnvironmentPool, under the same limits and grader, as a policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from frontier_tune.contracts import BadInput, Failure, Task
from frontier_tune.evaluation.evaluate import EvaluationError, Share
from frontier_tune.evaluation.scripts import NOT_IMPLEMENTED, Episode, Pool, Script, ask, play

BLIND = "best_blind_script"


@dataclass
class CanaryScores:
    """Success by canary, in total and by task kind. ``scripts`` holds the best blind script of each kind."""

    success: dict[str, Share] = field(default_factory=dict)
    by_kind: dict[str, dict[str, Share]] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What evaluation.json says of them: shares of success, counts and intervals by kind, the blind scripts themselves, and
        why episodes are not in the shares."""
        kinds = {name: {kind: s.to_json() for kind, s in shares.items()} for name, shares in self.by_kind.items()}
        return {
            "canaries": {name: share.success for name, share in self.success.items()},
            "canaries_n": {name: share.n for name, share in self.success.items()},
            "canaries_by_kind": kinds,
            "blind_scripts": {k: list(s) for k, s in self.scripts.items()},
            "canary_failures": self.failures,
        }


def play_scripts(pool: Pool, episodes: Sequence[tuple[Task, Script]], *, max_turns: int) -> list[bool | Failure]:
    """Play each fixed script on its task; per episode strict success, or the Failure that kept it from being graded."""
    played = play(pool, [Episode(task, script) for task, script in episodes], max_turns=max_turns)
    return [p.failure or p.success for p in played]


def run_canaries(
    pool: Pool, heldout: Sequence[Task], train: Sequence[Task], *, max_turns: int, candidates: int = 4, sample: int = 40
) -> CanaryScores:
    """Measure every canary on ``heldout``.

    Blind scripts come from the golden programs of up to ``sample`` training tasks a kind; of the distinct ones the
    ``candidates`` that most held-out golden programs equal (then the most frequent in training) are played on all held-out
    tasks of the kind. Raises BadInput where ``heldout`` is empty, EvaluationError where a canary was never graded.
    """
    if not heldout:
        raise BadInput("canaries: the held-out task set is empty")
    scores = CanaryScores()
    plans: dict[str, list[tuple[Task, Script]]] = {}
    for task, scripts in zip(heldout, _ask(pool, "canaries", "scripts", heldout), strict=True):
        for name, calls in (scripts or {}).items():
            plans.setdefault(name, []).append((task, tuple(calls)))
    plans.setdefault("no_op", [(t, ()) for t in heldout])
    endings = {script[-1] for script in _scripts(pool, train[:sample])}
    if len(endings) == 1:  # else the ending call carries an answer, and the environment must bring its own early submitter
        ending = endings.pop()
        plans.setdefault("early_submitter", [(t, (ending,)) for t in heldout])
    for name, plan in plans.items():
        _tally(scores, name, plan, play_scripts(pool, plan, max_turns=max_turns))
    _blind(scores, pool, heldout, train, max_turns=max_turns, candidates=candidates, sample=sample)
    return scores


def _blind(
    scores: CanaryScores,
    pool: Pool,
    heldout: Sequence[Task],
    train: Sequence[Task],
    *,
    max_turns: int,
    candidates: int,
    sample: int,
) -> None:
    best: list[tuple[Task, Script]] = []
    outcomes: list[bool | Failure] = []
    for kind in sorted({t.kind for t in heldout}):
        tasks = [t for t in heldout if t.kind == kind]
        seen = Counter(_scripts(pool, [t for t in train if t.kind == kind][:sample]))
        if not seen:
            continue
        equal = Counter(_scripts(pool, tasks))
        chosen = sorted(seen, key=lambda s: (-equal[s], -seen[s], s))[:candidates]
        plan = [(t, s) for s in chosen for t in tasks]
        played = play_scripts(pool, plan, max_turns=max_turns)
        by_script = {s: played[i * len(tasks) : (i + 1) * len(tasks)] for i, s in enumerate(chosen)}
        winner = max(chosen, key=lambda s: sum(o is True for o in by_script[s]))
        scores.scripts[kind] = winner
        best += [(t, winner) for t in tasks]
        outcomes += by_script[winner]
    if best:
        _tally(scores, BLIND, best, outcomes)


def _tally(scores: CanaryScores, name: str, plan: Sequence[tuple[Task, Script]], outcomes: Sequence[bool | Failure]) -> None:
    graded = [(task.kind, o) for (task, _), o in zip(plan, outcomes, strict=True) if not isinstance(o, Failure)]
    for o in outcomes:
        if isinstance(o, Failure):
            key = f"{name}: {o.blame}:{o.kind}"
            scores.failures[key] = scores.failures.get(key, 0) + 1
    if not graded:
        raise EvaluationError(f"canaries: '{name}' was never graded: {next(o for o in outcomes if isinstance(o, Failure))}")
    wins, n = Counter(k for k, won in graded if won), Counter(k for k, _ in graded)
    scores.success[name] = Share(sum(wins.values()), len(graded))
    scores.by_kind[name] = {k: Share(wins[k], n[k]) for k in sorted(n)}


def _scripts(pool: Pool, tasks: Sequence[Task]) -> list[Script]:
    return [tuple(calls) for calls in _ask(pool, "golden", "calls", tasks) if calls]


def _ask(pool: Pool, op: str, key: str, tasks: Sequence[Task]) -> list[Any]:
    """``op`` for each task, many at once; None where the environment has no answer to it (no golden program)."""
    answers = ask(pool, op, [{"task": task.to_json()} for task in tasks])
    for task, answer in zip(tasks, answers, strict=True):
        if isinstance(answer, Failure) and answer.kind != NOT_IMPLEMENTED:
            raise EvaluationError(f"canaries: '{op}' of task {task.hash} failed: {answer.kind}: {answer.detail}")
    return [None if isinstance(answer, Failure) else answer[key] for answer in answers]
