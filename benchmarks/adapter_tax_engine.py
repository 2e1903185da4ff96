"""The engines of adapter_tax: each in a process of its own, asked in turns over a pipe for a round of requests.

Engines: ``stock``, vLLM without LoRA and without our plugin, compiled; ``without``, our sampler without LoRA; ``lora``, our
sampler with expert LoRA. A round is a batch of requests with prompts of its own, all handed in at once.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness

PROMPT, VOCABULARY, RANK = 32, 1024, 8
ROUNDS_S = 120  # no round begins later; what is started and compiled before takes one to two minutes


@dataclass(frozen=True)
class Load:
    dtype: str
    threads: int
    slots: int
    requests: int
    tokens: int
    compiled: bool = True  # stock vLLM: that takes a minute or two

    def prompts(self, number: int) -> list[list[int]]:
        rng = random.Random(number)
        return [[rng.randrange(VOCABULARY) for _ in range(PROMPT)] for _ in range(self.requests)]


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def ours(task: dict[str, Any], load: Load) -> Callable[[str, int], float]:
    """A function that samples one round: of ``base`` rows, of adapter ``one``, or of all adapters ``mixed`` with base rows."""
    from frontier_tune import recipe
    from frontier_tune.contracts import Request, SamplingParams
    from frontier_tune.sampling.engine import VLLMSampler

    adapter = recipe.Adapter(rank=RANK, alpha=2.0 * RANK, attention=False) if task["adapters"] else None
    settings = recipe.Sampler.model_validate(
        {"threads": load.threads, "max_sequences": load.requests, "max_model_len": 512, "dtype": load.dtype}
    )
    sampler = VLLMSampler(
        task["base"], settings, adapter, slots=load.slots, log_file=Path(task["scratch"]) / f"{task['name']}.log"
    )
    for number, path in enumerate(task["adapters"], 1):
        sampler.sync(path, number, activate=False)
    versions = {"base": [0], "one": [1], "mixed": list(range(load.slots + 1))}

    def play(what: str, number: int) -> float:
        by_version: dict[int, list[Request]] = {}
        for i, prompt in enumerate(load.prompts(number)):
            params = SamplingParams(load.tokens, 1.0, seed=i)
            by_version.setdefault(versions[what][i % len(versions[what])], []).append(
                Request(f"{number}-{i}", tuple(prompt), params)
            )
        start, done = time.perf_counter(), 0
        for version, requests in by_version.items():
            done += len(sampler.exchange(requests, version=version, wait=0.0))
        while done < load.requests:
            done += len(sampler.exchange([]))
        return load.requests * load.tokens / (time.perf_counter() - start)

    return play


def stock(task: dict[str, Any], load: Load) -> Callable[[str, int], float]:
    """The same in plain vLLM. Requests bring no seeds, which cost it a generator each."""
    from vllm import EngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine

    args = EngineArgs(
        model=task["base"], skip_tokenizer_init=True, generation_config="vllm", dtype=load.dtype, max_model_len=513,
        max_num_seqs=load.requests, max_num_batched_tokens=4096, kv_cache_memory_bytes=512 * 2**20,
        enforce_eager=not load.compiled,
        disable_log_stats=True, use_tqdm_on_load=False,
    )  # fmt: skip
    engine = LLMEngine.from_engine_args(args)
    params = SamplingParams(
        max_tokens=load.tokens, temperature=1.0, ignore_eos=True, logprobs=0, flat_logprobs=True, detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )  # fmt: skip

    def play(what: str, number: int) -> float:
        prompts = load.prompts(number)
        start = time.perf_counter()
        for i, prompt in enumerate(prompts):
            engine.add_request(f"{number}-{i}", {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            engine.step()
        return load.requests * load.tokens / (time.perf_counter() - start)

    return play


def expert_share(play: Callable[[str, int], float], load: Load) -> float:
    """The part of a round's time that vLLM's own expert kernel takes, seen from Python."""
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    plain, taken = cpu_moe.cpu_fused_moe, 0.0

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        start = time.perf_counter()
        try:
            return plain(*args, **kwargs)
        finally:
            taken += time.perf_counter() - start

    cpu_moe.cpu_fused_moe = timed
    speed = play("base", 10**6)
    cpu_moe.cpu_fused_moe = plain
    return taken / (load.requests * load.tokens / speed)


def work(task: dict[str, Any]) -> None:
    """One engine: answers each line of stdin, a kind of round or a question, with a number."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    load = Load(**task["load"])
    play = (stock if task["name"] == "stock" else ours)(task, load)
    channel.write("0\n")
    channel.flush()
    for number, line in enumerate(sys.stdin):
        what = line.strip()
        answer = resident_mib() if what == "memory" else expert_share(play, load) if what == "share" else play(what, number)
        channel.write(f"{answer}\n")
        channel.flush()


