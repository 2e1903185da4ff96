"""status.json, written by the run as it goes on, and ``frontier-tune status``, which reads it: live or dead, and how far."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from frontier_tune import recipe as recipes
from frontier_tune.orchestration import audit, events, limits
from frontier_tune.orchestration.run_dir import write_whole
from frontier_tune.recipe import Recipe

if TYPE_CHECKING:
    from frontier_tune.orchestration.checkpoint import LoopState
    from frontier_tune.orchestration.run_dir import RunDir

FILE = "status.json"
_SELDOM_S = 0.5  # phases follow each other faster than anybody looks
_STEPS = 10  # of the newest steps, whose median tells how long the next ones take


class Status:
    """The writer. Without a path it writes nothing."""

    def __init__(self, path: Path | None = None, recipe: Recipe | None = None) -> None:
        self.path, self.recipe = path, recipe
        self.restarts = 0
        self._now: dict[str, Any] = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        self._written = 0.0

    def phase(self, name: str, state: LoopState | None = None) -> None:
        """The run does ``name`` from now on; ``state``: where it stands."""
        self._now |= {"phase": name, "since": time.time(), "episodes": {}}
        if state is not None and self.recipe is not None:
            self._now |= {
                "step": state.step,
                "version": state.version,
                "tokens_sampled": state.tokens_sampled,
                "seconds": state.seconds,
                "cost": limits.cost(self.recipe, state.tokens_sampled, state.seconds),
                "success": sum(state.recent_success) / len(state.recent_success) if state.recent_success else None,
                "retried": state.retried,
                "masked": state.masked,
                "dropped_groups": state.dropped,
            }
        self._write()

    def beat(self, progress: Mapping[str, Any]) -> None:
        """What the episodes' actor says of itself, see EpisodeActor.progress."""
        self._now["episodes"] = {"done": progress["episodes"], "slowest": progress["slowest"]}
        self._write()

    def _write(self) -> None:
        now = time.time()
        if self.path is None or now - self._written < _SELDOM_S and self._now.get("phase") in ("sync", "parity"):
            return
        self._written = now
        write_whole(self.path, json.dumps(self._now | {"time": now}))


def gather(run: RunDir) -> dict[str, Any]:
    """All that the run's directory tells, as JSON. ``state``: live, finished, stopped (by request or a limit) or dead."""
    from frontier_tune.reporting import metrics

    recipe = recipes.load(run.recipe_file)
    path = run.root / FILE
    live = json.loads(path.read_text()) if path.is_file() else {}
    rows = metrics.read(run.metrics) if run.metrics.is_file() else []
    stages = metrics.stages(run.metrics) if run.metrics.is_file() else {}
    happened = events.read(run.root / events.FILE)
    owner = run.owner()
    last = rows[-1] if rows else {}
    step, each = int(last.get("step", 0)), [float(r["seconds"]) for r in rows[-_STEPS:] if r.get("seconds")]
    found: dict[str, Any] = {
        "run": str(run.root),
        "state": _state(owner, happened, run.evaluation.is_file()),
        "pid": owner,
        "phase": live.get("phase") if owner else None,
        "phase_seconds": max(0.0, time.time() - live["since"]) if owner and "since" in live else None,
        "step": step,
        "steps": recipe.run.steps,
        "success": last.get("success"),
        "warm_start": [_stage(name, made) for name, made in stages.items()],
        "tokens_sampled": live.get("tokens_sampled", sum(map(metrics.tokens, rows))),
        "seconds": live.get("seconds", sum(float(r.get("seconds") or 0) for r in rows)),
        "restarts": sum(e["event"] == "died" for e in happened),
        "retried": sum(int(r.get("retried") or 0) for r in rows),
        "dropped_groups": int(last.get("dropped_groups") or 0),
        "overlap": last.get("overlap"),
        "episodes": live.get("episodes") if owner else None,
        "eta_seconds": median(each) * (recipe.run.steps - step) if each else None,
        "events": happened[-5:],
    }
    found["cost"] = limits.cost(recipe, found["tokens_sampled"], found["seconds"])
    found["currency"] = recipe.run.rates.currency
    if run.ledger.is_file():
        done = audit.audit(run.ledger, audit.planned_groups(recipe, step))
        found["ledger"] = asdict(done) | {"open": len(done.open), "text": str(done)}
    return found


def _stage(name: str, made: list[dict[str, Any]]) -> dict[str, Any]:
    """A supervised stage before the first step: its last update that was logged, and the loss from the first to there."""
    return {"stage": name, "updates": made[-1]["update"], "loss": [made[0]["loss"], made[-1]["loss"]]}


def _state(owner: int | None, happened: list[dict[str, Any]], evaluated: bool) -> str:
    if owner is not None:
        return "live"
    ends = [e["event"] for e in happened if e["event"] in ("started", "resumed", "stopped", "limit", "finished", "failed")]
    if evaluated and (not ends or ends[-1] == "finished"):
        return "finished"
    return {"stopped": "stopped", "limit": "stopped", "failed": "failed"}.get(ends[-1] if ends else "", "dead")


def describe(found: Mapping[str, Any]) -> str:
    """``gather``'s findings for people."""
    from frontier_tune.reporting.display import duration

    process = f" (process {found['pid']})" if found["pid"] else ""
    phase = f", {found['phase']} for {duration(found['phase_seconds'] or 0)}" if found["phase"] else ""
    success = f", success {100 * found['success']:.1f} %" if found["success"] is not None else ""
    lines = [
        f"run        {found['run']}",
        f"state      {found['state']}{process}{phase}",
        f"progress   step {found['step']} of {found['steps']}{success}"
        + (f", {duration(found['eta_seconds'])} to go" if found["eta_seconds"] and found["state"] == "live" else ""),
        *(
            f"warm start {s['stage']}, {s['updates']} updates, loss {s['loss'][0]:.3f} to {s['loss'][1]:.3f}"
            for s in found["warm_start"]
        ),
        f"spent      {found['tokens_sampled']:,} tokens sampled, {duration(found['seconds'])} of training"
        + (f", {found['cost']:.2f} {found['currency']}" if found["cost"] else ""),
        f"failures   {found['restarts']} processes died, {found['retried']} episodes played again, "
        f"{found['dropped_groups']} groups lost",
    ]
    if found["overlap"]:
        lines.append("overlap    " + ", ".join(f"{k} {_short(v)}" for k, v in found["overlap"].items()))
    for episode in (found["episodes"] or {}).get("slowest", []):
        at = f"{episode['turns']} turns, in the {episode['where']}"
        lines.append(f"slow       task {episode['task']}: {duration(episode['seconds'])}, {at}")
    if "ledger" in found:
        lines.append(f"ledger     {found['ledger']['text']}")
    if found["state"] not in ("live", "finished"):
        lines.append(f"next       frontier-tune tune --resume {found['run']}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
