"""Import: read traces and their reviews, convert each, and put what was taken and what was refused into a store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, Task
from frontier_tune.governance.digests import file_digest
from frontier_tune.traces import otel, schema
from frontier_tune.traces.convert import convert
from frontier_tune.traces.replay import HeldOut, Workbench
from frontier_tune.traces.schema import Origin
from frontier_tune.traces.store import Store

REVIEW_FIELDS = ("verdict", "reviewer", "corrections", "task")


@dataclass
class Result:
    """Of one import. ``refused``: (where, reason); ``notes``: (trace, what was left out or changed)."""

    taken: list[str] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def read(path: Path, own: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Traces of a file, JSONL of ours or OTLP, told apart by what is in it. What can't be a trace comes as the BadInput."""
    head = schema.text_of(path)[:4096]
    if '"resourceSpans"' in head or '"resourceLogs"' in head:
        yield from otel.read(path, own)
    else:
        yield from schema.rows(path)


def reviews(path: Path) -> dict[str, dict[str, Any]]:
    """Reviews, one a line: ``trace`` (its id), ``verdict``, ``reviewer``, ``corrections``, ``task``. Raises BadInput."""
    found: dict[str, dict[str, Any]] = {}
    for where, data in schema.rows(path):
        if not isinstance(data, dict) or not isinstance(data.get("trace"), str):
            raise BadInput(f'{where}: a review is one object with "trace", the id of the trace')
        if unknown := sorted(set(data) - {"trace", *REVIEW_FIELDS}):
            raise BadInput(f"{where}: unknown field '{unknown[0]}'; a review has trace, {', '.join(REVIEW_FIELDS)}")
        if data["trace"] in found:
            raise BadInput(f"{where}: a second review of '{data['trace']}'; settle on one")
        found[data["trace"]] = {k: v for k, v in data.items() if k != "trace"}
    return found


def take(
    source: str, traces: Iterable[tuple[str, Any]], store: Store, bench: Workbench, held_out: HeldOut, *,
    origin: Origin | None = None, license: str | None = None, reviewed: dict[str, dict[str, Any]] | None = None,
    propose: bool = True,
) -> Result:  # fmt: skip
    """Convert ``traces`` and add them to ``store`` (not saved yet). Nothing that is refused stops the others.

    ``propose``: their tasks, too; not those that the environment's generator drew.
    """
    result, reviewed = Result(), reviewed or {}
    for where, raw in traces:
        name = str(raw.get("id") or "") if isinstance(raw, dict) else ""
        try:
            if isinstance(raw, BadInput):
                raise raw
            if name in reviewed:
                raw = {**raw, **reviewed[name]}
            trace = schema.parse(raw, where, origin, license)
            name = trace.id
            if why := store.known(trace):
                raise BadInput(f"trace '{name}': {why}")
            found = convert(trace, bench, held_out)
        except BadInput as e:
            reason = str(e).removeprefix(f"{where}: ")
            result.refused.append((where, reason))
            store.refuse(where, name, reason)
            continue
        store.add(found if propose else replace(found, proposal=None))
        result.taken.append(name)
        result.notes += [(name, note) for note in found.notes]
    digest = file_digest(Path(source)) if Path(source).is_file() else None
    store.manifest["imports"].append(
        {"source": source, "sha256": digest, "taken": len(result.taken), "refused": len(result.refused)}
    )
    return result


def golden(bench: Workbench, tasks: Sequence[Task], license: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Traces of the environment's own golden program on ``tasks``; whether it succeeds, ``take`` will see. Raises BadInput."""
    about = bench.pool.description
    program = f"golden program of {about['name']} {about['version']}"
    for task in tasks:
        calls = [{"name": c.name, "arguments": c.arguments} for c in bench.golden(task)]
        opening = [asdict(m) for m in bench.replay(task, ()).opening]
        if not calls:
            raise BadInput(f"{program}: it has no call for task {task.hash} ({task.kind})")
        yield (
            f"task {task.hash}",
            {
                "id": f"golden-{task.hash}",
                "messages": [*opening, *({"role": "assistant", "content": json.dumps(c, ensure_ascii=False)} for c in calls)],
                "task": {"kind": task.kind, "data": task.data, "family": task.family},
                "origin": {"kind": "program", "name": program},
                "license": license,
                "verdict": "accepted",
                "reviewer": "the environment's grader",
            },
        )
