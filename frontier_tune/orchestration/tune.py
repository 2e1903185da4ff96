"""A whole run: checks, evaluation of the base, training, evaluation of the result, record and report."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput, FrontierTuneError, LimitReached
from frontier_tune.orchestration import checkpoint, inputs, joined, measure, run_dir, warm_start
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.orchestration.events import Events, began
from frontier_tune.orchestration.groups import GroupPlan, derive_seed
from frontier_tune.orchestration.measure import Measure, Side
from frontier_tune.orchestration.preflight import Ready
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.orchestration.status import Status
from frontier_tune.orchestration.stop import Stopped, StopRequest
from frontier_tune.recipe import full

if TYPE_CHECKING:
    from frontier_tune.orchestration.supervise import Supervisor

Note = Callable[[str], None]
PROVENANCE = "frontier_tune.json"  # beside the adapter: which base it belongs to


def tune(ready: Ready, run: RunDir, note: Note, resume: bool = False) -> dict[str, Any]:
    """Train ``ready`` in the locked ``run``. Returns the content of evaluation.json.

    Raises Stopped and LimitReached with the run saved, GateFailed where the parity gate refuses to go on, BadInput where a
    checkpoint doesn't fit the recipe.
    """
    from frontier_tune.orchestration import recover
    from frontier_tune.orchestration.supervise import Supervisor

    events, status = Events(run.events), Status(run.status, ready.recipe)
    started = began(run.events) or time.time()
    if not resume:
        run.write_recipe(ready.recipe)
    run.point_latest(ready.root)
    start = warm_start.run(ready, run, note)
    stop = StopRequest()
    supervisor = Supervisor(ready.recipe.reliability, events, note, stop.check)
    with stop, crew_of(ready, run, note, supervisor=supervisor, stop=stop) as crew:
        state, at = recover.where(ready, run, note) if resume else (LoopState(), None)
        inputs.goes_on(ready, run, note)
        run.write_recipe(ready.recipe)  # of a resumed run not before its checkpoint was found to be of this recipe
        scores = Measure(ready, run, crew, stop.check, note)
        events.log("resumed" if resume else "started", step=state.step, pid=os.getpid())
        crew.episodes.on_beat = status.beat

        def replace_dead(error: Any, policy: tuple[str, int] | None = None) -> None:
            inputs.require_same(ready, run)
            recover.replace(error, crew, policy)

        def go_back(error: Any) -> None:
            nonlocal state, at
            status.restarts += 1
            status.phase("restarting")
            inputs.require_same(ready, run)
            state, at = recover.go_back(error, ready, run, crew, note)
            events.log("restarted", step=state.step)

        try:
            status.phase("evaluating the base")
            base, canaries = supervisor.run(
                lambda tries: _before(scores, ready, run, note, reuse=resume or tries > 0),
                replace_dead,
            )
            if start is not None:
                supervisor.run(
                    lambda tries: warm_start.evaluate(ready, run, crew, scores, resume, tries),
                    replace_dead,
                )
            state = supervisor.run(lambda _: _train(ready, run, crew, state, at, start, scores, stop, note, status), go_back)
            note(f"evaluating the tuned model: {len(ready.heldout)} held-out tasks")
            status.phase("evaluating the tuned model", state)
            policy = str(run.result(ready.recipe)), state.version
            tuned = supervisor.run(lambda tries: scores.side("tuned", reuse=tries > 0), lambda error: replace_dead(error, policy))
        except Stopped as e:
            with suppress(OSError):  # a full disk takes no word of how it ended; that is said all the same
                events.log("stopped", code=e.exit_code)
            raise Stopped(e.exit_code - 128, f"stopped; what is done is saved in {run.root}") from None
        except FrontierTuneError as e:
            with suppress(OSError):
                events.log("limit" if isinstance(e, LimitReached) else "failed", message=str(e))
            raise
        except Exception as e:
            if not checkpoint.is_full(e):
                raise
            raise LimitReached(f"{run.root}: the disk is full; free some. The last checkpoint stands") from e
    content = measure.write(run, base, tuned, canaries, _cost(run, state))
    events.log("finished", step=state.step)
    finish(ready, run, started, note)
    return content


def _cost(run: RunDir, state: LoopState) -> dict[str, Any]:
    """What training took. ``updates`` are the optimizer's; a step makes one policy, but may make several of them."""
    from frontier_tune.reporting import metrics

    updates = sum(row.get("updates", 0) for row in metrics.read(run.metrics)) if run.metrics.is_file() else 0
    return {"seconds": state.seconds, "steps": state.step, "tokens_sampled": state.tokens_sampled, "updates": updates}


