"""Whether a long run grows: memory, descriptors, threads and object store of each of its processes, step by step.

A recipe's run as the command does it, for --hours in all, in pieces of --minutes: a piece is stopped as Ctrl-C stops it and
resumed by the next call, and its samples are kept with its commit. Processes are new in each piece, so growth is fitted within
pieces: the median of the slopes between all pairs of samples (Theil-Sen, which a jump of an allocator does not move), after
--warmup steps.
Environment workers count as one, and so do Ray's own processes.

    python benchmarks/soak.py --work /tmp/soak --minutes 20 --json benchmarks/results/soak.json
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import harness  # noqa: E402
from frontier_tune.reporting import metrics  # noqa: E402

RECIPE = ROOT / "recipes" / "month_end_close.yaml"
STEPS = 20_000  # a day: the time ends it. The plan wants disk for all of them
ROLES = {"ray::Sampler": "sampler", "ray::Learner": "learner", "ray::Episode": "episodes", "sandbox.worker": "environments"}
RAY = ("raylet", "gcs_server", "ray/_private", "ray/dashboard", "ray::IDLE")
MIB = 2**20
# What may be gained in an hour and still be called none: a share of the level for bytes, a count for the rest.
SHARE, FLOOR_MIB, COUNT = 0.05, 8.0, 4.0
_STOP_S = 300.0


def role_of(process: psutil.Process, driver: int) -> str:
    if process.pid == driver:
        return "command"
    line = " ".join(process.cmdline())
    known = next((role for words, role in ROLES.items() if words in line), None)
    return known or ("ray" if any(words in line for words in RAY) else "other")


def measure(process: psutil.Process) -> dict[str, float]:
    """``anonymous``: memory of its own; ``shared``: pages of the object store that it has touched. MiB and counts."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    size = {key: int(status[key].split()[0]) / 1024 for key in ("RssAnon", "RssShmem", "VmRSS") if key in status}
    return {
        "anonymous": size.get("RssAnon", 0.0),
        "shared": size.get("RssShmem", 0.0),
        "resident": size.get("VmRSS", 0.0),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
    }


def sample(driver: int) -> dict[str, dict[str, float]]:
    """Sums by role, and what all of the machine has in /dev/shm."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    top = psutil.Process(driver)
    for process in (top, *top.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            role = role_of(process, driver)
            for key, value in measure(process).items():
                found[role][key] += value
            found[role]["processes"] += 1
    shm = os.statvfs("/dev/shm")
    found["machine"]["dev_shm"] = (shm.f_blocks - shm.f_bfree) * shm.f_frsize / MIB
    return {role: dict(values) for role, values in found.items()}


def steps_of(home: Path) -> int:
    path = home / metrics.FILE
    rows = metrics.read(path) if path.is_file() else []
    return int(rows[-1]["step"]) if rows else 0


def piece(work: Path, recipe: Path, settings: Sequence[str], minutes: float) -> None:
    """Run on for so long, taking a sample after each step. Raises RuntimeError where the run fails."""
    home = work / "run"
    command = [sys.executable, "-m", "frontier_tune.cli.main", "tune"]
    if (home / "recipe.yaml").is_file():
        command += ["--resume", str(home)]
    else:
        own = (f"run.directory={home}", f"run.steps={STEPS}", "run.stop_at_success=null", "tracking.wandb=off")
        command += [str(recipe), *own, *settings]
    number, began = len(pieces(work)), time.monotonic()
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    trained, first, last = 0.0, None, steps_of(home)
    with (work / "log").open("a") as log, (work / "samples.jsonl").open("a") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None and trained < minutes * 60:
            time.sleep(0.5)
            if (step := steps_of(home)) > last:
                first = time.monotonic() if first is None else first
                last, trained = step, time.monotonic() - first
                row = {"piece": number, "step": step, "seconds": round(trained, 1), "roles": sample(process.pid)}
                out.write(json.dumps(row) + "\n")
        process.send_signal(signal.SIGINT)  # saves and ends
        code = process.wait(_STOP_S)
    if code != 128 + signal.SIGINT:
        raise RuntimeError(f"exit code {code}; see {work / 'log'}")
    done = {
        "commit": harness.commit(),
        "trained_s": round(trained, 1),
        "wall_s": round(time.monotonic() - began, 1),
        "step": last,
    }
    with (work / "pieces.jsonl").open("a") as out:
        out.write(json.dumps(done) + "\n")


def pieces(work: Path) -> list[dict[str, Any]]:
    path = work / "pieces.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def series(work: Path, warmup: int) -> Iterator[tuple[str, str, list[tuple[np.ndarray, np.ndarray]]]]:
    """(role, quantity, samples of each piece after its warm-up: seconds and values)."""
    found: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    seen: dict[int, int] = defaultdict(int)
    for row in map(json.loads, (work / "samples.jsonl").read_text().splitlines()):
        seen[row["piece"]] += 1
        if seen[row["piece"]] <= warmup:
            continue
        for role, values in row["roles"].items():
            for key, value in values.items():
                found[role, key][row["piece"]].append((row["seconds"], value))
    for (role, key), by_piece in sorted(found.items()):
        parts = [np.array(points) for points in by_piece.values() if len(points) > 2]
        if parts:
            yield role, key, [(p[:, 0], p[:, 1]) for p in parts]


def slope(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Theil-Sen within the pieces, pooled: units a second."""
    found = []
    for seconds, values in parts:
        i, j = np.triu_indices(len(seconds), 1)
        apart = seconds[j] - seconds[i]
        found.append(((values[j] - values[i]) / np.maximum(apart, 1e-9))[apart > 0])
    return float(np.median(np.concatenate(found)))


