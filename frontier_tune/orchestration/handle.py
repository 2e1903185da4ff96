"""An actor as if it were here: its calls, its typed errors, its death, and how long it may keep silent."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from frontier_tune.contracts import Blame, FrontierTuneError
from frontier_tune.recipe import Recipe

STACKS = signal.SIGUSR1  # an actor's process answers it by writing the stacks of all its threads to the run's log
_DUMP_S = 1.0  # seconds that writing them may take
# What Ray raises where the process that was to answer is gone, or the node that held its answer.
DEAD = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


class ActorDied(FrontierTuneError):
    """A process of the run ended by itself (out of memory, a crash in native code), or was wedged. The run can be resumed.

    ``role``: whose, as Crew calls it; '' where that isn't known. ``lives``: something in the process broke, which itself goes on.
    """

    exit_code = 4
    role = ""
    lives = False

    @classmethod
    def of(cls, role: str, message: str) -> ActorDied:
        error = cls(message)  # one argument: it travels between processes
        error.role = role
        return error


class Wedged(ActorDied):
    """A process of the run still lives but gets nowhere."""


def first_line(error: BaseException) -> str:
    """What is shown of an error of somebody else's; its type, where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True)
class Deadlines:
    """Seconds; see recipe.Reliability. ``call``: for one call; ``stall``: without progress, looked for each ``heartbeat``."""

    heartbeat: float = 5.0
    stall: float = 600.0
    call: float = 3600.0

    @classmethod
    def of(cls, recipe: Recipe) -> Deadlines:
        r = recipe.reliability
        return cls(r.heartbeat_s, r.stall_timeout_s, r.call_timeout_s)


class Handle:
    """``handle.method(...)`` waits for the result and raises the actor's own typed error; ``submit`` and ``wait`` let the caller
    look up from time to time.

    Without ``deadlines`` it waits for ever. The actor behind a handle may be replaced (``put``): whoever holds the handle goes on
    with the new one. ``pid`` is None where the process is not on this machine; ``peers``: the handles of those that the actor
    itself waits for, by role.
    """

    def __init__(self, actor: Any, log: str, role: str = "", deadlines: Deadlines | None = None) -> None:
        self._actor, self._log = actor, log
        self.role, self.deadlines = role, deadlines
        self.peers: dict[str, Handle] = {}
        self._process: psutil.Process | None = None  # knows when it began: another that gets its number later is left alone
        self.met = False  # whether the actor has said that it stands
        self.on_beat: Callable[[Any], None] | None = None

    def put(self, actor: Any) -> None:
        """Stand for another actor from now on."""
        self._actor, self._process, self.met = actor, None, False

    def meet(self, who: tuple[str, int]) -> None:
        """Note ``who`` the actor is: host and process id."""
        self.met = True
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(who[1]) if who[0] == socket.gethostname() else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def actor(self) -> Any:
        return self._actor

    @property
    def alive(self) -> bool:
        """Whether the process is there, as far as this machine can tell."""
        if self._process is None:
            return True
        try:
            return bool(self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """End the process, whatever state it is in: one that is stopped or spins in native code hears no request."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.kill()
        if self._actor is not None:
            ray.kill(self._actor)

    def submit(self, method: str, *args: Any) -> Any:
        return getattr(self._actor, method).remote(*args)

    def get(self, ref: Any) -> Any:
        """The result of ``ref``. Raises ActorDied where the process is gone, Wedged where the call's deadline is over."""
        try:
            return ray.get(ref, timeout=self.deadlines.call if self.deadlines else None)
        except ray.exceptions.GetTimeoutError:
            assert self.deadlines
            raise self.wedged(f"a call has taken longer than {self.deadlines.call:g} s (reliability.call_timeout_s)") from None
        except ray.exceptions.RayTaskError as e:
            cause = e.cause
            if not isinstance(cause, FrontierTuneError):
                raise
            if getattr(cause, "blame", None) is Blame.INFRASTRUCTURE:  # engine or pool broke inside a process that lives on
                error = ActorDied.of(self.role or "sampler", f"{cause}; the last lines of {self._log} tell more")
                error.lives = True
                raise error from None
            raise cause from None
        except DEAD as e:
            why = f"{self.role or 'actor'}: {first_line(e)}"
            raise ActorDied.of(self.role, f"a process of the run died ({why}); the last lines of {self._log} tell more") from None

    def wait(self, ref: Any, every: Callable[[], None], seconds: float = 0.5) -> Any:
        """The result of ``ref``, calling ``every`` about each half second until it is there.

        With ``deadlines`` the actor is asked for its ``progress`` at each heartbeat (a dict: ``moves`` counts, ``waiting`` is the
        peer that it waits for, or ''); ``on_beat`` is told the answer. Raises Wedged where ``moves`` has stood still for the
        stall deadline, or no answer came.
        """
        beat = Beat(self) if self.deadlines else None
        while not ray.wait([ref], timeout=seconds)[0]:
            every()
            if beat:
                beat.check()
        return self.get(ref)

    def wedged(self, why: str) -> Wedged:
        """The error to raise; the stacks of its threads are in the log by then, where the process can still write them."""
        shown = "its process is not on this machine"
        if self.pid is not None:
            shown = (
                f"the stacks of its threads are in {self._log}" if self._dump() else "its process does not even answer signals"
            )
        error = Wedged(f"the {self.role} (process {self.pid}) is wedged: {why}; {shown}")
        error.role = self.role
        return error

    def _dump(self) -> bool:
        """Whether the process wrote the stacks of its threads."""
        assert self._process is not None
        log = Path(self._log)
        size = log.stat().st_size if log.is_file() else 0
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(STACKS)
            time.sleep(_DUMP_S)
        if not log.is_file():
            return False
        with log.open("rb") as f:
            f.seek(size)
            return b"most recent call first" in f.read()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args: self.get(self.submit(method, *args))


class Beat:
    """The heartbeats of one wait for an actor with deadlines."""

    def __init__(self, handle: Handle) -> None:
        assert handle.deadlines
        self.handle, self.limits = handle, handle.deadlines
        self.asked = self.told = self.moved = time.monotonic()  # told: when what was last answered was asked
        self.ref: Any = None
        self.moves: int | None = None
        self.waiting = ""

    def pause(self, seconds: float) -> None:
        """``seconds`` in which nobody looked count for nothing."""
        self.asked, self.told, self.moved = self.asked + seconds, self.told + seconds, self.moved + seconds

    def check(self) -> None:
        now = time.monotonic()
        if self.ref is None and now - self.asked >= self.limits.heartbeat:
            self.ref, self.asked = self.handle.submit("progress"), now
        if self.ref is not None and ray.wait([self.ref], timeout=0)[0]:
            answer = self.handle.get(self.ref)
            self.ref, self.told, self.waiting = None, self.asked, answer["waiting"]
            if answer["moves"] != self.moves:
                self.moves, self.moved = answer["moves"], now
            if self.handle.on_beat:
                self.handle.on_beat(answer)
        silent = self.ref is not None and now - self.asked > max(self.limits.heartbeat, self.limits.stall / 2)
        still = (now if silent else self.told) - self.moved
        if still > self.limits.stall:
            culprit = self.handle if silent else self.handle.peers.get(self.waiting, self.handle)
            why = f"no answer for {now - self.asked:.0f} s" if silent else f"no episode got any further for {still:.0f} s"
            raise culprit.wedged(f"{why} (reliability.stall_timeout_s is {self.limits.stall:g})")
