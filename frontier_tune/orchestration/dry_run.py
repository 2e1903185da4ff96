"""``tune --dry-run``: everything is checked that can be, and the plan is printed. Nothing is trained, nothing downloaded."""

from __future__ import annotations

from pathlib import Path

from frontier_tune import recipe as recipes
from frontier_tune.orchestration import base, plan, preflight, warm_start
from frontier_tune.recipe import Recipe, idle


def dry_run(recipe: Recipe, recipe_file: Path, purpose: preflight.Purpose = "begin") -> str:
    """The resolved recipe and the plan, as text. Raises BadInput for whatever a run would be refused for.

    Two things are said instead of refused, as they are no fault of the recipe: what this version can't run yet, and GPUs that
    this machine lacks. Without the base's weights and tokenizer here, openings are not held against the context's length.
    """
    root = preflight.find_root(recipe, recipe_file)
    found = base.for_plan(recipe, recipe_file, root)
    notes = []
    if found.directory is not None and not recipe.placement.gpus_per_node and not plan.missing(recipe, found.config):
        ready = preflight.check(recipe, recipe_file, purpose)
        recipe, made, counts = ready.recipe, ready.plan, ready.counts
        notes = warm_start.describe(warm_start.prepare(ready)).splitlines()
    else:
        recipe, counts = _checked(recipe, root, found, purpose)
        made = plan.make(recipe, found.config, root, recipe_file.stem)
        plan.require_resources(made, preflight.run_directory(recipe, root))
        if found.directory is None:
            notes = [
                f"base       planned from {found.source}: no weights and no tokenizer of {recipe.base} are here, so that the"
            ]
            notes += ["             openings of tasks were not held against sampler.max_model_len"]
        if made.on_gpus:
            notes += ["not tried   the disk's free space, and a warm start's data: a run does, where it is started"]
    text = plan.describe(made, recipe, counts)
    return f"# resolved recipe\n{recipes.dump(recipe)}\n# plan\n" + "\n".join([text, *notes])


def _checked(recipe: Recipe, root: Path, found: base.Planned, purpose: preflight.Purpose) -> tuple[Recipe, dict[str, int]]:
    """What ``preflight.check`` looks at, as far as it needs no tokenizer: the recipe, settled, and counts of tasks by split."""
    if purpose == "begin":
        idle.check(recipe)
    recipe, options = preflight.settle(recipe, root, purpose)
    algorithm = preflight.algorithm_of(recipe, root, purpose)
    preflight.check_trainable(recipe, found.config)
    preflight.check_lengths(recipe, found.config)
    env = recipe.environment
    with preflight.environment(env.path, root, options) as pool:
        train, heldout = preflight.both_splits(pool, recipe, root, options)
        preflight.check_openings(pool, recipe, algorithm if purpose == "begin" else None, found.directory, train, heldout)
    return recipe, {"training": len(train), "held-out": len(heldout), "general": env.general_tasks}
