"""Checkpoints: whole or not there, the newest that verifies is loaded, another recipe is refused."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, LimitReached
from frontier_tune.orchestration import checkpoint
from frontier_tune.orchestration.checkpoint import LoopState
from frontier_tune.recipe import Recipe

RECIPE = Recipe()


def write(directory: str) -> None:
    Path(directory, "weights.bin").write_bytes(bytes(range(256)))


def warnings() -> list[str]:
    return []


def save(directory: Path, step: int, recipe: Recipe = RECIPE) -> Path:
    return checkpoint.save(directory, LoopState(step=step, version=step + 1, recent_success=[0.5]), recipe, write)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    found, state = checkpoint.newest(tmp_path, RECIPE, warnings().append)
    assert (found, state) == (path, LoopState(step=10, version=11, recent_success=[0.5]))
    assert (found / "learner" / "weights.bin").read_bytes() == bytes(range(256))


def test_two_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    for step in (1, 2, 3, 3):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_a_save_that_fails_leaves_the_last_one_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def broken(directory: str) -> None:
        write(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path, LoopState(step=2), RECIPE, broken)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


@pytest.mark.parametrize("damage", ["flip", "remove", "manifest", "torn"])
def test_damage_is_passed_over_aloud(tmp_path: Path, damage: str) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    target = bad / "learner" / "weights.bin"
    if damage == "flip":
        target.write_bytes(b"\x01" + target.read_bytes()[1:])
    elif damage == "remove":
        target.unlink()
    elif damage == "manifest":
        (bad / "manifest.json").unlink()
    else:
        (bad / "manifest.json").write_text((bad / "manifest.json").read_text()[:40])
    said: list[str] = []
    found, state = checkpoint.newest(tmp_path, RECIPE, said.append)
    assert (found, state.step) == (good, 1)
    assert len(said) == 1 and "step-000002" in said[0]


def test_nothing_that_verifies_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "loop.json").unlink()
    with pytest.raises(BadInput, match="without --resume"):
        checkpoint.newest(tmp_path, RECIPE, warnings().append)


def test_another_recipe_is_refused_by_the_keys_that_differ(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = recipes.parse({"seed": 3, "learner": {"weight_decay": 0.1}, "run": {"steps": 99}})
    with pytest.raises(BadInput, match=r"learner\.weight_decay, seed\."):
        checkpoint.newest(tmp_path, other, warnings().append)


def test_how_long_to_go_on_and_how_cautiously_may_change(tmp_path: Path) -> None:
    save(tmp_path, 1)
    longer = recipes.parse(
        {"learner": {"learning_rate": 1e-5}, "run": {"steps": 99, "max_tokens": 10, "max_hours": 1.0, "max_failure_share": 0.5}}
    )
    assert checkpoint.newest(tmp_path, longer, warnings().append)[1].step == 1


def test_the_same_step_again_takes_the_old_one_s_place_and_leaves_nothing(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "learner" / "weights.bin").write_bytes(b"damaged")
    save(tmp_path, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint.problem(tmp_path / "step-000001") is None


def test_what_was_half_removed_takes_no_good_one_s_place(tmp_path: Path) -> None:
    """A process was killed while it removed the checkpoint that another of the same step had replaced."""
    for step in (1, 2):
        save(tmp_path, step)
    shutil.copytree(tmp_path / "step-000002", tmp_path / "step-000002.replaced")
    (tmp_path / "step-000002.replaced" / "loop.json").unlink()
    said = warnings()
    assert checkpoint.newest(tmp_path, RECIPE, said.append)[0].name == "step-000002" and not said
    save(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    assert not any(checkpoint.problem(p) for p in tmp_path.iterdir())


def test_one_that_was_moved_aside_gets_its_name_back(tmp_path: Path) -> None:
    """A process was killed between the two renames."""
    save(tmp_path, 1).rename(tmp_path / "step-000001.replaced")
    assert checkpoint.newest(tmp_path, RECIPE, warnings().append)[1].step == 1
    save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000002"]


def full(directory: str) -> None:
    write(directory)
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_rust(directory: str) -> None:
    write(directory)
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("writer", [full, full_in_rust])
def test_a_full_disk_ends_the_run_resumably_and_leaves_the_last_checkpoint_alone(
    tmp_path: Path, writer: Callable[[str], None]
) -> None:
    save(tmp_path, 1)
    with pytest.raises(LimitReached, match="no room for a checkpoint .* untouched"):
        checkpoint.save(tmp_path, LoopState(step=2), RECIPE, writer)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    assert checkpoint.problem(tmp_path / "step-000001") is None


def test_space_is_looked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=checkpoint.MARGIN))
    with pytest.raises(LimitReached, match=r"16 MiB free\).*needs about 16 MiB"):
        checkpoint.save(tmp_path, LoopState(step=2), RECIPE, lambda directory: pytest.fail("written"))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_limits_rates_and_reliability_may_change_at_a_resume() -> None:
    assert checkpoint.may_differ("run.rates.hour") and checkpoint.may_differ("reliability.restarts")
    assert not checkpoint.may_differ("run.deterministic") and not checkpoint.may_differ("run")


def test_who_computes_a_run_may_change_at_a_resume_unless_the_very_bytes_are_asked_for() -> None:
    written = recipes.parse({})
    moved = recipes.parse(
        {
            "placement": {"learners": 2, "shard_base": True},
            "learner": {"tokens_per_microbatch": 99},
            "environment": {"workers": 7},
        }
    )
    assert checkpoint.same_recipe(written, moved, Path("x")) == moved
    exact = {"run": {"deterministic": True}}
    with pytest.raises(BadInput, match=r"these keys differ: environment.workers, learner.tokens_per_microbatch\. Resume"):
        changed = {**exact, "learner": {"tokens_per_microbatch": 99}, "environment": {"workers": 7}}
        checkpoint.same_recipe(recipes.parse(exact), recipes.parse(changed), Path("x"))


def test_a_kill_at_any_moment_leaves_a_newest_that_verifies(tmp_path: Path) -> None:
    """A child saves two steps, the first of which is there already, and is killed at its first touch of the file system, at its
    second, and so on, until it lives to the end."""
    touches = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
    save(tmp_path, 1)
    first = 1
    for moment in itertools.count(1):
        child = os.fork()
        if child == 0:

            def strike(event: str, _: object, left: Iterator[int] = itertools.count(moment, -1)) -> None:  # noqa: B008
                if event in touches and next(left) == 1:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(strike)
            for step in (first, first + 1):
                save(tmp_path, step)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        said = warnings()
        path, state = checkpoint.newest(tmp_path, RECIPE, said.append)
        assert first <= state.step <= first + 1 and checkpoint.problem(path) is None
        assert not said, "nothing is damaged, only not done"
        if os.WIFEXITED(status):
            break
        first = state.step
    assert moment > 20 and os.WEXITSTATUS(status) == 0 and state.step == first + 1
    save(tmp_path, first + 2)  # whatever was left half done goes with the next one
    assert not list(tmp_path.glob(".writing-*")) and len(list(tmp_path.iterdir())) == 2
