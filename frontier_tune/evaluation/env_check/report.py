"""What an audit found: checks with a verdict, the evidence and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["pass", "warn", "fail"]
GREEN, FAILED = 0, 3  # exit codes


@dataclass(frozen=True)
class Check:
    """One finding. ``evidence`` is one sentence; ``mend`` another, empty where nothing has to be mended. ``details`` is JSON."""

    name: str
    verdict: Verdict
    evidence: str
    mend: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AgentScore:
    """An agent of the audit: graded episodes ``n``, strict successes, mean reward, and episodes that failed."""

    n: int
    successes: int
    reward: float
    failed: int

    @property
    def success(self) -> float:
        return self.successes / self.n if self.n else 0.0


@dataclass(frozen=True)
class Report:
    """The audit of one environment. ``about``: path, name, version, hash, options, tasks, seed, timeout_s."""

    about: Mapping[str, Any]
    checks: tuple[Check, ...]
    agents: Mapping[str, AgentScore]
    speed: Mapping[str, float]

    @property
    def verdict(self) -> Verdict:
        found = {c.verdict for c in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"

    @property
    def exit_code(self) -> int:
        """0 where no check failed (warnings don't), 3 otherwise."""
        return FAILED if self.verdict == "fail" else GREEN

    def check(self, name: str) -> Check:
        return next(c for c in self.checks if c.name == name)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [c.name for c in self.checks if c.verdict == "fail"]

    def to_json(self) -> dict[str, Any]:
        return {
            "environment": dict(self.about),
            "verdict": self.verdict,
            "checks": [asdict(c) for c in self.checks],
            "agents": {name: asdict(a) | {"success": a.success} for name, a in self.agents.items()},
            "speed": dict(self.speed),
        }


def shown(items: Any, most: int = 3) -> str:
    """The first few of ``items`` as text, and how many more there are."""
    items = [str(i) for i in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def short(text: str, most: int = 160) -> str:
    """``text`` on one line, cut."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
