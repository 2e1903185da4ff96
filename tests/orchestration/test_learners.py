"""Two learners of a crew: processes of their own, one adapter; told apart when they diverge, missed when one dies."""

import random
import tempfile
import threading

import pytest
import ray
import torch

from frontier_tune import recipe as recipes
from frontier_tune.contracts import EpisodeSpec, GateFailed, Task, Trajectory
from frontier_tune.orchestration.actors import LearnerActor, remote
from frontier_tune.orchestration.cluster import local_ray
from frontier_tune.orchestration.handle import Handle
from frontier_tune.orchestration.learners import Follower, LearnerGroup, LearnerLost
from tests import tiny

# Calls that change nothing in a learner: the first one answers for all.
READS = {"score", "digests", "write_canary"}


def test_whatever_changes_a_learner_reaches_all_of_them() -> None:
    changing = {name for name in vars(LearnerActor) if not name.startswith("_")} - READS
    assert changing <= set(vars(LearnerGroup))


def batch(seed: int) -> list[Trajectory]:
    draw = random.Random(seed)
    out = []
    for group in range(3):
        prompt = [draw.randrange(2, tiny.VOCABULARY) for _ in range(20)]
        for member in range(2):
            sampled = [draw.randrange(2, tiny.VOCABULARY) for _ in range(draw.randrange(3, 9))]
            t = Trajectory(EpisodeSpec(Task("k", "train", {"g": group}), group, member, seed), reward=float(member))
            t.tokens, t.mask = prompt + sampled, [False] * 20 + [True] * len(sampled)
            t.logprobs, t.versions = [-2.0 * m for m in t.mask], [int(m) - 1 for m in t.mask]
            out.append(t)
    return out


def test_one_that_has_lost_another_is_no_fault_of_the_program(monkeypatch) -> None:
    """Of three learners the last dies: the second fails in its collective, and answers before the dead one is asked."""
    error = ray.exceptions.RayTaskError("learn", "Traceback", RuntimeError("Connection closed by peer [127.0.0.1]"))
    monkeypatch.setattr(ray, "get", lambda ref, timeout: (_ for _ in ()).throw(error))
    group = LearnerGroup.__new__(LearnerGroup)
    group._others = [None, None]
    with pytest.raises(LearnerLost, match="learner 1 of 3 lost another one: Connection closed") as raised:
        group._answers(["second", "third"])
    assert raised.value.role == "learner"


def test_the_first_ones_own_failure_is_not_laid_at_anothers_door(monkeypatch) -> None:
    """Out of memory in the first learner: the second waits in its collective until it counts as hung."""

    def full(self: LearnerActor, batches: object, done: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 8 GiB")

    def silent(ref: object, timeout: float) -> None:
        raise ray.exceptions.GetTimeoutError("Get timed out")

    class Other:
        class learn:
            remote = staticmethod(lambda batches, done: "ref")

    monkeypatch.setattr(LearnerActor, "learn", full)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", silent)
    group = LearnerGroup.__new__(LearnerGroup)
    group._others = [Other]
    with pytest.raises(LearnerLost, match="^learner 0: tried to allocate 8 GiB; learner 1 of 2 died or hangs"):
        group.learn([])


@pytest.mark.parametrize("shared", [False, True])
def test_all_score_where_each_has_a_share_of_the_base_alone(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    asked: list[tuple[object, ...]] = []

    class Other:
        class score:
            @staticmethod
            def remote(*arguments: object) -> str:
                asked.append(arguments)
                return "ref"

    monkeypatch.setattr(LearnerActor, "score", lambda self, sequences, adapter_dir: [[-1.0]])
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda ref, timeout: [[-1.0]])
    group = LearnerGroup.__new__(LearnerGroup)
    group._others, group._sharded = [Other], shared
    assert group.score([[1, 2]], "adapter") == [[-1.0]] and asked == ([([[1, 2]], "adapter")] if shared else [])


class Leader:
    """Comes to no meeting."""


@pytest.mark.slow
def test_a_group_is_one_learner_until_it_diverges_or_loses_one(tmp_path, monkeypatch) -> None:
    from frontier_tune.learning.learner import Learner

    base = tiny.build_base(tmp_path / "base")
    content = {"adapter": {"rank": 4, "alpha": 8}, "learner": {"threads": 1, "device": "cpu", "warmup_steps": 0}}
    recipe = recipes.parse(content, ["learner.learning_rate=0.01"])
    alone = Learner(base, recipe)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with local_ray():
        group = LearnerGroup(str(base), recipe, None, 2)
        for seed in range(2):
            want, got = alone.learn([batch(seed)]), group.learn([batch(seed)])
            assert got["rows"] == want["rows"] and got["loss"] == pytest.approx(want["loss"], abs=1e-5)
            assert not list((tmp_path / "scratch").glob("learners-*"))  # where they met
        group.save_adapter(str(tmp_path / "adapter"))
        for (name, a), (_, b) in zip(alone.policy.named_parameters(), group._learner.policy.named_parameters(), strict=True):
            # AdamW divides by the gradient's own size: where that is nothing but rounding, an update's sign is chance
            assert (a - b).abs().median() < 1e-6, name
        group.save(str(tmp_path / "state"))
        group.load(str(tmp_path / "state"))

        with torch.no_grad():
            group._learner.policy.named_parameters()[0][1][0, 0] += 1e-3
        for write in (group.save_adapter, group.save_model, group.save):
            with pytest.raises(GateFailed, match="1 of .* tensors of learner 1"):
                write(str(tmp_path / "diverged"))
        assert not (tmp_path / "diverged").exists()

        ray.kill(group._others[0])
        with pytest.raises(LearnerLost):
            group.learn([batch(9)])
        leader = remote(Leader, {}, 1).remote()
        lost = remote(Follower, {}, 1).remote(str(base), recipe, None, 1, 2, str(tmp_path / "nobody"), leader)
        ray.kill(leader)
        with pytest.raises(LearnerLost, match="learner 1 of 2 met nobody: learner 0 died"):
            Handle(lost, "engine.log", "learner").started()
        with pytest.raises(LearnerLost, match="learner 1 of 2 died"):  # as soon as that is known, not when others come no more
            group._meet(threading.Event().wait, [group._others[0].digests.remote("float32")])
