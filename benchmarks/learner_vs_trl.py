"""The learner's step (forward, backward, update) against TRL's GRPOTrainer on the same sequences, base and LoRA: speed, memory.

TRL runs its own loop: ``trainer.train()`` with its own loss, clipping and optimizer; only the method that generates is replaced
by one that gives the sequences. Each side is a process of its own that waits without using a core while the other one steps;
steps alternate, the first of each side is a warm-up, medians are compared. Memory is the peak of resident memory over all steps,
less what was resident when model, adapter and optimizer were there and no step had run.

    python benchmarks/learner_vs_trl.py --json benchmarks/results/learner_vs_trl.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

RANK = 8
SIDES = ("ours", "trl")


@dataclass(frozen=True)
class Case:
    """``base``: nano, or the width H of a base made up for the case. ``shared``: whether a group's members have one prompt.

    ``sequences_at_once``: TRL's per_device_train_batch_size; ours takes as many tokens at once as those have with their padding.
    """

    name: str
    base: str
    groups: int
    group_size: int
    prompt: int
    answer: tuple[int, int]
    shared: bool
    sequences_at_once: int
    samples: int
    checkpointing: bool = False
    speed_bar: float | None = None
    memory_bar: float | None = None

    @property
    def rollouts(self) -> int:
        return self.groups * self.group_size


NANO = Case("nano", "nano", 16, 8, 200, (60, 140), True, 32, 5, speed_bar=2.0)
WIDE = Case("H 1024", "1024", 4, 4, 200, (60, 140), True, 8, 2, memory_bar=1 / 0.7)
CASES = [
    NANO,
    replace(NANO, name="nano, all sequences at once", sequences_at_once=128, samples=3, speed_bar=None),
    replace(NANO, name="nano, no common prompts", shared=False, samples=3, speed_bar=None),
    WIDE,
    replace(WIDE, name="H 1024, no common prompts", shared=False, memory_bar=None),
    replace(WIDE, name="H 1024, TRL with its default gradient checkpointing", checkpointing=True, memory_bar=None),
]
QUICK = [
    replace(NANO, groups=2, group_size=2, prompt=12, answer=(4, 8), sequences_at_once=2, samples=1, speed_bar=None),
    replace(WIDE, base="64", groups=2, group_size=2, prompt=12, answer=(4, 8), sequences_at_once=2, samples=1, memory_bar=None),
]


def sequences(case: Case, vocabulary: int) -> list[tuple[list[int], list[int], float]]:
    """Prompt, answer and advantage of every rollout: the same on both sides, in every step."""
    rng = random.Random(0)
    out = []
    for _ in range(case.groups):
        head = [rng.randrange(10, vocabulary) for _ in range(case.prompt)]
        for member in range(case.group_size):
            mine = head if case.shared else [rng.randrange(10, vocabulary) for _ in range(case.prompt)]
            answer = [rng.randrange(10, vocabulary) for _ in range(rng.randint(*case.answer))]
            out.append((mine, answer, 1.0 if member % 2 else -1.0))
    return out


def build_wide(hidden: int, directory: Path) -> None:
    """A random Qwen3-MoE of two layers with a tokenizer of words, as it is needed for TRL to start."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    vocabulary = 16384 if hidden >= 1024 else 128
    config = Qwen3MoeConfig(
        vocab_size=vocabulary, hidden_size=hidden, moe_intermediate_size=hidden // 2, intermediate_size=2 * hidden,
        num_hidden_layers=2, num_attention_heads=hidden // 32, num_key_value_heads=max(1, hidden // 128), head_dim=32,
        num_experts=16, num_experts_per_tok=2, norm_topk_prob=True, tie_word_embeddings=False, max_position_embeddings=1024,
        eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(directory)
    words = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(directory)


def our_recipe(case: Case, threads: int) -> Any:
    from frontier_tune import recipe

    longest = case.prompt + case.answer[1]
    learner = {"threads": threads, "device": "cpu", "tokens_per_microbatch": max(64, case.sequences_at_once * longest)}
    algorithm = {"groups_per_step": case.groups, "group_size": case.group_size}
    return recipe.parse({"adapter": {"rank": RANK, "alpha": 2.0 * RANK}, "learner": learner, "algorithm": algorithm})


def our_side(case: Case, threads: int, base: Path, go: Callable[[], None], done: Callable[[float], None]) -> None:
    from frontier_tune.contracts import EpisodeSpec, Task, Trajectory
    from frontier_tune.learning.learner import Learner

    learner = Learner(base, our_recipe(case, threads))
    played, advantages = [], []
    for i, (head, answer, advantage) in enumerate(sequences(case, learner.policy.config.vocab_size)):
        mask = [False] * len(head) + [True] * len(answer)
        spec = EpisodeSpec(Task("benchmark", "train", {"n": i}), i // case.group_size, i % case.group_size, 0)
        played.append(Trajectory(spec, head + answer, mask, [-7.0 * m for m in mask], [int(m) - 1 for m in mask]))
        advantages.append(advantage)
    for _ in range(case.samples + 1):
        go()
        start = time.perf_counter()
        metrics = learner.update(played, advantages)
        done(time.perf_counter() - start)
        assert metrics["updates"] == 1 and metrics["sequences_skipped"] == 0, metrics


def trl_side(case: Case, threads: int, base: Path, scratch: Path, go: Callable[[], None], done: Callable[[float], None]) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from frontier_tune.experts.families import peft_config

    torch.set_num_threads(threads)
    recipe, config = our_recipe(case, threads), AutoConfig.from_pretrained(base)
    rows = sequences(case, config.vocab_size)
    width = max(len(answer) for _, answer, _ in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, (_, answer, _) in enumerate(rows):
        ids[i, : len(answer)], mask[i, : len(answer)] = torch.tensor(answer), 1
    prompts = torch.tensor([head for head, _, _ in rows])
    batch = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": ids, "completion_mask": mask,
        "advantages": torch.tensor([a for _, _, a in rows]), "num_items_in_batch": mask.sum(),
    }  # fmt: skip

    class Given(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            assert len(inputs) == len(rows), len(inputs)
            return dict(batch)

    class Steps(TrainerCallback):  # type: ignore[misc]
        start = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            go()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            done(time.perf_counter() - self.start)

    learner, algorithm = recipe.learner, recipe.algorithm
    arguments = GRPOConfig(
        output_dir=str(scratch / "trl"), max_steps=case.samples + 1, per_device_train_batch_size=case.sequences_at_once,
        gradient_accumulation_steps=case.rollouts // case.sequences_at_once, num_generations=case.group_size,
        max_completion_length=width, learning_rate=learner.learning_rate, loss_type="dapo", epsilon=algorithm.clip_low,
        epsilon_high=algorithm.clip_high, beta=0.0, num_iterations=1, bf16=False, gradient_checkpointing=case.checkpointing,
        router_aux_loss_coef=0.0, max_grad_norm=learner.max_grad_norm, use_cpu=True, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, shuffle_dataset=False, seed=0, dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Given(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        reward_funcs=lambda completion_ids, **_: [0.0] * len(completion_ids),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w2"] * (case.groups * (case.samples + 1))}),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=peft_config(recipe.adapter, config),
        callbacks=[Steps()],
    )
    trainer.train()


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since the last reset."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def worker(side: str, case: Case, threads: int, base: Path, scratch: Path) -> None:
    turn, hand_over = harness.turns()
    loaded: list[int] = []

    def go() -> None:
        turn()
        if not loaded:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
            loaded.append(resident("VmRSS"))

    def done(seconds: float) -> None:
        hand_over({"seconds": seconds, "peak": resident("VmHWM") - loaded[0]})

    if side == "ours":
        our_side(case, threads, base, go, done)
    else:
        trl_side(case, threads, base, scratch, go, done)


def measure(case: Case, threads: int, base: Path) -> dict[str, list[dict[str, float]]]:
    """Seconds, and bytes of memory at the peak so far, of alternating steps of both sides."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "TRL_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled",
        "TRL_EXPERIMENTAL_SILENCE": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip

    def show(side: str, n: int, found: dict[str, float]) -> None:
        print(f"  {case.name}, {side} step {n}: {found['seconds']:.2f} s, {found['peak'] / 2**20:.0f} MiB", flush=True)

    task = {"case": asdict(case), "threads": threads, "base": str(base)}
    return harness.alternate(__file__, SIDES, task, case.samples, environment, show)


def rows_of(case: Case, threads: int, base: Path) -> list[harness.Row]:
    from transformers import AutoConfig

    taken = measure(case, threads, base)
    tokens = sum(len(h) + len(a) for h, a, _ in sequences(case, AutoConfig.from_pretrained(base).vocab_size))
    ours, theirs = ([tokens / step["seconds"] for step in taken[side]] for side in SIDES)
    peaks = [[max(step["peak"] for step in taken[side]) / 2**20] for side in SIDES]
    speed = harness.compare(f"{case.name}: speed", ours, theirs, "TRL", "tokens/s", case.speed_bar, higher_is_better=True)
    memory = harness.compare(f"{case.name}: peak memory above post-load", *peaks, "TRL", "MiB", case.memory_bar)
    return [speed, memory]


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--only", help="the cases whose name begins so")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.worker:
        task = args.worker
        case = Case(**(task["case"] | {"answer": tuple(task["case"]["answer"])}))
        worker(task["side"], case, task["threads"], Path(task["base"]), Path(task["scratch"]))
        return
    from frontier_tune import bases

    machine = harness.machine()
    cases = [c for c in (QUICK if args.quick else CASES) if c.name.startswith(args.only or "")]
    settings = {
        "cases": [asdict(c) for c in cases],
        "both": "float32, LoRA r 8 on attention and experts, AdamW, token-level clipped loss, no KL, no router auxiliary loss",
        "ours": "learner.update with all that it reports, a sample of the KL to the base included",
        "trl": "GRPOTrainer.train() with its own fused head; transformers' default experts implementation; padding",
        "threads": args.threads,
    }
    rows = []
    with tempfile.TemporaryDirectory(prefix="learner-vs-trl-base-") as made:
        for case in cases:
            base = Path(bases.load("nano").directory) if case.base == "nano" else Path(made) / case.base
            if case.base != "nano" and not base.exists():
                build_wide(int(case.base), base)
            rows += rows_of(case, args.threads, base)
    if not harness.report("learner_vs_trl", rows, machine, settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
