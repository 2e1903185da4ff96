"""One GRPO optimization step: ours (vLLM in process, packed learner, adapter sync) against TRL's GRPOTrainer, generating itself.

Both sides get the same model, LoRA configuration, prompts, group size, rewards and generated lengths (end-of-sequence is
ignored on our side, and forced at the same length on TRL's). Each side is a process of its own that waits without using a
core while the other one steps; steps alternate, the first of each side is a warm-up, and medians are compared.

    python benchmarks/step_vs_trl.py --json benchmarks/results/step_vs_trl.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

PHASES = ("sampling", "learning", "sync")
EOS, PAD, FIRST_WORD = 1, 0, 2


@dataclass(frozen=True)
class Case:
    """``lengths``: range from which each rollout's number of generated tokens is drawn, the same for both sides."""

    name: str
    lengths: tuple[int, int]
    bar: float | None


@dataclass(frozen=True)
class Setup:
    """Sizes of the model and of the step, and what is switched alike on both sides."""

    prompts: int = 16
    group_size: int = 8
    prompt_tokens: int = 100
    vocab_size: int = 2048
    hidden_size: int = 256
    moe_intermediate_size: int = 128
    layers: int = 4
    experts: int = 16
    experts_per_token: int = 2
    rank: int = 8
    threads: int = 2
    samples: int = 3
    dtype: str = "float32"
    learning_rate: float = 1e-4
    temperature: float = 1.0
    trl_batch: int = 128

    def prompt_ids(self, step: int) -> list[list[int]]:
        rng = random.Random(1000 + step)
        return [[rng.randrange(FIRST_WORD, self.vocab_size) for _ in range(self.prompt_tokens)] for _ in range(self.prompts)]

    def lengths(self, case: Case, step: int) -> list[int]:
        rng = random.Random(2000 + step)
        return [rng.randint(*case.lengths) for _ in range(self.prompts * self.group_size)]


CASES = [Case("32 generated tokens", (32, 32), 2.5), Case("mean of 180 generated tokens", (104, 256), 4.0)]
QUICK = Setup(
    prompts=2, group_size=2, prompt_tokens=10, vocab_size=128, hidden_size=64, moe_intermediate_size=32, layers=1, experts=4,
    rank=4, threads=1, samples=1, trl_batch=4,
)  # fmt: skip
QUICK_CASES = [Case("6 generated tokens", (6, 6), None), Case("mean of 8 generated tokens", (4, 12), None)]


def reward(completion: list[int]) -> float:
    """Any function of the completion that differs within a group: every rollout carries a gradient on both sides."""
    return sum(completion) % 997 / 997


