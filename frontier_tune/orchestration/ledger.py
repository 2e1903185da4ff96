"""The ledger: what became of every planned group of episodes, so that each is trained on exactly once, whatever dies.

``ledger.jsonl`` is appended to and chained: each row holds the SHA-256 of the line before it (``prev``). A group is named
``<step of the plan>.<number in that step>``, and goes this way:

    issued (task, seed, attempt) -> [issued again, where an attempt was lost] -> finished (policy versions) -> trained | dropped

Rows carry no time, pid or host: what happened is in events.jsonl. So a deterministic run that was killed and resumed has the
very ledger of one that was not. A checkpoint holds a ``Mark`` of the ledger; opening it at that mark verifies the rows up to
there and moves those behind it, which are to happen again, to ``ledger.replayed.jsonl``.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from frontier_tune.contracts import BadInput, EpisodeSpec, GateFailed, Trajectory, canonical_json

FILE, REPLAYED = "ledger.jsonl", "ledger.replayed.jsonl"
GENESIS = "0" * 64
# What may come after what. ``None``: the group was not planned so far.
_AFTER: dict[str, set[str | None]] = {
    "issued": {None, "issued", "finished"},
    "finished": {"issued"},
    "trained": {"finished"},
    "dropped": {"issued", "finished"},
}


def key(step: int, group: int) -> str:
    """The name of a group: ``step`` of the plan counted from 1, ``group`` as in EpisodeSpec."""
    return f"{step}.{group}"


def name(spec: EpisodeSpec) -> str:
    """The name of an episode's group."""
    return key(spec.step + 1, spec.group)


@dataclass(frozen=True)
class Mark:
    """A place in a ledger: so many rows, so many bytes, and the digest of the last row."""

    rows: int = 0
    size: int = 0
    head: str = GENESIS


def episodes_digest(trajectories: Iterable[Trajectory]) -> str:
    """SHA-256 over tokens, sampler's log-probabilities (float64) and rewards of a group, in the order given."""
    found = hashlib.sha256()
    for t in trajectories:
        found.update(array("q", t.tokens).tobytes() + array("d", [*t.logprobs, t.reward]).tobytes())
    return found.hexdigest()


def advance(states: dict[str, str], row: dict[str, Any]) -> str | None:
    """Note ``row`` in the states of all groups; what is wrong with it, or None."""
    group, event = row["group"], row["event"]
    before = states.get(group)
    if event not in _AFTER:
        return f"group {group}: unknown event '{event}'"
    if before not in _AFTER[event]:
        return f"group {group} is {before or 'not issued'} and can't be {event}"
    states[group] = event
    return None


