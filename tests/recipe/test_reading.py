"""Reading a recipe: what is refused, and whether the words lead to the mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: {steps: 3}\nseed: 1\nrun: {max_tokens: 9}\n", r"a key stands twice(.|\n)*line 1(.|\n)*'run' again(.|\n)*line 3"),
        ("run: {steps: 3, steps: 4}\n", "'steps' again"),
        ("learner: {learning_rat: 1.0e-3}\n", "unknown key 'learner.learning_rat'; did you mean 'learner.learning_rate'"),
        ("hour: 4\n", "did you mean 'run.rates.hour'"),
        ("run: {group_size: 4}\n", "unknown key 'run.group_size'; did you mean 'algorithm.group_size'"),
        ("group_size: 4\n", "unknown key 'group_size'; did you mean 'algorithm.group_size'"),
        ("warm_start: {sft: {traces: t, epoch: 2}}\n", "did you mean 'warm_start.sft.epochs'"),
        ("xyzzy: 1\n", "known here: seed, base"),
        ("run: {steps: 0}\n", r"run.steps: .*greater than or equal to 1 \(got 0\)"),
        ("run: 3\n", "run: .*Run"),
        ("- 3\n", "a mapping of keys, this is list"),
        ("run: {steps\n", "not valid YAML"),
        ("reliability: {heartbeat_s: 700}\n", r"heartbeat_s \(700\) must be below reliability.stall_timeout_s \(600\)"),
        ("run: {max_cost: 3}\n", "run.max_cost: needs a rate"),
        ("adapter: {attention: false, experts: false}\n", "nothing to adapt"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_and_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=words) as e:
        recipes.load(path)
    assert str(e.value).startswith(str(path))


def test_a_file_that_is_not_utf_8_is_bad_input(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("# M\u00fcller\nseed: 1\n".encode("latin-1"))
    with pytest.raises(BadInput, match="not valid YAML: 'utf-8' codec can't decode"):
        recipes.load(path)


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    """A merge key brings values that the mapping's own replace: that is no key twice."""
    path = tmp_path / "mine.yaml"
    path.write_text("warm_start:\n  sft: {traces: t, epochs: 2, batch_size: 4}\n  dpo: {<<: {epochs: 9}, pairs: t, epochs: 1}\n")
    warm = recipes.load(path).warm_start
    assert warm.sft and warm.dpo and (warm.sft.epochs, warm.dpo.epochs) == (2, 1)


def test_overrides_win_numbers_are_numbers_and_what_is_dumped_loads_equal(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    options = "environment: {options: {tolerance: 1e-3, name: e3}}\n"
    path.write_text(f"learner: {{learning_rate: 1e-3}}\nalgorithm: {{scale_by_std: false}}\nrun: null\n{options}")
    found = recipes.load(path, ["run.steps=7", "algorithm.name=rloo", "algorithm.scale_by_std=null", "tracking.wandb=off"])
    assert (found.learner.learning_rate, found.run.steps, found.tracking.wandb) == (1e-3, 7, "off")
    assert found.environment.options == {"tolerance": 1e-3, "name": "e3"}
    assert recipes.load(path, ["environment.options.tolerance=2E5", "run.steps=1"]).environment.options["tolerance"] == 2e5
    path.write_text(recipes.dump(found))
    assert recipes.load(path) == found
    with pytest.raises(BadInput, match="'steps' is a value, not a section"):
        recipes.load(path, ["run.steps.more=1"])
    with pytest.raises(BadInput, match="or set it to null"):
        recipes.load(path, ["algorithm.scale_by_std=false"])


def test_options_keep_the_type_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("environment: {options: {centre: '12E4', batch: \"7e2\", closing: 2024-01-31, rate: 1e-3, n: 12}}\n")
    found = recipes.load(path)
    assert found.environment.options == {"centre": "12E4", "batch": "7e2", "closing": "2024-01-31", "rate": 1e-3, "n": 12}
    path.write_text(recipes.dump(found))
    assert recipes.load(path) == found
    assert recipes.load(path, ["environment.options.closing=2024-02-30"]).environment.options["closing"] == "2024-02-30"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: {max_hours: .inf}", "run.max_hours: Input should be a finite number"),
        ("learner: {learning_rate: .nan}", "learner.learning_rate: Input should be a finite number"),
        ("environment: {options: {a: [{b: .nan}]}}", "environment.options: nan has no form in JSON"),
        ("algorithm: {name: 'm:A', options: {a: .inf}}", "algorithm.options: inf has no form in JSON"),
        ("environment: {options: {a: !!binary aGk=}}", "environment.options: b'hi' has no form in JSON"),
        ("environment: {options: {1: a}}", "1"),
    ],
)
def test_what_json_has_no_form_for_is_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    """It would cost a run its record, when all is done."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as refused:
        recipes.load(path)
    assert words in str(refused.value)
