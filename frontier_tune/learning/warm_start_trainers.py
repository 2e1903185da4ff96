"""trl's trainers on rows that are tokens already: what they are told, and nothing else. Losses are trl's own.

SFT: mean negative log-likelihood of the tokens that the assistant said (label -100 elsewhere). DPO: arXiv:2305.18290, eq. 7, with
the adapter at the stage's start for a reference; both turns of a pair follow one context, so every token of a completion is the
assistant's.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# trl reports the construction of a trainer unless told not to; nothing of a run leaves the machine.
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "WANDB_MODE": "disabled"}
os.environ.update(QUIET)

import huggingface_hub.constants as hub  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import PreTrainedTokenizerFast, PrinterCallback  # noqa: E402
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

from frontier_tune.learning.warm_start import Demonstration, Made, Pair  # noqa: E402
from frontier_tune.recipe import Dpo, Recipe, Sft  # noqa: E402

LOGGED = 200  # rows of history at most
_KEPT = {"loss", "grad_norm", "learning_rate", "entropy", "mean_token_accuracy"}


class _Watched:
    """Looks at every update's gradient before it is taken: a trainer logs some norms, and goes on whatever they are."""

    broken: int | None = None

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = super()
        norm = trainer._get_grad_norm(*args, **kwargs)
        if self.broken is None and not math.isfinite(norm):
            state: Any = self.state  # type: ignore[attr-defined]
            self.broken = state.global_step + 1
            self.control.should_training_stop = True  # type: ignore[attr-defined]
        return norm


class _Sft(_Watched, SFTTrainer):
    pass


class _Tokenized(_Watched, DPOTrainer):
    """DPOTrainer for rows that have ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``: nothing is tokenized again."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def run(
    model: PeftModel, recipe: Recipe, stage: Sft | Dpo, data: Sequence[Demonstration] | Sequence[Pair], pad: int, scratch: Path
) -> Made:
    """Train ``model`` in place, up to an update whose gradient is not finite.

    Rows of the history have ``update``, ``epoch``, ``loss`` and the trainer's own measures.
    """
    hub.HF_HUB_DISABLE_TELEMETRY = hub.HF_HUB_OFFLINE = True  # also where the hub's client was imported before this module
    rows = [_row(r) for r in data]
    longest = max(len(r.tokens) if isinstance(r, Demonstration) else _length(r) for r in data)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".scratch-") as work:
        settings = _settings(recipe, stage, len(rows), longest, work)
        if isinstance(stage, Sft):
            prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}, "packing": False, "max_length": None}
            trainer: Any = _Sft(
                model=model,
                args=SFTConfig(**settings, **prepared),
                train_dataset=Dataset.from_list(rows),
                processing_class=_tokenizer(model, pad),
            )
        else:
            loss = {"beta": stage.beta, "loss_type": [stage.loss], "max_length": None}
            trainer = _Tokenized(
                model=model,
                args=DPOConfig(**settings, **loss),
                train_dataset=Dataset.from_list(rows),
                processing_class=_tokenizer(model, pad),
            )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    history = [_logged(h) for h in trainer.state.log_history if "loss" in h]
    return Made(history, trainer.state.global_step, trainer.broken)


def _row(row: Demonstration | Pair) -> dict[str, list[int]]:
    if isinstance(row, Demonstration):
        labels = [token if said else -100 for token, said in zip(row.tokens, row.mask, strict=True)]
        return {"input_ids": list(row.tokens), "labels": labels}
    return {"prompt_ids": list(row.context), "chosen_ids": list(row.chosen), "rejected_ids": list(row.rejected)}


def _length(pair: Pair) -> int:
    """Tokens of a pair's two sequences, padded to the longer."""
    return 2 * (len(pair.context) + max(len(pair.chosen), len(pair.rejected)))


def _settings(recipe: Recipe, stage: Sft | Dpo, examples: int, longest: int, work: str) -> dict[str, Any]:
    """Arguments that both trainers share. A batch is split so that a micro-batch fits ``learner.tokens_per_microbatch``."""
    batch = min(stage.batch_size, examples)
    fit = max(1, recipe.learner.tokens_per_microbatch // longest)
    micro = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= fit) if fit < batch else batch
    updates = -(-examples // batch) * stage.epochs
    cuda = recipe.learner.device != "cpu" and torch.cuda.is_available()
    return {
        "output_dir": work,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "num_train_epochs": stage.epochs,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": stage.schedule,
        "warmup_steps": min(stage.warmup_steps, updates - 1),
        "weight_decay": recipe.learner.weight_decay,
        "adam_beta1": recipe.learner.betas[0],
        "adam_beta2": recipe.learner.betas[1],
        "max_grad_norm": recipe.learner.max_grad_norm,
        "router_aux_loss_coef": 0.0,  # the router is frozen
        "bf16": False,  # the base has the recipe's dtype, the adapter is float32: no autocast on top
        "fp16": False,
        "use_cpu": not cuda,
        "gradient_checkpointing": recipe.learner.activation_checkpointing,  # trl's default: not re-entrant
        "save_strategy": "no",
        "logging_steps": max(1, updates // LOGGED),
        "logging_nan_inf_filter": False,  # a loss that isn't finite has to be seen
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": cuda,
        "seed": recipe.seed,
        "data_seed": recipe.seed,
    }


def _tokenizer(model: PeftModel, pad: int) -> Any:
    """trl asks a tokenizer for the padding token alone: rows are ids already."""
    from tokenizers import Tokenizer, models

    core = Tokenizer(models.WordLevel({"<pad>": pad}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<pad>")


def _logged(row: dict[str, Any]) -> dict[str, Any]:
    kept = {k.replace("/", "_"): float(v) for k, v in row.items() if k in _KEPT or k.startswith(("rewards/", "logps/"))}
    return {"update": int(row["step"]), "epoch": float(row["epoch"]), **kept}