class Ledger:
    """One run's ledger, open for appending. Use ``open``. Not thread-safe: the driver's loop alone writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark = Mark()
        self._states: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    @classmethod
    def open(cls, path: Path, mark: Mark | None = None) -> Ledger:
        """The ledger as it stood at ``mark`` (default: empty). Raises BadInput, naming a row, if the chain leads elsewhere."""
        ledger = cls(path)
        ledger.cut(mark or Mark())
        return ledger

    def issued(self, group: str, *, task: str, seed: int, members: int, attempt: int = 0, kind: str = "workflow") -> None:
        """``group`` is about to be played: ``members`` episodes of ``task``; ``seed``: of the first. ``kind`` says which plan."""
        self._append("issued", group, kind=kind, task=task, seed=seed, members=members, attempt=attempt)

    def finished(self, group: str, *, versions: Sequence[int], tokens: int, failed: int, digest: str, attempt: int = 0) -> None:
        """``group`` was played under policy ``versions``; ``failed`` of its episodes can't be learned from."""
        self._append("finished", group, attempt=attempt, versions=list(versions), tokens=tokens, failed=failed, episodes=digest)

    def trained(self, group: str, *, step: int, version: int) -> None:
        """``group`` was part of the update of ``step``, which made policy ``version``."""
        self._append("trained", group, step=step, version=version)

    def dropped(self, group: str, *, step: int, reason: str) -> None:
        """``group`` won't be trained on, and why not."""
        self._append("dropped", group, step=step, reason=reason)

    # -- a batch at a time --------------------------------------------------------------------------------------------

    def issue(self, specs: Iterable[EpisodeSpec], kind: str = "workflow", attempt: int = 0) -> None:
        """Every group of ``specs``, which lie group by group."""
        for group, members in groupby(specs, name):
            first, *rest = members
            self.issued(group, task=first.task.hash, seed=first.seed, members=1 + len(rest), attempt=attempt, kind=kind)

    def finish(self, trajectories: Iterable[Trajectory], tries: Mapping[int, int] | None = None) -> None:
        """Every group of ``trajectories``, which lie group by group; ``tries``: how often those that were played again were."""
        for group, members in groupby(trajectories, lambda t: name(t.spec)):
            played = list(members)
            self.finished(
                group,
                versions=sorted({v for t in played for v, m in zip(t.versions, t.mask, strict=True) if m}),
                tokens=sum(t.sampled_tokens for t in played),
                failed=sum(not t.trainable for t in played),
                digest=episodes_digest(played),
                attempt=(tries or {}).get(played[0].spec.group, 0),
            )

    def settle(
        self,
        step: int,
        version: int | None,
        played: Iterable[Trajectory],
        learned: Iterable[Trajectory],
        idle: str = "no difference in the step's rewards",
    ) -> int:
        """The end of every group of a step: ``version`` is the policy that the update made, None where there was none (``idle``
        says why).

        ``played``: all episodes of the step, group by group; ``learned``: those that the learner was given. Returns how many
        groups were lost to failures: so many of their episodes failed that what is left can't be compared.
        """
        lost = 0
        given = {name(t.spec) for t in learned if t.trainable}
        for group, several in groupby(played, lambda t: name(t.spec)):
            members = list(several)
            failures = [t.failure for t in members if t.failure and not t.trainable]
            if version is not None and group in given:
                self.trained(group, step=step, version=version)
            elif failures and len(members) - len(failures) < 2:
                lost += 1
                self.dropped(group, step=step, reason=f"failed: {failures[0].kind}")
            else:
                self.dropped(group, step=step, reason=idle if version is None else "rewards all equal")
        return lost

    # -- places -------------------------------------------------------------------------------------------------------

    def cut(self, mark: Mark) -> int:
        """Go back to ``mark``: verify the rows up to it, move those behind it aside. Returns how many were moved."""
        found = list(read(self.path, mark.rows))
        reached = found[-1][0] if found else Mark()
        if reached != mark:
            raise BadInput(
                f"{self.path}: row {reached.rows or 1} is not the one that the checkpoint was written with (it counts "
                f"{mark.rows} rows, there are {reached.rows} up to there): the file was changed or cut. Put the right one "
                "back, or start a new run"
            )
        states: dict[str, str] = {}
        for _, row in found:  # what is chained to the mark is what ``_append`` let pass
            advance(states, row)
        with self.path.open("r+b") as f:
            f.seek(mark.size)
            rest = f.read()
            if rest:
                with (self.path.parent / REPLAYED).open("ab") as aside:
                    aside.write(rest if rest.endswith(b"\n") else rest + b"\n")
                    aside.flush()
                    os.fsync(aside.fileno())
                f.truncate(mark.size)
        self.mark, self._states = mark, states
        return rest.count(b"\n")

    def sync(self) -> Mark:
        """Bring all rows to the disk; the place that they reach."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.mark

    def close(self) -> None:
        self._file.close()

    def _append(self, event: str, group: str, **what: Any) -> None:
        row = {"n": self.mark.rows + 1, "event": event, "group": group, **what, "prev": self.mark.head}
        wrong = advance(self._states, row)
        if wrong:
            raise GateFailed(f"ledger: {wrong}: a group is trained on once or not at all")
        line = canonical_json(row).encode()
        self._file.write(line + b"\n")
        self._file.flush()
        self.mark = Mark(self.mark.rows + 1, self.mark.size + len(line) + 1, hashlib.sha256(line).hexdigest())


def read(path: Path, rows: int | None = None) -> Iterator[tuple[Mark, dict[str, Any]]]:
    """The first ``rows`` rows (default: all), each with the place behind it. Half a last line is left out.

    Raises BadInput at the first row that isn't chained to the one before, naming it.
    """
    mark = Mark()
    with path.open("rb") as f:
        for line in f:
            if mark.rows == rows or not line.endswith(b"\n"):
                return
            number = mark.rows + 1
            try:
                row = json.loads(line)
                n, prev = row["n"], row["prev"]
            except (ValueError, KeyError, TypeError):
                raise BadInput(f"{path}: row {number} is no row of a ledger: the file was changed") from None
            if n != number or prev != mark.head:
                which = f"row {mark.rows} or {number}" if mark.rows else f"row {number}"
                raise BadInput(
                    f"{path}: {which} was changed or removed: row {number} is not chained to the one before. Put the right "
                    "file back, or start a new run"
                )
            mark = Mark(number, mark.size + len(line), hashlib.sha256(line[:-1]).hexdigest())
            yield mark, row
