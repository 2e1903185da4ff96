"""The recipe: what a run is made of. Typed and strict; YAML states only what differs from the defaults.

``load(path, overrides)`` reads YAML, applies ``dotted.key=value`` overrides and validates. An unknown key is refused
with the nearest valid one; every error names file and field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from frontier_tune.contracts import BadInput


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Company(Section):
    """Which company's conventions the environment enforces: another seed is another company."""

    seed: int = Field(7, ge=0)


class Environment(Section):
    """Where the workflow comes from and which of its tasks are used."""

    path: str = Field("envs/month_end_close", description="Directory in the workspace, or import path module:Class")
    train_tasks: int = Field(2000, ge=1, description="Distinct training tasks to draw groups from")
    accepted_tasks: str | None = Field(None, description="A directory of traces whose accepted tasks train, too: docs/traces.md")
    heldout_tasks: int = Field(320, ge=1, description="Held-out tasks for the evaluation before and after")
    general_tasks: int = Field(200, ge=0, description="General tasks by which forgetting is seen")
    max_turns: int = Field(8, ge=1)
    max_tokens_per_turn: int = Field(64, ge=1)
    workers: int = Field(1, ge=1, description="Environment worker processes")
    step_timeout_s: float = Field(20.0, gt=0)
    options: dict[str, Any] = Field(default_factory=dict, description="Passed to the environment as they are")
    allow_real_writes: list[str] = Field([], description="Tools that may write to production; policy.yaml has to allow them, too")


# Settings of the algorithms (frontier_tune/algorithms), by name, with each one's defaults; None: none, or derived. The classes
# there have the same (a test holds the two together). What isn't listed under an algorithm is refused with it.
_EVERY = {
    **{"normalization": "token", "loss_constant": None, "proximal": "sampler"},
    **{"kl_coefficient": 0.0, "kl_in": "loss", "kl_estimator": "k3", "kl_target": None},
    **{"entropy_coefficient": 0.0, "entropy_target": None, "entropy_step": 0.001, "entropy_limit": 0.1},
    **{"correction": "none", "correction_level": "token", "correction_low": 0.0, "correction_high": 2.0},
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
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
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
    overlong_buffer: int | None = Field(None, ge=1, description="Last tokens of an episode's allowance, which cost reward")
    overlong_limit: int | None = Field(None, ge=1, description="Default: what an episode may sample")
    dynamic_sampling: int | None = Field(None, ge=0, description="Rounds that replace groups whose rewards are all equal")
    discount: float | None = Field(None, gt=0, le=1)
    trace: float | None = Field(None, ge=0, le=1, description="GAE's lambda")
    value_clip: float | None = Field(None, ge=0)
    value_coefficient: float | None = Field(None, gt=0)
    critic_learning_rate: float | None = Field(None, gt=0)
    options: dict[str, Any] = Field(default_factory=dict, description="Settings of an own algorithm that have no key here")

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
                raise ValueError(f"'{key}' is not used by {name}; take it out (used by: {users or 'own algorithms'})")
        return {**own, **{k: v for k, v in data.items() if v is not None}}

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if v is not None and v != {}}


