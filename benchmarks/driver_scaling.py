"""What the driver costs as samplers are added: share of the samplers' throughput that it keeps busy, its CPU time, its memory.

The driver is real: loop, overlapping source, plan, ledger, rollouts, Ray's object store. Samplers are simulated by actors: each
plays so many groups at once, a group takes a log-normal time (no computation, they wait) and comes back as real trajectories.
Learner, sync and gate take no time: what is measured is the driver alone, at most groups a second.

    python benchmarks/driver_scaling.py --json benchmarks/results/driver_scaling.json
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import harness  # noqa: E402
from frontier_tune import recipe as recipes  # noqa: E402
from frontier_tune.contracts import EpisodeSpec, Task, Trajectory  # noqa: E402
from frontier_tune.episodes.stream import Group, Played  # noqa: E402

AT_ONCE = 4  # groups that a sampler plays at once
# Of a group's log-normal time: a sampler does two groups a second. A light tail: with a heavy one it is the staleness bound that
# waits for the longest of a large step's groups, and not the driver.
MEAN_S, SIGMA = 2.0, 0.3
STALENESS, GROUP_SIZE, TOKENS = 3, 8, 400
SOAKED = 16  # samplers of the long run, five times as quick: many steps, each of which holds little
HOSTS = 4  # processes that the simulated samplers share: they only wait


class Samplers:
    """Some simulated samplers; ``which`` says which one is meant. The methods are those of an episode actor's stream."""

    def __init__(self, count: int, seed: int, mean_s: float) -> None:
        self.version = 1
        self.draw = random.Random(seed)
        self.location = math.log(mean_s) - SIGMA**2 / 2
        self.free = [[0.0] * AT_ONCE for _ in range(count)]
        self.running: list[list[tuple[float, int, Group]]] = [[] for _ in range(count)]
        self.news = [asyncio.Event() for _ in range(count)]
        self.number = 0

    async def sync(self, version: int) -> None:
        self.version = version

    async def stream_put(self, which: int, groups: Sequence[Group]) -> None:
        for group in groups:
            start = max(time.monotonic(), heapq.heappop(self.free[which]))
            end = start + self.draw.lognormvariate(self.location, SIGMA)
            heapq.heappush(self.free[which], end)
            self.number += 1
            heapq.heappush(self.running[which], (end, self.number, group))
        self.news[which].set()

    async def stream_take(self, which: int, seconds: float) -> list[Played]:
        limit = time.monotonic() + seconds
        while True:
            running, now = self.running[which], time.monotonic()
            done = []
            while running and running[0][0] <= now:
                done.append(heapq.heappop(running)[2])
            if done or now >= limit:
                return [Played(g.id, [self.play(s) for s in g.specs]) for g in done]
            self.news[which].clear()
            try:
                await asyncio.wait_for(self.news[which].wait(), min(limit, running[0][0] if running else limit) - now)
            except TimeoutError:
                continue

    def play(self, spec: EpisodeSpec) -> Trajectory:
        sampled = TOKENS // 2
        tokens = [self.draw.randrange(1, 4000) for _ in range(TOKENS)]
        mask = [False] * (TOKENS - sampled) + [True] * sampled
        logprobs = [0.0] * (TOKENS - sampled) + [-self.draw.random() for _ in range(sampled)]
        versions = [-1] * (TOKENS - sampled) + [self.version] * sampled
        return Trajectory(spec, tokens, mask, logprobs, versions, reward=float(spec.member % 2), success=spec.member % 2 == 1)


class Handle:
    """One simulated sampler, as ``ActorStreams`` takes an actor's handle."""

    deadlines = None

    def __init__(self, host: Any, which: int) -> None:
        self.host, self.which = host, which

    def submit(self, method: str, *arguments: Any) -> Any:
        return getattr(self.host, method).remote(self.which, *arguments)

    def get(self, ref: Any) -> Any:
        import ray

        return ray.get(ref)


