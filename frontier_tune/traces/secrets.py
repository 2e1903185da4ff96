"""Text that looks like a credential. A trace that holds one is refused: what trains a model can be read out of it again."""

from __future__ import annotations

import re

from frontier_tune.traces.schema import Trace

_ESCAPED = re.compile(r"\\+[bfnrt]")  # of JSON, also of JSON in JSON: its letter would hide that a word begins behind it
PATTERNS = {
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})\b"),
    "a Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a bearer token": re.compile(r"\b[Bb]earer\s+[A-Za-z0-9._~+/-]{24,}=*"),
    "a JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."),
    "a password in a URL": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/:@]{3,}@"),
}


def find(trace: Trace) -> str | None:
    """Which kind of credential stands in which part of the trace, never the credential itself; None where none is seen."""
    parts = {f"message {i}": m.model_dump_json() for i, m in enumerate(trace.messages)}
    parts |= {f"correction of turn {c.turn}": c.model_dump_json() for c in trace.corrections}
    parts |= {"task": trace.task.model_dump_json()} if trace.task else {}
    for where, written in parts.items():
        text = _ESCAPED.sub(" ", written)
        for what, pattern in PATTERNS.items():
            if pattern.search(text):
                return f"{where} holds what looks like {what}; redact it"
    return None
