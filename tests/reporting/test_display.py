"""What is shown: plain lines without escape codes in a pipe, a live display on a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from frontier_tune.reporting.display import LiveDisplay, PlainDisplay, duration, make_display

ROW: dict[str, Any] = {
    "step": 3,
    "success": 0.25,
    "reward": 0.4,
    "tokens_per_second": 1500.4,
    "seconds": 10.0,
    "entropy": 0.7,
    "phases": {"sampling": 6.0, "learning": 4.0},
    "failures": {"environment": 0, "infrastructure": 2, "agent": 1},
}


def test_piped_output_is_one_plain_line_a_step() -> None:
    out = io.StringIO()
    display = make_display(10, out)
    assert isinstance(display, PlainDisplay)
    with display:
        display.note("run: runs/one")
        display.update(ROW)
        display.update({"step": 4, "seconds": 20.0, "loss": None, "nonfinite": ["loss"]})
    assert out.getvalue().splitlines() == [
        "run: runs/one",
        "step 3/10  success 25.0 %  reward 0.400  1500 tokens/s  10.0 s  ETA 1:10  failures: 2 infrastructure, 1 agent",
        "step 4/10  success ?  reward ?  ? tokens/s  20.0 s  ETA 1:30  not finite: loss",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_display() -> None:
    out = Terminal()
    console = Console(file=out, force_terminal=True, width=120, color_system="truecolor")
    with LiveDisplay(10, console) as display:
        assert "first step under way" in out.getvalue()
        display.update(ROW)
        display.note("saved [bold]checkpoint[/bold]")
    text = out.getvalue()
    assert "\x1b[" in text
    for part in ("step 3/10", "ETA 1:10", "25.0 %", "1,500 tokens/s", "sampling 6.0 + learning 4.0", "2 infrastructure, 1 agent"):
        assert part in text
    assert "[bold]checkpoint" in text, "a note is text, not markup"


def test_a_terminal_that_can_do_nothing_gets_plain_lines(monkeypatch: Any) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(5, Terminal()), PlainDisplay)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_display(5, Terminal()), LiveDisplay)


def test_durations() -> None:
    assert [duration(s) for s in (0, 59.6, 75, 4000, -3)] == ["0:00", "1:00", "1:15", "1:06:40", "0:00"]
