"""Learners of several nodes meet on those nodes' addresses alone, and are sent what they are to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from frontier_tune.learning.parallel import World
from frontier_tune.orchestration.actors import LearnerActor
from frontier_tune.orchestration.learners import Follower, LearnerGroup
from frontier_tune.orchestration.meeting import open_at
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
