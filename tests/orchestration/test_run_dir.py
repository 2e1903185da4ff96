"""The run directory: owned by one process, numbered, found again, rewound on resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput, EpisodeSpec, Message, Task, Trajectory
from frontier_tune.orchestration import run_dir
from frontier_tune.orchestration.run_dir import RunDir
from frontier_tune.recipe import Recipe


def test_runs_are_numbered_and_latest_points_at_the_newest(tmp_path: Path) -> None:
    first, second = (run_dir.create(tmp_path, Recipe(), "close") for _ in range(2))
    assert first.root.name.endswith("-1") and second.root.name.endswith("-2") and first.root.name.startswith("close-2")
    (tmp_path / "runs" / ".latest-999999999").symlink_to("killed")  # no process has such a number
    for run in (first, second):
        run.write_recipe(Recipe())
        run.point_latest(tmp_path)
        assert (tmp_path / "runs" / "latest").resolve() == run.root
    assert not list((tmp_path / "runs").glob(".latest-*"))
    assert run_dir.find(tmp_path, "latest").root == second.root
    assert run_dir.find(tmp_path, first.root.name).root == first.root
    assert recipes.load(first.recipe_file) == Recipe()


def test_a_recipe_is_never_found_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run writes it again; killed in the middle of that, it could never be resumed."""
    run = RunDir(tmp_path)
    run.write_recipe(Recipe())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run.write_recipe(recipes.parse({"run": {"steps": 99}}))
    assert recipes.load(run.recipe_file) == Recipe()


def test_latest_also_points_at_a_run_elsewhere(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "elsewhere" / "mine").lock()
    run.write_recipe(Recipe())
    run.point_latest(tmp_path / "workspace")
    assert run_dir.find(tmp_path / "workspace", "latest").root == run.root.resolve()
    assert not (tmp_path / "elsewhere" / "latest").exists()


def test_a_directory_called_latest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "runs" / "latest").mkdir(parents=True)
    run = run_dir.create(tmp_path, Recipe(), "close")
    with pytest.raises(BadInput, match="move it away"):
        run.point_latest(tmp_path)


def test_an_unknown_run_is_refused_with_those_there_are(tmp_path: Path) -> None:
    run_dir.create(tmp_path, Recipe(), "close").write_recipe(Recipe())
    with pytest.raises(BadInput, match="close-"):
        run_dir.find(tmp_path, "clsoe")


def test_a_named_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    recipe = recipes.parse({"run": {"directory": str(tmp_path / "mine")}})
    run = run_dir.create(tmp_path, recipe, "close")
    run.write_recipe(recipe)
    run.unlock()
    with pytest.raises(BadInput, match="--resume"):
        run_dir.create(tmp_path, recipe, "close")


def test_a_second_process_is_refused_with_the_owner_s_pid(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from frontier_tune.orchestration.run_dir import RunDir\n"
        "RunDir(Path(sys.argv[1])).lock(); print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout and owner.stdin
        assert owner.stdout.readline() == b"mine\n"
        with pytest.raises(BadInput, match=f"process {owner.pid}"):
            RunDir(tmp_path).lock()
        owner.kill()
        owner.wait()
        RunDir(tmp_path).lock().unlock()  # the killed owner's lock file is still there and counts for nothing


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    with RunDir(tmp_path).lock():
        pass
    with RunDir(tmp_path).lock():
        pass


def test_a_lock_that_is_being_signed_has_an_unknown_owner(tmp_path: Path) -> None:
    with RunDir(tmp_path).lock():
        (tmp_path / "lock").write_text("")
        assert RunDir(tmp_path).owner() == 0
    assert RunDir(tmp_path).owner() is None


def test_rewind_forgets_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.metrics.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "los')
    trajectory = Trajectory(EpisodeSpec(Task("k", "train", {}), 0, 0, 0), messages=[Message("user", "größer")])
    for step in (1, 2, 3):
        run.write_rollouts(f"step-{step:05d}", [trajectory])
    run.rewind(2)
    assert [json.loads(x)["step"] for x in run.metrics.read_text().splitlines()] == [1, 2]
    assert sorted(p.name for p in (tmp_path / "rollouts").iterdir()) == ["step-00001.jsonl", "step-00002.jsonl"]
    assert "größer" in (tmp_path / "rollouts" / "step-00001.jsonl").read_text()


def test_old_adapter_versions_go_and_the_newest_stay(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for version in range(1, 8):
        run.adapter_version(version).mkdir(parents=True)
        run.canary(version).mkdir()
    run.prune_versions()
    assert sorted(p.name for p in (tmp_path / "sync").iterdir()) == [f"{k}v00000{v}" for k in ("canary-", "") for v in (5, 6, 7)]


def test_a_stopped_run_says_how_to_go_on_even_before_its_first_checkpoint(tmp_path: Path) -> None:
    from frontier_tune.orchestration.stop import Stopped
    from frontier_tune.orchestration.tune import describe_failure

    assert f"--resume {tmp_path}" in describe_failure(Stopped(2), RunDir(tmp_path))
    assert "--resume" not in describe_failure(BadInput("no such base"), RunDir(tmp_path))
