"""The fault suite at its full count: 200 processes killed over one run, 20 runs killed, and what came of it.

The campaigns are tests/faults/campaign.py's; the crew is the stand-in of tests/faults (hashes for a model; all processes, files
and the ledger real), so that hundreds of deaths are affordable. ``engine`` is the same with vLLM, learner and a tiny base, and
few kills. It is done in pieces that can be interrupted: each call goes on where the last one was, up to --minutes, and writes
the result once all is done.

    python benchmarks/faults.py --work /tmp/faults --minutes 25 --json benchmarks/results/faults.json
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from benchmarks import harness  # noqa: E402

SLOW = {"sampler": 0.1, "learner": 0.2}  # seconds of an exchange and of a learning step, to be killed in
ENGINE_STEPS = 40  # of half a second: the last kill has to find a run that goes on


def campaigns(work: Path, kills: int) -> dict[str, Any]:
    """By name, in the order in which they are done."""
    from tests.faults.campaign import Roles, Whole

    whole = {"sampler": 0.05, "learner": 0.4}
    made = {
        "roles": Roles(_made(work / "roles"), kills, {}, SLOW),
        "whole": Whole(_made(work / "whole"), max(1, kills // 10), {"run": {"deterministic": True}}, whole, 1),
        "overlap": Roles(_made(work / "overlap"), max(1, kills // 10), {"run": {"staleness": 2}}, SLOW, 2),
    }
    return made


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def engine(work: Path, kills: int) -> dict[str, Any]:
    """A run of the command with vLLM and the learner, killed ``kills`` times, against one that nobody disturbed."""
    from tests import tiny
    from tests.faults.processes import Run

    work.mkdir(parents=True, exist_ok=True)
    sections = {
        "run": {"steps": ENGINE_STEPS, "checkpoint_every": 1, "eval_tasks": 2, "deterministic": True},
        "environment": {"heldout_tasks": 8},
        "reliability": {"restarts": 100},
    }
    recipe = tiny.write_workspace(work, tiny.build_base(work / "base", lessons=60), sections)

    def start(home: Path) -> Run:
        command = [sys.executable, "-m", "frontier_tune.cli.main", "tune"]
        go_on = (home / "recipe.yaml").is_file()
        return Run(work, home, command=[*command, *(["--resume", str(home)] if go_on else [recipe, f"run.directory={home}"])])

    whole = start(work / "whole")
    if whole.wait(600) != 0:
        raise RuntimeError(whole.said[-3000:])
    home, draw, struck, left = work / "run", random.Random(3), [], list[str]()
    for n in range(kills):
        run = start(home)
        run.said_that("reward")
        run.watch(draw.uniform(0, 2))
        role = ("run", "sampler", "learner", "episodes")[n % 4]
        if role != "run" and run.strike(role):
            run.said_that("starting another")
            run.says_more("reward")
        run.kill()
        struck.append(role)
        left += run.orphans(180)
    last = start(home)
    if last.wait(600) != 0:
        raise RuntimeError(last.said[-3000:])
    left += last.orphans(180) + last.scratch
    files = {
        name: [(w / name).read_bytes() for w in (work / "whole", home)]
        for name in ("adapter/adapter_model.safetensors", "ledger.jsonl")
    }
    return {
        "runs_killed": kills,
        "roles_killed": [role for role in struck if role != "run"],
        "left": left,
        "steps": ENGINE_STEPS,
        "equal": {name: a == b for name, (a, b) in files.items()},
        "adapter_sha256": [hashlib.sha256(b).hexdigest() for b in files["adapter/adapter_model.safetensors"]],
    }


def rows(found: dict[str, Any], kills: int) -> list[harness.Row]:
    """What is claimed, each with its bar."""

    def row(case: str, ours: float, bar: float, unit: str) -> harness.Row:
        return harness.Row(case, ours, bar, "claimed", unit, ours / bar if bar else float(ours == bar), 1, True, 1.0)

    out = []
    for name, result in found.items():
        if name == "engine":
            out += [row(f"{name}: {file} as undisturbed", float(same), 1.0, "equal") for file, same in result["equal"].items()]
        else:
            wanted = kills if name == "roles" else max(1, kills // 10)
            out.append(row(f"{name}: kills", float(sum(result["kills"].values())), float(wanted), "kills"))
            out.append(row(f"{name}: groups with exactly one end", float(result["exactly_once"]), 1.0, "holds"))
            checked = ["every_step_once", "checkpoints_verify"]
            checked += [] if name == "overlap" else ["adapter_equal"]
            checked += ["ledger_equal"] if name == "whole" else []
            out += [row(f"{name}: {key.replace('_', ' ')}", float(result[key]), 1.0, "holds") for key in checked]
        out.append(row(f"{name}: processes, memory, files left", float(len(result["left"])), 0.0, "left"))
    return out


def main() -> None:
    options = harness.parser((__doc__ or "").splitlines()[0])
    options.add_argument("--work", type=Path, required=True, help="where the runs lie; pieces go on there")
    options.add_argument("--minutes", type=float, default=25.0, help="of this piece")
    options.add_argument(
        "--kills", type=int, default=200, help="of the crew's processes; a tenth of runs, and of both with overlap"
    )
    options.add_argument("--engine-kills", type=int, default=4, help="of runs with vLLM")
    args = options.parse_args()
    kills, few = (10, 1) if args.quick else (args.kills, args.engine_kills)
    work, end = args.work.absolute(), time.monotonic() + 60 * args.minutes
    results = work / "results.json"
    work.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    for name, campaign in campaigns(work, kills).items():
        while name not in found and time.monotonic() < end:
            if not campaign.reached:
                campaign.piece(end - time.monotonic(), harness.commit())
            if campaign.reached:
                found[name] = campaign.finish()
                results.write_text(json.dumps(found, indent=1))
            print(f"{name}: {dict(campaign.tally.kills)}", flush=True)
    if "engine" not in found and time.monotonic() < end:
        found["engine"] = engine(work / f"engine-{int(time.time())}", few)
        results.write_text(json.dumps(found, indent=1))
    if len(found) < 4:
        print(f"done: {', '.join(found) or 'nothing'}; call again for the next piece")
        return
    settings = {
        "kills": kills,
        "slow_s": SLOW,
        "crew": "tests/faults/standin.py; engine: vLLM, learner, tiny base",
        "found": found,
    }
    if not harness.report("faults", rows(found, kills), harness.machine(), settings, args.json):
        raise SystemExit(3)


if __name__ == "__main__":
    main()
