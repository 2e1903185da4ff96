"""The run directory: one place that explains a run, owned by one process at a time.

recipe.yaml      the resolved recipe            evaluation.json  base and tuned on the same held-out tasks
metrics.jsonl    one row a step                 record.json      digests of everything that went in
ledger.jsonl     every group, chained           events.jsonl     starts, stops, deaths, restarts
rollouts/        readable episodes              report.html      curves, before and after
checkpoints/     the newest two                 adapter/         the result, in PEFT's format
sync/v000012/    policies in flight             model/           the result where all weights learned
                                                engine.log       what the engines had to say
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, Trajectory
from frontier_tune.recipe import Recipe

KEEP_ADAPTER_VERSIONS = 3  # an evicted adapter is read again from its path until the last request of its version ends


class RunDir:
    """Paths of one run, and the lock that makes it ours. Use as a context manager, or call ``unlock``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None

    metrics = property(lambda self: self.root / "metrics.jsonl")
    recipe_file = property(lambda self: self.root / "recipe.yaml")
    checkpoints = property(lambda self: self.root / "checkpoints")
    adapter = property(lambda self: self.root / "adapter")
    model = property(lambda self: self.root / "model")
    evaluation = property(lambda self: self.root / "evaluation.json")
    record = property(lambda self: self.root / "record.json")
    report = property(lambda self: self.root / "report.html")
    engine_log = property(lambda self: self.root / "engine.log")
    ledger = property(lambda self: self.root / "ledger.jsonl")
    events = property(lambda self: self.root / "events.jsonl")
    status = property(lambda self: self.root / "status.json")

    def adapter_version(self, version: int) -> Path:
        return self.root / "sync" / f"v{version:06d}"

    def canary(self, version: int) -> Path:
        """Where the parity gate's canary of ``version`` goes."""
        return self.root / "sync" / f"canary-v{version:06d}"

    def result(self, recipe: Recipe) -> Path:
        """Where what the run ends with goes: an adapter, or a model all of whose weights learned."""
        found: Path = self.model if recipes.full.whole(recipe) else self.adapter
        return found

    def prune_versions(self, kept: int = KEEP_ADAPTER_VERSIONS) -> None:
        """Drop adapter versions that no request can hold any more, all but the last ``kept``."""
        for kind in ("v*", "canary-v*"):
            for old in sorted((self.root / "sync").glob(kind))[:-kept]:
                shutil.rmtree(old)

    # -- the lock ---------------------------------------------------------------------------------

    def lock(self) -> RunDir:
        """Own the directory until ``unlock`` or the end of the process, however it ends.

        The kernel's flock decides, so a lock file left by a killed run counts for nothing. Raises BadInput with the
        owner's pid where another process holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise BadInput(
                f"{self.root}: in use by another run (process {owner}); wait for it, stop it, or name another run.directory"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        self._lock = handle
        return self

    def unlock(self) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def owner(self) -> int | None:
        """The process that holds the lock now (0: unknown), or None."""
        if not (self.root / "lock").is_file():
            return None
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a shared lock: two who ask don't see each other
        except OSError:
            found = os.read(handle, 200).split()
            return int(found[0]) if found else 0  # taken this very moment, and not signed yet
        else:
            return None
        finally:
            os.close(handle)

    def __enter__(self) -> RunDir:
        return self if self._lock is not None else self.lock()

    def __exit__(self, *exc: object) -> None:
        self.unlock()

    # -- what is written during a run -------------------------------------------------------------

    def write_recipe(self, recipe: Recipe) -> None:
        write_whole(self.recipe_file, recipes.dump(recipe))  # a resumed run writes it again: it must never be found cut

    def write_rollouts(self, name: str, trajectories: list[Trajectory]) -> Path:
        path = self.root / "rollouts" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = "".join(json.dumps(t.to_json(), ensure_ascii=False) + "\n" for t in trajectories)
        path.write_text(rows, encoding="utf-8")
        return path

    def rewind(self, step: int) -> None:
        """Forget metrics and rollouts of the steps after ``step``, the checkpoint's: a resumed run writes them again."""
        if self.metrics.is_file():
            rows = [line for line in self.metrics.read_text(encoding="utf-8").split("\n") if line.strip()]
            kept = [line for line in rows if _step_of(line) <= step]
            write_whole(self.metrics, "".join(line + "\n" for line in kept))
        for path in (self.root / "rollouts").glob("step-*.jsonl"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    def point_latest(self, root: Path) -> None:
        """``<root>/runs/latest`` points at this run, wherever it lies; the swap is atomic.

        Raises BadInput where something that is no link has that name.
        """
        runs = root / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        link, temporary = runs / "latest", runs / f".latest-{os.getpid()}"
        if link.exists() and not link.is_symlink():
            raise BadInput(f"{link}: is no link; move it away, 'latest' is the name by which the newest run is found")
        temporary.unlink(missing_ok=True)
        for left in runs.glob(".latest-*"):  # of a process that was killed just here
            if not Path("/proc", left.name.removeprefix(".latest-")).exists():
                left.unlink(missing_ok=True)
        inside = self.root.resolve().parent == runs.resolve()
        temporary.symlink_to(self.root.name if inside else self.root.resolve())
        os.replace(temporary, link)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, whenever the process is killed."""
    aside = path.with_name(path.name + ".writing")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line).get("step", -1))
    except json.JSONDecodeError:
        return 1 << 62  # the torn last line of a killed run


def create(root: Path, recipe: Recipe, name: str) -> RunDir:
    """A new, locked run directory: ``run.directory``, or ``<root>/runs/<name>-<date>-<n>``. Raises BadInput if it holds a run."""
    if recipe.run.directory:
        run = RunDir(Path(recipe.run.directory).absolute()).lock()
        if run.recipe_file.exists():
            run.unlock()
            raise BadInput(f"{run.root}: holds a run already; continue it with --resume, or name another run.directory")
        return run
    runs = root / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{time.strftime('%Y-%m-%d')}"
    for n in range(1, 10_000):
        path = runs / f"{stem}-{n}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return RunDir(path).lock()
    raise BadInput(f"{runs}: ten thousand runs named {stem}; clear some of them")


def find(root: Path, which: str) -> RunDir:
    """An existing run: a directory, a name under ``<root>/runs``, or ``latest``. Raises BadInput naming the runs there are."""
    for path in (Path(which), root / "runs" / which):
        if (path / "recipe.yaml").is_file():
            return RunDir(path.resolve())
    runs = sorted(p.parent.name for p in (root / "runs").glob("*/recipe.yaml"))
    have = f"; there are: {', '.join(dict.fromkeys(runs))}" if runs else f"; {root / 'runs'} holds none yet"
    raise BadInput(f"{which}: no run there (a run directory holds recipe.yaml){have}")