def build_base(setup: Setup, directory: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=setup.vocab_size, hidden_size=setup.hidden_size, moe_intermediate_size=setup.moe_intermediate_size,
        intermediate_size=2 * setup.hidden_size, num_hidden_layers=setup.layers, num_attention_heads=setup.hidden_size // 32,
        num_key_value_heads=setup.hidden_size // 64, head_dim=32, num_experts=setup.experts,
        num_experts_per_tok=setup.experts_per_token, norm_topk_prob=True, tie_word_embeddings=True, max_position_embeddings=1024,
        eos_token_id=EOS, pad_token_id=PAD, bos_token_id=None,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(directory)
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(FIRST_WORD, setup.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(directory)


def our_recipe(setup: Setup) -> Any:
    from frontier_tune import recipe

    return recipe.parse(
        {
            "adapter": {"rank": setup.rank, "alpha": 2 * setup.rank},
            "algorithm": {"groups_per_step": setup.prompts, "group_size": setup.group_size},
            "learner": {
                "threads": setup.threads,
                "dtype": setup.dtype,
                "device": "cpu",
                "learning_rate": setup.learning_rate,
                "tokens_per_microbatch": 32768,  # the batch at once, as on the other side
            },  # fmt: skip
            "sampler": {"threads": setup.threads, "dtype": setup.dtype, "max_sequences": setup.prompts * setup.group_size},
        }
    )


def our_steps(setup: Setup, case: Case, base: Path, scratch: Path) -> Iterator[Callable[[], dict[str, float]]]:
    """Each item is one step to run: it returns seconds by phase."""
    import torch

    from frontier_tune.algorithms.advantages import group_relative
    from frontier_tune.contracts import EpisodeSpec, Request, SamplingParams, Task, Trajectory
    from frontier_tune.learning.learner import Learner
    from frontier_tune.sampling.engine import VLLMSampler

    recipe = our_recipe(setup)
    learner = Learner(base, recipe)
    sampler = VLLMSampler(base, recipe.sampler, recipe.adapter, log_file=scratch / "engine.log")

    def step(number: int) -> dict[str, float]:
        start = time.perf_counter()
        prompts, lengths = setup.prompt_ids(number), setup.lengths(case, number)
        requests = [
            Request(str(i), tuple(prompts[i // setup.group_size]), SamplingParams(n, setup.temperature, seed=1000 * number + i))
            for i, n in enumerate(lengths)
        ]
        done = {c.request_id: c for c in sampler.exchange(requests)}
        while len(done) < len(requests):
            done |= {c.request_id: c for c in sampler.exchange([])}
        sampled = time.perf_counter()
        played, rewards = [], []
        for i, request in enumerate(requests):
            completion, prompt = done[request.id], list(request.tokens)
            assert len(completion.tokens) == lengths[i], (completion.finish, completion.error)
            group, member = divmod(i, setup.group_size)
            head, count = len(prompt), len(completion.tokens)
            played.append(
                Trajectory(
                    EpisodeSpec(Task("benchmark", "train", {"prompt": group}), group, member, number, setup.temperature),
                    [*prompt, *completion.tokens],
                    [False] * head + [True] * count,
                    [0.0] * head + list(completion.logprobs),
                    [-1] * head + [completion.version] * count,
                )
            )
            rewards.append(reward(list(completion.tokens)))
        reward_PG = torch.tensor(rewards, dtype=torch.float64).view(setup.prompts, setup.group_size)
        advantages = group_relative(reward_PG, torch.ones_like(reward_PG, dtype=torch.bool)).flatten().tolist()
        metrics = learner.update(played, advantages)
        assert metrics["updates"] == 1 and metrics["sequences_skipped"] == 0, metrics
        learned = time.perf_counter()
        directory = scratch / f"adapter-{number}"
        learner.save_adapter(directory)
        sampler.sync(directory, learner.version)
        end = time.perf_counter()
        return {"sampling": sampled - start, "learning": learned - sampled, "sync": end - learned, "total": end - start}

    try:
        for number in range(setup.samples + 1):
            yield lambda number=number: step(number)  # type: ignore[misc]
    finally:
        sampler.close()


def trl_run(
    setup: Setup, case: Case, base: Path, scratch: Path, go: Callable[[], None], done: Callable[[dict[str, float]], None]
) -> None:
    """Train with TRL's GRPOTrainer; ``go`` blocks before each step, ``done`` takes its seconds by phase."""
    import torch
    from datasets import Dataset
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from frontier_tune.experts.families import peft_config

    recipe = our_recipe(setup)
    rollouts = setup.prompts * setup.group_size
    words = [" ".join(f"w{t}" for t in p) for n in range(setup.samples + 1) for p in setup.prompt_ids(n)]
    state: dict[str, Any] = {"step": 0, "sampling": 0.0, "start": 0.0}

    class FixedLengths(LogitsProcessor):  # type: ignore[misc]
        """No end of sequence before a row's length, and nothing else there: the rows get exactly the lengths of our side."""

        def __init__(self, lengths: list[int], head: int) -> None:
            self.last, self.head = torch.tensor(lengths) - 1, head

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            at = input_ids.shape[1] - self.head
            scores[:, EOS] = -torch.inf
            ends = self.last == at
            scores[ends] = -torch.inf
            scores[ends, EOS] = 0.0
            return scores

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            go()
            state["sampling"], state["start"] = 0.0, time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            total = time.perf_counter() - state["start"]
            done({"sampling": state["sampling"], "learning": total - state["sampling"], "sync": 0.0, "total": total})
            state["step"] += 1

    arguments = GRPOConfig(
        output_dir=str(scratch / "trl"), max_steps=setup.samples + 1, per_device_train_batch_size=min(setup.trl_batch, rollouts),
        gradient_accumulation_steps=max(1, rollouts // setup.trl_batch), num_generations=setup.group_size,
        max_completion_length=case.lengths[1], learning_rate=setup.learning_rate, temperature=setup.temperature, loss_type="dapo",
        epsilon=recipe.algorithm.clip_low, epsilon_high=recipe.algorithm.clip_high, beta=0.0, num_iterations=1, bf16=False,
        gradient_checkpointing=False, router_aux_loss_coef=0.0, max_grad_norm=recipe.learner.max_grad_norm, use_cpu=True,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, shuffle_dataset=False, seed=0,
        dataloader_num_workers=0, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, setup.dtype)),
        reward_funcs=lambda completion_ids, **_: [reward(c) for c in completion_ids],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": words}),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=peft_config(recipe.adapter, AutoConfig.from_pretrained(base)),
        callbacks=[Steps()],
    )
    generate = trainer.model.generate

    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        head, lengths = kwargs["input_ids"].shape, setup.lengths(case, state["step"])
        assert head == (rollouts, setup.prompt_tokens), head
        out = generate(*args, logits_processor=[FixedLengths(lengths, head[1])], **kwargs)
        assert out.shape[1] == head[1] + max(lengths), out.shape
        state["sampling"] += time.perf_counter() - start
        return out

    trainer.model.generate = timed_generate
    trainer.train()


def worker(side: str, setup: Setup, case: Case, base: Path, scratch: Path) -> None:
    go, done = harness.turns()
    if side == "trl":
        trl_run(setup, case, base, scratch, go, done)
    else:
        for step in our_steps(setup, case, base, scratch):
            go()
            done(step())


def measure(setup: Setup, case: Case, base: Path) -> dict[str, list[dict[str, float]]]:
    """Seconds by phase of alternating steps of both sides."""
    from frontier_tune.sampling.environment import engine_environment

    environment = os.environ | engine_environment(setup.threads) | {"TRL_EXPERIMENTAL_SILENCE": "1", "WANDB_MODE": "disabled"}

    def show(side: str, n: int, seconds: dict[str, float]) -> None:
        phases = ", ".join(f"{p} {seconds[p]:.2f}" for p in PHASES)
        print(f"  {case.name}, {side} {f'step {n}' if n else 'warm-up'}: {seconds['total']:.2f} s ({phases})", flush=True)

    task = {"setup": asdict(setup), "case": asdict(case), "base": str(base)}
    return harness.alternate(__file__, ("ours", "trl"), task, setup.samples, environment, show)


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--samples", type=int, help="measured steps a side (default 3)")
    options.add_argument("--trl-batch", type=int, help="TRL's per_device_train_batch_size (default: all rollouts at once)")
    options.add_argument(
        "--worker", type=json.loads, help=argparse.SUPPRESS
    )  # one side of the comparison, in a process of its own
    args = options.parse_args()
    if args.worker:
        task = args.worker
        case = Case(**(task["case"] | {"lengths": tuple(task["case"]["lengths"])}))
        worker(task["side"], Setup(**task["setup"]), case, Path(task["base"]), Path(task["scratch"]))
        return
    setup, cases = (QUICK, QUICK_CASES) if args.quick else (Setup(), CASES)
    changes = {k: v for k, v in (("samples", args.samples), ("trl_batch", args.trl_batch)) if v is not None}
    setup = Setup(**{**asdict(setup), **changes})
    machine = harness.machine()
    settings = asdict(setup) | {
        "both": "LoRA on attention and experts, AdamW, token-level loss, no KL, no router auxiliary loss, no checkpointing",
        "trl": "GRPOTrainer, transformers generation with KV cache, sdpa, transformers' default experts implementation",
        "omp_wait_policy": "PASSIVE",
    }
    print(json.dumps({"settings": settings, "machine": machine}, indent=1))
    rows = []
    with tempfile.TemporaryDirectory(prefix="step-vs-trl-base-") as base:
        build_base(setup, Path(base))
        for case in cases:
            taken = measure(setup, case, Path(base))
            for phase in ("total", *PHASES):
                ours, trl = ([s[phase] for s in taken[side]] for side in ("ours", "trl"))
                name = case.name if phase == "total" else f"{case.name}: {phase}"
                if any(trl):  # TRL generates with the trained weights themselves: it has nothing to sync
                    rows.append(harness.compare(name, ours, trl, "TRL", "s", case.bar if phase == "total" else None))
                else:
                    print(f"{name}: ours {sorted(ours)[len(ours) // 2]:.3f} s, TRL has none")
    if not harness.report("step_vs_trl", rows, machine, settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
