"""Environments by directory, import path and name; the errors say what there is."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from frontier_tune.contracts import BadInput, Task
from frontier_tune.governance.digests import tree
from frontier_tune.sdk import Component, Grade, Rubric, environment_hash, load_environment, registry
from frontier_tune.sdk.tasks import check_disjoint, draw_tasks

ROOT = Path(__file__).parents[1] / "sandbox" / "workspace"


def test_directory_and_import_path_give_the_same_class() -> None:
    a = load_environment("envs/count_up", ROOT, start=1)
    b = load_environment("envs.count_up:CountUp", ROOT)
    assert type(a) is type(b) and a.start == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("envs/count_op", {}, "did you mean 'envs/count_up'?"),
        ("envs/count_up", {"stort": 1}, "options here: start"),
        ("envs.count_up:Missing", {}, "has no 'Missing'"),
        ("json:JSONDecoder", {}, "is no subclass"),
        ("frontier_tune.sdk.env:WorkflowEnv", {}, "lacks begin, grade, tasks"),
        ("..", {}, "lies outside the workspace"),
    ],
)
def test_errors_say_what_there_is(path: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput) as e:
        load_environment(path, ROOT, **options)
    assert message in str(e.value)


def test_a_broken_module_is_named_with_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "envs" / "broken_one"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("x = 1\nimport surely_not_there\n")
    code = f"from frontier_tune.sdk import load_environment; load_environment('envs/broken_one', {str(tmp_path)!r})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BadInput" in out.stderr and "envs/broken_one/__init__.py:2" in out.stderr


def test_hash_follows_content_alone(tmp_path: Path) -> None:
    folder = tmp_path / "envs" / "a"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("1")
    before = environment_hash("envs/a", tmp_path)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("1")
    assert environment_hash("envs/a", tmp_path) == before
    (folder / "data.json").write_text("{}")
    assert environment_hash("envs/a", tmp_path) != before


def test_task_sets_are_checked() -> None:
    env = load_environment("envs/count_up", ROOT)
    train = draw_tasks(env, "train", 5, 0)
    check_disjoint(train, draw_tasks(env, "heldout", 5, 0))
    with pytest.raises(BadInput, match="leaks"):
        check_disjoint(train, [Task("count", "heldout", {"target": 2})])
    with pytest.raises(BadInput, match="layout family"):
        check_disjoint(train, [Task("count", "heldout", {"target": 99}, family="train")])
    env.tasks = lambda split, n, seed: [train[0], train[0]]  # type: ignore[method-assign]
    with pytest.raises(BadInput, match="are the same"):
        draw_tasks(env, "train", 2, 0)
    with pytest.raises(BadInput, match="returned 2 tasks"):
        draw_tasks(env, "train", 3, 0)
    with pytest.raises(BadInput, match="says split 'train'"):
        draw_tasks(env, "heldout", 2, 0)


def test_rubric_weights_and_shares() -> None:
    half = Component("half", 0.5, lambda c: 0.5)
    need = Component("need", 0.5, lambda c: c == 1, required=True)
    rubric = Rubric([half, need])
    assert rubric.score(1).reward == 0.75 and rubric.score(1).success
    assert rubric.score(2).reward == 0.25 and not rubric.score(2).success
    for wrong in ([half], [half, half, need], [half, Component("need", 0.4, lambda c: 1.0, required=True)]):
        with pytest.raises(BadInput):
            Rubric(wrong)
    whole = Rubric([Component("half", 0.3, lambda c: 0.5), Component("need", 0.2, lambda c: c == 1, required=True)], complete=0.5)
    assert list(whole.score(1).components) == ["half", "need", "complete"] and whole.score(1).reward == 0.85
    assert whole.score(2) == Grade(0.15, False, {"half": 0.5, "need": 0.0, "complete": 0.0})
    with pytest.raises(BadInput, match="names repeat: complete"):
        Rubric([Component("complete", 0.5, lambda c: 1.0, required=True)], complete=0.5)
    with pytest.raises(ValueError, match="'high' returned 2"):
        Rubric([Component("high", 1.0, lambda c: 2, required=True)]).score(0)


def test_a_module_in_no_package_is_an_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what lies beside it: that is the workspace, with its runs."""
    shutil.copy(ROOT.parents[1] / "toy_env" / "envs" / "echo" / "__init__.py", tmp_path / "lonely_desk.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = "lonely_desk:Echo"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs", target_is_directory=True)
    before = environment_hash(path, tmp_path)
    assert registry.source(path, tmp_path) == tmp_path / "lonely_desk.py"
    assert list(tree(registry.source(path, tmp_path), code=True)) == ["lonely_desk.py"]
    (tmp_path / "notes.txt").write_text("x")
    assert environment_hash(path, tmp_path) == before
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "lonely.py").write_text("x = 1")
    assert list(registry.loaded_code(path, tmp_path)) == [str(tmp_path / "lonely_desk.py")]  # nobody has imported that reward
    monkeypatch.setitem(sys.modules, "rewards.lonely", SimpleNamespace(__file__=str(tmp_path / "rewards" / "lonely.py")))
    assert set(registry.loaded_code(path, tmp_path)) == {str(tmp_path / n) for n in ("lonely_desk.py", "rewards/lonely.py")}
