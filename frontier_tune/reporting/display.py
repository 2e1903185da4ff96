"""What a person sees while a run goes on: a live display on a terminal, one plain line a step anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_SPARKS = "▁▂▃▄▅▆▇█"
_SILENT = 3  # steps in a row without an update, from which on a person should know
_SHOWN_STEPS = 60  # of the sparkline


class Display(Protocol):
    """``update`` takes the row that goes to metrics.jsonl; ``note`` one line of text. Use as a context manager."""

    def update(self, row: Mapping[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def make_display(total_steps: int, stream: TextIO | None = None) -> Display:
    """A live display where ``stream`` (default: stdout) is a terminal, plain lines where it is not."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return PlainDisplay(total_steps, stream)
    console = Console(file=stream)
    return PlainDisplay(total_steps, stream) if console.is_dumb_terminal else LiveDisplay(total_steps, console)


def duration(seconds: float) -> str:
    """``75`` as ``1:15``, ``4000`` as ``1:06:40``."""
    minutes, s = divmod(round(max(0.0, seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class _Progress:
    """Step, time left and failures so far. The rate is that of the steps seen here: a resumed run starts anew."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.step = 0
        self.seen = 0
        self.spent = 0.0
        self.failures: dict[str, int] = {}
        self.successes: list[float] = []

    def add(self, row: Mapping[str, Any]) -> None:
        self.step = int(row["step"])
        self.seen += 1
        self.spent += float(row.get("seconds") or 0.0)
        for blame, count in (row.get("failures") or {}).items():
            self.failures[blame] = self.failures.get(blame, 0) + int(count)
        if row.get("success") is not None:
            self.successes.append(float(row["success"]))

    @property
    def eta(self) -> str:
        return duration(self.spent / self.seen * (self.total - self.step)) if self.seen and self.spent else "?"


def _number(row: Mapping[str, Any], key: str, form: str, scale: float = 1.0) -> str:
    value = row.get(key)
    return form.format(scale * value) if isinstance(value, int | float) else "?"


def _failures(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {blame}" for blame, n in failures.items() if n)


def line(row: Mapping[str, Any], progress: _Progress) -> str:
    """One step as one line."""
    parts = [
        f"step {progress.step}/{progress.total}",
        f"success {_number(row, 'success', '{:.1f} %', 100)}",
        f"reward {_number(row, 'reward', '{:.3f}')}",
        f"{_number(row, 'tokens_per_second', '{:.0f}')} tokens/s",
        f"{_number(row, 'seconds', '{:.1f}')} s",
        f"ETA {progress.eta}",
    ]
    failed = _failures(row.get("failures") or {})
    if failed:
        parts.append(f"failures: {failed}")
    if row.get("silent_steps", 0) >= _SILENT:
        parts.append(f"no learning signal for {row['silent_steps']} steps: all members of each group score the same")
    if row.get("nonfinite"):
        parts.append("not finite: " + ", ".join(row["nonfinite"]))
    return "  ".join(parts)


class PlainDisplay:
    """One line a step, no escape codes: for pipes, files and CI logs."""

    def __init__(self, total_steps: int, stream: TextIO) -> None:
        self._progress = _Progress(total_steps)
        self._stream = stream

    def update(self, row: Mapping[str, Any]) -> None:
        self._progress.add(row)
        self.note(line(row, self._progress))

    def note(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.flush()


class LiveDisplay:
    """A few lines that redraw in place; notes scroll away above them."""

    def __init__(self, total_steps: int, console: Console) -> None:
        self._progress = _Progress(total_steps)
        self._console = console
        self._row: Mapping[str, Any] = {}
        self._live = Live(self._draw(), console=console, refresh_per_second=4, transient=False)

    def update(self, row: Mapping[str, Any]) -> None:
        self._progress.add(row)
        self._row = row
        self._live.update(self._draw(), refresh=True)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def _draw(self) -> Group:
        p, row = self._progress, self._row
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"step {p.step}/{p.total}", style="bold"),
            ProgressBar(total=max(1, p.total), completed=p.step, width=40),
            Text(f"ETA {p.eta}" if row else "first step under way"),
        )
        if not row:
            return Group(head)
        body = Table.grid(padding=(0, 2))
        body.add_row(
            "success",
            Text(_number(row, "success", "{:.1f} %", 100), style="bold green"),
            Text(_spark(p.successes), style="green"),
        )
        body.add_row("reward", _number(row, "reward", "{:.3f}"), f"entropy {_number(row, 'entropy', '{:.2f}')} nats")
        body.add_row(
            "speed",
            f"{_number(row, 'tokens_per_second', '{:,.0f}')} tokens/s",
            f"step {_number(row, 'seconds', '{:.1f}')} s{_phases(row)}",
        )
        failed = _failures(p.failures)
        body.add_row("failures", Text(failed or "none", style="yellow" if failed else "dim"), "")
        if row.get("nonfinite"):
            body.add_row("not finite", Text(", ".join(row["nonfinite"]), style="bold red"), "")
        return Group(head, body)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()


def _phases(row: Mapping[str, Any]) -> str:
    phases = {k: v for k, v in (row.get("phases") or {}).items() if isinstance(v, int | float)}
    return " = " + " + ".join(f"{k} {v:.1f}" for k, v in phases.items()) if phases else ""


def _spark(values: list[float]) -> str:
    """Shares of 1 as a row of bars, the whole run squeezed into the width; full height is 100 %."""
    if len(values) > _SHOWN_STEPS:
        edges = [round(i * len(values) / _SHOWN_STEPS) for i in range(_SHOWN_STEPS + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    return "".join(_SPARKS[min(7, max(0, int(v * 8)))] for v in values)