@contextmanager
def crew_of(
    ready: Ready,
    run: RunDir,
    note: Note,
    learn: bool = True,
    supervisor: Supervisor | None = None,
    stop: StopRequest | None = None,
) -> Iterator[Any]:
    """Ray and the actors, up for the body's duration. A failure of theirs names the run's log.

    ``supervisor``: within whose budget those that die while they start are replaced. ``stop``: takes the signals back from Ray.
    """
    from frontier_tune.orchestration.crew import Crew

    note("starting sampler, learner and environments" if learn else "starting sampler and environments")
    with joined.ray_of(ready.recipe, ready.root, lambda why: _lost(why, run)):
        if stop:
            stop.install()
        crew = Crew.start(ready.base, ready.recipe, ready.root, ready.environments, run.engine_log, learn, supervisor)
        try:
            yield crew
        finally:
            crew.close()


def _lost(why: str, run: RunDir) -> None:
    """Ray is gone: said in one line, from a thread, before the process ends."""
    message = f"{why}; the last checkpoint stands. {resume_hint(run)}"
    with suppress(OSError):
        Events(run.events).log("failed", message=message)
    os.write(2, f"\nfrontier-tune: {message}\n".encode())


def _before(scores: Measure, ready: Ready, run: RunDir, note: Note, reuse: bool) -> tuple[Side, dict[str, Any]]:
    """The base and the canaries. Both depend on nothing that training changes, so a resumed run takes what is there."""
    note(f"evaluating the base: {len(ready.heldout)} held-out tasks, {len(ready.general)} general ones")
    base = scores.side("base", reuse)
    path = run.root / "evaluation" / "canaries.json"
    if not (reuse and path.is_file()):
        found = scores.canaries()
        run_dir.write_whole(path, json.dumps(found, indent=1))
    canaries: dict[str, Any] = json.loads(path.read_text())
    if "canaries" not in canaries:  # as earlier versions wrote them
        canaries = {"canaries": canaries}
    scores.tell(canaries)
    return base, canaries


def _train(
    ready: Ready,
    run: RunDir,
    crew: Any,
    state: LoopState,
    at: Path | None,
    start: Path | None,
    scores: Measure,
    stop: StopRequest,
    note: Note,
    status: Status,
) -> LoopState:
    from frontier_tune.experts import whole
    from frontier_tune.orchestration.loop import Loop
    from frontier_tune.orchestration.overlap_source import ActorStreams, Overlapped, SideBySide, overlaps
    from frontier_tune.orchestration.parity import ParityGate, make_probes
    from frontier_tune.reporting.display import make_display
    from frontier_tune.reporting.metrics import Sinks

    recipe = ready.recipe
    serving = crew.sampler.version()
    if overlaps(recipe):
        crew = replace(crew, sampler=SideBySide(crew.sampler))
    if at is not None:
        crew.learner.load(str(at / "learner"))
    elif start is not None:
        crew.learner.start_from(str(start))
    state.version = max(1, state.version)  # 0 is the base without an adapter
    shutil.rmtree(run.root / "sync", ignore_errors=True)
    probes = make_probes(ready.openings, recipe.parity.probe_sequences, recipe.sampler.max_model_len - 16)
    gate = ParityGate(crew.learner, crew.sampler, probes, recipe.sampler.dtype, recipe.parity.tolerance or state.tolerance)
    adapter = str(run.adapter_version(state.version))
    crew.learner.save_adapter(adapter)
    if serving == state.version:  # another process died, the sampler goes on
        gate.check(state.version)
    else:
        found = gate.start(state.version, adapter, str(run.canary(state.version)))
        note(
            f"parity: learner and sampler differ by {found['gap']:.1e} nats a token, tolerance {found['tolerance']:.1e}; "
            f"the canary moves both by {found['canary_effect']:.2f}"
        )
    state.tolerance = gate.tolerance
    algorithm = recipe.algorithm
    groups, size, heat = algorithm.groups_per_step, algorithm.group_size, recipe.sampler.temperature
    plan = GroupPlan(ready.train, recipe.seed, groups, size, heat)
    again = algorithm.rehearsal_groups
    seed = derive_seed("rehearsal", recipe.seed)
    rehearsal = GroupPlan(ready.rehearsal, seed, again, size, heat, first_group=groups) if again else None
    sinks = Sinks.open(
        run.root, wandb=recipe.tracking.wandb, project=recipe.tracking.project, config=recipe.model_dump(mode="json")
    )
    with make_display(recipe.run.steps) as display:

        def log(row: dict[str, Any]) -> None:
            sinks.log(row)
            display.update(row)

        probe = scores.probe if recipe.run.eval_every else None
        try:
            loop = Loop(recipe, run, crew, plan, rehearsal, gate, state, log, stop, probe, status=status)
            loop.checkpoint_bytes = ready.plan.checkpoint_bytes
            if not overlaps(recipe):
                loop.train()
            else:
                streams = ActorStreams(crew.players)
                loop.overlapped = Overlapped(recipe, streams, plan, rehearsal, state, stop.check, loop.ledger)
                loop.train()
                streams.close()
        finally:
            sinks.close()
    result = run.result(recipe)
    source = json.dumps(provenance(ready), indent=1)
    if full.whole(recipe):
        crew.learner.save_model(str(result))
        whole.add_file(result, PROVENANCE, source)
    else:
        crew.learner.save_adapter(str(result))
        (result / PROVENANCE).write_text(source)
    return state


