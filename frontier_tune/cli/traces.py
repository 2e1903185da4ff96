"""``frontier-tune traces``: import traces of work, make some from a golden program, show them, accept the tasks they propose."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput

if TYPE_CHECKING:
    from frontier_tune.traces.importer import Result
    from frontier_tune.traces.replay import HeldOut, Workbench
    from frontier_tune.traces.store import Store

ENV = "the environment: envs/<name>, module:Class or an entry point"
OWN = "LicenseRef-Workspace"  # what a golden program of the workspace's own makes, unless told otherwise


def add_parser(sub: Any) -> None:
    """The subcommand's arguments. Imports nothing heavy."""
    p = sub.add_parser("traces", help="traces of work: into proposed tasks, demonstrations and preference pairs")
    actions = p.add_subparsers(dest="action", required=True, metavar="ACTION")
    a = actions.add_parser("import", help="read traces (JSONL or OpenTelemetry) and their reviews")
    a.add_argument("files", nargs="+", metavar="FILE")
    a.add_argument("--env", metavar="ENV", help=ENV)
    _environment(a)
    a.add_argument("--reviews", metavar="FILE", help="verdicts and corrections by trace id, one JSON object a line")
    a.add_argument(
        "--origin", metavar="KIND:NAME", help="who made traces that don't say: person:, own_policy:, model: or program:"
    )
    a.add_argument(
        "--own-model", action="append", default=[], metavar="NAME", help="a model in OpenTelemetry traces that is ours"
    )
    a.add_argument("--license", help="SPDX expression, for traces that don't state one")
    a.add_argument("--strict", action="store_true", help="exit code 3 where any trace was refused")
    a = actions.add_parser("from-golden", help="demonstrations by an environment's own golden program")
    a.add_argument("env", nargs="?", metavar="ENV", help=ENV)
    _environment(a)
    a.add_argument("--n", type=int, default=32, help="training tasks (default: 32)")
    a.add_argument("--seed", type=int, default=1, help="of the draw of tasks (default: 1)")
    a.add_argument("--license", default=OWN, help=f"SPDX expression (default: {OWN})")
    a = actions.add_parser("show", help="what a directory of traces holds, and where it comes from")
    a.add_argument("directory")
    for name, done in (("accept", "accepted"), ("decline", "declined")):
        a = actions.add_parser(name, help=f"{name} proposed tasks; tasks.jsonl says who did")
        a.add_argument("directory")
        a.add_argument("ids", nargs="+", metavar="TASK", help="of tasks.jsonl, or 'all'")
        a.add_argument("--by", required=True, metavar="PERSON")
        a.set_defaults(status=done)
    p.set_defaults(run="traces")


def _environment(a: argparse.ArgumentParser) -> None:
    a.add_argument("set", nargs="*", metavar="key=value", help="options of the environment, as in the recipe")
    a.add_argument("--out", metavar="DIR", help="default: traces/<environment>")
    a.add_argument("--root", metavar="DIR", help="the workspace (default: here)")
    a.add_argument("--recipe", metavar="FILE", help="take environment, options and held-out tasks from this recipe")
    a.add_argument("--heldout", type=int, metavar="N", help="held-out tasks of the recipe (default: 320)")
    a.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for one call of the environment (default: 60)")


def run(a: argparse.Namespace) -> int:
    """Returns 0, or 3 with ``--strict`` where a trace was refused. Raises BadInput where none could be taken."""
    if a.action == "show":
        return _show(Path(a.directory))
    if a.action in ("accept", "decline"):
        return _decide(a)
    return _import(a)


@dataclass(frozen=True)
class Where:
    """Which environment traces are of, and how many held-out tasks its recipe has."""

    root: Path
    path: str
    options: dict[str, Any]
    heldout: int


def _where(a: argparse.Namespace, overrides: list[str]) -> Where:
    from frontier_tune import recipe as recipes
    from frontier_tune.orchestration import preflight

    if bool(a.recipe) == bool(a.env):
        raise BadInput(f"traces {a.action}: name the environment, or --recipe with the recipe that is to learn from the traces")
    if not a.recipe:
        known = a.heldout or recipes.Environment().heldout_tasks
        return Where(Path(a.root or ".").resolve(), a.env, recipes.apply_overrides({}, overrides), known)
    recipe = recipes.load(a.recipe, overrides)
    root = Path(a.root).resolve() if a.root else preflight.find_root(recipe, Path(a.recipe))
    options = preflight.environment_options(recipe, root)
    return Where(root, recipe.environment.path, options, a.heldout or recipe.environment.heldout_tasks)


