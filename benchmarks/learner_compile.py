"""What torch.compile gives the learner on a CPU: decoder layers (``learner.compile``), a chunk of logits, all of it (--backbone).

Every side is a process of its own that waits without using a core while another one steps; steps alternate and the first of each
side, in which it compiles, is dropped. No two packs are of the same length, as in a run: graphs that are compiled after the first
step are counted, and their time is in the medians. Where memory is compared it is the peak of the whole process.

    python benchmarks/learner_compile.py --json benchmarks/results/learner_compile.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import harness  # noqa: E402

RANK = 8
SIDES = {
    "ours": "eager, our kernels",
    "layers": "layers compiled",
    "backbone": "backbone compiled",
    "stock": "eager, stock norms, rotary and LoRA",
}


@dataclass(frozen=True)
class Case:
    """On the nano base. The first of ``sides`` is what others are compared with."""

    name: str
    dtype: str
    sides: tuple[str, ...]
    samples: int
    groups: int = 6
    group_size: int = 8
    prompt: tuple[int, int] = (120, 220)
    answer: tuple[int, int] = (60, 140)


NANO = Case("nano, float32", "float32", ("ours", "layers", "stock"), 5)
CASES = [
    NANO,
    replace(NANO, name="nano, bfloat16", dtype="bfloat16", sides=("ours", "layers"), samples=4),
]
QUICK = [replace(NANO, sides=("ours", "layers"), samples=1, groups=2, group_size=2, prompt=(8, 16), answer=(4, 8))]
CHUNK_ROWS, CHUNK_REPEATS = (800, 1100), 20


def episodes(case: Case, step: int, vocabulary: int) -> tuple[list[Any], list[float]]:
    """What is learned from in a step: the same on all sides, of other lengths in every step."""
    from frontier_tune.contracts import EpisodeSpec, Task, Trajectory

    rng = random.Random(step)
    played, advantages = [], []
    for group in range(case.groups):
        head = [rng.randrange(10, vocabulary) for _ in range(rng.randint(*case.prompt))]
        for member in range(case.group_size):
            answer = [rng.randrange(10, vocabulary) for _ in range(rng.randint(*case.answer))]
            mask = [False] * len(head) + [True] * len(answer)
            spec = EpisodeSpec(Task("benchmark", "train", {"n": group}), group, member, 0)
            played.append(Trajectory(spec, head + answer, mask, [-7.0 * m for m in mask], [int(m) - 1 for m in mask]))
            advantages.append(1.0 if member % 2 else -1.0)
    return played, advantages


def step_side(case: Case, side: str, threads: int, base: Path, go: Callable[[], None], done: Callable[..., None]) -> None:
    import torch

    from frontier_tune import recipe
    from frontier_tune.learning import compiled, fused
    from frontier_tune.learning.learner import Learner

    if side == "stock":
        fused.install = lambda model: {}
    learner_section = {"threads": threads, "device": "cpu", "dtype": case.dtype, "compile": side == "layers"}
    parsed = recipe.parse({"adapter": {"rank": RANK, "alpha": 2.0 * RANK}, "learner": learner_section})
    learner = Learner(base, parsed)
    count = learner.compiled
    if side == "backbone":
        backbone = learner.policy._backbone
        compiled.prepare(backbone)
        backbone.forward, count = torch.compile(backbone.forward, dynamic=True), compiled.Compiled()
    for n in range(case.samples + 1):
        played, advantages = episodes(case, n, learner.policy.config.vocab_size)
        go()
        start = time.perf_counter()
        metrics = learner.update(played, advantages)
        seconds = time.perf_counter() - start
        if side == "backbone" and count is not None:
            metrics |= count.metrics()
        assert metrics["updates"] == 1, metrics
        counted = {name: metrics.get(name, 0.0) for name in ("graphs_compiled", "compile_seconds", "loss", "grad_norm")}
        done(seconds, **counted)


def chunk_side(side: str, samples: int, threads: int, base: Path, go: Callable[[], None], done: Callable[..., None]) -> None:
    """Log-sum-exp, log-probabilities and entropy of a chunk of logits: by the native kernel, or by a compiled formula."""
    import torch

    from frontier_tune.learning.compiled import Compiled
    from frontier_tune.native import build

    build.load()
    torch.set_num_threads(threads)
    vocabulary = int(json.loads((base / "config.json").read_text())["vocab_size"])

    def formula(z: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        lse = z.logsumexp(1)
        p = (z - lse[:, None]).exp()
        return lse, z.gather(1, target[:, None])[:, 0] - lse, lse - (p * z).sum(1), p

    compiled = torch.compile(formula, dynamic=True, fullgraph=True)
    count, generator = Compiled(), torch.Generator().manual_seed(0)
    for _ in range(samples + 1):
        rows = int(torch.randint(*CHUNK_ROWS, (), generator=generator))
        z = torch.randn(rows, vocabulary, generator=generator)
        target = torch.randint(vocabulary, (rows,), generator=generator)
        copies = [z.clone() for _ in range(CHUNK_REPEATS)]  # the kernel writes probabilities over the logits
        go()
        start = time.perf_counter()
        for copy in copies:
            if side == "layers":
                _, logprob, _, _ = compiled(copy, target)
            else:
                lse, logprob, entropy = (torch.empty(rows) for _ in range(3))
                torch.ops.frontier_tune.softmax_rows(copy, target, lse, logprob, entropy)
        seconds = (time.perf_counter() - start) / CHUNK_REPEATS
        done(seconds, **count.metrics(), loss=float(logprob.double().sum()), grad_norm=0.0)


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def worker(task: dict[str, Any]) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{task['scratch']}/{task['side']}"  # nothing is compiled yet
    go, hand_over = harness.turns()

    def done(seconds: float, **counted: float) -> None:
        hand_over({"seconds": seconds, "peak": resident(), **counted})

    base, threads, side = Path(task["base"]), task["threads"], task["side"]
    if task["case"] is None:
        chunk_side(side, task["samples"], threads, base, go, done)
    else:
        step_side(Case(**task["case"]), side, threads, base, go, done)


def measure(name: str, case: Case | None, sides: tuple[str, ...], samples: int, threads: int, base: Path) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    first: dict[str, dict[str, float]] = {}

    def show(side: str, n: int, found: dict[str, float]) -> None:
        first.setdefault(side, found)
        print(f"  {name}, {side} step {n}: {found['seconds']:.4f} s, {found['graphs_compiled']:.0f} graphs", flush=True)

    task = {"case": case and asdict(case), "samples": samples, "threads": threads, "base": str(base)}
    return {"taken": harness.alternate(__file__, sides, task, samples, environment, show), "first": first}


def apart(found: dict[str, Any], side: str, reference: str) -> float:
    """The largest relative difference of losses and gradient norms over all steps."""
    pairs = zip(found["taken"][side], found["taken"][reference], strict=True)
    return max(abs(a[k] - b[k]) / max(1e-9, abs(b[k])) for a, b in pairs for k in ("loss", "grad_norm"))


def rows_of(name: str, found: dict[str, Any], sides: tuple[str, ...]) -> tuple[list[harness.Row], dict[str, Any]]:
    reference, taken = sides[0], found["taken"]
    rows, told = [], {}
    for side in sides[1:]:
        theirs, ours = ([step["seconds"] for step in taken[s]] for s in (side, reference))
        rows.append(harness.compare(f"{name}: {SIDES[side]}", theirs, ours, SIDES[reference], "s"))
        if side == "stock":
            continue
        told[SIDES[side]] = {
            "first step, s": round(found["first"][side]["seconds"], 1),
            "compiling in it, s": round(found["first"][side]["compile_seconds"], 1),
            "graphs in it": found["first"][side]["graphs_compiled"],
            "graphs compiled in the other steps": sum(step["graphs_compiled"] for step in taken[side]),
            "peak of the process, MiB": round(max(step["peak"] for step in taken[side]) / 2**20),
            "the same without, MiB": round(max(step["peak"] for step in taken[reference]) / 2**20),
            "losses and gradient norms differ by": apart(found, side, reference),
        }
    return rows, told


def main() -> None:
    options = harness.parser(__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--only", help="the cases whose name begins so")
    options.add_argument("--backbone", action="store_true", help="the whole backbone as well, compiled as one")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.worker:
        worker(args.worker)
        return
    from frontier_tune import bases

    machine = harness.machine()
    cases = [c for c in (QUICK if args.quick else CASES) if c.name.startswith(args.only or "")]
    if args.backbone:
        cases = [replace(c, sides=(*c.sides, "backbone")) for c in cases]
    nano, rows, compiling = Path(bases.load("nano").directory), [], {}
    for case in cases:
        found = measure(case.name, case, case.sides, case.samples, args.threads, nano)
        more, compiling[case.name] = rows_of(case.name, found, case.sides)
        rows += more
    if not args.only:
        name, sides, samples = "a chunk of nano's logits", ("ours", "layers"), 1 if args.quick else 9
        found = measure(name, None, sides, samples, args.threads, nano)
        a, b = ([step["seconds"] * 1e3 for step in found["taken"][side]] for side in reversed(sides))
        rows.append(harness.compare(f"{name}: formula compiled", a, b, "native kernel", "ms"))
    settings = {
        "cases": [asdict(c) for c in cases],
        "step": "learner.update: LoRA r 8 on attention and experts, AdamW, a sample of the KL to the base",
        "compiling": compiling,
        "threads": args.threads,
    }
    harness.report("learner_compile", rows, machine, settings, args.json)


if __name__ == "__main__":
    main()