def provenance(ready: Ready) -> dict[str, Any]:
    """What an adapter belongs to. Where the base lies on this machine is left out: the adapter leaves it."""
    from frontier_tune.experts.families import base_name
    from frontier_tune.governance.digests import tree, tree_digest

    named = ready.recipe.base
    return {
        "base": base_name(named) if Path(named).is_absolute() else named,
        "model_type": ready.config.model_type,
        "base_sha256": tree_digest(tree(ready.base)),
        "environment": ready.recipe.environment.path,
        "company_seed": ready.recipe.company.seed,
    }


def finish(ready: Ready, run: RunDir, started: float, note: Note) -> None:
    """Record, report and learning curve; what only the running run needed goes."""
    from frontier_tune.algorithms import registry
    from frontier_tune.governance import record
    from frontier_tune.reporting import report
    from frontier_tune.sdk.registry import source

    shutil.rmtree(run.root / "sync", ignore_errors=True)
    recipe, root = ready.recipe, ready.root
    pinned = inputs.written(run)
    try:
        late = inputs.changed_since(ready, run)
    except (BadInput, OSError) as e:  # what is done must not lose its record over it
        late = [f"can't be read any more: {e}"]
    if late:
        note(f"inputs     changed while the run went on: {', '.join(late)}; the record lists those it began with, and says so")
    made_of = record.Inputs(
        recipe=recipe.model_dump(mode="json"),
        base=Path(ready.base),
        base_name=recipe.base,
        environment=source(recipe.environment.path, root),
        environment_name=recipe.environment.path,
        seeds={"seed": recipe.seed, "company.seed": recipe.company.seed},
        device=_device(),
        workspace=root,
        rewards=root / "rewards",
        algorithm=registry.source(recipe.algorithm.name, root),
        algorithm_name=recipe.algorithm.name,
        pinned=pinned["files"],
        sources=[*warm_start.sources(run), *pinned.get("sources", [])],
        extra={"inputs": {"changed_at_resumes": pinned["changes"], "changed_by_the_end": late}},
    )
    record.write(run.root, record.build(run.root, made_of, started=started, finished=time.time()))
    report.write(run.root)


def _device() -> dict[str, Any]:
    import os

    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpus": os.cpu_count(), "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "gpus": gpus}


def resume_hint(run: RunDir) -> str:
    return f"continue with: frontier-tune tune --resume {run.root}"


def describe_failure(error: FrontierTuneError, run: RunDir) -> str:
    """The error's message, and how to go on where there is something to go on from."""
    saved = any(run.checkpoints.glob("step-*"))  # a run stopped before its first checkpoint has evaluations to go on from
    return f"{error}\n{resume_hint(run)}" if saved or isinstance(error, Stopped) else str(error)


__all__ = ["crew_of", "describe_failure", "finish", "provenance", "resume_hint", "run_dir", "tune"]
