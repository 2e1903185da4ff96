"""Gymnasium spaces for dialogue: gymnasium's own ``Text`` and ``Sequence`` hold neither messages nor unbounded Unicode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium.spaces import Space

from frontier_tune.contracts import Message
from frontier_tune.sdk.grammar import ToolCall, render_compact
from frontier_tune.sdk.tools import Parameter, Signature

_ROLES = ("system", "user", "assistant", "tool")
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 =:()+-|\\"


class MessagesSpace(Space[tuple[Message, ...]]):
    """What the environment says: a tuple of messages, possibly empty."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> tuple[Message, ...]:
        """Up to three messages of random text. Masks don't apply."""
        count = int(self.np_random.integers(4))
        return tuple(Message(_ROLES[int(self.np_random.integers(4))], _text(self)) for _ in range(count))  # type: ignore[arg-type]

    def contains(self, x: Any) -> bool:
        return isinstance(x, tuple) and all(isinstance(m, Message) and m.role in _ROLES and isinstance(m.content, str) for m in x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MessagesSpace)

    def __repr__(self) -> str:
        return "MessagesSpace()"


class ActionText(Space[str]):
    """What the agent says: any text. Samples are mostly well-formed calls of the tools, so that a random agent gets somewhere."""

    def __init__(self, signatures: Mapping[str, Signature] | None = None, seed: int | None = None) -> None:
        self.signatures = dict(signatures or {})
        super().__init__(seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A compact call with random arguments (three of four times) or random text. Masks don't apply."""
        if not self.signatures or self.np_random.random() < 0.25:
            return _text(self)
        signature = list(self.signatures.values())[int(self.np_random.integers(len(self.signatures)))]
        arguments = {p.name: self._value(p) for p in signature.parameters}
        return render_compact(ToolCall(signature.name, arguments), self.signatures)

    def _value(self, p: Parameter) -> Any:
        if p.choices:
            return p.choices[int(self.np_random.integers(len(p.choices)))]
        if p.type is str:
            return _text(self)
        if p.type is bool:
            return bool(self.np_random.integers(2))
        return p.type(self.np_random.integers(-100, 100))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionText) and self.signatures == other.signatures

    def __repr__(self) -> str:
        return f"ActionText({', '.join(self.signatures)})"


def _text(space: Space[Any]) -> str:
    return "".join(_LETTERS[i] for i in space.np_random.integers(len(_LETTERS), size=int(space.np_random.integers(1, 12))))