class Adapter(Section):
    """LoRA (arXiv:2106.09685) in PEFT's file format."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    attention: bool = True
    experts: bool = True
    targets: list[str] | None = Field(None, description="Module-name suffixes; default: the family's attention projections")
    expert_mass: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Adapt only the fewest experts of each layer that take this share of the routing weights of the first step",
    )


class Learner(Section):
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(2, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    final_lr_ratio: float = Field(0.1, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    rollbacks: int = Field(1, ge=0, description="Times that a run may go back after three updates in a row that are not finite")
    tokens_per_microbatch: int = Field(8192, ge=64)
    activation_checkpointing: bool = Field(False, description="Keep a layer's input alone, compute the rest again in backward")
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Sampler(Section):
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_model_len: int = Field(1024, ge=64)
    max_sequences: int = Field(128, ge=1)
    kv_cache_mb: int = Field(512, ge=16)
    threads: int = Field(2, ge=1)
    temperature: float = Field(1.0, gt=0)
    routes: bool = Field(False, description="Give the experts of each token to the learner; algorithm.replay: sampler implies it")
    prefix_caching: bool = Field(True, description="Keep what common prefixes were computed to; off with run.deterministic")


class Parity(Section):
    """The gate after every sync: see orchestration/parity.py."""

    probe_sequences: int = Field(4, ge=1)
    canary_every: int = Field(20, ge=1, description="Canary adapter at start and every so many syncs")
    tolerance: float | None = Field(None, gt=0, description="Mean |log-probability| gap; default: from the noise at start")


class Rates(Section):
    """What a run costs, where nobody else counts it. Any currency, the same for all."""

    hour: float = Field(0.0, ge=0, description="One hour of training, the whole machine or cluster")
    million_tokens: float = Field(0.0, ge=0, description="A million sampled tokens, where they are charged for")
    currency: str = "USD"


class Run(Section):
    directory: str | None = Field(None, description="Default: runs/<recipe>-<date>-<n>")
    steps: int = Field(80, ge=1)
    stop_at_success: float | None = Field(None, gt=0, le=1, description="Stop early at this running training success")
    eval_every: int = Field(0, ge=0, description="Small held-out probe every so many steps; 0: only before and after")
    eval_tasks: int = Field(64, ge=1)
    checkpoint_every: int = Field(10, ge=1)
    max_failure_share: float = Field(0.2, gt=0, le=1, description="Infrastructure or environment failures in one step")
    max_tokens: int | None = Field(None, ge=1, description="Stop, resumably, after sampling so many tokens")
    max_hours: float | None = Field(None, gt=0)
    max_cost: float | None = Field(None, gt=0, description="Stop, resumably, after spending so much at run.rates")
    rates: Rates = Rates()
    staleness: int = Field(0, ge=0, description="Updates that a token may be older than the policy that learns from it; 0: none")
    deterministic: bool = Field(False, description="Episodes advance in lock-step: slower, and the same bytes at every try")


class Overlap(Section):
    """How playing and learning overlap where ``run.staleness`` is above 0: docs/overlap.md."""

    overdue: Literal["wait", "drop"] = Field("wait", description="A group that becomes too old: wait for it, or play it again")
    on_update: Literal["continue", "restart"] = Field("continue", description="Episodes under way when a new adapter comes")
    stream: bool = Field(False, description="Play groups as a stream at staleness 0 as well")


class Reliability(Section):
    """What happens when something fails: docs/running.md. Deadlines are in seconds and must contain each other."""

    heartbeat_s: float = Field(5.0, gt=0, description="How often those that play are asked how far they are")
    stall_timeout_s: float = Field(600.0, gt=0, description="No episode gets any further: whoever holds them up is restarted")
    call_timeout_s: float = Field(3600.0, gt=0, description="Longest learning step, sync or checkpoint")
    restarts: int = Field(5, ge=0, description="Processes of the run that may die and are replaced; then it stops, resumably")
    backoff_s: float = Field(1.0, ge=0, description="Before the second restart or try; doubles each time")
    max_backoff_s: float = Field(60.0, ge=0)
    infrastructure_tries: int = Field(3, ge=1, description="Tries of an episode that the infrastructure failed")
    environment_tries: int = Field(2, ge=1, description="Tries of an episode that the environment failed, before it is left out")
    max_dropped_groups: int | None = Field(None, ge=0, description="Groups lost to failures, in the whole run; then it stops")


class Placement(Section):
    """Where the actors of a run live: docs/production.md. The defaults are one sampler and one learner on this machine.

    ``gpus_per_node`` states the hardware that a plan is made for; without it a run takes this machine as it is.
    """

    address: str | None = Field(None, description="Of a running Ray cluster; default: the run starts its own, here")
    nodes: int = Field(1, ge=1)
    gpus_per_node: int | None = Field(None, ge=0, description="Default: what this machine has; 0: a plan for CPUs alone")
    gpu_memory_gib: float | None = Field(None, gt=0, description="Of one GPU, as its driver states it (an H100 of 80 GB: 79.6)")
    node_memory_gib: float | None = Field(None, gt=0, description="Main memory of a node; default: this machine's")
    layout: Literal["colocated", "disaggregated"] = Field(
        "colocated", description="Samplers and learners on the same GPUs, or not"
    )
    samplers: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1, description="GPUs of a node that one sampler's weights are split over")
    learners: int = Field(1, ge=1, description="Data-parallel learners, one GPU each")
    shard_base: bool = Field(False, description="Split the frozen base over the learners (FSDP2); each has the whole adapter")
    episode_actors: int = Field(1, ge=1, description="Actors that play episodes, each with environment.workers processes")
    sampler_tokens_per_second: float | None = Field(None, gt=0, description="Of one sampler, by a measurement of yours")
    learner_tokens_per_second: float | None = Field(None, gt=0, description="Of one learner, the same way")

    @property
    def gpus(self) -> int:
        """GPUs of all nodes; 0 where none are stated."""
        return self.nodes * (self.gpus_per_node or 0)


class Supervised(Section):
    """What both supervised stages are told; the rest (weight decay, betas, clipping, micro-batches) is the learner's section."""

    epochs: int = Field(3, ge=1)
    batch_size: int = Field(8, ge=1, description="Demonstrations or pairs in one update")
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = Field(0, ge=0)


