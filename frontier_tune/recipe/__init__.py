"""The recipe: what a run is made of. Typed and strict; YAML states only what differs from the defaults.

``load(path, overrides)`` reads YAML, applies ``dotted.key=value`` overrides and validates. An unknown key is refused
with the nearest valid one; every error names file and field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from frontier_tune.contracts import BadInput
from frontier_tune.recipe import full, strict_yaml
from frontier_tune.recipe.algorithm import ALGORITHMS, ESTIMATOR_IN, LOOP_SETTINGS, Algorithm
from frontier_tune.recipe.sections import (
    LEAST_TEMPERATURE,
    Adapter,
    Company,
    Dpo,
    Environment,
    Learner,
    Overlap,
    Parity,
    Placement,
    Rates,
    Reliability,
    Run,
    Sampler,
    Section,
    Sft,
    Supervised,
    Tracking,
    WarmStart,
)

__all__ = [
    "ALGORITHMS",
    "Adapter",
    "Algorithm",
    "Company",
    "Dpo",
    "Environment",
    "ESTIMATOR_IN",
    "LOOP_SETTINGS",
    "LEAST_TEMPERATURE",
    "Learner",
    "Overlap",
    "Parity",
    "Placement",
    "Rates",
    "Recipe",
    "Reliability",
    "Run",
    "Sampler",
    "Section",
    "Sft",
    "Supervised",
    "Tracking",
    "WarmStart",
    "apply_overrides",
    "dump",
    "load",
    "parse",
]

# What equal bytes need: one thread adds in one order, and a cache that an interruption empties must not be there to be hit.
_DETERMINISTIC: dict[str, dict[str, Any]] = {"learner": {"threads": 1}, "sampler": {"threads": 1, "prefix_caching": False}}


class Recipe(Section):
    seed: int = Field(0, ge=0)
    base: str = Field("nano", description="'nano' (ships with the repository), a directory, or a hub id")
    base_config: str | None = Field(None, description="config.json for --dry-run where the base isn't here")
    base_download: bool = Field(False, description="Whether a hub id that isn't on this machine may be downloaded")
    company: Company = Company()
    environment: Environment = Environment()
    algorithm: Algorithm = Algorithm()
    adapter: Adapter = Adapter()
    learner: Learner = Learner()
    sampler: Sampler = Sampler()
    parity: Parity = Parity()
    placement: Placement = Placement()
    warm_start: WarmStart = WarmStart()
    run: Run = Run()
    reliability: Reliability = Reliability()
    overlap: Overlap = Overlap()
    tracking: Tracking = Tracking()

    @model_validator(mode="before")
    @classmethod
    def _what_determinism_needs(cls, data: Any) -> Any:
        """``run.deterministic`` settles what it depends on, where the recipe doesn't say otherwise."""
        if not isinstance(data, dict) or not isinstance(data.get("run"), dict) or data["run"].get("deterministic") is not True:
            return data
        for section, values in _DETERMINISTIC.items():
            if isinstance(data.get(section, {}), dict):
                data = {**data, section: {**values, **data.get(section, {})}}
        return data

    @model_validator(mode="after")
    def _deadlines_contain_each_other(self) -> Recipe:
        if self.run.deterministic:
            for section, values in _DETERMINISTIC.items():
                for key, value in values.items():
                    if getattr(getattr(self, section), key) != value:
                        raise ValueError(f"run.deterministic: needs {section}.{key}={str(value).lower()}; take the key out")
        r, step = self.reliability, self.environment.step_timeout_s
        for inner, short, outer, long in (
            ("reliability.heartbeat_s", r.heartbeat_s, "reliability.stall_timeout_s", r.stall_timeout_s),
            ("environment.step_timeout_s", step, "reliability.stall_timeout_s", r.stall_timeout_s),
            ("reliability.max_backoff_s", r.max_backoff_s, "reliability.stall_timeout_s", r.stall_timeout_s),
            ("reliability.stall_timeout_s", r.stall_timeout_s, "reliability.call_timeout_s", r.call_timeout_s),
        ):
            if not short < long:
                raise ValueError(f"{inner} ({short:g}) must be below {outer} ({long:g}), which would always end it first")
        if r.backoff_s > r.max_backoff_s:
            raise ValueError("reliability.backoff_s: at most reliability.max_backoff_s")
        if self.run.max_cost is not None and not (self.run.rates.hour or self.run.rates.million_tokens):
            raise ValueError("run.max_cost: needs a rate; set run.rates.hour or run.rates.million_tokens")
        return self

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Recipe:
        if not (self.adapter.attention or self.adapter.experts or self.adapter.targets):
            raise ValueError("adapter: nothing to adapt; set adapter.experts or adapter.attention to true")
        if self.adapter.expert_mass is not None and not self.adapter.experts:
            raise ValueError("adapter.expert_mass: chooses among adapted experts; set adapter.experts to true, or take it out")
        if self.adapter.expert_mass is not None and (self.warm_start.sft or self.warm_start.dpo):
            raise ValueError(
                "adapter.expert_mass: a warm start adapts all experts before any could be chosen; take one of them out"
            )
        if self.adapter.router and self.adapter.expert_mass is not None:
            raise ValueError(
                "adapter.router: routers that learn send tokens to experts that adapter.expert_mass left out; take one out"
            )
        if self.algorithm.minibatches > self.algorithm.groups_per_step:
            raise ValueError("algorithm.minibatches: at most algorithm.groups_per_step")
        if lines := full.conflicts(self):
            raise ValueError("\n".join(lines))
        return self


