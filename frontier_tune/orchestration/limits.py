"""Spending limits of a run: tokens, hours, money at the recipe's rates, groups lost to failures."""

from __future__ import annotations

from frontier_tune.recipe import Recipe


def cost(recipe: Recipe, tokens: int, seconds: float) -> float:
    """What training cost so far, in ``run.rates.currency``."""
    rates = recipe.run.rates
    return seconds / 3600 * rates.hour + tokens / 1e6 * rates.million_tokens


def spent(recipe: Recipe, tokens: int, seconds: float) -> dict[str, float]:
    """``cost``, for a run that states rates."""
    return {"cost": cost(recipe, tokens, seconds)} if recipe.run.rates.hour or recipe.run.rates.million_tokens else {}


def used_up(recipe: Recipe, tokens: int, seconds: float, dropped: int = 0) -> str | None:
    """Which budget is used up, if one is, after so many sampled tokens, seconds of training and groups lost to failures."""
    run, most = recipe.run, recipe.reliability.max_dropped_groups
    if run.max_tokens is not None and tokens >= run.max_tokens:
        return f"{tokens:,} tokens sampled, run.max_tokens is {run.max_tokens:,}"
    if run.max_hours is not None and seconds >= run.max_hours * 3600:
        return f"{seconds / 3600:.2f} h of training, run.max_hours is {run.max_hours:g}"
    money = cost(recipe, tokens, seconds)
    if run.max_cost is not None and money >= run.max_cost:
        return f"{money:.2f} {run.rates.currency} spent at run.rates, run.max_cost is {run.max_cost:g}"
    if most is not None and dropped > most:
        return f"{dropped} groups lost to failures, reliability.max_dropped_groups is {most}: mend the environment, or raise it"
    return None
