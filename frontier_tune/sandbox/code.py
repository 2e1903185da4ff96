"""``CodeSandbox``: runs code that a model wrote, confined (docs/sandbox.md). What happens inside is in ``jail/``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any, Literal, cast, get_args

from frontier_tune.contracts import BadInput, Blame, EpisodeFailed, Failure
from frontier_tune.sandbox.confine import Confinement, choose
from frontier_tune.sandbox.runtime import runtime
from frontier_tune.sandbox.sql import SCRIPT as SQL_SCRIPT
from frontier_tune.sandbox.zygote_process import ZygoteDied, ZygoteProcess
from frontier_tune.sdk.code import CodeLimits, CodeOutcome, KilledBy, SqlOutcome

_PRELOADED = {"numpy": "numpy", "pandas": "pandas", "openpyxl": "openpyxl"}


class CodeSandbox:
    """Runs model-written Python and SQL, each run in a fork of a clean interpreter with a directory of its own; implements
    ``sdk.code.CodeRunner``. ``confinement`` says what it is closed by.

    Two sandboxes are started when first wanted: one for the model's code, one for graders, into which no code of the model comes.
    One that fails is replaced. Runs are one at a time; not thread-safe; close it when done (or use ``with``).

    Args:
        limits: of each run. packages: distributions that code may import besides the standard library.
        confinement: "bubblewrap", "landlock" (with seccomp), or "auto": the first of these that works here.

    Raises SandboxUnavailable where that confinement can't be had; BadInput for a package that is not installed.
    """

    def __init__(
        self,
        limits: CodeLimits | None = None,
        packages: Iterable[str] = ("openpyxl",),
        confinement: Confinement | Literal["auto"] = "auto",
    ) -> None:
        self.limits = limits or CodeLimits()
        self.confinement: Confinement = choose(confinement)
        self._packages = tuple(packages)
        self._runtime = runtime(self._packages)
        self._zygotes: dict[str, ZygoteProcess] = {}

    def __enter__(self) -> CodeSandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run_python(self, source: str, files: Mapping[str, bytes] | None = None, artifacts: Sequence[str] = ()) -> CodeOutcome:
        """Run ``source`` as a script in a directory that holds ``files`` (relative path -> content).

        Of what the run leaves, only regular files named in ``artifacts`` come back. What the code does wrong is in the outcome;
        raises EpisodeFailed (blame infrastructure) where the sandbox fails, BadInput for a path that is not relative and plain.
        """
        return self._run("model", source, files or {}, artifacts)

    def run_sql(self, query: str, database: bytes, *, max_rows: int = 200, keep: bool = False) -> SqlOutcome:
        """Run one SQL statement on a copy of ``database`` (a SQLite file's bytes; b"" is an empty one)."""
        ask = json.dumps({"query": query, "max_rows": max_rows, "most": self.limits.output_kb * 1024 // 2}).encode()
        files = {"database.sqlite": database, "ask.json": ask}
        outcome = self.run_python(SQL_SCRIPT, files, ("answer.json", *(("database.sqlite",) if keep else ())))
        if "answer.json" not in outcome.files:
            told = f"limit: {outcome.killed_by}" if outcome.killed_by else outcome.stderr.strip()[-300:]
            return SqlOutcome(error=f"the statement was ended, {told}", confinement=self.confinement)
        answer = json.loads(outcome.files["answer.json"])
        return SqlOutcome(
            columns=tuple(answer["columns"]),
            rows=tuple(tuple(row) for row in answer["rows"]),
            truncated=answer["truncated"],
            changes=answer["changes"],
            error=answer["error"],
            database=outcome.files.get("database.sqlite"),
            confinement=self.confinement,
        )

    def grade(self, source: str, artifacts: Mapping[str, bytes], files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
        """Run the author's grader on what the agent declared, in the sandbox that never saw the agent's code.

        ``source`` reads ``artifacts/<name>`` (the agent's) and ``files/<name>`` (the author's) and writes its verdict, one JSON
        object, to ``verdict.json``. A grader that fails or passes a limit raises EpisodeFailed with blame environment.
        """
        inside = {f"artifacts/{n}": c for n, c in artifacts.items()} | {f"files/{n}": c for n, c in (files or {}).items()}
        outcome = self._run("grader", source, inside, ("verdict.json",))
        if outcome.ok:
            try:
                verdict = json.loads(outcome.files["verdict.json"])
                if isinstance(verdict, dict):
                    return verdict
                told = "verdict.json is no JSON object"
            except (KeyError, ValueError) as e:
                told = f"no verdict.json: {type(e).__name__}: {e}"
        else:
            told = outcome.observation(600)
        raise EpisodeFailed(Failure("grader-failed", Blame.ENVIRONMENT, f"the grader in the sandbox failed: {told}"))

    def close(self) -> None:
        """End the sandboxes and all that is in them. May be called again; a later run starts new ones."""
        for zygote in self._zygotes.values():
            zygote.close()
        self._zygotes.clear()

    def _run(self, role: str, source: str, files: Mapping[str, bytes], artifacts: Sequence[str]) -> CodeOutcome:
        for name in (*files, *artifacts):
            _check_name(name)
        most = self.limits.disk_mb << 20
        if sum(map(len, files.values())) > most:
            raise BadInput(
                f"sandbox: the files of a run are larger than its disk_mb ({self.limits.disk_mb}); raise code_limits.disk_mb"
            )
        try:
            told, contents = self._zygote(role).run(source, dict(files), list(artifacts))
        except ZygoteDied as e:
            self._zygotes.pop(role).close()
            raise EpisodeFailed(Failure("sandbox-died", Blame.INFRASTRUCTURE, str(e))) from None
        stdout, stderr = (c.decode("utf-8", "replace") for c in contents[:2])
        if told["killed_by"] == "machine":
            detail = f"exit status {told['exit']} by no limit of the run: out of memory, or ended from outside {stderr[-300:]}"
            raise EpisodeFailed(Failure("sandbox-killed", Blame.INFRASTRUCTURE, detail))
        assert told["killed_by"] is None or told["killed_by"] in get_args(KilledBy)
        found = dict(zip(told["names"], contents[2:]))
        killed_by = cast(KilledBy | None, told["killed_by"])
        return CodeOutcome(stdout, stderr, found, told["exit"], killed_by, told["seconds"], self.confinement)

    def _zygote(self, role: str) -> ZygoteProcess:
        if role not in self._zygotes:
            preload = [_PRELOADED[p] for p in self._packages if p in _PRELOADED]
            self._zygotes[role] = zygote = ZygoteProcess(self.confinement, self._runtime, asdict(self.limits), preload)
            zygote.start()
        return self._zygotes[role]


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    plain = name and "\0" not in name and not path.is_absolute() and ".." not in path.parts and str(path) == name and name != "."
    if not plain:
        raise BadInput(f"sandbox: {name!r} is no plain relative path; write it like 'book.xlsx' or 'out/book.xlsx'")
