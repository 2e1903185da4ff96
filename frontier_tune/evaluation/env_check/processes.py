"""Checks of what happens when processes die, and of the processes that an environment leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from frontier_tune.contracts import Blame, Failure, FrontierTuneError
from frontier_tune.evaluation.env_check.report import Check, short, shown
from frontier_tune.evaluation.scripts import Episode, Played, Pool, Result, play
from frontier_tune.sandbox import EnvironmentPool

MARK = "FRONTIER_TUNE_AUDIT"  # environment variable that every process of an audit inherits
GRACE_S = 5.0  # for killed processes to vanish, on a machine whose cores are all busy, too
REPEATS = 3


@contextlib.contextmanager
def marked() -> Iterator[str]:
    """Processes started in the body, and theirs, carry the mark that is yielded. What is left of them at its end is killed."""
    mark = uuid.uuid4().hex
    before = os.environ.get(MARK)
    os.environ[MARK] = mark
    try:
        yield mark
    finally:
        kill(running(mark))
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before


def running(mark: str) -> dict[int, str]:
    """Processes with the mark in the environment that they were started with -> command line. A process that wipes its own
    environment is not found."""
    found = {}
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def survivors(mark: str) -> dict[int, str]:
    """Marked processes that are still there after a moment's grace."""
    end = time.monotonic() + GRACE_S
    while True:
        left = running(mark)
        if not left or time.monotonic() >= end:
            return left
        time.sleep(0.05)


def left_behind(new_pool: Callable[[], EnvironmentPool], mark: str, episode: Episode | None) -> tuple[list[int], dict[int, str]]:
    """Processes besides the worker after one episode and after a few more, all ended; and those that outlive the worker."""
    counts = []
    with new_pool() as pool:
        for _ in range(1 + REPEATS if episode else 1):
            if episode:
                play(pool, [episode])
            pool.poll(0.0)
            counts.append(len([pid for pid in running(mark) if pid not in pool.pids]))
    return [counts[0], counts[-1]], survivors(mark)


def processes(counts: list[int], outlived: Mapping[int, str], after_timeout: Mapping[int, str]) -> Check:
    """No process outlives its environment, and none is added by every episode."""
    details: dict[str, Any] = {"after_one_episode": counts[0], "after_more": counts[1], "outlived": sorted(outlived.values())}
    if outlived or after_timeout:
        names = shown(sorted({short(c, 60) for c in (outlived or after_timeout).values()}))
        when = "is closed" if outlived else "was killed for hanging"
        evidence = f"{len(outlived or after_timeout)} processes are still running after the environment {when}: {names}."
        return Check("processes", "fail", evidence, "Start no daemons; stop what a tool starts before the tool returns.", details)
    if counts[1] > counts[0]:
        evidence = f"Episodes leave processes running: {counts[0]} after one episode, {counts[1]} after {1 + REPEATS}."
        return Check("processes", "fail", evidence, "Wait for, or kill, what a tool starts before the tool returns.", details)
    if counts[0]:
        evidence = f"The environment keeps {counts[0]} processes of its own between episodes; they end with it."
        return Check("processes", "warn", evidence, "Stop them in close(), so that other players end them, too.", details)
    return Check("processes", "pass", "No process is left when an episode or the environment ends.", "", details)


def faults(new_pool: Callable[[], EnvironmentPool], mark: str, reference: Played | None) -> Check:
    """A worker killed in mid-episode gives a typed failure of the infrastructure, and the episode can be played again."""
    name, mend = (
        "faults",
        "Keep nothing outside of the process that a killed worker would leave half done: lock files, servers, temporary files.",
    )
    if reference is None:
        return Check(name, "warn", "No episode was graded that a worker could be killed in.", "See the other checks.")
    episode = reference.episode
    details: dict[str, Any] = {}
    try:
        with new_pool() as pool:
            found = _killed_midway(pool, episode)
            kinds = [f"{f.kind} ({f.blame})" if isinstance(f, Failure) else f"reward {f.get('reward')}" for f in found]
            details["found"] = kinds
            if any(not isinstance(f, Failure) or f.blame is not Blame.INFRASTRUCTURE for f in found):
                evidence = f"Episodes whose worker was killed ended as {shown(kinds)}, not as failures of the infrastructure."
                return Check(name, "fail", evidence, mend, details)
            again = play(pool, [episode])[0]
    except FrontierTuneError as e:  # the worker in the killed one's place refused to start
        return Check(name, "fail", f"After its worker was killed, no other could be started: {short(str(e))}", mend, details)
    if again.transcript != reference.transcript:
        why = f"{again.failure.kind}: {again.failure.detail}" if again.failure else "with another result"
        evidence = f"After its worker was killed, task {episode.task.hash} plays {short(why)}."
        return Check(name, "fail", evidence, mend, details)
    evidence = f"A killed worker's episodes end as {kinds[0]} without a reward; played again they end as ever."
    orphans = survivors(mark)
    if orphans:  # the pool finds a worker's processes by the worker, which is gone
        kill(orphans)
        details["orphans"] = sorted(orphans.values())
        evidence = (
            f"Processes that a killed worker had started outlive it: {shown(sorted({short(c, 60) for c in orphans.values()}))}."
        )
        return Check(name, "warn", evidence, "Start children in the worker's own session, so that one signal ends all.", details)
    return Check(name, "pass", evidence, "", details)


def _killed_midway(pool: EnvironmentPool, episode: Episode) -> list[Result]:
    """Two episodes half played in one worker, which is killed; what their next step gives."""
    slots = [pool.new_slot(), pool.new_slot()]
    half = episode.script[: len(episode.script) // 2]
    for slot in slots:
        pool.submit(slot, "reset", {"task": episode.task.to_json(), "seed": episode.seed})
        for action in half:
            pool.submit(slot, "step", {"action": action})
    _answers(pool, len(slots) * (1 + len(half)))
    os.kill(pool.pids[0], signal.SIGKILL)
    for slot in slots:
        pool.submit(slot, "step", {"action": episode.script[len(half)] if len(half) < len(episode.script) else "x"})
    found = _answers(pool, len(slots))
    for slot in slots:
        pool.submit(slot, "close")
    return found


def _answers(pool: Pool, n: int) -> list[Result]:
    found: list[Result] = []
    while len(found) < n:
        found += [result for _, result in pool.poll(1.0)]
    return found
