"""Two learners that share a base against two that hold it whole: memory of each while it loads and learns, and seconds of a step.

Gated are the base that each keeps, what loading takes besides, and how far the plan's peak is from the measured one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness, plan_memory

MIB = 2**20
RANKS = 2
_WIDE = {"hidden_size": 512, "num_hidden_layers": 8, "num_experts": 32, "moe_intermediate_size": 256}
CASE = replace(plan_memory.CASES[0], sequences=8, length=256, config=plan_memory.CASES[0].config | _WIDE)
_SMALL = {"hidden_size": 64, "num_hidden_layers": 3}


def _anonymous() -> int:
    """This process's own memory: mapped files, which are the system's cache, don't count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


@contextmanager
def _fullest() -> Iterator[dict[str, int]]:
    """The most of it within the body, looked at every few milliseconds."""
    found, done = {"bytes": 0}, threading.Event()

    def look() -> None:
        while not done.wait(0.003):
            found["bytes"] = max(found["bytes"], _anonymous())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def child(rank: int, root: Path, split: bool, case: plan_memory.Case) -> dict[str, float]:
    """One learner, in this process: bytes, and seconds of its third step."""
    import torch

    from frontier_tune.learning import shard
    from frontier_tune.learning.learner import Learner
    from frontier_tune.learning.parallel import World

    torch.set_num_threads(1)
    world = World.join(rank, RANKS, root / f"meet-{split}", torch.device("cpu"), sharded=split)
    start = _anonymous()
    with _fullest() as loading:
        learner = Learner(root / "base", plan_memory.recipe_of(case), world=world)
    loaded = _anonymous()
    batch, rewards = plan_memory._batch(case, case.sequences, case.length), [(-1.0) ** n for n in range(case.sequences)]
    seconds, losses = 0.0, []
    with _fullest() as learning:
        for _ in range(3):
            begun = time.perf_counter()
            losses.append(learner.update(batch, rewards)["loss"])
            seconds = time.perf_counter() - begun
    return {
        "base": shard.own_bytes(learner.policy.peft),
        "loading": loading["bytes"] - start,
        "learning": learning["bytes"] - loaded,
        "seconds": seconds,
        "loss": losses[-1],
    }


def planned(case: plan_memory.Case) -> dict[str, int]:
    """The plan's bytes of one learner with a share: the base, and the growth from there to the fullest moment."""
    from frontier_tune.experts.families import target_modules
    from frontier_tune.orchestration.plan import activations, actors, sizes, work

    config, recipe = plan_memory.base_config(case), plan_memory.recipe_of(case)
    z, adapter, parameters = sizes.sizes(config), sizes.adapter_parameters(recipe, config), sizes.parameters(config)
    setting = activations.Setting(case.dtype, case.rank, tuple(target_modules(recipe.adapter, config)), recipe.adapter.experts)
    rows = case.sequences // RANKS * case.length
    need = activations.need(z, setting, activations.Batch(rows, rows // 2), adapter, True)
    subject = actors.subject(recipe, config, parameters, z, work.of(recipe))
    kept = 3 if recipe.learner.rollbacks else 0
    return {
        "base": actors.kept_by_one(parameters, RANKS) * sizes.BYTES[case.dtype],
        "learning": need.peak + actors.gathered(subject, need, "cpu") + adapter * 4 * (2 + kept),
        "adapter": adapter * 4,
    }


def measured(split: bool, root: Path, case: plan_memory.Case) -> list[dict[str, Any]]:
    """What each rank found, in processes of their own."""
    command = [
        sys.executable,
        __file__,
        "--root",
        str(root),
        "--child",
        json.dumps(asdict(case)),
        *(["--split"] if split else []),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    running = [
        subprocess.Popen([*command, "--rank", str(r)], stdout=subprocess.PIPE, text=True, env=environment) for r in range(RANKS)
    ]
    said = [p.communicate()[0] for p in running]
    if any(p.returncode for p in running):
        raise RuntimeError("a learner failed; see above")
    return [json.loads(text.splitlines()[-1]) for text in said]


def rows(whole: list[dict[str, Any]], split: list[dict[str, Any]], plan: dict[str, int]) -> list[harness.Row]:
    """Of the learner that needs the most."""
    most = {name: [max(r[name] for r in found) for found in (whole, split)] for name in split[0]}
    (base, own), bar = most["base"], "held whole"
    out = [harness.compare("base that a learner keeps", [own / MIB], [base / MIB], bar, "MiB", 1.9)]
    for name, what in (("loading", "fullest while loading"), ("learning", "growth from there to the fullest of three steps")):
        out.append(harness.compare(what, [most[name][1] / MIB], [most[name][0] / MIB], bar, "MiB"))
    total = [most["loading"][n] + most["learning"][n] for n in range(2)]
    out.append(harness.compare("both together", [total[1] / MIB], [total[0] / MIB], bar, "MiB"))
    out.append(harness.compare("a step", [most["seconds"][1]], [most["seconds"][0]], bar, "s"))
    kept = (own + plan["adapter"]) / MIB
    out.append(harness.compare("fullest while loading", [most["loading"][1] / MIB], [kept], "what it keeps", "MiB", 0.9))
    for name, there in (("base", own), ("learning", most["learning"][1])):
        near = min(plan[name], there) / max(plan[name], there)
        out.append(harness.Row(f"plan: {name}", plan[name] / MIB, there / MIB, "measured", "MiB", near, 1, True, 0.9))
    apart = max(abs(r["loss"] - whole[0]["loss"]) for r in split)
    return [
        *out,
        harness.Row("loss of the third step", split[0]["loss"], whole[0]["loss"], bar, "", float(apart < 1e-6), 1, True, 1),
    ]


def main() -> None:
    parser = harness.parser(__doc__.splitlines()[0])
    for name in ("--root", "--child", "--rank"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--split", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(int(args.rank), Path(args.root), args.split, plan_memory.Case(**json.loads(args.child)))))
        return
    case = replace(CASE, config=CASE.config | _SMALL, length=64) if args.quick else CASE
    machine = harness.machine()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        plan_memory._write_base(case, root / "base")
        whole, split = (measured(shared, root, case) for shared in (False, True))
    holds = harness.report(
        "split_base", rows(whole, split, planned(case)), machine, {"case": asdict(case), "ranks": RANKS}, args.json
    )
    if not holds and not args.quick:
        raise SystemExit(3)


if __name__ == "__main__":
    main()
