"""The benchmark of algorithms: its settings fit the recipe that it goes by, and its table says no more than the runs."""

import json
from pathlib import Path

import pytest

from benchmarks import bench_algorithms as bench
from benchmarks import harness
from frontier_tune import recipe as recipes


@pytest.mark.parametrize("name", bench.ALGORITHMS)
def test_the_recipe_takes_every_algorithm(root: Path, name: str) -> None:
    found = recipes.load(root / "recipes" / "month_end_close.yaml", [*bench.overrides(name, 2), *bench.COMMON])
    assert (found.algorithm.name, found.seed, found.run.max_tokens) == (name, 2, bench.TOKENS)
    assert set(bench.ALGORITHMS) == set(recipes.ALGORITHMS)


def finished(run: Path, success: float) -> None:
    run.mkdir()
    tuned = {"success": success, "ci95": [0, 1], "by_kind": {"a": {"success": success}}}
    (run / "evaluation.json").write_text(json.dumps({"tuned": tuned, "train": {}}))
    parameters = {"externalParameters": {"recipe": {"run": {}}}, "internalParameters": {"seeds": {}}, "resolvedDependencies": []}
    (run / "record.json").write_text(json.dumps({"predicate": {"buildDefinition": parameters}}))
    rows = [{"step": 1, "tokens_sampled": 10, "updates": 2, "probe": {"success": success}}, {"step": 2, "tokens_sampled": 5}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_the_third_best_is_told_of_three_and_ppo_is_held_against_grpo(tmp_path: Path) -> None:
    finished(tmp_path / "grpo-0", 0.9)
    finished(tmp_path / "grpo-1", 0.8)
    finished(tmp_path / "ppo-0", 0.81)
    rows, found = bench.table(tmp_path, {})
    assert [(r.case, pytest.approx(r.ours)) for r in rows] == [
        ("grpo, 2 seeds", 0.85),
        ("ppo, 1 seeds", 0.81),
        ("ppo against grpo", 0.81),
    ]
    assert rows[-1].baseline == pytest.approx(0.8) and rows[-1].ratio > 1
    assert found["grpo"]["grpo-0"]["to_goal"] == {"steps": 1, "updates": 2, "tokens": 10} and not found["ppo"]["ppo-0"]["to_goal"]
    finished(tmp_path / "dapo-0", 0.95)
    third = bench.table(tmp_path, {})[0][-1]
    assert (third.case, third.ours) == ("third best algorithm", 0.81) and third.ratio < third.min == 1.0


def test_runs_of_another_machine_count_as_made_if_their_settings_are_the_same(tmp_path: Path) -> None:
    finished(tmp_path / "grpo-0", 0.9)
    settings = {"tokens": bench.TOKENS, "common": bench.COMMON}
    result, runs = tmp_path / "result.json", bench.table(tmp_path, {})[1]
    harness.report("bench_algorithms", bench.table(tmp_path, {})[0], {}, settings | {"runs": runs}, result)
    earlier = harness.elsewhere("bench_algorithms", settings, result)
    assert earlier == runs and harness.elsewhere("bench_algorithms", settings, None) == {}
    here = tmp_path / "here"
    here.mkdir()
    finished(here / "grpo-1", 0.8)
    rows, found = bench.table(here, earlier)
    assert list(found["grpo"]) == ["grpo-0", "grpo-1"] and rows[0].ours == pytest.approx(0.85)
    with pytest.raises(SystemExit, match="other settings"):
        harness.elsewhere("bench_algorithms", settings | {"tokens": 1}, result)
    with pytest.raises(SystemExit, match="not of moe_stability"):
        harness.elsewhere("moe_stability", {}, result)
