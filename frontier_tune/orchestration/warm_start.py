"""The supervised stages of a recipe before its reinforcement learning: their data checked, trained on, resumed, evaluated.

A stage trains in an actor of its own, before the run's crew starts: no second copy of the base lies beside theirs. What it
leaves is a directory ``warm_start/<stage>`` with an adapter and stage.json; one that is there and verifies is not trained again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, content_hash
from frontier_tune.orchestration.accepted import require_made_for
from frontier_tune.orchestration.preflight import Ready
from frontier_tune.orchestration.run_dir import RunDir, write_whole
from frontier_tune.recipe import Recipe

Note = Callable[[str], None]
Row = tuple[list[int], ...]  # sft: tokens, mask; dpo: context, preferred turn, other turn
DIRECTORY, SUMMARY = "warm_start", "warm_start.json"
VERSIONS = 2_000_000_000  # evaluated stages take policy versions out of the way of the run's and of canaries


@dataclass(frozen=True)
class Stage:
    """``about`` goes into stage.json and the run's record: source and digest, rows by origin, digest of the token rows."""

    name: str
    rows: list[Row]
    about: dict[str, Any]

    def directory(self, run: RunDir) -> Path:
        return run.root / DIRECTORY / self.name


def prepare(ready: Ready) -> list[Stage]:
    """The recipe's stages with their data as token ids, in order; none by default.

    Raises BadInput: no such file, rows of another environment or company, of a third party's model that is not allowed, of a
    held-out task, or longer than a rollout could be.
    """
    from frontier_tune.orchestration.preflight import environment, make_renderer
    from frontier_tune.traces import store, tokens
    from frontier_tune.traces.replay import Workbench

    warm = ready.recipe.warm_start
    asked: list[tuple[str, str, str, Any, str]] = []
    if warm.sft:
        asked.append(("sft", "warm_start.sft.traces", warm.sft.traces, store.read_demonstrations, store.DEMONSTRATIONS))
    if warm.dpo:
        asked.append(("dpo", "warm_start.dpo.pairs", warm.dpo.pairs, store.read_pairs, store.PAIRS))
    if not asked:
        return []
    stages = []
    with environment(ready.recipe.environment.path, ready.root, ready.options) as pool:
        bench = Workbench(pool)
        held_out = bench.held_out(ready.heldout)
        renderer = make_renderer(ready.base, pool.description["schemas"])
        for name, key, path, read, file in asked:
            source = store.file_of(ready.root / path, file)
            rows = read(source)
            if not rows:
                raise BadInput(f"{key}: {source} has no rows; without a review a trace is no example")
            manifest = store.manifest_of(source)
            require_made_for(ready.recipe, ready.options, key, source, manifest)
            tokens.require_allowed(rows, warm.allow_model_output, f"{key}: {source}")
            for row in rows:
                if leak := held_out.leak(row.made.task, row.opening):
                    raise BadInput(f"{key}: {source}: '{row.id}': {leak}; what is held out must not train")
            if name == "sft":
                made = [tokens.demonstration(r, renderer, bench.signatures) for r in rows]
                found: list[Row] = [(t.tokens, [int(m) for m in t.mask]) for t in made]
            else:
                found = [tokens.pair(r, renderer, bench.signatures) for r in rows]
            for row, ids in zip(rows, found, strict=True):
                _within_limits(ready.recipe, f"{key}: '{row.id}'", name, ids, len(row.turns) + (name == "dpo"))
            stages.append(Stage(name, found, _about(ready, source, rows, found, manifest)))
    return stages


def _within_limits(recipe: Recipe, where: str, name: str, ids: Row, turns: int) -> None:
    env, longest = recipe.environment, recipe.sampler.max_model_len
    length = len(ids[0]) if name == "sft" else len(ids[0]) + max(len(ids[1]), len(ids[2]))
    if length > longest:
        raise BadInput(f"{where}: {length} tokens, but no rollout gets longer than sampler.max_model_len, {longest}; take it out")
    if turns > env.turns:
        raise BadInput(f"{where}: {turns} turns, but environment.max_turns is {env.turns}; raise it or take the row out")
    said = _longest_turn(ids[1]) if name == "sft" else len(ids[1])
    if said > env.max_tokens_per_turn:
        raise BadInput(
            f"{where}: a turn of {said} tokens, but environment.max_tokens_per_turn is {env.max_tokens_per_turn}; raise it or "
            "take the row out"
        )