def rows(work: Path, warmup: int, hours: float) -> tuple[list[harness.Row], dict[str, Any]]:
    """Growth in an hour by role and quantity, and the levels. ``processes`` and ``resident`` are shown, not judged."""
    done, table = pieces(work), {}
    trained = sum(p["trained_s"] for p in done)
    out = [harness.Row("time trained", trained / 3600, hours, "asked for", "h", trained / 3600 / hours, len(done), True, 1.0)]
    for role, key, parts in series(work, warmup):
        level = statistics.median(np.concatenate([values for _, values in parts]).tolist())
        gained, count = 3600 * slope(parts), sum(len(values) for _, values in parts)
        table[f"{role} {key}"] = {"level": round(level, 2), "gained_in_an_hour": round(gained, 3), "samples": count}
        if role == "machine" or key in ("processes", "resident"):
            continue  # others use /dev/shm, too; and what is resident holds pages of files that the kernel takes back
        bytes_ = key in ("anonymous", "shared")
        bar = max(FLOOR_MIB, SHARE * level) if bytes_ else COUNT
        ratio = bar / gained if gained > bar / 1000 else 1000.0
        out.append(harness.Row(f"{role} {key}", gained, bar, "at most", "MiB/h" if bytes_ else "1/h", ratio, count, True, 1.0))
    return out, table


def main() -> None:
    options = harness.parser((__doc__ or "").splitlines()[0])
    options.add_argument("--work", type=Path, required=True, help="where the run lies; pieces go on there")
    options.add_argument("--recipe", type=Path, default=RECIPE)
    options.add_argument("--minutes", type=float, default=20.0, help="of training in this piece")
    options.add_argument("--hours", type=float, default=1.0, help="of training in all")
    options.add_argument(
        "--warmup", type=int, default=100, help="steps of each piece that are not judged: the sampler still grows"
    )
    options.add_argument("--set", action="append", default=[], help="further settings of the recipe, KEY=VALUE")
    args = options.parse_args()
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    left = 3600 * args.hours - sum(p["trained_s"] for p in pieces(work))
    if left > 0:
        piece(work, args.recipe.absolute(), args.set, min(args.minutes, left / 60))
    found, table = rows(work, 2 if args.quick else args.warmup, args.hours)
    settings = {"recipe": args.recipe.name, "set": args.set, "warmup": args.warmup, "pieces": pieces(work), "table": table}
    if not harness.report("soak", found, harness.machine(), settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