def _known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):  # also an optional section
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += _known_keys(kind, prefix + name + ".")
    return keys


def _explain(error: ValidationError, where: str) -> BadInput:
    lines = []
    for e in error.errors():
        key = ".".join(str(p) for p in e["loc"])
        if e["type"] == "extra_forbidden":
            known = _known_keys(Recipe)
            elsewhere = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]  # the right leaf in the wrong section
            near = difflib.get_close_matches(key, elsewhere or known, n=1, cutoff=0.0 if elsewhere else 0.5)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known here: {', '.join(k for k in known if '.' not in k)}"
            lines.append(f"{where}: unknown key '{key}'{hint}")
        else:
            message = e["msg"].removeprefix("Value error, ")
            given = "" if isinstance(e.get("input"), dict) else f" (got {e.get('input')!r})"
            lines.append(f"{where}: {key or 'recipe'}: {message}{given}")
    return BadInput("\n".join(lines))


def apply_overrides(data: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``data`` with each ``dotted.key=value`` set; values are YAML (``true``, ``3``, ``[a, b]``)."""
    for item in overrides:
        key, sep, raw = item.partition("=")
        if not sep or not key.strip():
            raise BadInput(f"override '{item}': write it as key=value, for example learner.learning_rate=1e-3")
        node = data
        *parents, leaf = key.strip().split(".")
        for part in parents:
            nxt = node[part] = {} if node.get(part) is None else node[part]  # null: a section that is switched off
            if not isinstance(nxt, dict):
                raise BadInput(f"override '{item}': '{part}' is a value, not a section")
            node = nxt
        try:
            node[leaf] = strict_yaml.read_recipe(raw)
        except yaml.YAMLError as e:
            raise BadInput(f"override '{item}': the value is not YAML ({e})") from None
    return data


def parse(data: Any, overrides: Iterable[str] = (), where: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe. Raises BadInput that names every wrong field."""
    if not isinstance(data, dict):
        raise BadInput(f"{where}: a recipe is a mapping of keys, this is {type(data).__name__}")
    try:
        return Recipe.model_validate(apply_overrides(data, overrides))
    except ValidationError as e:
        raise _explain(e, where) from None


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file. Raises BadInput where the file is missing, is not YAML, or does not validate."""
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise BadInput(f"{path}: no such recipe" + (f"; here are: {', '.join(near)}" if near else ""))
    try:
        data = strict_yaml.read_recipe(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise BadInput(f"{path}: not valid YAML: {e}") from None
    return parse(data, overrides, str(path))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; ``load`` of it gives an equal recipe."""
    return strict_yaml.write_recipe(recipe.model_dump(mode="json"))
