"""Algorithms by name, and a user's own by import path."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from frontier_tune.algorithms.base import Algorithm
from frontier_tune.algorithms.cispo import CISPO
from frontier_tune.algorithms.dapo import DAPO
from frontier_tune.algorithms.dr_grpo import DrGRPO
from frontier_tune.algorithms.grpo import GRPO
from frontier_tune.algorithms.gspo import GSPO
from frontier_tune.algorithms.ppo import PPO
from frontier_tune.algorithms.reinforce_pp import ReinforcePP
from frontier_tune.algorithms.rloo import RLOO
from frontier_tune.algorithms.settings import checked_options, default_of
from frontier_tune.contracts import BadInput
from frontier_tune.recipe import ESTIMATOR_IN, LOOP_SETTINGS, Recipe

ALGORITHMS: dict[str, type[Algorithm]] = {
    "grpo": GRPO,
    "dr_grpo": DrGRPO,
    "dapo": DAPO,
    "gspo": GSPO,
    "cispo": CISPO,
    "rloo": RLOO,
    "reinforce_pp": ReinforcePP,
    "ppo": PPO,
}


def find(name: str, root: str | Path | None = None) -> type[Algorithm]:
    """The class behind ``recipe.algorithm.name``: one of ALGORITHMS, or ``module:Class``, importable from the workspace ``root``.

    Raises BadInput where there is none, it can't be imported, or isn't an algorithm.
    """
    if ":" not in name:
        if name in ALGORITHMS:
            return ALGORITHMS[name]
        raise BadInput(f"algorithm.name '{name}': known are {', '.join(ALGORITHMS)}; an own one is named module:Class")
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as e:
        raise BadInput(f"algorithm.name '{name}': import of {module} failed: {type(e).__name__}: {e}") from e
    if not (inspect.isclass(found) and issubclass(found, Algorithm)):
        raise BadInput(f"algorithm.name '{name}': {module} has no such subclass of frontier_tune.algorithms.base.Algorithm")
    if inspect.isabstract(found):
        raise BadInput(f"algorithm.name '{name}': {attribute} lacks {', '.join(sorted(found.__abstractmethods__))}")
    return found


def source(name: str, root: Path) -> Path | None:
    """Where an own algorithm's files lie: its package in the workspace, or a module that is in none; None for one of ours."""
    module, own, _ = name.partition(":")
    if not own:
        return None
    *packages, last = module.split(".")
    folder = root.joinpath(*packages)
    if (folder / last).is_dir():
        return folder / last
    if (file := folder / f"{last}.py").is_file():
        return folder if packages else file
    found = importlib.util.find_spec(module)
    if found is None or not found.has_location or found.origin is None:
        return None
    installed = Path(found.origin)
    return installed.parent if packages or found.submodule_search_locations else installed


def episode_tokens(recipe: Recipe) -> int:
    """Tokens that an episode may sample, by the recipe alone."""
    return min(recipe.environment.turns * recipe.environment.max_tokens_per_turn, recipe.sampler.max_model_len)


def settled(recipe: Recipe, tokens: int | None, root: str | Path | None = None) -> Recipe:
    """The recipe with what a run that begins takes from elsewhere written down in it: it goes on by that.

    An estimator of the KL that fits its place, for an own algorithm (of ours the section has one); and what follows from an
    environment that ends an episode after ``tokens`` sampled ones.
    """
    section = recipe.algorithm
    own = find(section.name, root) if ":" in section.name else None
    if own is not None and section.kl_in not in (None, default_of(own, "kl_in")) and section.kl_estimator is None:
        section = section.model_copy(update={"kl_estimator": ESTIMATOR_IN[section.kl_in]})
        recipe = recipe.model_copy(update={"algorithm": section})
    if tokens is None or tokens >= episode_tokens(recipe):
        return recipe
    algorithm = build(recipe, root)
    wanted = {
        "loss_constant": algorithm.normalization == "constant",
        # Rehearsed general tasks are of another environment, without that limit, and one penalty is for both.
        "overlong_limit": getattr(algorithm, "overlong_buffer", None) is not None and not section.rehearsal_groups,
    }
    derived = [k for k, at_work in wanted.items() if at_work and getattr(section, k) is None and k not in section.options]
    return recipe.model_copy(update={"algorithm": section.model_copy(update=dict.fromkeys(derived, tokens))})


def build(recipe: Recipe, root: str | Path | None = None, strict: bool = False) -> Algorithm:
    """The recipe's algorithm with its settings. Raises BadInput where it doesn't take one of them, or they don't fit together.

    ``strict``: also where one has no effect, which a recipe is told before it starts a run, and none that has.
    """
    section = recipe.algorithm
    cls = find(section.name, root)
    known = {f.name for f in fields(cls)}
    settings: dict[str, Any] = {
        key: value for key, value in section.model_dump().items() if key not in LOOP_SETTINGS and value is not None
    }
    for key in settings.keys() & section.options.keys():
        raise BadInput(f"algorithm.options.{key}: this has a place of its own, algorithm.{key}")
    for key in (*settings, *section.options):
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(sorted(known))}"
            raise BadInput(f"algorithm.{key}: {section.name} does not use it; {hint}")
    settings |= checked_options(section.name, section.options, cls)
    tokens = episode_tokens(recipe)
    if settings.get("normalization", default_of(cls, "normalization")) == "constant":
        settings.setdefault("loss_constant", tokens)
    if settings.get("overlong_buffer") is not None:
        settings.setdefault("overlong_limit", tokens)
    try:
        algorithm = cls(**settings)
    except (TypeError, ValueError) as e:
        raise BadInput(f"algorithm: {section.name}: {e}") from None
    if not strict:
        return algorithm
    idle = algorithm.idle()
    if section.epochs * section.minibatches == 1:
        idle |= dict.fromkeys(algorithm.idle_at_one_update(), "several updates a step (epochs, minibatches)")
    for key, needed in idle.items():
        if key in settings and settings[key] != default_of(cls, key):
            raise BadInput(f"algorithm.{key}: it has no effect without {needed}; set that, or take '{key}' out")
    return algorithm
