"""The evaluation before and after: held-out tasks greedily and sampled, the general suite, canaries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier_tune.contracts import Blame, EpisodeSpec, Failure, LimitReached, Task, Trajectory
from frontier_tune.evaluation import evaluate as evaluation
from frontier_tune.evaluation import summary
from frontier_tune.evaluation.evaluate import Scores
from frontier_tune.orchestration.batch import play
from frontier_tune.orchestration.crew import Crew
from frontier_tune.orchestration.groups import derive_seed
from frontier_tune.orchestration.preflight import Ready
from frontier_tune.orchestration.retry import Retry
from frontier_tune.orchestration.run_dir import RunDir


@dataclass(frozen=True)
class Side:
    """One policy's scores."""

    greedy: Scores
    sampled: Scores
    general: Scores | None


@dataclass
class Measure:
    """Plays evaluations under the policy that the sampler holds. ``every`` is called while waiting (and may raise Stopped)."""

    ready: Ready
    run: RunDir
    crew: Crew
    every: Callable[[], None]
    note: Callable[[str], None]

    def side(self, name: str, reuse: bool = False) -> Side:
        """Evaluate the current policy as ``name`` (base, tuned). ``reuse``: take what an interrupted run has played already."""
        r = self.ready
        if not reuse:  # an earlier policy's episodes must not be taken for this one's when a try of this is cut off
            for left in (self.run.root / "evaluation").glob(f"{name}-*.jsonl"):
                left.unlink()
        greedy = self._scores(f"{name}-greedy", r.heldout, "workflow", sampled=False, reuse=reuse)
        sampled = self._scores(f"{name}-sampled", r.heldout[: 2 * r.recipe.run.eval_tasks], "workflow", sampled=True, reuse=reuse)
        general = self._scores(f"{name}-general", r.general, "general", sampled=False, reuse=reuse) if r.general else None
        shown = f"{name}: {_percent(greedy)} of {greedy.n} held-out tasks (greedy), {_percent(sampled)} sampled"
        self.note(shown + (f"; {_percent(general)} of the general suite" if general else ""))
        return Side(greedy, sampled, general)

    def probe(self, step: int) -> dict[str, Any]:
        """A small greedy held-out evaluation in the middle of training."""
        tasks = self.ready.heldout[: self.ready.recipe.run.eval_tasks]
        scores = evaluation.evaluate(tasks, self._player("workflow"), seed=derive_seed("probe", step))
        return {"success": scores.success, "n": scores.n, "ci95": list(scores.ci95)}

    def canaries(self) -> dict[str, Any]:
        """What agents that try to score without doing the work came to: keys of evaluation.json."""
        r, episodes = self.ready, self.crew.episodes
        found: dict[str, Any] = episodes.wait(episodes.submit("canaries", r.heldout, r.train), self.every).to_json()
        return found

    def tell(self, canaries: Mapping[str, Any]) -> None:
        """Shares, and what was not graded: an agent at 0 % that was hardly ever graded shows nothing about the grader."""
        self.note("canaries: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in canaries["canaries"].items()))
        for why, n in canaries.get("canary_failures", {}).items():
            self.note(f"          {n} episodes of {why} were not graded, and are in no share")

    def _player(self, where: str) -> evaluation.Player:
        def player(specs: Sequence[EpisodeSpec]) -> Iterable[Trajectory]:
            return play(self.crew.episodes, specs, self.every, where, Retry.of(self.ready.recipe))[0]

        return player

    def _scores(self, name: str, tasks: Sequence[Task], where: str, *, sampled: bool, reuse: bool) -> Scores:
        path = self.run.root / "evaluation" / f"{name}.jsonl"
        seed = derive_seed("evaluation", name.split("-")[1])
        if reuse and path.is_file():
            specs = evaluation.plan(tasks, sampled=sampled, seed=seed)
            played = _read(path, specs)
            if played is not None:
                return evaluation.score(specs, played, sampled=sampled)
        scores = evaluation.evaluate(tasks, self._player(where), sampled=sampled, seed=seed)
        lost, most = 1 - scores.n / scores.n_submitted, self.ready.recipe.run.max_failure_share
        if lost > most:  # what is left would be a success among survivors
            raise LimitReached(
                f"evaluation {name}: {lost:.0%} of {scores.n_submitted} episodes were not graded, through no fault of the agent "
                f"(run.max_failure_share is {most:.0%}): {scores.failures}"
            )
        evaluation.write_episodes(path, scores)
        return scores


def _read(path: Path, specs: Sequence[EpisodeSpec]) -> list[Trajectory] | None:
    """Episodes of an earlier evaluation, or None where they are not those of ``specs``."""
    rows = [
        json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line
    ]  # not splitlines: U+2028 ends no row
    if [r["task"] for r in rows] != [s.task.hash for s in specs]:
        return None
    return [
        Trajectory(
            spec,
            mask=[True] * row["sampled_tokens"],
            reward=row["reward"],
            success=row["success"],
            truncated=row["truncated"],
            turns=row["turns"],
            failure=Failure(row["failure"]["kind"], Blame(row["failure"]["blame"]), row["failure"]["detail"])
            if row["failure"]
            else None,
        )
        for spec, row in zip(specs, rows, strict=True)
    ]


def write(
    run: RunDir, base: Side, tuned: Side | None, canaries: Mapping[str, Any], train: dict[str, Any] | None
) -> dict[str, Any]:
    """evaluation.json."""
    content = summary.summarize(
        base.greedy,
        tuned.greedy if tuned else None,
        base_sampled=base.sampled,
        tuned_sampled=tuned.sampled if tuned else None,
        general_before=base.general,
        general_after=tuned.general if tuned else None,
        canaries=canaries["canaries"],
        train=train,
        extra={key: value for key, value in canaries.items() if key != "canaries"},
    )
    summary.write(run.root, content)
    return content


def _percent(scores: Scores) -> str:
    return f"{100 * scores.success:.1f} %"
