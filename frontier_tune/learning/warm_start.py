"""Supervised stages before reinforcement learning: demonstrations by trl's SFTTrainer, preference pairs by its DPOTrainer.

They train the very adapter that the Learner goes on with: the same PEFT configuration, drawn from the same seed, on the same
frozen base, saved in the same files. A stage is whole or not there: its directory appears with one rename, when all is written.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from frontier_tune.contracts import BadInput, FrontierTuneError, GateFailed
from frontier_tune.experts import canonical, families, lora_experts
from frontier_tune.learning.model import _load_base
from frontier_tune.recipe import Dpo, Recipe, Sft

if TYPE_CHECKING:
    from frontier_tune.learning.learner import Learner

STAGE = "stage.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class WarmStartFailed(FrontierTuneError):
    """A stage's loss, gradient or adapter was not finite; nothing of it was kept."""

    exit_code = 4


@dataclass(frozen=True)
class Demonstration:
    """Token ids of a dialogue and which of them the assistant said, as a Trajectory has them. [T] each."""

    tokens: Sequence[int]
    mask: Sequence[bool]


@dataclass(frozen=True)
class Made:
    """What a trainer did: ``history`` of the updates that were logged, all ``updates``, the first whose gradient had no finite
    norm (clipping to such a norm makes zeros or NaN of a gradient, and says nothing)."""

    history: list[dict[str, Any]]
    updates: int
    broken: int | None


@dataclass(frozen=True)
class Pair:
    """A context and two turns that may follow it, as token ids: the preferred and the other one."""

    context: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]


