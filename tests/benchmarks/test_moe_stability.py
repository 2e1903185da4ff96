"""Stability on mixtures of experts: settings fit the recipe, tables say what the runs' files do, splits add up."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import moe_mismatch as paired
from benchmarks import moe_stability as bench
from frontier_tune import recipe as recipes
from frontier_tune.learning.batch import Sample
from frontier_tune.recipe import idle


@pytest.mark.parametrize("variant", bench.VARIANTS)
def test_the_recipe_takes_every_variant(root: Path, variant: str) -> None:
    file = root / "recipes" / "month_end_close.yaml"
    found = recipes.load(file, bench.overrides(variant, 2, 3.0, file))
    idle.check(found)
    assert found.learner.learning_rate == pytest.approx(3 * recipes.load(file).learner.learning_rate)
    assert (found.sampler.dtype, found.learner.dtype, found.seed) == ("bfloat16", "float32", 2)
    assert found.algorithm.replay == {"r2": "learner", "r3": "sampler", "r3_head": "sampler"}.get(variant, "none")
    assert found.algorithm.correction == ("truncate" if variant == "tis" else "none")
    with pytest.raises(SystemExit, match="at most 3"):
        bench.overrides(variant, 0, 3.5, file)
    recipes.load(file, [*paired.SETTINGS, "learner.learning_rate=0.006"])


def finished(run: Path, kl: float, old: float, success: list[float], **more: object) -> None:
    run.mkdir()
    rows = [
        {"step": n, "kl_sampler": kl * n, "kl_old": old, "route_flips": 0.1, "success": s} | more
        for n, s in enumerate(success, start=1)
    ]
    rows.insert(1, {"step": 2, "success": success[0]})  # a step that taught nothing has no such metrics
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tuned = {"success": success[-1], "ci95": [0, 1], "n": 320}
    (run / "evaluation.json").write_text(json.dumps({"tuned": tuned}))
    code = {"name": "code", "digest": {"gitCommit": "abc"}}
    parameters = {"externalParameters": {"recipe": {"run": {}}}, "internalParameters": {"seeds": {}}}
    record = {"predicate": {"buildDefinition": parameters | {"resolvedDependencies": [code]}}}
    (run / "record.json").write_text(json.dumps(record))


def test_rows_are_seed_by_seed_and_gates_stand_where_replay_can_act(tmp_path: Path) -> None:
    for seed, scale in enumerate((1.0, 10.0)):
        finished(tmp_path / f"none-{seed}", 4e-6 * scale, 3e-5, [0.1, 0.2, 0.4, 0.5])
        finished(tmp_path / f"r3-{seed}", 1e-6 * scale, 3e-5, [0.1, 0.2, 0.4, 0.6])
    finished(tmp_path / "r2-0", 4e-6, 1e-5, [0.1, 0.2, 0.4, 0.5])
    found = bench.gathered(tmp_path, {})
    told = json.loads(json.dumps(found))  # a result's keys are strings
    (tmp_path / "empty").mkdir()
    assert bench.gathered(tmp_path / "empty", told) == found == bench.gathered(tmp_path, {"r2": told["none"]} | told)
    rows = {r.case: r for r in bench.compared(found)}
    r3, r2 = rows["r3: mismatch, mean over steps"], rows["r2: drift, mean over steps"]
    assert (r3.ratio, r3.samples, r3.gate, r3.min) == (pytest.approx(4), 2, True, 2.0)
    assert (r2.ratio, r2.samples, r2.gate) == (pytest.approx(3), 1, True)
    assert not rows["r2: mismatch, mean over steps"].gate and rows["r2: mismatch, mean over steps"].ratio == pytest.approx(1)
    assert rows["r3: held-out success"].ratio == pytest.approx(1.2)
    assert not rows["r3: mismatch, median over steps"].gate
    one = found["none"][0]
    assert one["kl_sampler"] == pytest.approx(
        {"mean": 1e-5, "median": 1e-5, "first_quarter": 4e-6, "last_quarter": 1.6e-5, "most": 1.6e-5}
    )
    assert one["commit"] == "abc" and one["collapsed"] is None and len(one["success_by_step"]) == 5


def test_collapse_is_half_of_the_best_a_rollback_or_a_run_that_diverged(tmp_path: Path) -> None:
    finished(tmp_path / "none-0", 1e-6, 1e-6, [0.8] * 6 + [0.1] * 6)
    assert "after 0.80" in (bench.describe(tmp_path / "none-0")["collapsed"] or "")
    finished(tmp_path / "none-1", 1e-6, 1e-6, [0.8] * 6 + [0.5] * 6)
    assert bench.describe(tmp_path / "none-1")["collapsed"] is None
    finished(tmp_path / "none-2", 1e-6, 1e-6, [0.8] * 6, rollbacks=1, bad_updates=3)
    assert bench.describe(tmp_path / "none-2")["collapsed"] == "1 rollbacks"
    diverged = tmp_path / "r2-0"
    finished(diverged, 1e-6, 1e-6, [0.8] * 6)
    (diverged / "evaluation.json").unlink()
    assert not bench.done(diverged)
    (diverged / "diverged").touch()
    assert bench.done(diverged) and bench.describe(diverged)["collapsed"] == "diverged"
    assert not bench.compared({"none": {0: bench.describe(diverged)}})  # nothing to hold it against


def test_the_split_of_paired_tokens_adds_up_to_the_mean() -> None:
    """Two sequences of six tokens, one layer, two experts a token; routes differ in order alone, but for one position."""
    routes = np.tile(np.array([[[0, 1]]], np.uint8), (6, 1, 1))
    other = routes[:, :, ::-1].copy()
    other[2] = [0, 2]
    target = np.array([2, 3, 4, 5])
    empty = np.zeros(4)
    members = [Sample(g, [1] * 6, target, empty, empty, 1.0) for g in (0, 1)]
    tokens = paired.Tokens.of(members, [routes, routes], [other, routes[:, :, ::-1]])
    assert tokens.here_M.tolist() == [False, True, False, False] + [False] * 4
    assert tokens.before_M.tolist() == [False, False, True, True] + [False] * 4
    kl_M = np.arange(8.0)
    found = tokens.split(kl_M)
    kinds = ("flipped", "flipped_before", "kept")
    assert sum(found[f"share_{k}"] * found[f"kl_{k}"] for k in kinds) == pytest.approx(found["kl"]) == pytest.approx(3.5)
    low, high = tokens.ratio(kl_M + 1, 3 * (kl_M + 1))
    assert low == pytest.approx(3) == pytest.approx(high)  # the same in every draw


def test_k3_of_paired_scores_is_the_learners_estimator() -> None:
    import torch

    from frontier_tune.algorithms import kl

    draw = np.random.default_rng(0)
    q, p = ([-draw.random(n) for n in (3, 5)] for _ in (0, 1))
    want = kl.k3(torch.from_numpy(np.concatenate(q)), torch.from_numpy(np.concatenate(p)))
    np.testing.assert_allclose(paired.k3(q, p), want.numpy(), atol=1e-15)
    assert paired.extreme([np.array([-1.0, -2.0])], [np.array([-2.0, -2.5])]) == 0.5