def _import(a: argparse.Namespace) -> int:
    from frontier_tune.orchestration.groups import derive_seed
    from frontier_tune.sandbox.pool import EnvironmentPool
    from frontier_tune.sdk.registry import environment_hash
    from frontier_tune.traces import importer
    from frontier_tune.traces.replay import Workbench
    from frontier_tune.traces.store import Store

    if a.action == "from-golden" and a.env and "=" in a.env:  # an override where --recipe names the environment
        a.env, a.set = None, [a.env, *a.set]
    given = a.files if a.action == "import" else []
    files = [f for f in given if "=" not in f or Path(f).exists()]
    if a.action == "import" and not files:
        raise BadInput("traces import: name a file of traces")
    license = _license(a.license)
    where = _where(a, [*a.set, *(f for f in given if f not in files)])
    name = where.path.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    store = Store.at(Path(a.out) if a.out else where.root / "traces" / name, where.path, where.options)
    store.manifest["environment_sha256"] = environment_hash(where.path, where.root)
    results = []
    with EnvironmentPool(where.path, where.root, where.options, workers=1, step_timeout_s=a.timeout) as pool:
        bench = Workbench(pool)
        heldout = bench.held_out(pool.tasks("heldout", where.heldout, derive_seed("heldout")))
        if a.action == "from-golden":
            made = importer.golden(bench, pool.tasks("train", a.n, derive_seed("golden", a.seed)), license or OWN)
            results.append(importer.take(f"golden program of {where.path}", made, store, bench, heldout, propose=False))
        else:
            results = _take(a, files, license, store, bench, heldout)
    store.save()
    return _report(store, results, getattr(a, "strict", False))


def _take(
    a: argparse.Namespace, files: list[str], license: str | None, store: Store, bench: Workbench, heldout: HeldOut
) -> list[Result]:
    from frontier_tune.traces import importer
    from frontier_tune.traces.schema import Origin

    origin = Origin.parse(a.origin) if a.origin else None
    left = importer.reviews(Path(a.reviews)) if a.reviews else {}
    results = []
    for file in files:
        traces = list(importer.read(Path(file), a.own_model))
        ids = {str(t.get("id")) for _, t in traces if isinstance(t, dict)}
        ids |= {where.rpartition(": conversation ")[2] for where, t in traces if isinstance(t, BadInput)}  # refused, but there
        mine = {name: left.pop(name) for name in list(left) if name in ids}
        results.append(importer.take(file, traces, store, bench, heldout, origin=origin, license=license, reviewed=mine))
    if left:
        raise BadInput(f"--reviews {a.reviews}: no trace has the id {', '.join(sorted(left))}; nothing was imported")
    return results


def _license(text: str | None) -> str | None:
    from frontier_tune.governance.datasheet import check_license

    try:
        return check_license(text) if text else None
    except ValueError as e:
        raise BadInput(f"--license: {e}") from None


def _report(store: Store, results: list[Result], strict: bool) -> int:
    taken = sum(len(r.taken) for r in results)
    refused = [line for r in results for line in r.refused]
    for where, reason in refused:
        print(f"refused    {where}: {reason}")
    for name, note in [n for r in results for n in r.notes]:
        print(f"note       trace '{name}': {note}")
    print(f"taken      {taken} traces, {len(refused)} refused")
    _show(store.root)
    if not taken:
        raise BadInput(f"none of {len(refused)} traces could be taken; {store.root / 'refused.jsonl'} has the reasons")
    return 3 if strict and refused else 0


def _show(root: Path) -> int:
    from frontier_tune.traces.rows import origins
    from frontier_tune.traces.store import Store

    store = Store.open(root)
    status = Counter(p.status for p in store.proposals)
    print(f"directory  {root}, traces of {store.manifest['environment']}")
    print(
        f"           {len(store.demonstrations)} demonstrations, {len(store.pairs)} preference pairs, {len(store.traces)} traces"
    )
    print(f"tasks      {', '.join(f'{n} {s}' for s, n in sorted(status.items())) or 'none'}")
    for entry in origins([*store.demonstrations, *store.pairs]):
        print(
            f"origin     {entry['kind']} '{entry['name']}', {entry['license']}: {entry['rows']} rows, reviewed by "
            f"{', '.join(entry['reviewers'])}"
        )
    for p in store.proposals[:20]:
        print(f"task       {p.id} {p.status}{' by ' + p.by if p.by else ''}: {_words(p.opening)}")
    if len(store.proposals) > 20:
        print(f"           and {len(store.proposals) - 20} more in tasks.jsonl")
    return 0


def _words(opening: Any) -> str:
    asked = " ".join(next((m.content for m in opening if m.role == "user"), "").split())
    return asked if len(asked) <= 70 else asked[:67] + "..."


def _decide(a: argparse.Namespace) -> int:
    from frontier_tune.traces.store import Store

    store = Store.open(Path(a.directory))
    decided = store.decide(a.ids, a.status, a.by, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    store.save()
    print(f"{a.status:10} {len(decided)} tasks by {a.by}: {', '.join(p.id for p in decided) or 'none were left to decide'}")
    return 0
