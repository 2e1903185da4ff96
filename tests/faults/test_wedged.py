"""Real actors that hang, are stopped, and die: what their handle says, and that it serves the next one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from frontier_tune.orchestration.actors import _open_log, remote
from frontier_tune.orchestration.cluster import local_ray
from frontier_tune.orchestration.handle import ActorDied, Deadlines, Handle, Wedged
from tests.faults.conftest import FULL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL, reason="make test-faults")]

HASTY = Deadlines(heartbeat=0.2, stall=3.0, call=5.0)


@pytest.fixture(scope="module")
def ray_is_up() -> Iterator[None]:
    with local_ray():
        yield


class Standing:
    def __init__(self, word: str) -> None:
        self.word, self.moves = word, 0

    def say(self) -> str:
        return self.word

    def log_to(self, path: str) -> None:
        _open_log(path)

    def dig_a_hole(self) -> None:
        time.sleep(60.0)

    def progress(self) -> dict[str, object]:
        return {"moves": 0, "waiting": "peer", "episodes": 0, "slowest": []}


def standing(log: Path, role: str, word: str = "here") -> Handle:
    handle = Handle(remote(Standing, {}, 3).remote(word), str(log), role, HASTY)
    handle.deadlines = None  # the first start may take its time
    handle.meet(handle.started())
    handle.log_to(str(log))
    handle.deadlines = HASTY
    return handle


@pytest.mark.usefixtures("ray_is_up")
def test_death_and_silence_are_told_apart_and_a_handle_survives_both(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    handle, peer = standing(log, "episodes"), standing(log, "peer", "a word")
    handle.peers = {"peer": peer}
    assert handle.say() == "here" and handle.alive
    parent = psutil.Process(handle.pid).parent()  # Ray's own processes are out of reach of signals to our group
    assert parent is not None and os.getsid(parent.pid) != os.getsid(0) and os.getpgid(parent.pid) != os.getpgid(0)

    with pytest.raises(
        Wedged, match=r"the episodes \(process \d+\) is wedged: a call .* stacks of its threads are in .*engine.log"
    ):
        handle.dig_a_hole()
    assert "dig_a_hole" in log.read_text() and log.read_text().count("most recent call first") >= 1

    beats: list[object] = []
    handle.on_beat = beats.append
    with pytest.raises(Wedged, match=r"the peer \(process \d+\) is wedged: no episode got any further") as wedged:
        handle.wait(handle.submit("dig_a_hole"), lambda: None, 0.1)
    assert wedged.value.role == "peer" and beats

    assert peer.pid is not None
    os.kill(peer.pid, signal.SIGSTOP)
    with pytest.raises(Wedged, match="does not even answer signals"):
        peer.say()
    peer.kill()
    peer.deadlines = None  # a busy machine may take a while to see it
    with pytest.raises(ActorDied, match=r"a process of the run died \(peer"):
        peer.say()
    peer.put(remote(Standing, {}, 1).remote("again"))
    assert peer.say() == "again"
    handle.kill()
    peer.kill()
