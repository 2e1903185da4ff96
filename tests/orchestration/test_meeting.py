"""Learners of several nodes meet on those nodes' addresses alone, and are sent what they are to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput
from frontier_tune.learning.parallel import World
from frontier_tune.orchestration import learners
from frontier_tune.orchestration.actors import LearnerActor
from frontier_tune.orchestration.handle import ActorDied
from frontier_tune.orchestration.learners import Follower, LearnerGroup
from frontier_tune.orchestration.meeting import Meeting, open_at, stay_on
from frontier_tune.orchestration.travel import packed

ROOT = Path(__file__).resolve().parents[2]
OTHER = """
import json, psutil, sys, torch
from frontier_tune.learning.parallel import World
from frontier_tune.orchestration.meeting import Meeting
store = Meeting(sys.argv[1], int(sys.argv[2])).store(60)
world = World.join(1, 2, store, torch.device("cpu"), 60.0, address="127.0.0.2")
total = world.add_numbers([2.0, 5.0])
listening = sorted({c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"})
print(json.dumps({"total": total, "listening": listening}))
"""


def listening() -> set[tuple[str, int]]:
    return {tuple(c.laddr) for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN"}


def test_two_addresses_meet_and_nobody_listens_elsewhere() -> None:
    """All of 127.0.0.0/8 is this machine: two of its addresses stand for those of two nodes."""
    before = listening()
    meeting, server = open_at("127.0.0.1", 60)
    command = [sys.executable, "-c", OTHER, meeting.host, str(meeting.port)]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True) as other:
        world = World.join(0, 2, meeting.store(60), torch.device("cpu"), 60.0, address="127.0.0.1")
        assert world.add_numbers([1.0, 2.0]) == [3.0, 7.0]
        new = listening() - before
        assert {ip for ip, _ in new} == {"127.0.0.1"} and ("127.0.0.1", meeting.port) in new
        said = json.loads(other.communicate(timeout=120)[0])
    assert said == {"total": [3.0, 7.0], "listening": ["127.0.0.2"]}
    del world, server


@pytest.mark.parametrize("apart", [False, True])
def test_a_state_travels_to_who_can_not_see_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool) -> None:
    (tmp_path / "learner.json").write_text("{}")
    read: list[tuple[str, str]] = []
    monkeypatch.setattr(LearnerActor, "load", lambda self, d: read.append((d, Path(d, "learner.json").read_text())))
    group: Any = LearnerGroup.__new__(LearnerGroup)
    group._apart = apart
    sent = group._sent(str(tmp_path))
    assert isinstance(sent, str) != apart and group._sent(None) is None
    follower = Follower.__new__(Follower)
    follower.load(sent)
    assert read[0][1] == "{}" and (read[0][0] == str(tmp_path)) != apart
    assert {name: bytes(c) for name, c in packed(tmp_path).items()} == {"learner.json": b"{}"}


def test_nccl_stays_on_the_node_s_own_address_or_says_that_it_can_not(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(name for name, its in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in its))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    stay_on("192.0.2.1")  # somebody has chosen
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    with pytest.raises(BadInput, match=f"is 192.0.2.1 in the cluster, and none of its interfaces .*{name}.*NCCL would listen"):
        stay_on("192.0.2.1")  # of no interface anywhere (RFC 5737)
    assert "NCCL_SOCKET_IFNAME" not in os.environ
    stay_on("127.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == f"={name}"


@pytest.mark.parametrize("error", [ActorDied("its process died"), BadInput("base: unusable")])
def test_who_waits_for_a_leader_that_is_dead_waits_no_longer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The store that they were to meet at may be gone with it: torch would ask for ten minutes."""
    known = ray.exceptions.RayTaskError("started", "Traceback", error)
    monkeypatch.setattr(learners, "_world", lambda *arguments: threading.Event().wait(20))
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(ray, "get", lambda ref: (_ for _ in ()).throw(known))
    leader = SimpleNamespace(started=SimpleNamespace(remote=lambda: "ref"))
    with pytest.raises(learners.LearnerLost, match=f"learner 1 of 2 met nobody: learner 0 died or did not start: {error}"):
        Follower("", recipes.parse({}), None, 1, 2, Meeting("127.0.0.1", 1), leader)


def test_a_leader_that_can_not_start_ends_those_that_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []
    started = SimpleNamespace(remote=lambda *arguments: SimpleNamespace(started=SimpleNamespace(remote=lambda: "ref")))

    def refuse(*arguments: Any) -> Any:
        raise BadInput("placement.learners: 2, one GPU each")

    here = SimpleNamespace(get_node_id=lambda: "own", get_actor_id=lambda: None)
    monkeypatch.setattr(learners, "remote", lambda *arguments, **named: started)
    monkeypatch.setattr(learners, "NodeAffinitySchedulingStrategy", lambda node, soft: node)
    monkeypatch.setattr(learners, "_world", refuse)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([], refs))
    monkeypatch.setattr(ray, "kill", ended.append)
    with pytest.raises(BadInput, match="one GPU each"):
        LearnerGroup("", recipes.parse({}), None, 3)
    assert len(ended) == 2
