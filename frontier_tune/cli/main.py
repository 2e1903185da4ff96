"""The command ``frontier-tune``. Nothing heavy is imported until a subcommand needs it: ``--help`` answers at once.

Exit codes: 0 done, 1 a fault of ours, 2 bad input, 3 failed gate, 4 budget or failure limit, 130/143 stopped and saved.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from frontier_tune.cli import traces
from frontier_tune.contracts import FrontierTuneError

Command = Callable[[argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="frontier-tune",
        description="Tune a mixture-of-experts model on a company's own workflow, on the company's own machines.",
        epilog="Exit codes: 0 done, 2 bad input, 3 failed gate, 4 budget or failure limit, 130/143 stopped and saved.",
    )
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    p = sub.add_parser("tune", help="tune by a recipe: evaluate, train, evaluate, report")
    p.add_argument("recipe", nargs="?", help="a recipe file; with --resume the run's own if left out")
    p.add_argument("set", nargs="*", metavar="key=value", help="dotted overrides, for example learner.learning_rate=5e-4 seed=3")
    p.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved recipe and the plan, train nothing"
    )
    p.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="RUN",
        help="continue a run from its newest checkpoint (default: the latest)",
    )
    p.add_argument(
        "--accept-changes", action="store_true", help="resume although base, environment, rewards or tasks are others by now"
    )
    p.set_defaults(run="tune")

    p = sub.add_parser("eval", help="evaluate a run, or an adapter, and its base on held-out tasks")
    p.add_argument("target", metavar="RUN_OR_ADAPTER")
    p.add_argument("set", nargs="*", metavar="key=value")
    p.add_argument("--recipe", help="the recipe, where the target is an adapter outside of a run")
    p.add_argument("--out", help="directory for the evaluation of such an adapter (default: runs/eval-<name>)")
    p.set_defaults(run="evaluate")

    p = sub.add_parser("status", help="how far a run is: live or dead, phase, success, cost, failures, what is slow, the ledger")
    p.add_argument("target", metavar="RUN", nargs="?", default="latest")
    p.add_argument("--json", action="store_true", help="the same as JSON")
    p.set_defaults(run="status")

    p = sub.add_parser("report", help="write report.html and learning-curve.png of a run again")
    p.add_argument("target", metavar="RUN", nargs="?", default="latest")
    p.set_defaults(run="report")

    p = sub.add_parser("verify", help="compare a run's files with its record")
    p.add_argument("target", metavar="RUN", nargs="?", default="latest")
    p.set_defaults(run="verify")

    p = sub.add_parser("experts", help="which experts a tuned policy's work goes through; narrow its adapter to those")
    p.add_argument("target", metavar="RUN", nargs="?", default="latest")
    p.add_argument("--share", type=float, default=0.9, help="of each layer's routing weights that the kept experts take")
    p.add_argument("--out", help="write the narrowed adapter to this new directory")
    p.add_argument("--json", action="store_true", help="print the shares of all experts as JSON")
    p.set_defaults(run="experts")

    p = sub.add_parser("export", help="write a run's adapter for serving: as PEFT files, or merged")
    p.add_argument("target", metavar="RUN_OR_ADAPTER")
    p.add_argument("out", help="directory to write, must not exist")
    p.add_argument(
        "--layout",
        default="peft",
        choices=("peft", "compact", "merged"),
        help="the adapter as it is, with its chosen experts alone, or merged into a copy of the base",
    )
    p.add_argument("--base", help="the base: a directory, a hub id or 'nano' (default: the run's)")
    p.set_defaults(run="export")

    p = sub.add_parser("base", help="build the nano base from scratch, show a base, or probe what it can do")
    p.add_argument("action", choices=("build", "show", "probe"))
    p.add_argument(
        "set", nargs="*", metavar="key=value", help="of the build's plan, for example seed=1 dialogues=1000; for show: the base"
    )
    p.add_argument("--out", help="directory to write (default: frontier_tune/bases/built/nano)")
    p.set_defaults(run="base")

    p = sub.add_parser("env", help="environments: list or show them, check one before it trains, begin a new one")
    p.add_argument("action", choices=("list", "show", "check", "init"))
    p.add_argument("path", nargs="?", help="envs/<name>, module:Class or an entry point; for init: the new one's name")
    p.add_argument("set", nargs="*", metavar="key=value", help="options of the environment")
    p.add_argument("--root", metavar="DIR", help="the workspace (default: here)")
    p.add_argument("--json", metavar="FILE", help="check: write the findings there as JSON, or to stdout for -")
    p.add_argument("--tasks", type=int, default=16, metavar="N", help="check: tasks of each split to play (default: 16)")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="check: seed of tasks and agents (default: 0)")
    p.add_argument("--timeout", type=float, default=20.0, metavar="SECONDS", help="check: for one call (default: 20)")
    p.set_defaults(run="env")

    p = sub.add_parser("headroom", help="whether tuning can pay: the base greedily, sampled and at its best of n tries")
    p.add_argument("recipe")
    p.add_argument("set", nargs="*", metavar="key=value", help="dotted overrides of the recipe")
    p.add_argument("--json", metavar="FILE", help="write the findings there as JSON, or to stdout for -")
    p.add_argument("--tasks", type=int, default=64, metavar="N", help="training tasks to try (default: 64)")
    p.add_argument("--samples", type=int, metavar="N", help="tries for each (default: the recipe's algorithm.group_size)")
    p.set_defaults(run="headroom")

    traces.add_parser(sub)

    p = sub.add_parser("doctor", help="what this machine has and lacks, and what that means")
    p.add_argument("--json", action="store_true", help="the findings as JSON")
    p.set_defaults(run="doctor")
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of a command line. Overrides may stand anywhere; argparse alone loses those that follow an option."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    lost = [a for a in rest if a.startswith("-") or "=" not in a or not hasattr(arguments, "set")]
    if lost:
        parser.error(f"unrecognized arguments: {' '.join(lost)}")
    if rest:
        arguments.set = [*arguments.set, *rest]
    first = getattr(arguments, "recipe", None)
    if arguments.command == "tune" and first and "=" in first:  # an override where the recipe was left out
        arguments.recipe, arguments.set = None, [first, *arguments.set]
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. One message on an error; the traceback only with FRONTIER_TUNE_DEBUG=1."""
    arguments = parse(argv)
    try:
        return _command(arguments.run)(arguments)
    except FrontierTuneError as error:
        if os.environ.get("FRONTIER_TUNE_DEBUG") == "1":
            raise
        print(f"frontier-tune: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("frontier-tune: interrupted before anything was worth saving", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if os.environ.get("FRONTIER_TUNE_DEBUG") == "1":
            raise
        print(
            f"frontier-tune: {type(error).__name__}: {error}\n(a fault of frontier-tune; FRONTIER_TUNE_DEBUG=1 shows where)",
            file=sys.stderr,
        )
        return 1


def _command(name: str) -> Command:
    if name == "doctor":
        from frontier_tune.cli import doctor

        return lambda arguments: doctor.main(as_json=arguments.json)
    from frontier_tune.cli import commands

    command: Command = getattr(commands, name)
    return command


if __name__ == "__main__":
    sys.exit(main())