def save_model(shape: Any, adapters: int, scratch: Path) -> list[str]:
    """A random Qwen3-MoE and so many adapters over its experts, as PEFT writes them. Returns the adapters' directories."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from frontier_tune import recipe
    from frontier_tune.experts.families import peft_config

    torch.manual_seed(0)
    heads = max(2, shape.hidden // 64)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=shape.hidden, moe_intermediate_size=shape.width, intermediate_size=2 * shape.hidden,
        num_hidden_layers=shape.layers, num_attention_heads=heads, num_key_value_heads=heads // 2, head_dim=64,
        num_experts=shape.experts, num_experts_per_tok=shape.top_k, norm_topk_prob=True, tie_word_embeddings=True,
        max_position_embeddings=513,
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(scratch / "base")
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(str(scratch / "base")),
        peft_config(recipe.Adapter(rank=RANK, alpha=2.0 * RANK, attention=False), config),
    )
    for i in range(adapters):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.normal_(0, 0.02)
        model.save_pretrained(str(scratch / f"adapter-{i}"))
    return [str(scratch / f"adapter-{i}") for i in range(adapters)]


class Engines:
    """The engines' processes. ``ask`` one of them."""

    def __init__(self, base: dict[str, Any], adapters: list[str], scratch: Path, load: Load, names: tuple[str, ...]) -> None:
        from frontier_tune.sampling.environment import engine_environment

        self.scratch, self.processes = scratch, {}
        script = Path(__file__).with_name("adapter_tax.py")
        for name in names:
            own = {**os.environ, **engine_environment(load.threads)}
            if name == "stock":
                own |= {
                    "VLLM_PLUGINS": "",
                    "VLLM_CACHE_ROOT": str(scratch / "cache"),
                    "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
                }
                del own["TORCHDYNAMO_DISABLE"]
            task = base | {
                "name": name,
                "adapters": adapters if name == "lora" else [],
                "load": asdict(load),
                "scratch": str(scratch),
            }
            self.processes[name] = subprocess.Popen(
                [sys.executable, str(script), "--worker", json.dumps(task)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=(scratch / f"{name}.err").open("w"), text=True, env=own,
            )  # fmt: skip
            self._read(name)  # one after another: they would measure each other's loading as free memory

    def _read(self, name: str) -> float:
        pipe = self.processes[name].stdout
        line = pipe.readline() if pipe else ""
        if not line:
            raise SystemExit(f"engine {name} ended early:\n{(self.scratch / f'{name}.err').read_text()[-3000:]}")
        return float(line)

    def ask(self, name: str, what: str) -> float:
        pipe = self.processes[name].stdin
        assert pipe
        pipe.write(what + "\n")
        pipe.flush()
        return self._read(name)

    def close(self) -> None:
        for process in self.processes.values():
            if process.stdin:
                process.stdin.close()
        for process in self.processes.values():
            process.wait(timeout=60)


def rows(shape: Any, load: Load, samples: int, quick: bool) -> list[harness.Row]:
    """Rounds in turns; the first of each kind warms up. On a slow machine there are fewer than ``samples``, but two at least."""
    with tempfile.TemporaryDirectory(prefix="adapter-tax-") as directory:
        scratch = Path(directory)
        adapters = save_model(shape, load.slots, scratch)
        kinds = [("stock", "base"), ("without", "base"), ("lora", "base"), ("lora", "one"), ("lora", "mixed")]
        engines = Engines({"base": str(scratch / "base")}, adapters, scratch, load, ("stock", "without", "lora"))
        try:
            taken: dict[tuple[str, str], list[float]] = {kind: [] for kind in kinds}
            start = time.perf_counter()
            for n in range(samples + 1):
                if n > 2 and time.perf_counter() - start > ROUNDS_S:
                    break
                for kind in kinds:
                    speed = engines.ask(*kind)
                    if n:
                        taken[kind].append(speed)
            share = engines.ask("without", "share")
            added = engines.ask("lora", "memory") - engines.ask("without", "memory")
        finally:
            engines.close()
    base = max(("stock", "without"), key=lambda name: statistics.median(taken[name, "base"]))
    compiled = ", compiled" if load.compiled else ""
    label = {"stock": f"stock vLLM without LoRA{compiled}", "without": "our engine without LoRA"}[base]
    title = f"engine, {load.dtype}, {shape.name}, {shape.layers} layers, {load.requests} requests"

    def speed_row(case: str, kind: tuple[str, str], bar: float | None = None) -> harness.Row:
        return harness.compare(
            f"{title}, {case}", taken[kind], taken[base, "base"], label, "tokens/s", bar, higher_is_better=True
        )

    width = {"float32": 4, "bfloat16": 2}[load.dtype]
    copies = load.slots * shape.layers * shape.experts * 3 * shape.hidden * shape.width * width / 2**20
    other = "without" if base == "stock" else "stock"
    memory, half = f"{title}, memory that {load.slots} adapters add", f"{title}, experts' share of the time without LoRA"
    return [
        speed_row("one adapter", ("lora", "one"), None if quick else 0.90),
        speed_row(f"{load.slots} adapters and base rows", ("lora", "mixed"), None if quick else 0.80),
        speed_row("base rows", ("lora", "base")),
        speed_row("the other engine without LoRA" + (f", stock{compiled}" if other == "stock" else ""), (other, "base")),
        harness.compare(memory, [added], [copies], "merged copies of the experts would", "MiB", None if quick else 2.0),
        harness.compare(half, [share], [0.5], "half of it", "", None if quick else 1.0, higher_is_better=True),
    ]
