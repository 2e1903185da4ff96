"""Many kills over one run, in pieces: a piece may be minutes long, the next one goes on with the same run and the same count.

``Roles`` kills processes of the crew, ``Whole`` the run itself. Both go on until the wanted number is reached, then bring the run
to its end and hold it against one that nobody disturbed. ``tally.json`` in the work directory has all that was counted.
"""

from __future__ import annotations

import abc
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontier_tune import recipe as recipes
from frontier_tune.orchestration.audit import audit, planned_groups
from frontier_tune.orchestration.checkpoint import problem
from frontier_tune.reporting import metrics
from tests.faults import standin
from tests.faults.conftest import ROOT
from tests.faults.driver import ready_of
from tests.faults.processes import ROLES, Run, in_memory, left_in_memory

MANY = 1_000_000  # steps, and restarts: no run ends by itself before the count is reached
TAIL = 3  # steps that are left to do in peace
STOP_S, END_S = 600.0, 900.0  # seconds that a stop, and the rest of a run, may take on a busy machine


@dataclass
class Tally:
    """``kills`` by role, ``phases``: what the run was doing when it was struck. ``left``: whatever outlived its run."""

    kills: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    in_checkpoint: int = 0  # kills of a run that left a checkpoint half written
    left: list[str] = field(default_factory=list)
    pieces: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Tally:
        if not path.is_file():
            return cls()
        found = json.loads(path.read_text())
        return cls(**found | {"kills": Counter(found["kills"]), "phases": Counter(found["phases"])})


def against_undisturbed(root: Path, home: Path, recipe: recipes.Recipe) -> dict[str, Any]:
    """The finished run at ``home``: its audit, and its bytes against those of the same run with nothing happening."""
    found = audit(home / "ledger.jsonl", planned_groups(recipe, recipe.run.steps))
    adapter, ledger = standin.undisturbed(recipe, root, root / "undisturbed", ready_of(root, recipe).train)
    rows = [json.loads(line)["step"] for line in (home / "metrics.jsonl").read_text().splitlines()]
    return {
        "groups": {"planned": found.groups, "trained": found.trained, "dropped": found.dropped, "again": found.again},
        "exactly_once": found.complete and found.trained + sum(found.dropped.values()) == found.groups,
        "audit": str(found),
        "every_step_once": rows == list(range(1, recipe.run.steps + 1)),
        "checkpoints_verify": not [p for p in (home / "checkpoints").iterdir() if problem(p)],
        "adapter_equal": standin.read(home / "adapter") == adapter,
        "ledger_equal": (home / "ledger.jsonl").read_bytes() == ledger,
    }


