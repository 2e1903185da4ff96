"""The sections of a recipe and their defaults, except ``algorithm`` (algorithm.py)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

LEAST_TEMPERATURE = 0.01  # vLLM samples at this where it is given less, which no learner would know


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def _as_json(value: Any) -> Any:
    """``value``, where JSON has a form for it: options travel, and are recorded, as JSON."""
    if isinstance(value, dict):
        if odd := [k for k in value if not isinstance(k, str)]:
            raise ValueError(f"key {odd[0]!r} is no text; quote it")
        for part in value.values():
            _as_json(part)
    elif isinstance(value, list):
        for part in value:
            _as_json(part)
    elif not (value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))):
        raise ValueError(f"{value!r} has no form in JSON; give text, a finite number, true, false, null, a list or a mapping")
    return value


Options = Annotated[dict[str, Any], AfterValidator(_as_json)]


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
    max_turns: int | None = Field(None, ge=1, description="Turns of an episode; default: those of the environment's limits")
    max_tokens_per_turn: int = Field(64, ge=1)
    workers: int = Field(1, ge=1, description="Environment worker processes")
    step_timeout_s: float = Field(20.0, gt=0)
    options: Options = Field(default_factory=dict, description="Passed to the environment as they are")
    allow_real_writes: list[str] = Field([], description="Tools that may write to production; policy.yaml has to allow them, too")

    @property
    def turns(self) -> int:
        """``max_turns``, settled: preflight writes the environment's own into the recipe. Before that, what ``Limits`` has."""
        return self.max_turns or 8


class Adapter(Section):
    """LoRA (arXiv:2106.09685) in PEFT's file format."""

    rank: int = Field(8, ge=1)
    alpha: float = Field(16.0, gt=0)
    attention: bool = True
    experts: bool = True
    router: bool = Field(False, description="Train the routers' weights, too: whole, in float32 (PEFT's modules_to_save)")
    targets: list[str] | None = Field(None, description="Module-name suffixes; default: the family's attention projections")
    expert_mass: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Adapt only the fewest experts of each layer that take this share of the routing weights of the first step",
    )


class Learner(Section):
    trainable: Literal["adapter", "all"] = Field(
        "adapter", description="All of the base's weights instead of an adapter is full fine-tuning: docs/full-fine-tuning.md"
    )
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(2, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    final_lr_ratio: float = Field(0.1, ge=0, le=1)
    router_lr_ratio: float = Field(0.1, gt=0, description="Of routers (adapter.router), as a share of learning_rate")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = Field(1.0, gt=0)
    rollbacks: int = Field(1, ge=0, description="Times that a run may go back after three updates in a row that are not finite")
    tokens_per_microbatch: int = Field(8192, ge=64)
    activation_checkpointing: bool = Field(False, description="Keep a layer's input alone, compute the rest again in backward")
    compile: bool = Field(False, description="torch.compile of decoder layers; it does not pay on a CPU: docs/algorithms.md")
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(2, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"


class Sampler(Section):
    dtype: Literal["float32", "bfloat16"] = "float32"
    head_dtype: Literal["model", "float32"] = Field(
        "model",
        description="Of the projection to logits; float32 leaves less rounding between a bfloat16 sampler and its learner",
    )
    max_model_len: int = Field(1024, ge=64)
    max_sequences: int = Field(128, ge=1)
    kv_cache_mb: int = Field(512, ge=16)
    threads: int = Field(2, ge=1)
    temperature: float = Field(1.0, ge=LEAST_TEMPERATURE)
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
    node_memory_gib: float | None = Field(
        None, gt=0, description="Main memory of a node, in a plan for GPUs; default: not checked"
    )
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
