"""The stream plays groups as they come, hands each over once, and says what went wrong in its thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from frontier_tune.contracts import Completion, EpisodeSpec, Request, Task
from frontier_tune.episodes import CompactRenderer
from frontier_tune.episodes.stream import Group, Limits, Played, Stream
from frontier_tune.sandbox import EnvironmentPool

from .conftest import WORKSPACE, ScriptedSampler
from .test_play import count

LIMITS = Limits(max_turns=4, max_tokens_per_turn=32, max_model_len=256, max_sequences=6)


class Sampler(ScriptedSampler):
    """A scripted sampler whose policy changes by ``version``, that may hold requests back, and that fails once a prompt."""

    version, fails, held = 1, 0, False

    def exchange(self, requests: Sequence[Request], wait: float = 0.0) -> list[Completion]:
        if self.held:
            self.pending += requests
            time.sleep(0.005)
            return []
        return super().exchange(requests)

    def finish(self, request: Request) -> Completion:
        if self.fails:
            self.fails -= 1
            return Completion(request.id, (), (), self.version, "error", "out of blocks")
        return replace(super().finish(request), version=self.version)


def group(name: str, n: int = 2, target: int = 10) -> Group:
    task = Task("count", "train", {"target": target})
    return Group(name, "counting", tuple(EpisodeSpec(task, 0, m, seed=m) for m in range(n)))


@pytest.fixture
def opened(compact: Any) -> Iterator[Any]:
    """(sampler, a function that opens a stream on it)."""
    sampler = Sampler(compact, count)
    streams: list[Stream] = []

    def open_stream(**settings: Any) -> Stream:
        def environment(name: str) -> Any:
            assert name == "counting"
            return EnvironmentPool("envs/count_up", WORKSPACE), CompactRenderer(compact)

        streams.append(Stream(environment, sampler, LIMITS, **settings))
        return streams[-1]

    yield sampler, open_stream
    for stream in streams:
        stream.close()


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


def taken(stream: Stream, n: int) -> list[Played]:
    found: list[Played] = []
    end = time.monotonic() + 60
    while len(found) < n:
        assert time.monotonic() < end, f"{len(found)} of {n} groups came"
        found += stream.take(1.0)
    return found


def test_groups_come_back_once_each_whole_and_in_the_order_of_their_specs(opened: Any) -> None:
    _, open_stream = opened
    stream = open_stream()
    stream.put([group(f"g{n}", target=10 + n) for n in range(8)])
    stream.put([group("late", n=3)])
    with pytest.raises(ValueError, match="late is being played already"):
        stream.put([group("late")])
    found = {p.id: p for p in taken(stream, 9)}
    assert len(found) == 9
    for name, played in found.items():
        assert [t.spec.member for t in played.trajectories] == list(range(3 if name == "late" else 2))
        assert all(t.success and t.versions.count(1) == t.sampled_tokens for t in played.trajectories)
    assert stream.take(0.0) == []


@pytest.mark.parametrize("restart", [False, True])
def test_an_episode_goes_on_with_a_new_policy_or_begins_again(opened: Any, restart: bool) -> None:
    sampler, open_stream = opened
    turns = 0

    def script(context: str) -> str:
        nonlocal turns
        turns += 1
        if turns == 2:  # of the only episode: a new adapter has come
            sampler.version = 2
        return "add 1" if turns == 1 else count(context)

    sampler.script = script
    stream = open_stream(restart=restart)
    stream.put([group("g", n=1)])
    (played,) = taken(stream, 1)
    (t,) = played.trajectories
    versions = [v for v, m in zip(t.versions, t.mask, strict=True) if m]
    assert versions == sorted(versions) and set(versions) == ({2} if restart else {1, 2})
    assert (played.restarted, played.wasted > 0) == (int(restart), restart)


def test_what_the_infrastructure_failed_is_played_again_and_counted(opened: Any) -> None:
    sampler, open_stream = opened
    sampler.fails = 1
    stream = open_stream()
    stream.put([group("g", n=1)])
    (played,) = taken(stream, 1)
    assert played.retried == 1 and played.trajectories[0].success
    sampler.fails = 2
    stream.put([group("h", n=1)])
    (played,) = taken(stream, 1)
    assert played.trajectories[0].failure is not None and not played.trajectories[0].trainable


def test_the_next_try_waits_and_the_others_go_on_meanwhile(opened: Any) -> None:
    sampler, open_stream = opened
    sampler.fails, failures = 1, list[int]()

    def pause(failed: int) -> float:
        failures.append(failed)
        return 3600.0 if failed == 1 else 0.0

    stream = open_stream(pause=pause)
    stream.put([group("g", n=1)])
    until(lambda: not stream.progress()["busy"])  # nothing is left to do but to wait
    stream.put([group("h", n=1)])
    assert [p.id for p in taken(stream, 1)] == ["h"] and failures == [1]
    stream.drop(["g"])
    stream.put([group("g", n=1)])
    assert [p.retried for p in taken(stream, 1)] == [0]


def test_a_group_given_up_is_put_again_by_its_very_specs(opened: Any) -> None:
    sampler, open_stream = opened
    sampler.held = True
    stream, same = open_stream(), group("old", n=2)
    stream.put([same])
    until(lambda: len(sampler.pending) == 2)
    with stream._changed:  # the thread learns of both at once
        stream.drop(["old"])
        stream.put([replace(same, id="new")])
    until(lambda: len(sampler.pending) == 4)
    assert len(stream._players["counting"].in_sampler) == 2, "the old episodes were given up"
    sampler.held = False
    assert [p.id for p in taken(stream, 1)] == ["new"]


def test_tokens_of_a_group_dropped_when_done_are_counted_as_wasted(opened: Any) -> None:
    _, open_stream = opened
    stream = open_stream()
    stream.put([group("done", n=1)])
    until(lambda: bool(stream._finished))
    tokens = stream._finished[0].tokens
    stream.drop(["done"])
    stream.put([group("next", n=1)])
    (played,) = taken(stream, 1)
    assert played.id == "next" and played.wasted == tokens > 0


def test_a_dropped_group_never_comes_back_and_leaves_room(opened: Any) -> None:
    sampler, open_stream = opened
    sampler.held = True
    stream = open_stream()
    stream.put([group(f"old{n}", n=4) for n in range(3)])  # more than there is room for
    time.sleep(0.1)
    stream.drop(["old0", "old1", "old2", "unknown"])
    stream.put([group("old1", target=12), group("new")])
    sampler.held = False
    assert sorted(p.id for p in taken(stream, 2)) == ["new", "old1"]
    assert stream.take(0.2) == []


def test_lockstep_asks_for_all_turns_of_a_round_at_once(opened: Any) -> None:
    sampler, open_stream = opened
    stream = open_stream(lockstep=True)
    stream.put([group(f"g{n}", n=3, target=10 + n) for n in range(2)])
    assert sorted(p.id for p in taken(stream, 2)) == ["g0", "g1"]
    assert sampler.largest == 6


def test_what_breaks_in_the_thread_is_raised_by_the_next_call(opened: Any) -> None:
    sampler, open_stream = opened
    sampler.script = lambda context: 1 / 0
    stream = open_stream()
    stream.put([group("g")])
    with pytest.raises(ZeroDivisionError):
        taken(stream, 1)
    with pytest.raises(ZeroDivisionError):
        stream.put([group("h")])
    stream.close()