def _longest_turn(mask: Sequence[int]) -> int:
    longest = here = 0
    for said in mask:
        here = here + 1 if said else 0
        longest = max(longest, here)
    return longest


def _about(
    ready: Ready, source: Path, rows: Sequence[Any], ids: Sequence[Row], manifest: Mapping[str, Any] | None
) -> dict[str, Any]:
    from frontier_tune.governance.digests import file_digest
    from frontier_tune.traces.rows import origins

    near = source.is_relative_to(ready.root)
    return {
        "source": str(source.relative_to(ready.root) if near else source),
        "source_sha256": file_digest(source),
        "rows_sha256": content_hash([list(map(list, row)) for row in ids]),
        "made_for": {key: manifest[key] for key in ("environment", "options")} if manifest else None,
        "origins": list(origins(rows)),
        "allow_model_output": list(ready.recipe.warm_start.allow_model_output),
    }


def describe(stages: Sequence[Stage]) -> str:
    """The stages for people, as lines of a plan."""
    kinds = {"sft": "demonstrations", "dpo": "preference pairs"}
    return "\n".join(
        f"warm start {s.name}: {len(s.rows)} {kinds[s.name]} of {s.about['source']}, made by "
        + ", ".join(f"{o['kind']} '{o['name']}' ({o['license']})" for o in s.about["origins"])
        + ("" if s.about["made_for"] else "; for which environment and company is not known: no manifest.json beside it")
        for s in stages
    )


def run(ready: Ready, run: RunDir, note: Note) -> Path | None:
    """Train what isn't there yet; the directory of the last stage's adapter, from which the run starts. None without stages.

    A run that has a checkpoint is past its stages, and needs their data no more. Raises BadInput, WarmStartFailed, Stopped.
    """
    warm = ready.recipe.warm_start
    names = [name for name, stage in (("sft", warm.sft), ("dpo", warm.dpo)) if stage]
    if not names or any(run.checkpoints.glob("step-*")):
        return run.root / DIRECTORY / names[-1] if names else None
    from frontier_tune.learning.warm_start import finished

    stages = prepare(ready)
    note(describe(stages))
    start: Path | None = None
    missing: list[Stage] = []
    for stage in stages:
        found = finished(stage.directory(run), ready.config)
        about = {k: v for k, v in stage.about.items() if found and k in found}  # earlier versions wrote less
        if missing or found is None or {k: found[k] for k in about} != about:
            missing.append(stage)
            for evaluation in (run.root / "evaluation").glob(f"{stage.name}-*"):  # of what an earlier one left
                evaluation.unlink()
    if missing:
        _remove_unfinished(run)
        start = stages[stages.index(missing[0]) - 1].directory(run) if missing[0] is not stages[0] else None
        _train(ready, run, missing, start, note)
    write_metrics(run, stages)
    return stages[-1].directory(run)


