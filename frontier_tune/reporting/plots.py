"""Pictures of a run: the learning curve, and small multiples of what the optimizer and the clock say.

Drawn with matplotlib, colours from Okabe and Ito's colour-blind-safe set, shares always on an axis from 0 to 100 %.
``to_svg`` puts a figure into a page and lets the page's style sheet set its colours (light and dark).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

# Each colour has a name; in SVG it becomes the style-sheet variable --<name>.
COLOURS = {
    "ink": "#1a1c20",
    "muted": "#6a6f78",
    "rule": "#d9dbe0",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "purple": "#cc79a7",
}
_STACK = ("blue", "orange", "green", "purple", "sky", "vermilion")
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "svg.fonttype": "none",
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}


class _Line(NamedTuple):
    name: str
    steps: list[int]
    values: list[float]
    colour: str


def series(rows: Rows, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the rows in which ``key`` is a number."""
    points = [(int(r["step"]), float(r[key])) for r in rows if isinstance(r.get(key), int | float)]
    return [s for s, _ in points], [v for _, v in points]


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Centred moving mean; the window shrinks at both ends, so that no value is made up."""
    half = window // 2
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - half) : i + half + 1])]


def learning_curve(rows: Rows, evaluation: Mapping[str, Any] | None) -> Figure:
    """Training success and reward by step, and the held-out success of base and tuned with their 95 % intervals beside it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(9.2, 4.4), layout="constrained")
        ax, side = fig.subplots(1, 2, sharey=True, width_ratios=[5, 1.25])
        window = max(1, len(rows) // 20) * 2 - 1
        lines = []
        for key, colour in (("success", "blue"), ("reward", "orange")):
            steps, values = series(rows, key)
            inside = all(-0.001 <= v <= 1.001 for v in values)
            if not values or not inside:
                continue
            _band(ax, rows, f"{key}_ci95", COLOURS[colour], window)
            ax.plot(steps, values, ".", color=COLOURS[colour], alpha=0.35, markersize=3.5)
            curve = smooth(values, window)
            ax.plot(steps, curve, color=COLOURS[colour], linewidth=2.0 if key == "success" else 1.2)
            lines.append(_Line(f"training {key}", steps, curve, COLOURS[colour]))
        _label(ax, lines)
        probes = [(r["step"], r["probe"]) for r in rows if isinstance(r.get("probe"), Mapping)]
        if probes:
            values = [p["success"] for _, p in probes]
            ax.errorbar(
                [s for s, _ in probes],
                values,
                yerr=_errors(values, [p["ci95"] for _, p in probes]),
                fmt="s",
                markersize=4,
                color=COLOURS["green"],
                linewidth=1,
                label="held-out probe",
            )
            ax.legend(loc="upper left", frameon=False)
        _held_out(ax, side, evaluation or {})
        ax.set_ylim(0, 1)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
        ax.set_axisbelow(True)
        ax.set_xlabel("step")
        ax.margins(x=0.01)
        how = f"line: mean of {window} steps; " if window > 1 else ""
        ax.set_title(f"Training tasks, sampled ({how}dots: single steps; band: their 95 % intervals)", loc="left", fontsize=9.5)
        if not lines:
            ax.text(
                0.5,
                0.5,
                "no success or reward between 0 and 1 recorded",
                ha="center",
                transform=ax.transAxes,
                color=COLOURS["muted"],
            )
    return fig


def _errors(values: Sequence[float], intervals: Sequence[Sequence[float]]) -> list[list[float]]:
    pairs = list(zip(values, intervals, strict=True))
    return [[max(0.0, v - ci[0]) for v, ci in pairs], [max(0.0, ci[1] - v) for v, ci in pairs]]


def _band(ax: Axes, rows: Rows, key: str, colour: str, window: int) -> None:
    points = [(int(r["step"]), r[key]) for r in rows if isinstance(r.get(key), list) and None not in r[key]]
    if points:
        low, high = (smooth([ci[i] for _, ci in points], window) for i in (0, 1))
        ax.fill_between([s for s, _ in points], low, high, color=colour, alpha=0.15, linewidth=0)


def _label(ax: Axes, lines: Sequence[_Line]) -> None:
    """Name each line where the lines lie farthest apart: the upper one to its upper left, the lower one to its lower right."""
    if len(lines) == 2 and lines[0].steps == lines[1].steps:
        gaps = [abs(a - b) for a, b in zip(lines[0].values, lines[1].values, strict=True)]
        inner = range(len(gaps) // 5, max(1, len(gaps) * 4 // 5))
        at = max(inner, key=gaps.__getitem__)
        order = sorted(lines, key=lambda line: -line.values[at])
    else:
        at, order = None, list(lines)
    for i, line in enumerate(order):
        k = at if at is not None else len(line.values) // 2
        xytext, ha, va = ((-10, 12), "right", "bottom") if i == 0 else ((10, -12), "left", "top")
        ax.annotate(
            line.name,
            (line.steps[k], line.values[k]),
            xytext=xytext,
            textcoords="offset points",
            ha=ha,
            va=va,
            color=line.colour,
            fontweight="bold",
        )


def _held_out(ax: Axes, side: Axes, evaluation: Mapping[str, Any]) -> None:
    side.set_title("Held-out, greedy", loc="left", fontsize=9.5)
    side.set_xlim(0, 1)
    side.set_xticks([])
    side.spines["bottom"].set_visible(False)
    side.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
    side.set_axisbelow(True)
    found = False
    for name, colour in (("base", "muted"), ("tuned", "vermilion")):
        part = evaluation.get(name)
        if not part:
            continue
        found = True
        y, ci = part["success"], part["ci95"]
        side.errorbar(
            [0.16], [y], yerr=_errors([y], [ci]), fmt="o", color=COLOURS[colour], capsize=4, markersize=6, linewidth=1.6
        )
        side.text(0.3, y, f"{name} {100 * y:.0f} %", color=COLOURS[colour], va="center", fontweight="bold")
        ax.axhline(y, color=COLOURS[colour], linewidth=1, linestyle=(0, (4, 3)))
    if not found:
        side.text(0.05, 0.5, "not evaluated", color=COLOURS["muted"], va="center")


_PANELS = (
    ("entropy", "entropy, nats a token", "blue"),
    ("kl_sampler", "KL sampler to learner, nats a token", "purple"),
    ("kl_base", "KL to the base, nats a token", "green"),
    ("clip_share", "tokens whose ratio is clipped", "vermilion"),
    ("length_mean", "sampled tokens an episode (dotted: max)", "blue"),
    ("groups_used", "groups that carry a gradient", "orange"),
)
_SHARES = {"clip_share", "groups_used"}


def diagnostics(rows: Rows) -> Figure:
    """Small multiples over the steps, every axis from 0: policy, lengths, step time by phase, failures by blame."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=(9.2, 8.6), layout="constrained")
        axes = fig.subplots(4, 2).flatten()
        for ax, (key, title, colour) in zip(axes, _PANELS, strict=False):
            steps, values = series(rows, key)
            ax.plot(steps, values, color=COLOURS[colour], linewidth=1.3)
            top = max(values, default=0.0)
            if key == "length_mean":
                steps_max, longest = series(rows, "length_max")
                ax.plot(steps_max, longest, ":", color=COLOURS[colour], linewidth=1.1)
                top = max(top, *longest, 0.0)
            if key in _SHARES:
                ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.04 else 2))
            else:
                ax.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
            _panel(ax, title, bool(values), low=min(0.0, *values, 0.0), top=1.0 if key == "groups_used" else top)
        _stacked(axes[6], rows, "phases", "seconds a step, by phase")
        _stacked(axes[7], rows, "failures", "failed episodes, by blame")
        for ax in axes[6:]:
            ax.set_xlabel("step")
    return fig


def _panel(ax: Axes, title: str, present: bool, low: float, top: float) -> None:
    ax.set_title(title, loc="left", fontsize=9.5)
    ax.grid(axis="y", color=COLOURS["rule"], linewidth=0.6)
    ax.set_axisbelow(True)
    ax.margins(x=0.01)
    if present:
        ax.set_ylim(1.08 * low, 1.08 * top if top > 0 else 1.0)
    else:
        ax.set_yticks([])
        ax.set_xticks([])
        ax.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=ax.transAxes, color=COLOURS["muted"])


def _stacked(ax: Axes, rows: Rows, key: str, title: str) -> None:
    found = [(int(r["step"]), r[key]) for r in rows if isinstance(r.get(key), Mapping)]
    names = list(dict.fromkeys(n for _, parts in found for n in parts))
    steps = [s for s, _ in found]
    layers = [[float(parts.get(n) or 0.0) for _, parts in found] for n in names]
    totals = [sum(column) for column in zip(*layers, strict=True)]
    shown = [(n, layer) for n, layer in zip(names, layers, strict=True) if any(layer)]
    bottom = [0.0] * len(steps)
    for i, (name, layer) in enumerate(shown):
        colour = COLOURS[_STACK[i % len(_STACK)]]
        ax.bar(steps, layer, bottom=bottom, width=1.0, color=colour, linewidth=0, label=name)
        bottom = [b + v for b, v in zip(bottom, layer, strict=True)]
    _panel(ax, title, bool(found), low=0.0, top=max(totals, default=0.0) * 1.25)
    if shown:
        ax.legend(
            loc="upper left",
            ncols=4,
            frameon=False,
            fontsize=8.5,
            handlelength=0.9,
            handletextpad=0.4,
            columnspacing=1.0,
            borderaxespad=0.1,
        )
    elif found:
        ax.text(0.5, 0.5, "none", ha="center", va="center", transform=ax.transAxes, color=COLOURS["muted"])


def save_png(fig: Figure, path: Path) -> None:
    """Write a PNG at 144 dots an inch, whole or not at all."""
    tmp = path.with_name(path.name + ".tmp")
    fig.savefig(tmp, format="png", dpi=144, facecolor="white")
    os.replace(tmp, path)


def to_svg(fig: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element with a transparent ground whose colours are ``var(--ink)`` and so on.

    ``name`` keeps the ids of several figures in one page apart.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        fig.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, value in COLOURS.items():
        svg = svg.replace(value, f"var(--{colour})")
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = rf'<svg class="figure" role="img" {names} viewBox="\1">'
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', head, svg, count=1)