def train(
    base_dir: str | Path, recipe: Recipe, stage: Sft | Dpo, data: Sequence[Demonstration] | Sequence[Pair], out: str | Path,
    start: str | Path | None = None, about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one stage from the adapter in ``start`` (None: a fresh one) and write its adapter to ``out``.

    Returns what ``out/stage.json`` holds: ``stage``, ``examples``, ``updates``, ``tokens`` (that the loss is over, in one epoch),
    ``seconds``, ``expert_forward``, ``history`` (one mapping an update that was logged), ``base`` (fingerprint), ``digests``, and
    whatever is in ``about``.

    Raises:
        BadInput: no data, a row without a token to learn, a token outside the vocabulary, or a start that doesn't fit.
        WarmStartFailed: the loss, a gradient or the adapter became not finite.
    """
    from frontier_tune.learning import warm_start_trainers as trainers

    name, out = ("sft" if isinstance(stage, Sft) else "dpo"), Path(out)
    began = time.monotonic()
    torch.set_num_threads(recipe.learner.threads)
    model, forward = _model(base_dir, recipe, start)
    _check(name, data, model.config.vocab_size)
    made = trainers.run(model, recipe, stage, data, _pad(model.config), out.parent)
    _require_finite(name, made, get_peft_model_state_dict(model, adapter_name="default"))
    found = {
        **(about or {}),
        "stage": name,
        "examples": len(data),
        "updates": made.updates,
        "tokens": sum(_learned(row) for row in data),
        "seconds": round(time.monotonic() - began, 3),
        "expert_forward": forward,
        "history": made.history,
        "base": canonical.digest(model.get_input_embeddings().weight),
    }
    _write(model, found, out)
    return found


def _require_finite(name: str, made: Made, state: Mapping[str, torch.Tensor]) -> None:
    """Raises WarmStartFailed, naming the first thing that was not finite: a gradient, what was logged, or the adapter."""
    what = None
    if made.broken is not None:
        what = f"the gradient's norm at update {made.broken}"
    elif broken := [(h["update"], k) for h in made.history for k, v in h.items() if not math.isfinite(v)]:
        what = f"the {broken[0][1]} up to update {broken[0][0]}"
    elif not all(torch.isfinite(t).all() for t in state.values()):
        what = "the adapter"
    if what is not None:
        raise WarmStartFailed(
            f"warm start {name}: {what} was not finite; nothing of this stage was kept. Lower warm_start.{name}.learning_rate; "
            "where the first update is not finite already, the base is damaged, or a row of the data is unlike all it knows"
        )


def _model(base_dir: str | Path, recipe: Recipe, start: str | Path | None) -> tuple[PeftModel, str]:
    """The base as trl's trainers run it, with the Learner's adapter on it; and whose forward its experts take."""
    causal: Any = _load_base(str(Path(base_dir).resolve()), _DTYPES[recipe.learner.dtype])
    causal.set_attn_implementation("sdpa" if causal._supports_sdpa else "eager")  # transformers' sdpa has no sinks
    for module in causal.modules():  # train mode switches on what a policy is never sampled with
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for noise in ("attention_dropout", "jitter_noise"):
            if isinstance(getattr(module, noise, None), float):
                setattr(module, noise, 0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # the draws of learning.model.Policy
        model = families.adapted(causal, recipe.adapter)
    forward = "peft"
    if recipe.adapter.experts:
        try:
            lora_experts.install(model)
            forward = "frontier_tune"
        except BadInput as e:  # an expert layout that our forward does not know: PEFT's own
            forward = f"peft ({e})"
    if start is not None:
        _put(model, Path(start), "warm start")
    device = recipe.learner.device
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        model.to("cuda")
    return model, forward


def _put(model: Any, directory: Path, where: str) -> dict[str, Any]:
    """Set a model's adapter to a stage's; returns its stage.json. Raises BadInput where shapes, base or digests differ."""
    if not (directory / STAGE).is_file():
        raise BadInput(f"{where}: {directory} holds no finished stage (no {STAGE})")
    found: dict[str, Any] = json.loads((directory / STAGE).read_text())
    tensors, config = load_file(str(directory / canonical.WEIGHTS)), canonical.read_config(directory)
    here = get_peft_model_state_dict(model)
    active = model.peft_config["default"]
    if {k: t.shape for k, t in tensors.items()} != {k: t.shape for k, t in here.items()} or float(config["lora_alpha"]) != float(
        active.lora_alpha
    ):
        raise BadInput(f"{where}: the adapter in {directory} has other targets, rank or alpha than the recipe's adapter section")
    if found["base"] != canonical.digest(model.get_input_embeddings().weight):
        raise BadInput(f"{where}: the adapter in {directory} was trained on another base")
    if canonical.digests(canonical.load(directory, model.config)) != found["digests"]:
        raise BadInput(f"{where}: {directory} is damaged: {canonical.WEIGHTS} is not the one that {STAGE} was written with")
    set_peft_model_state_dict(model, tensors)
    return found


def start_from(learner: Learner, directory: str | Path) -> None:
    """Let a fresh ``learner`` begin at a stage's adapter; its optimizer has seen nothing.

    Raises BadInput where the adapter does not fit, GateFailed where the learner then holds other tensors than the stage wrote.
    """
    if learner.version or learner.steps:
        raise BadInput(f"warm start: the learner has made {learner.version} updates already; start from a checkpoint instead")
    found = _put(learner.policy.peft, Path(directory), "warm start")
    if learner.digests() != found["digests"]:
        raise GateFailed(f"warm start: the learner does not hold the adapter of {directory}, though it was loaded")


def _check(name: str, data: Sequence[Demonstration | Pair], vocabulary: int) -> None:
    if not data:
        raise BadInput(f"warm_start.{name}: nothing to learn from; there are 0 {'demonstrations' if name == 'sft' else 'pairs'}")
    for n, row in enumerate(data):
        if isinstance(row, Demonstration):
            parts: tuple[Sequence[int], ...] = (row.tokens,)
            wrong = len(row.mask) != len(row.tokens) or not any(row.mask) or row.mask[0]
        else:
            parts = (row.context, row.chosen, row.rejected)
            wrong = not all(map(len, parts)) or list(row.chosen) == list(row.rejected)
        if wrong:
            what = "no token of the assistant's behind a context" if name == "sft" else "an empty part, or two equal turns"
            raise BadInput(f"warm_start.{name}: row {n} has {what}")
        if min(map(min, parts)) < 0 or max(map(max, parts)) >= vocabulary:
            raise BadInput(f"warm_start.{name}: row {n} has a token outside the vocabulary of {vocabulary}; another tokenizer's?")


def _learned(row: Demonstration | Pair) -> int:
    """Tokens that a row's loss is over."""
    return sum(row.mask) if isinstance(row, Demonstration) else len(row.chosen) + len(row.rejected)


def _pad(config: Any) -> int:
    """Any valid id will do: padding is masked in attention and in the loss."""
    return int(config.pad_token_id) if config.pad_token_id is not None else 0


def _write(model: PeftModel, found: dict[str, Any], out: Path) -> None:
    work = out.with_name(f".writing-{out.name}-{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        families.save(model, work)
        found["digests"] = canonical.digests(canonical.load(work, model.config))
        (work / STAGE).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        if out.exists():
            shutil.rmtree(out)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def finished(directory: str | Path, config: Any) -> dict[str, Any] | None:
    """stage.json of a finished stage whose files verify against it, else None (it has to be trained again)."""
    directory = Path(directory)
    try:
        found: dict[str, Any] = json.loads((directory / STAGE).read_text())
        whole = canonical.digests(canonical.load(directory, config)) == found["digests"]
    except (OSError, ValueError, KeyError, FrontierTuneError):
        return None
    return found if whole else None