def _train(ready: Ready, run: RunDir, stages: Sequence[Stage], start: Path | None, note: Note) -> None:
    from frontier_tune.orchestration import actors
    from frontier_tune.orchestration.cluster import local_ray
    from frontier_tune.orchestration.events import Events
    from frontier_tune.orchestration.handle import Handle
    from frontier_tune.orchestration.stop import Stopped, StopRequest
    from frontier_tune.orchestration.supervise import Supervisor

    threads = {"OMP_NUM_THREADS": str(ready.recipe.learner.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    threads["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]  # trl takes one GPU a process
    with StopRequest() as stop, local_ray():
        stop.install()
        handle = Handle(None, str(run.engine_log), "warm start")
        supervisor = Supervisor(ready.recipe.reliability, Events(run.events), note, stop.check)

        def train(*sent: Any) -> dict[str, Any]:
            if handle.actor is None:
                hired = actors.remote(WarmStartActor, threads, 1)
                handle.put(hired.remote(str(ready.base), ready.recipe, str(run.engine_log)))
                handle.meet(handle.started())
            found: dict[str, Any] = handle.wait(handle.submit("train", *sent), stop.check)
            return found

        def clear(_: object) -> None:
            handle.kill()
            handle.put(None)
            _remove_unfinished(run)

        try:
            for stage in stages:
                out = stage.directory(run)
                sent = (stage.name, stage.rows, str(out), str(start) if start else None, stage.about)
                found = supervisor.run(lambda _, sent=sent: train(*sent), clear)  # type: ignore[misc]
                first, last = found["history"][0]["loss"], found["history"][-1]["loss"]
                note(f"{stage.name}: loss {first:.3f} to {last:.3f} in {found['updates']} updates, {found['seconds']:.0f} s")
                start = out
        except Stopped as e:
            raise Stopped(e.exit_code - 128, f"stopped; finished stages are saved in {run.root / DIRECTORY}") from None
        finally:
            handle.kill()


def _remove_unfinished(run: RunDir) -> None:
    """What is left of a stage that was killed: the record would list it."""
    for left in (run.root / DIRECTORY).glob(".*"):
        shutil.rmtree(left)


class WarmStartActor:
    """Trains stages in a process that ends with them."""

    def __init__(self, base_dir: str, recipe: Recipe, log: str | None) -> None:
        from frontier_tune.orchestration.actors import _open_log

        _open_log(log)
        self._base, self._recipe = base_dir, recipe

    def train(self, name: str, rows: Sequence[Row], out: str, start: str | None, about: dict[str, Any]) -> dict[str, Any]:
        from frontier_tune.learning import warm_start

        warm = self._recipe.warm_start
        if name == "sft":
            data: Any = [warm_start.Demonstration(tokens, [bool(m) for m in mask]) for tokens, mask in rows]
        else:
            data = [warm_start.Pair(*row) for row in rows]
        stage = warm.sft if name == "sft" else warm.dpo
        assert stage is not None
        return warm_start.train(self._base, self._recipe, stage, data, out, start, about)


def write_metrics(run: RunDir, stages: Sequence[Stage]) -> None:
    """Rows of the stages at the head of metrics.jsonl (``stage``, ``update``; step 0), and warm_start.json."""
    found = [json.loads((s.directory(run) / "stage.json").read_text()) for s in stages]
    rows = [{"stage": f["stage"], "step": 0, **row} for f in found for row in f["history"]]
    before = run.metrics.read_text(encoding="utf-8").split("\n") if run.metrics.is_file() else []
    kept = [line for line in before if line and '"stage"' not in line]
    write_whole(run.metrics, "".join(f"{line}\n" for line in [*map(json.dumps, rows), *kept]))
    summary = [{k: v for k, v in f.items() if k not in ("history", "digests", "base")} for f in found]
    for entry, f in zip(summary, found, strict=True):
        entry["loss"] = [f["history"][0]["loss"], f["history"][-1]["loss"]]
    write_whole(run.root / SUMMARY, json.dumps({"stages": summary}, indent=1) + "\n")


def evaluate(ready: Ready, run: RunDir, crew: Any, scores: Any, reuse: bool, tries: int = 0) -> None:
    """Held-out success after each stage, where the recipe asks for it: into warm_start.json and evaluation/<stage>-*.jsonl.

    ``tries``: how often it was begun; a policy version is never made twice in one sampler.
    """
    path = run.root / SUMMARY
    if not ready.recipe.warm_start.evaluate or not path.is_file():
        return
    summary = json.loads(path.read_text())
    for i, entry in enumerate(summary["stages"]):
        crew.sampler.sync(str(run.root / DIRECTORY / entry["stage"]), VERSIONS + 10 * tries + i)
        side = scores.side(entry["stage"], reuse or tries > 0)
        entry["evaluation"] = {
            "success": side.greedy.success,
            "ci95": list(side.greedy.ci95),
            "n": side.greedy.n,
            "success_sampled": side.sampled.success,
            "general": side.general.success if side.general else None,
        }
    write_whole(path, json.dumps(summary, indent=1) + "\n")


def sources(run: RunDir) -> list[dict[str, Any]]:
    """What the stages learned from, as the run's record lists it: every origin with its licence."""
    found = []
    for path in sorted((run.root / DIRECTORY).glob("*/stage.json")):
        s = json.loads(path.read_text())
        notes = {k: s[k] for k in ("origins", "allow_model_output", "examples", "rows_sha256")}
        notes["made_for"] = s.get("made_for")  # earlier versions did not keep it
        entry = {"name": f"warm start {s['stage']}", "uri": s["source"], "digest": {"sha256": s["source_sha256"]}}
        found.append({**entry, "annotations": notes})
    return found
