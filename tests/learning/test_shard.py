"""A base split over two learners, as processes: what they compute is what one computes that holds all of it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import plan_memory
from tests.learning import sharded_ranks as ranks

pytestmark = pytest.mark.slow  # one fixture has it all


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, write_base) -> Path:
    directory = tmp_path_factory.mktemp("shared")
    for name, (family, changes, _) in ranks.BASES.items():
        where = directory / (family if name != "tied" else name)
        if not where.exists():
            write_base(where, family, **changes)
    plan_memory._write_base(ranks.CASE, directory / "memory")
    return directory


@pytest.fixture(scope="module")
def both(root: Path) -> Iterator[list[dict[str, Any]]]:
    """What each rank found, by scenario. A server that has imported all forks them: torch is loaded once, and no thread lost."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([ranks.__name__])
    pipes = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=ranks.serve, args=(r, 2, root, pipes[r][1])) for r in range(2)]
    for p in processes:
        p.start()
    found: list[Any] = ["no answer"] * 2
    waiting = set(range(2))
    while waiting and wait([pipes[r][0] for r in waiting], timeout=180):
        for r in [r for r in waiting if pipes[r][0].poll()]:
            found[r] = pipes[r][0].recv()
            waiting.remove(r)
    for p in processes:
        p.join(5)
        p.kill()
    for answer in found:
        if isinstance(answer, str):
            pytest.fail(answer)
    yield found


@pytest.mark.parametrize("name", ranks.BASES)
def test_a_split_base_computes_what_a_whole_one_does(both, root: Path, name: str) -> None:
    family, _, dtype = ranks.BASES[name]
    want = ranks.look(root / (family if name != "tied" else name), dtype)
    for found in both:
        got = found[name]
        for same in ("whole", "buffers", "fingerprint", "adapter", "score", "score_base"):  # bitwise
            assert got[same] == want[same], same
        assert got["loss"] == pytest.approx(want["loss"], abs=1e-6 if dtype == "float32" else 1e-3)
        for n, gradient in want["gradient"].items():
            close = (
                1e-6 if dtype == "float32" else 0.05 * np.abs(gradient).max()
            )  # in bfloat16 other micro-batches round otherwise
            assert np.abs(got["gradient"][n] - gradient).max() < close, n
    # Each has its share of every matrix, as torch.chunk splits it, and all of what is small.
    for n, rows in want["rows"].items():
        split = [found[name]["rows"][n] for found in both]
        whole = "norm" in n or ".gate." in n
        assert split == ([rows, rows] if whole else [-(-rows // 2), rows - -(-rows // 2)]), n
    assert sum(found[name]["bytes"] for found in both) < 1.1 * want["bytes"]
    # One of them had fewer micro-batches, and ran as many.
    a, b = (found[name]["forwards"] for found in both)
    assert len(a) == len(b) > 1 and sorted(a) != sorted(b)


def test_layers_of_a_split_base_that_are_run_again_are_the_same(both) -> None:
    for found in both:
        plain, again = found["qwen3_moe"], found["again"]
        assert again["loss"] == plain["loss"] and again["forwards"] == plain["forwards"] and again["score"] == plain["score"]
        assert all((again["gradient"][n] == gradient).all() for n, gradient in plain["gradient"].items())


def test_twenty_steps_are_those_of_one_learner_on_the_whole_batch(both, root: Path) -> None:
    want = ranks.steps(root / "qwen3_moe", ranks.STEPS, 20)
    first, second = (found["steps"] for found in both)
    for name, weights in want["weights"].items():
        assert (first["weights"][name] == second["weights"][name]).all()
        assert np.abs(first["weights"][name] - weights).max() < 1e-6, name
    for theirs, ours in zip(want["metrics"], first["metrics"], strict=True):
        assert ours["updates"] == 1
        for key in ("loss", "grad_norm", "entropy", "kl_old", "kl_base", "logprob_gap"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key


def test_a_critic_and_replayed_routes_on_a_split_base(both, root: Path) -> None:
    want = ranks.steps(root / "qwen3_moe", ranks.PPO, 2)
    first, second = (found["ppo"] for found in both)
    for name, weights in want["weights"].items():
        assert (first["weights"][name] == second["weights"][name]).all()
        assert np.abs(first["weights"][name] - weights).max() < 1e-5, name
    for theirs, ours in zip(want["metrics"], first["metrics"], strict=True):
        assert "route_flips" in theirs
        for key, value in theirs.items():
            if key != "rows" and not key.startswith("seconds"):
                assert ours[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_checkpoints_and_going_back_are_the_adapter_s_alone(both, root: Path, recipe) -> None:
    from frontier_tune.learning.learner import Learner

    first, second = (found["checkpoints"] for found in both)
    assert first == second and first["read"] == first["after a step"] and first["rollbacks"] == 1
    assert first["gone back"] == first["after a step"]  # of its second step nobody knows whether the gradient is finite
    assert "not finite" in first["given up"]
    whole = Learner(root / "qwen3_moe", recipe("learner.learning_rate=0.01"))
    whole.load(root / "state")  # written by learners that share a base, read by one that has all of it
    assert whole.digests() == first["after a step"]


def test_each_holds_half_and_the_plan_says_so(both) -> None:
    for found in both:
        got = found["memory"]
        assert got["own"] == got["own, planned"] < 0.55 * got["all"] and got["dtensors"] == 6 * 6 + 2
        assert got["loading"] < got["own"] + got["adapter"] + 0.1 * got["layer"]
        # Of six layers three are there at most; gloo's own thread may let go of its copy only after the next one has begun.
        more = got["step"] - got["step, planned"]
        assert -got["layer"] < more < 1.1 * got["layer"] and got["step"] > got["step, unsplit"] + got["layer"]


def test_one_that_dies_is_missed_at_once(both) -> None:
    assert "alone" not in both[1] and "RuntimeError" in both[0]["alone"] and "peer" in both[0]["alone"]