def drive(samplers: int, groups: int, mean_s: float = MEAN_S) -> dict[str, Any]:
    """Train ``groups`` groups on so many samplers. Rates leave the first fifth of the steps out.

    Memory is the driver's in MiB, the medians of the second fifth and of the last: a step's episodes come and go.
    """
    import ray

    from frontier_tune.orchestration.checkpoint import LoopState
    from frontier_tune.orchestration.groups import GroupPlan
    from frontier_tune.orchestration.loop import Loop
    from frontier_tune.orchestration.overlap_source import ActorStreams, Overlapped
    from frontier_tune.orchestration.run_dir import RunDir

    a_step = samplers * AT_ONCE  # STALENESS + 1 times as many are under way as can be played: no sampler waits for a step
    steps = max(6, math.ceil(groups / a_step))  # the first ones, when all begins at once, aren't measured
    hosts = min(HOSTS, samplers)
    shares = [samplers // hosts + (n < samplers % hosts) for n in range(hosts)]
    actor = ray.remote(Samplers).options(num_cpus=0, max_concurrency=1000)
    actors = [actor.remote(share, n, mean_s) for n, share in enumerate(shares)]
    handles: Any = [Handle(a, i) for a, share in zip(actors, shares, strict=True) for i in range(share)]
    recipe = recipes.parse(
        {
            "run": {"steps": steps, "staleness": STALENESS, "checkpoint_every": 10**9},
            "algorithm": {
                **{"groups_per_step": a_step, "group_size": GROUP_SIZE, "proximal": "learner", "correction": "truncate"},
            },
        }
    )
    seen: list[dict[str, float]] = []

    def log(row: dict[str, Any]) -> None:
        if len(seen) % max(1, steps // 20) == 0 or row["step"] == steps:
            gc.collect()
        memory = psutil.Process().memory_info().rss / 2**20
        seen.append({"time": time.monotonic(), "cpu": time.process_time(), "memory": memory})

    nothing: Any = SimpleNamespace(check=lambda: None)
    learner = SimpleNamespace(learn=lambda batches, done: {}, save_adapter=lambda path: None, save=lambda path: None)
    sampler = SimpleNamespace(sync=lambda path, version: ray.get([a.sync.remote(version) for a in actors]))
    gate: Any = SimpleNamespace(check=lambda version: {}, canary=lambda version, path: {})
    crew: Any = SimpleNamespace(learner=learner, sampler=sampler)
    plan = GroupPlan([Task("simulated", "train", {"n": n}) for n in range(2000)], 0, a_step, GROUP_SIZE)
    with tempfile.TemporaryDirectory() as directory:
        state = LoopState(version=1)
        loop = Loop(recipe, RunDir(Path(directory)), crew, plan, None, gate, state, log, nothing)
        loop.overlapped = Overlapped(recipe, ActorStreams(handles), plan, None, state, nothing.check, loop.ledger)
        loop.train()
    for a in actors:
        ray.kill(a)
    fifth = len(seen) // 5
    first, last = seen[fifth], seen[-1]
    measured = (len(seen) - 1 - fifth) * a_step
    # All groups of a sampler begin at once, and so for long end in waves: a line through all steps, not its two ends.
    line = statistics.linear_regression(range(len(seen) - fifth), [s["time"] for s in seen[fifth:]])
    rate = a_step / line.slope
    return {
        "groups": steps * a_step,
        "groups_per_second": rate,
        "efficiency": rate * mean_s / (samplers * AT_ONCE),
        "cpu_ms_per_group": 1000 * (last["cpu"] - first["cpu"]) / measured,
        "cores_busy": (last["cpu"] - first["cpu"]) / (last["time"] - first["time"]),
        "memory_mib": [
            round(statistics.median(s["memory"] for s in part), 1) for part in (seen[fifth : 2 * fifth], seen[-fifth:])
        ],
    }


def main() -> None:
    options = harness.parser((__doc__ or "").splitlines()[0])
    options.add_argument("--samplers", type=int, nargs="+", default=[1, 4, 16, 64])
    options.add_argument("--seconds", type=float, default=40.0, help="for each number of samplers, at least about so long")
    options.add_argument("--soak", type=int, default=10_000, help="groups over which the driver's memory is watched")
    args = options.parse_args()
    seconds, soak = (3.0, 200) if args.quick else (args.seconds, args.soak)
    from frontier_tune.orchestration.cluster import local_ray

    rows, found = [], {}
    with local_ray():
        for samplers in args.samplers:
            groups = math.ceil(seconds * samplers * AT_ONCE / MEAN_S)
            found[samplers] = drive(samplers, groups)
            print(samplers, found[samplers], flush=True)
        long = drive(SOAKED, soak, MEAN_S / 5)
        print("soak", long, flush=True)
    for samplers, f in found.items():
        bar = 0.9 if samplers == 16 else None
        rows.append(
            harness.compare(f"{samplers} samplers: throughput kept", [f["efficiency"]], [1.0], "ideal", "share", bar, True)
        )
        cost = [f["cpu_ms_per_group"]]
        rows.append(
            harness.compare(f"{samplers} samplers: driver's CPU a group", cost, [MEAN_S * 1000], "a sampler's time", "ms")
        )
    start, end = long["memory_mib"]
    rows.append(harness.compare(f"driver's memory, {long['groups']:,} groups", [end], [start], "before", "MiB", 0.95))
    settings = {
        "latency": {"distribution": "log-normal", "mean_s": MEAN_S, "sigma": SIGMA, "at_once": AT_ONCE},
        **{"staleness": STALENESS, "group_size": GROUP_SIZE, "tokens": TOKENS, "host_processes": HOSTS},
        **{"samplers": found, "soak": long, "spread_of_efficiency": statistics.pstdev(f["efficiency"] for f in found.values())},
    }
    if not harness.report("driver_scaling", rows, harness.machine(), settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
