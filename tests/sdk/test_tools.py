"""Tool declarations: what is derived, and what is refused where."""

from typing import Literal

import pytest

from frontier_tune.sdk.tools import Signature, ToolDeclarationError, collect_tools, tool


class Base:
    @tool
    def read(self, area: str, limit: int | None = None, mode: Literal["value", "formula"] = "value") -> str:
        """Read a range.

        Longer text.

        Args:
            area: Where, for example ``A1:B2``,
                or a name.
            limit (int): Rows at most.
            mode: What of each cell.

        Returns:
            A table.
        """
        return ""


def test_a_schema_gives_its_signature_back() -> None:
    signature = collect_tools(Base)["read"][1]
    assert Signature.from_schema(signature.to_schema()) == signature


def test_schema_is_derived() -> None:
    signature = collect_tools(Base)["read"][1]
    assert signature.usage == "read area [| limit] [| mode]"
    assert signature.description == "Read a range.\n\nLonger text."
    assert signature.to_schema() == {
        "type": "function",
        "function": {
            "name": "read",
            "description": "Read a range.\n\nLonger text.",
            "parameters": {
                "type": "object",
                "properties": {
                    "area": {"type": "string", "description": "Where, for example ``A1:B2``, or a name."},
                    "limit": {"type": ["integer", "null"], "description": "Rows at most.", "default": None},
                    "mode": {
                        "type": "string",
                        "description": "What of each cell.",
                        "enum": ["value", "formula"],
                        "default": "value",
                    },
                },
                "required": ["area"],
                "additionalProperties": False,
            },
        },
    }


def _untyped(self, x) -> str:  # type: ignore[no-untyped-def]
    """Do.

    Args:
        x: X.
    """
    return ""


def _undocumented(self: object, x: int) -> str:
    """Do."""
    return ""


def _no_docstring(self: object) -> str:
    return ""


def _returns_int(self: object) -> int:
    """Do."""
    return 1


def _list(self: object, x: list[int]) -> str:
    """Do.

    Args:
        x: X.
    """
    return ""


def _bad_default(self: object, x: int = "a") -> str:  # type: ignore[assignment]
    """Do.

    Args:
        x: X.
    """
    return ""


def _ghost(self: object) -> str:
    """Do.

    Args:
        x: X.
    """
    return ""


def _star(self: object, *x: int) -> str:
    """Do."""
    return ""


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        (_untyped, "'x' has no type"),
        (_undocumented, "'x' is not in the docstring's Args"),
        (_no_docstring, "needs a docstring"),
        (_returns_int, "annotate it '-> str'"),
        (_list, "has type list[int]"),
        (_bad_default, "default 'a'"),
        (_ghost, "don't exist: x"),
        (_star, "only plain arguments"),
    ],
)
def test_bad_declarations_name_file_and_method(method, problem) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ToolDeclarationError) as e:
        tool(name="verb")(method)
    assert problem in str(e.value) and __file__ in str(e.value) and method.__name__ in str(e.value)


def test_overriding_without_the_decorator_and_double_verbs_are_refused() -> None:
    class Silent(Base):
        def read(self, area: str) -> str:  # type: ignore[override]
            return ""

    with pytest.raises(ToolDeclarationError, match="overrides the tool 'read' without @tool"):
        collect_tools(Silent)

    class Double(Base):
        @tool(name="read")
        def other(self) -> str:
            """Do."""
            return ""

    with pytest.raises(ToolDeclarationError, match="are both the tool 'read'"):
        collect_tools(Double)