class Sft(Supervised):
    """Demonstrations: a directory that ``frontier-tune traces`` wrote, or its demonstrations.jsonl."""

    traces: str
    learning_rate: float = Field(1e-3, gt=0)


class Dpo(Supervised):
    """Reviewers' corrections as preference pairs: a directory that ``frontier-tune traces`` wrote, or its pairs.jsonl."""

    pairs: str
    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, gt=0)
    beta: float = Field(0.1, gt=0, description="How close to the reference (arXiv:2305.18290)")
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"


class WarmStart(Section):
    """Supervised stages before reinforcement learning, in this order: docs/warm-start.md. None by default."""

    sft: Sft | None = None
    dpo: Dpo | None = None
    allow_model_output: list[str] = Field(default_factory=list, description="Third-party models whose output may train, by name")
    evaluate: bool = Field(False, description="Held-out success after each stage, besides")


class Tracking(Section):
    """Where metrics go besides metrics.jsonl. Nothing leaves the machine unless a mode says so."""

    wandb: Literal["off", "offline", "online"] = "offline"

    @field_validator("wandb", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        """YAML 1.1 reads a bare ``off`` as false; a recipe means the word."""
        return "off" if value is False else value

    project: str = "frontier-tune"


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
        if self.algorithm.minibatches > self.algorithm.groups_per_step:
            raise ValueError("algorithm.minibatches: at most algorithm.groups_per_step")
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
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            if not near:  # the right leaf in the wrong section
                near = [k for k in known if k.split(".")[-1] == key.split(".")[-1]][:1]
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
            node[leaf] = _number(yaml.safe_load(raw))
        except yaml.YAMLError as e:
            raise BadInput(f"override '{item}': the value is not YAML ({e})") from None
    return data


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; a recipe means the number."""
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) and "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _numbers(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _numbers(v) for k, v in node.items()}
    return [_numbers(v) for v in node] if isinstance(node, list) else _number(node)


def parse(data: Any, overrides: Iterable[str] = (), where: str = "recipe") -> Recipe:
    """Validate a mapping as a recipe. Raises BadInput that names every wrong field."""
    if not isinstance(data, dict):
        raise BadInput(f"{where}: a recipe is a mapping of keys, this is {type(data).__name__}")
    try:
        return Recipe.model_validate(apply_overrides(_numbers(data), overrides))
    except ValidationError as e:
        raise _explain(e, where) from None


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe file. Raises BadInput where the file is missing, is not YAML, or does not validate."""
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise BadInput(f"{path}: no such recipe" + (f"; here are: {', '.join(near)}" if near else ""))
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as e:
        raise BadInput(f"{path}: not valid YAML: {e}") from None
    return parse(data, overrides, str(path))


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; ``load`` of it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