class Campaign(abc.ABC):
    """``wanted`` kills over the run at ``work``/run of the stand-in crew; ``sections`` of its recipe, ``slow`` the driver's."""

    def __init__(self, work: Path, wanted: int, sections: dict[str, Any], slow: dict[str, float], seed: int = 0) -> None:
        self.work, self.wanted, self.slow, self.seed = work, wanted, slow, seed
        self.home = work / "run"
        self.sections = {"reliability": {"restarts": MANY, "stall_timeout_s": 60, "call_timeout_s": 120}} | sections
        if not (work / "envs").is_dir():
            shutil.copytree(ROOT / "tests" / "toy_env" / "envs", work / "envs", ignore=shutil.ignore_patterns("__pycache__"))
        self.tally = Tally.read(work / "tally.json")

    @property
    def reached(self) -> bool:
        return sum(self.tally.kills.values()) >= self.wanted

    def piece(self, seconds: float, commit: str = "") -> None:
        """Kill for so long, or until the number is reached. Raises AssertionError where the run does what it must not."""
        began, before = time.monotonic(), sum(self.tally.kills.values())
        shared = in_memory()
        self._recipe(MANY)
        end = began + seconds
        try:
            self._kill(lambda: self.reached or time.monotonic() > end)
        finally:
            self.tally.left += left_in_memory(shared)
            done = {"kills": sum(self.tally.kills.values()) - before, "seconds": round(time.monotonic() - began, 1)}
            self.tally.pieces.append(done | {"commit": commit})
            self.save()

    @abc.abstractmethod
    def _kill(self, over: Callable[[], bool]) -> None:
        """Kill on until ``over``, noting each."""

    def finish(self) -> dict[str, Any]:
        """The rest of the run in peace, and what the audit and the comparison with an undisturbed run found."""
        recipe = self._recipe(self.steps + TAIL)
        run = self._start({})
        assert run.wait(END_S) == 0, run.said[-3000:]
        self._leave(run)
        # A file of another program on the machine that was about to remove it looked like one that was left.
        self.tally.left = [what for what in self.tally.left if not what.startswith("/dev/shm/") or Path(what).exists()]
        happened = (self.home / "events.jsonl").read_text()
        self.save()
        return {
            "kills": dict(sorted(self.tally.kills.items())),
            "phases": dict(sorted(self.tally.phases.items())),
            "in_checkpoint": self.tally.in_checkpoint,
            "left": self.tally.left,
            "pieces": self.tally.pieces,
            "steps": recipe.run.steps,
            **against_undisturbed(self.work, self.home, recipe),
            "replaced": happened.count('"event": "died"'),
            "resumed": happened.count('"event": "resumed"'),
        }

    @property
    def steps(self) -> int:
        """Steps that the run has done."""
        path = self.home / metrics.FILE
        rows = metrics.read(path) if path.is_file() else []
        return int(rows[-1]["step"]) if rows else 0

    def save(self) -> None:
        # ``asdict`` of Python 3.11 would count a Counter's items instead of copying it.
        plain = vars(self.tally) | {"kills": dict(self.tally.kills), "phases": dict(self.tally.phases)}
        (self.work / "tally.json").write_text(json.dumps(plain, indent=1))

    def _recipe(self, steps: int) -> recipes.Recipe:
        run = {"steps": steps, "directory": str(self.home)} | self.sections.get("run", {})
        return standin.recipe_of(self.work, **self.sections | {"run": run})

    def _start(self, slow: dict[str, float] | None = None) -> Run:
        return Run(self.work, self.home, self.slow if slow is None else slow)

    def _leave(self, run: Run) -> None:
        """Note what a run that is over has left behind."""
        self.tally.left += run.orphans(180) + ([] if run.killed else run.scratch)

    def _note(self, role: str, phase: str) -> None:
        self.tally.kills[role] += 1
        self.tally.phases[phase] += 1


class Roles(Campaign):
    """SIGKILL to samplers, episodes, learners and environments at random moments: one as soon as it is there, then ``pause``
    seconds apart at most, half of them while others are still being replaced, the others after one more step."""

    pause = 4.0

    def _kill(self, over: Callable[[], bool]) -> None:
        draw = random.Random(f"{self.seed}-{sum(self.tally.kills.values())}")
        run = self._start()
        first = draw.choice(("sampler", "episodes", "learner"))
        run.until(lambda: run.strike(first))
        self._note(first, "starting")
        run.said_that("reward")
        while not over():
            assert run.running, run.said[-3000:]
            if draw.random() < 0.5:
                run.says_more("reward")
            run.watch(draw.uniform(0, self.pause))
            role, phase = draw.choice(list(ROLES)), run.phase(self.home)
            if run.strike(role):
                self._note(role, phase)
                self.save()
        run.process.send_signal(signal.SIGTERM)
        code = run.wait(STOP_S)
        assert code == 128 + signal.SIGTERM, f"exit code {code}: {run.said[-3000:]}"
        self._leave(run)


class Whole(Campaign):
    """SIGKILL to the run's own process: up to ``most`` seconds after a step, one in five while it starts."""

    most = 3.0
    starting = (2.0, 9.0)  # seconds after its start that such a kill comes

    def _kill(self, over: Callable[[], bool]) -> None:
        draw = random.Random(f"{self.seed}-{sum(self.tally.kills.values())}")
        struck: list[Run] = []
        while not over():
            run = self._start()
            if self.tally.kills and draw.random() < 0.2:
                run.watch(draw.uniform(*self.starting))
            else:
                run.said_that("reward")
                run.watch(draw.uniform(0, self.most))
            run.look()
            phase = run.phase(self.home)
            run.kill()
            self._note("run", phase)
            self.tally.in_checkpoint += any((self.home / "checkpoints").glob(".writing-*"))
            struck.append(run)
            self.save()
        for run in struck:  # at the end: Ray's helpers take a while to see that nobody is left
            self._leave(run)
