"""The learner's state in files: the adapter as PEFT writes it, the optimizer as safetensors, counters as JSON. No pickle.

``adapter_config.json`` and ``adapter_model.safetensors`` are stock PEFT (where all of the base's weights learn,
``weights.safetensors`` in their place: learning.full); ``optimizer.safetensors`` holds exp_avg.<parameter>,
exp_avg_sq.<parameter> and the random state; ``learner.json`` counters, the base's fingerprint and the adapter's digests.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from frontier_tune.algorithms.batch import Coefficients
from frontier_tune.contracts import BadInput, FrontierTuneError
from frontier_tune.experts import canonical, families, selection
from frontier_tune.learning import expert_usage
from frontier_tune.learning.full import FullPolicy
from frontier_tune.learning.model import Policy

if TYPE_CHECKING:
    from frontier_tune.learning.learner import Learner

STATE, OPTIMIZER = "learner.json", "optimizer.safetensors"
_COUNTERS = ("seed", "steps", "learned", "version", "horizon")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class NotFinite(FrontierTuneError):
    """A tensor that was about to be written is not finite; nothing was written."""


def _finite(tensors: dict[str, Tensor], what: str) -> None:
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise NotFinite(f"{what}: {len(bad)} tensors are not finite ({', '.join(bad[:3])}); nothing was written")


def save_adapter(policy: Policy, directory: Path) -> None:
    _finite(policy.state(), "adapter")
    directory.mkdir(parents=True, exist_ok=True)
    families.save(policy.peft, directory)
    if policy.selection is not None:
        policy.selection.write(directory, "all")


def hand_over(policy: Policy, directory: Path, dtype: torch.dtype, tokenizer: bool = False) -> None:
    """Write the adapter; or, where all weights learn, the model at ``dtype``, on request with its tokenizer."""
    if not isinstance(policy, FullPolicy):
        save_adapter(policy, directory)
        return
    _finite(policy.state(), "weights")
    directory.parent.mkdir(parents=True, exist_ok=True)
    policy.write(directory, dtype, tokenizer)


def save(learner: Learner, directory: Path) -> None:
    tensors: dict[str, Tensor] = {"generator": learner.generator.get_state(), "torch": torch.get_rng_state()}
    steps: dict[str, float] = {}
    for name, p in learner.policy.named_parameters():
        if state := learner.optimizer.state.get(p):
            tensors |= {f"{moment}.{name}": state[moment].detach().cpu().contiguous() for moment in _MOMENTS}
            steps[name] = float(state["step"])
    _finite(tensors | (learner.critic.tensors() if learner.critic else {}), "optimizer and critic")
    if isinstance(learner.policy, FullPolicy):
        _finite(learner.policy.state(), "weights")
        learner.policy.save(directory)
    else:
        save_adapter(learner.policy, directory)
    save_file(tensors, str(directory / OPTIMIZER))
    if learner.critic:
        learner.critic.save(directory)
    state = {
        **{name: getattr(learner, name) for name in _COUNTERS},
        **learner.guard.counts(),
        "base": learner.policy.fingerprint(),
        "coefficients": asdict(learner.coefficients),
        "optimizer_steps": steps,
        "digests": learner.digests(),
    }
    (directory / STATE).write_text(json.dumps(state, indent=1) + "\n")  # last: its presence says that the rest is whole


def load(learner: Learner, directory: Path) -> None:
    if not (directory / STATE).is_file():
        raise BadInput(f"{directory}: no learner state here (no {STATE})")
    state = json.loads((directory / STATE).read_text())
    if state["base"] != learner.policy.fingerprint():
        raise BadInput(f"{directory}: this state belongs to another base than {learner.policy.base_dir}")
    if isinstance(learner.policy, FullPolicy):
        learner.policy.load(directory, state["digests"])
    else:
        _load_adapter(learner.policy, directory, state["digests"])
    tensors = load_file(str(directory / OPTIMIZER))
    learner.optimizer.state.clear()
    for name, p in learner.policy.named_parameters():
        if name in state["optimizer_steps"]:
            learner.optimizer.state[p] = {
                "step": torch.tensor(state["optimizer_steps"][name]),
                **{moment: tensors[f"{moment}.{name}"].to(p.device) for moment in _MOMENTS},
            }
    if learner.critic:
        learner.critic.load(directory)
    learner.generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["torch"])
    for name in _COUNTERS:
        setattr(learner, name, state.get(name, getattr(learner, name)))  # earlier states have no horizon
    learner.learned = state.get("learned", learner.steps)  # which earlier ones counted alone
    learner.guard.set_counts(state)
    if "coefficients" in state:  # of the controllers; earlier states have none to restore
        learner.coefficients = Coefficients(**state["coefficients"])


def _load_adapter(policy: Policy, directory: Path, digests: dict[str, str]) -> None:
    if not (directory / canonical.WEIGHTS).is_file():
        raise BadInput(f"{directory}: this state is of a run that trained all weights; set learner.trainable to all")
    adapter = load_file(str(directory / canonical.WEIGHTS))
    here = {name: t.shape for name, t in policy.state().items()}
    if {name: t.shape for name, t in adapter.items()} != here:
        raise BadInput(f"{directory}: the adapter has other targets or another rank than the recipe's adapter section asks for")
    if (scaling := canonical.scaling_of(canonical.read_config(directory))) != policy.scaling:
        raise BadInput(
            f"{directory}: the adapter is scaled by {scaling:g} (alpha / rank), the recipe's adapter section asks for "
            f"{policy.scaling:g}; its tensors would be another policy. Set adapter.alpha back"
        )
    if canonical.digests(canonical.load(directory, policy.config)) != digests:
        raise BadInput(f"{directory}: damaged: {canonical.WEIGHTS} is not the one that {STATE} was written with")
    set_peft_model_state_dict(policy.peft, adapter)
    expert_usage.release(policy)  # a learner that goes back, before its selection perhaps
    selected = selection.read(directory)
    if selected is not None:
        expert_usage.confine(policy, selected[0])
