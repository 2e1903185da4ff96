"""A directory of imported traces: what was taken, what became of it, what was refused. JSONL that people can read and edit.

traces.jsonl           the traces as they were taken
demonstrations.jsonl   for warm_start.sft
pairs.jsonl            for warm_start.dpo
tasks.jsonl            proposed tasks, and who accepted or declined them
refused.jsonl          what was not taken, and why
manifest.json          the environment, the held-out draw, and the files that were imported
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput
from frontier_tune.traces.convert import Converted
from frontier_tune.traces.rows import Demonstration, Pair, Proposal
from frontier_tune.traces.schema import Trace, rows

TRACES, DEMONSTRATIONS, PAIRS = "traces.jsonl", "demonstrations.jsonl", "pairs.jsonl"
TASKS, REFUSED, MANIFEST = "tasks.jsonl", "refused.jsonl", "manifest.json"


@dataclass
class Store:
    """The content of one directory. ``save`` writes every file whole or not at all."""

    root: Path
    manifest: dict[str, Any]
    traces: list[Trace] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    proposals: list[Proposal] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    _said: dict[str, str] = field(init=False, repr=False, compare=False)  # content of each trace -> its id

    def __post_init__(self) -> None:
        self._said = {t.content: t.id for t in self.traces}

    @classmethod
    def open(cls, root: Path) -> Store:
        """Read a directory. Raises BadInput where it is none, or a row does not read."""
        if not (root / MANIFEST).is_file():
            raise BadInput(f"{root}: no traces here (no {MANIFEST}); make some with: frontier-tune traces import")
        return cls(
            root,
            _read_manifest(root / MANIFEST),
            [Trace(**data) for _, data in rows(root / TRACES)],
            read_demonstrations(root),
            read_pairs(root),
            _read(root / TASKS, Proposal.of),
            [data for _, data in rows(root / REFUSED)],
        )

    @classmethod
    def at(cls, root: Path, environment: str, options: dict[str, Any]) -> Store:
        """Open ``root``, or begin it. Raises BadInput where it holds traces of another environment."""
        if not (root / MANIFEST).is_file():
            return cls(root, {"environment": environment, "options": options, "imports": []})
        store = cls.open(root)
        there, asked = (store.manifest["environment"], store.manifest["options"]), (environment, options)
        if there != asked:
            raise BadInput(f"{root}: holds traces of {there[0]} with options {there[1]}, not of {environment} with {options}")
        return store

    def known(self, trace: Trace) -> str | None:
        """Why this trace adds nothing: another has its id, or says the same."""
        if same := self._said.get(trace.content):
            return f"it says the same as trace '{same}'"
        return "another trace has this id already" if any(t.id == trace.id for t in self.traces) else None

    def add(self, found: Converted) -> None:
        self.traces.append(found.trace)
        self._said[found.trace.content] = found.trace.id
        self.demonstrations += found.demonstrations
        self.pairs += found.pairs
        if found.proposal is None:
            return
        for i, proposal in enumerate(self.proposals):
            if proposal.id == found.proposal.id:
                self.proposals[i] = replace(proposal, traces=(*proposal.traces, found.trace.id))
                return
        self.proposals.append(found.proposal)

    def refuse(self, where: str, name: str, reason: str) -> None:
        self.refused.append({"where": where, "trace": name, "reason": reason})

    def decide(self, ids: Sequence[str], status: str, by: str, at: str) -> list[Proposal]:
        """Accept or decline by id (``all``: what is still proposed). Raises BadInput for unknown ids and tasks without data."""
        known = {p.id: p for p in self.proposals}
        if unknown := [i for i in ids if i not in known and i != "all"]:
            raise BadInput(f"{self.root}: no proposed task {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
        chosen = [p for p in self.proposals if p.id in ids or ("all" in ids and p.status == "proposed" and p.task is not None)]
        for p in chosen:
            if p.task is None and status == "accepted":
                raise BadInput(
                    f'{self.root / TASKS}: {p.id} has no task in the environment\'s terms; write its "task" (kind, split '
                    '"train", data, family) there, or give it in the trace, and accept it then'
                )
        decided = {p.id: replace(p, status=status, by=by, at=at) for p in chosen}
        self.proposals = [decided.get(p.id, p) for p in self.proposals]
        return list(decided.values())

    def save(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        _write(self.root / TRACES, (t.model_dump(mode="json", exclude_defaults=True) for t in self.traces))
        _write(self.root / DEMONSTRATIONS, (d.to_json() for d in self.demonstrations))
        _write(self.root / PAIRS, (p.to_json() for p in self.pairs))
        _write(self.root / TASKS, (p.to_json() for p in self.proposals))
        _write(self.root / REFUSED, self.refused)
        _replace(self.root / MANIFEST, json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n")  # last: the rest is whole


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Of a directory of traces, or of its demonstrations.jsonl. Raises BadInput."""
    return _read(file_of(path, DEMONSTRATIONS), Demonstration.of)


def read_pairs(path: Path) -> list[Pair]:
    """Of a directory of traces, or of its pairs.jsonl. Raises BadInput."""
    return _read(file_of(path, PAIRS), Pair.of)


def file_of(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


def manifest_of(path: Path) -> dict[str, Any] | None:
    """The manifest beside a file of traces, if there is one."""
    found = (path if path.is_dir() else path.parent) / MANIFEST
    return _read_manifest(found) if found.is_file() else None


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        _ = found["environment"], found["options"], found["imports"]
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{path}: not a manifest of traces ({type(e).__name__}: {e})") from None
    return dict(found)


def _read(path: Path, of: Any) -> list[Any]:
    found = []
    for where, data in rows(path):
        try:
            found.append(of(data))
        except (KeyError, TypeError, ValueError, AssertionError) as e:
            raise BadInput(f"{where}: not a row of {path.name} ({type(e).__name__}: {e})") from None
    return found


def _write(path: Path, content: Iterable[dict[str, Any]]) -> None:
    _replace(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in content))


def _replace(path: Path, text: str) -> None:
    work = path.with_name(f".{path.name}.{os.getpid()}")
    work.write_text(text, encoding="utf-8")
    os.replace(work, path)
