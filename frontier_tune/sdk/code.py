"""For environments whose tools run code that the model wrote, in a sandbox that the platform attaches (docs/sandbox.md).

An environment derives from ``RunsCode`` besides ``WorkflowEnv`` and calls ``self.code.run_python(...)`` in its tools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from frontier_tune.contracts import Blame, EpisodeFailed, Failure

KilledBy = Literal["wall", "cpu", "memory", "output", "disk", "signal"]


@dataclass(frozen=True)
class CodeLimits:
    """Of one run. ``wall_s``, ``cpu_s``: seconds. ``memory_mb``: address space of the interpreter (MiB); ``disk_mb`` of all its
    files, ``file_mb`` of each. ``entries``: files and directories. ``output_kb``: stdout and stderr together (KiB). No run starts
    a process; ``threads`` are counted under bubblewrap."""

    wall_s: float = 10.0
    cpu_s: float = 8.0
    memory_mb: int = 1024
    disk_mb: int = 64
    file_mb: int = 32
    entries: int = 1000
    open_files: int = 64
    threads: int = 32
    output_kb: int = 64


@dataclass(frozen=True)
class CodeOutcome:
    """What a run left. ``exit``: the interpreter's status (negative: the signal that ended it). ``killed_by``: the limit that
    ended it, else None. ``files``: the declared artifacts that are there. ``confinement``: what it ran under."""

    stdout: str
    stderr: str
    files: Mapping[str, bytes]
    exit: int
    killed_by: KilledBy | None
    seconds: float
    confinement: str

    @property
    def ok(self) -> bool:
        return self.exit == 0 and self.killed_by is None

    @property
    def failure(self) -> Failure | None:
        """Where a limit was passed: a failure by the agent's own fault, for an environment that ends the episode over it."""
        if self.killed_by is None:
            return None
        return Failure(
            f"code-{self.killed_by}", Blame.AGENT, f"the agent's code was ended: {self.killed_by} ({self.seconds:.1f} s)"
        )

    def observation(self, most: int = 2000) -> str:
        """What the model gets to read: output, errors, what ended it; at most ``most`` characters, the middle left out."""
        parts = [self.stdout.rstrip(), self.stderr.rstrip()]
        if self.killed_by:
            parts.append(f"error: the code was ended, limit: {self.killed_by}")
        elif self.exit:
            parts.append(f"error: exit status {self.exit}")
        text = "\n".join(p for p in parts if p) or "(no output)"
        half = max(1, (most - 5) // 2)
        return text if len(text) <= most else f"{text[:half]}\n...\n{text[-half:]}"


@dataclass(frozen=True)
class SqlOutcome:
    """What a statement gave. ``rows``: at most ``max_rows``, JSON values, blobs as ``x'..'``. ``error``: SQLite's message, or the
    limit that ended it. ``database``: the copy afterwards where it was asked for."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    truncated: bool = False
    changes: int = 0
    error: str | None = None
    database: bytes | None = field(default=None, repr=False)
    confinement: str = ""


class CodeRunner(Protocol):
    """Where model-written code runs: ``frontier_tune.sandbox.code.CodeSandbox``. Raises EpisodeFailed where the sandbox fails."""

    def run_python(self, source: str, files: Mapping[str, bytes] = ..., artifacts: Sequence[str] = ...) -> CodeOutcome:
        """Run ``source`` in a directory that holds ``files``; bring back the files named in ``artifacts``."""
        ...

    def run_sql(self, query: str, database: bytes, *, max_rows: int = ..., keep: bool = ...) -> SqlOutcome:
        """Run one statement on a copy of a SQLite ``database``. ``keep``: bring the copy back."""
        ...

    def grade(self, source: str, artifacts: Mapping[str, bytes], files: Mapping[str, bytes] = ...) -> dict[str, Any]:
        """Run the author's own grader where no code of the model ever ran; it sees ``artifacts/`` and ``files/`` alone."""
        ...


class RunsCode:
    """Mixin of a WorkflowEnv whose tools run code that the model wrote. A worker process attaches the sandbox before any reset.

    ``code_packages``: distributions that the code may import, besides the standard library. ``code_limits``: of each run.
    """

    code_packages: ClassVar[tuple[str, ...]] = ("openpyxl",)
    code_limits: ClassVar[CodeLimits] = CodeLimits()
    _code: CodeRunner | None = None

    def attach_code(self, runner: CodeRunner) -> None:
        self._code = runner

    @property
    def code(self) -> CodeRunner:
        """The sandbox. Raises EpisodeFailed where none is attached: code is never run without one."""
        if self._code is None:
            how = "play it in a worker process (EnvironmentPool), or attach_code(CodeSandbox())"
            raise EpisodeFailed(
                Failure("no-sandbox", Blame.INFRASTRUCTURE, f"{type(self).__name__} has no sandbox attached: {how}")
            )
        return self._code
