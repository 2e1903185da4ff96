"""Base against tuned as a table for a terminal, from the content of evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def percent(share: float | None) -> str:
    """``0.873`` as ``87.3 %``; a dash where nothing was measured."""
    return "–" if share is None else f"{100 * share:.1f} %"


def interval(ci: Any) -> str:
    return "" if not ci else f"[{100 * ci[0]:.0f}, {100 * ci[1]:.0f}]"


def p_value(p: float) -> str:
    """A p-value for people: never a false zero."""
    return f"p = {p:.3f}" if p >= 0.001 else ("p < 0.001" if p >= 1e-6 else "p < 1e-6")


def rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, base, tuned, n) for every line of the table, all kinds first and then in total."""
    base, tuned = summary["base"], summary.get("tuned")
    lines = []
    kinds = sorted(set(base["by_kind"]) | set((tuned or {}).get("by_kind", {})))
    for kind in kinds:
        b, t = base["by_kind"].get(kind), (tuned or {"by_kind": {}})["by_kind"].get(kind)
        lines.append((kind, _cell(b), _cell(t), str((t or b or {}).get("n", ""))))
    lines.append(("all tasks, greedy", _cell(base), _cell(tuned), str((tuned or base)["n"])))
    n_sampled = str((tuned or base).get("n_sampled") or "")
    lines.append(
        ("sampled at temperature 1", percent(base["success_sampled"]), percent((tuned or {}).get("success_sampled")), n_sampled)
    )
    lines.append(("reward", f"{base['reward']:.3f}", f"{tuned['reward']:.3f}" if tuned else "–", ""))
    general = summary.get("general") or {}
    n = (general.get("before") or general.get("after") or {}).get("n", "")
    lines.append(("general suite", percent(summary["general_before"]), percent(summary["general_after"]), str(n)))
    return lines


def _cell(share: Mapping[str, Any] | None) -> str:
    return f"{percent(share['success'])} {interval(share['ci95'])}".rstrip() if share else "–"


def table(summary: Mapping[str, Any]) -> str:
    """The comparison as aligned plain text, with the paired test and the canaries below."""
    head = ("success", "base", "tuned", "n")
    body = rows(summary)
    widths = [max(len(r[i]) for r in [head, *body]) for i in range(4)]
    lines = ["  ".join((c.ljust if i == 0 else c.rjust)(widths[i]) for i, c in enumerate(r)).rstrip() for r in [head, *body]]
    lines.insert(1, "-" * len(lines[0]))
    pair = summary.get("paired")
    if pair:
        d, ci = 100 * pair["difference"], pair["ci95"]
        lines.append(
            f"\ntuned - base: {d:+.1f} points [{100 * ci[0]:+.0f}, {100 * ci[1]:+.0f}], {pair['gained']} tasks gained, "
            f"{pair['lost']} lost of {pair['n']}, {p_value(pair['p_value'])} (McNemar)"
        )
    if summary.get("canaries"):
        lines.append("canaries: " + ", ".join(f"{k} {percent(v)}" for k, v in summary["canaries"].items()))
    for name in ("base", "tuned"):
        part = summary.get(name) or {}
        if part.get("failures"):
            lines.append(
                f"{name}: {part['n_submitted'] - part['n']} of {part['n_submitted']} episodes not graded: {part['failures']}"
            )
    return "\n".join(lines)
