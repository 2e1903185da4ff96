"""What overlap gains where tools take long and uneven times: real environments, stream, loop and ledger, a simulated model.

Calls of benchmarks/slow_tools sleep a log-normal time. The sampler answers at once and a learning step sleeps: what is compared
is the waiting for tools, in minutes instead of the hours that whole runs take (async_vs_sync.py). Both sides in turn.

    python benchmarks/overlap_tail.py --json benchmarks/results/overlap_tail.json
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import async_vs_sync as whole  # noqa: E402
from benchmarks import harness  # noqa: E402
from frontier_tune import recipe as recipes  # noqa: E402
from frontier_tune.contracts import Completion, Request  # noqa: E402

STEP_S = 0.2  # learning, sync and parity gate of the toy base take 0.15 to 0.2 s on a quiet machine
GROUPS, SIZE = 4, 4
CORRECTED = {"proximal": "learner", "correction": "truncate"}


class Sampler:
    """Answers at once, under the policy ``version``."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.version, self.draw = tokenizer, 1, random.Random(0)

    def exchange(self, requests: Sequence[Request], wait: float = 0.0) -> list[Completion]:
        return [self.answer(r) for r in requests]

    def answer(self, request: Request) -> Completion:
        words = self.tokenizer.encode(f"say {self.draw.choice(['red', 'green'])}", add_special_tokens=False)
        tokens = (*words, request.params.stop_token_ids[0])
        return Completion(request.id, tokens, (-1.0,) * len(tokens), self.version, "stop")


def train(workspace: Path, base: Path, staleness: int, steps: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of so many steps, and the rows that they logged."""
    from transformers import AutoTokenizer

    from frontier_tune.episodes import play
    from frontier_tune.episodes.stream import Limits, Stream
    from frontier_tune.orchestration.checkpoint import LoopState
    from frontier_tune.orchestration.groups import GroupPlan
    from frontier_tune.orchestration.loop import Loop
    from frontier_tune.orchestration.overlap_source import Overlapped
    from frontier_tune.orchestration.preflight import make_renderer
    from frontier_tune.orchestration.run_dir import RunDir
    from frontier_tune.sandbox.pool import EnvironmentPool

    options = {"median_s": whole.MEDIAN_S, "sigma": whole.SIGMA}
    pool = EnvironmentPool("envs/slow_tools", workspace, options, whole.WORKERS, 120)
    renderer = make_renderer(base, pool.description["schemas"])
    tokenizer = AutoTokenizer.from_pretrained(str(base), local_files_only=True)
    sampler, tasks = Sampler(tokenizer), pool.tasks("train", 400, 0)

    class Episodes:
        def submit(self, method: str, specs: Any, where: str) -> Any:
            limits = {"max_turns": 2, "max_tokens_per_turn": 12, "max_model_len": 512, "concurrency": 32}
            return list(play(specs, pool, renderer, sampler, **limits))  # type: ignore[arg-type]

        def wait(self, found: Any, every: Callable[[], None]) -> Any:
            return found

    def learn(batches: Any, done: int) -> dict[str, float]:
        time.sleep(STEP_S)
        return {}

    recipe = recipes.parse(
        {
            "run": {"steps": steps, "staleness": staleness, "checkpoint_every": 10**6},
            "algorithm": {"groups_per_step": GROUPS, "group_size": SIZE} | (CORRECTED if staleness else {}),
        }
    )
    learner = SimpleNamespace(learn=learn, save_adapter=lambda path: None, save=lambda path: None)
    engine = SimpleNamespace(sync=lambda path, version: setattr(sampler, "version", version))
    crew: Any = SimpleNamespace(episodes=Episodes(), learner=learner, sampler=engine)
    gate: Any = SimpleNamespace(check=lambda version: {}, canary=lambda version, path: {})
    stop: Any = SimpleNamespace(check=lambda: None)
    rows: list[dict[str, Any]] = []
    plan, state = GroupPlan(tasks, 0, GROUPS, SIZE), LoopState(version=1)
    with tempfile.TemporaryDirectory() as directory:
        loop = Loop(recipe, RunDir(Path(directory)), crew, plan, None, gate, state, rows.append, stop)
        stream = Stream(lambda name: (pool, renderer), sampler, Limits(2, 12, 512, 32))
        if staleness:
            streams: Any = SimpleNamespace(put=stream.put, poll=stream.take, drop=stream.drop)
            loop.overlapped = Overlapped(recipe, streams, plan, None, state, stop.check, loop.ledger)
        began = time.monotonic()
        loop.train()
        seconds = time.monotonic() - began
    stream.close()
    pool.close()
    return seconds, rows


def main() -> None:
    options = harness.parser((__doc__ or "").splitlines()[0])
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--repeat", type=int, default=2)
    args = options.parse_args()
    steps, repeat = (2, 1) if args.quick else (args.steps, args.repeat)
    seconds: dict[int, list[float]] = {0: [], whole.STALENESS: []}
    seen: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        workspace = whole.long_tail_workspace(Path(work), steps).parent.parent
        for _ in range(repeat):
            for staleness, found in seconds.items():
                took, rows = train(workspace, Path(work) / "base", staleness, steps)
                found.append(took)
                seen += [row["overlap"] for row in rows if "overlap" in row]
                print(f"staleness {staleness}: {took:.1f} s", flush=True)
    bar = whole.BARS["long-tail"]
    row = harness.compare(f"{steps} steps, tools alone", seconds[whole.STALENESS], seconds[0], "synchronous", "s", bar)
    settings = {
        "call": {"distribution": "log-normal", "median_s": whole.MEDIAN_S, "sigma": whole.SIGMA, "calls_an_episode": 2},
        **{"groups": GROUPS, "group_size": SIZE, "workers": whole.WORKERS, "staleness": whole.STALENESS, "learning_s": STEP_S},
        **{"seconds": {str(k): v for k, v in seconds.items()}, "simulated": ["sampler", "learner", "sync", "parity gate"]},
        "staleness_mean": sum(o["staleness_mean"] for o in seen) / len(seen),
    }
    if not harness.report("overlap_tail", [row], harness.machine(), settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
