"""The recipe's section ``algorithm``: which settings each algorithm has, and their defaults (docs/algorithms.md)."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from frontier_tune.recipe.sections import Options, Section

# Settings of the algorithms (frontier_tune/algorithms), by name, with each one's defaults; None: none, or derived. The classes
# there have the same (a test holds the two together). What isn't listed under an algorithm is refused with it.
_EVERY = {
    **{"normalization": "token", "loss_constant": None, "proximal": "sampler"},
    **{"kl_coefficient": 0.0, "kl_in": "loss", "kl_estimator": "k3", "kl_target": None},
    **{"entropy_coefficient": 0.0, "entropy_target": None, "entropy_step": 0.001, "entropy_limit": 0.1},
    **{"correction": "none", "correction_level": "token", "correction_low": 0.0, "correction_high": 2.0},
    "mask_truncated": False,
}
_GROUP = {**_EVERY, "clip_low": 0.2, "clip_high": 0.28, "advantage": "group", "scale_by_std": True, "turn_discount": 1.0}
_REWARD_KL = {**_EVERY, "clip_low": 0.2, "clip_high": 0.2, "kl_in": "reward", "kl_estimator": "k1"}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": _GROUP,
    "dr_grpo": {**_GROUP, "clip_high": 0.2, "scale_by_std": False, "normalization": "constant"},
    "dapo": {**_GROUP, "overlong_buffer": None, "overlong_limit": None, "dynamic_sampling": 3},
    "gspo": {**_GROUP, "clip_low": 3e-4, "clip_high": 4e-4, "normalization": "sequence"},
    "cispo": {**_GROUP, "clip_low": 1.0, "clip_high": 4.0},
    "rloo": {**_REWARD_KL, "normalization": "sequence"},
    "reinforce_pp": {**_REWARD_KL, "baseline": "none"},
    "ppo": {
        **_REWARD_KL,
        **{"discount": 1.0, "trace": 0.95, "value_clip": 0.2, "value_coefficient": 0.5, "critic_learning_rate": 1e-2},
    },
}
# What estimates a KL to the base where an algorithm's own default is meant for the other place (algorithms/kl.py).
ESTIMATOR_IN = {"loss": "k2", "reward": "k1"}
# Keys of the section that the loop reads, whatever the algorithm.
LOOP_SETTINGS = {"name", "groups_per_step", "group_size", "epochs", "minibatches", "rehearsal_groups", "replay", "options"}


class Algorithm(Section):
    """How to learn: docs/algorithms.md. A setting that isn't given has the algorithm's own default, see ALGORITHMS."""

    name: str = Field("grpo", description="One of ALGORITHMS, or module:Class of an own one")
    groups_per_step: int = Field(24, ge=1)
    group_size: int = Field(8, ge=2)
    epochs: int = Field(1, ge=1, description="Passes over each step's batch")
    minibatches: int = Field(1, ge=1, description="Optimizer updates per pass")
    rehearsal_groups: int = Field(
        0, ge=0, description="Groups of general tasks a step, besides: what the base can do is not forgotten"
    )
    replay: Literal["none", "learner", "sampler"] = Field(
        "none", description="Routes that experts are trained with: the forward's own, the learner's old (R2), the sampler's (R3)"
    )
    clip_low: float | None = Field(None, gt=0, le=1)
    clip_high: float | None = Field(None, gt=0)
    advantage: Literal["group", "batch", "turn"] | None = Field(None, description="What a reward is compared with")
    scale_by_std: bool | None = Field(None, description="Divide the advantage by the standard deviation")
    turn_discount: float | None = Field(None, gt=0, le=1, description="With advantage: turn")
    baseline: Literal["none", "group"] | None = None
    normalization: Literal["token", "sequence", "constant"] | None = Field(None, description="What the loss is a mean over")
    loss_constant: int | None = Field(None, ge=1, description="Tokens a sequence, with normalization: constant; default: derived")
    kl_coefficient: float | None = Field(None, ge=0, description="Weight of the KL to the base; 0 switches it off")
    kl_in: Literal["loss", "reward"] | None = None
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(
        None, description="Default where kl_in isn't the algorithm's own: k1 in the reward, k2 in the loss"
    )
    kl_target: float | None = Field(None, gt=0, description="Nats a token that kl_coefficient is adapted to")
    entropy_coefficient: float | None = Field(None, ge=0)
    entropy_target: float | None = Field(None, gt=0, description="Nats a token below which the bonus is applied and grows")
    entropy_step: float | None = Field(None, gt=0)
    entropy_limit: float | None = Field(None, gt=0)
    proximal: Literal["sampler", "learner"] | None = Field(None, description="Whose log-probabilities the ratio is against")
    correction: Literal["none", "full", "truncate", "mask"] | None = Field(None, description="Of learner against sampler")
    correction_level: Literal["token", "sequence", "geometric"] | None = None
    correction_low: float | None = Field(None, ge=0)
    correction_high: float | None = Field(None, gt=0)
    mask_truncated: bool | None = Field(None, description="Episodes cut off by a limit count in the baseline, not in the loss")
    overlong_buffer: int | None = Field(None, ge=1, description="Last tokens of an episode's allowance, which cost reward")
    overlong_limit: int | None = Field(None, ge=1, description="Default: what an episode may sample")
    dynamic_sampling: int | None = Field(None, ge=0, description="Rounds that replace groups whose rewards are all equal")
    discount: float | None = Field(None, gt=0, le=1)
    trace: float | None = Field(None, ge=0, le=1, description="GAE's lambda")
    value_clip: float | None = Field(None, ge=0)
    value_coefficient: float | None = Field(None, gt=0)
    critic_learning_rate: float | None = Field(None, gt=0)
    options: Options = Field(default_factory=dict, description="Settings of an own algorithm that have no key here")

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_algorithm(cls, data: Any) -> Any:
        """Fill in the algorithm's defaults; refuse what it does not use. An own algorithm's are checked where it is built."""
        if not isinstance(data, dict):
            return data
        name = data.get("name", "grpo")
        if not isinstance(name, str) or ":" in name:
            return data
        if name not in ALGORITHMS:
            near = difflib.get_close_matches(name, ALGORITHMS, n=2, cutoff=0.6)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known are {', '.join(ALGORITHMS)}"
            raise ValueError(f"unknown algorithm '{name}'; {hint} (an own one: module:Class)")
        own = ALGORITHMS[name]
        for key, value in data.items():
            if value not in (None, {}) and key in cls.model_fields and key not in LOOP_SETTINGS - {"options"} and key not in own:
                users = ", ".join(n for n, settings in ALGORITHMS.items() if key in settings)
                raise ValueError(
                    f"'{key}' is not used by {name}; take it out, or set it to null (used by: {users or 'own algorithms'})"
                )
        given = {k: v for k, v in data.items() if v is not None}
        if given.get("kl_in", own["kl_in"]) != own["kl_in"]:  # an estimator that fits the one place does not fit the other
            given.setdefault("kl_estimator", ESTIMATOR_IN.get(given["kl_in"], own["kl_estimator"]))
        return {**own, **given}

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v is not None and v != {}}
