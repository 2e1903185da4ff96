"""Other people's JSON schemas as signatures: the ways in which optional arguments are written down."""

from __future__ import annotations

import pytest

from frontier_tune.interop.schema import arguments_for, signature_of
from frontier_tune.sdk import ToolError

SCHEMA = {
    "properties": {
        "listed": {"type": ["string", "null"], "enum": ["a", "b", None], "default": None},
        "either": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
        "needed": {"type": "number", "description": "How much."},
        "mixed": {"type": ["string", "integer"]},
        "any": True,
        "rows": {"type": "array"},
    },
    "required": ["needed", "rows"],
}


def test_types_and_what_may_be_left_out() -> None:
    signature = signature_of("act", "Act.", SCHEMA)
    found = {p.name: (p.type, p.required, p.nullable, p.choices) for p in signature.parameters}
    assert found == {
        "needed": (float, True, False, ()),
        "rows": (str, True, True, ()),
        "listed": (str, False, True, ("a", "b")),
        "either": (int, False, True, ()),
        "mixed": (str, False, True, ()),
        "any": (str, False, True, ()),
    }
    given = {"needed": 1.5, "rows": "[1]", "listed": None, "either": 3, "mixed": '"x"', "any": None}
    assert arguments_for(signature, given) == {"needed": 1.5, "rows": [1], "either": 3, "mixed": "x"}
    with pytest.raises(ToolError, match="rows is JSON"):
        arguments_for(signature, {**given, "rows": "["})
