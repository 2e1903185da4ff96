r"""The one grammar of tool calls, for every workflow: a compact text for small models, JSON for large ones, one ``ToolCall``.

Compact: ``verb arg | arg | arg``, arguments in the signature's order, trailing optional ones left out where they have their
default. Inside an argument ``\|`` is a bar, ``\\`` a backslash, ``\n`` ``\r`` ``\t`` line end, return and tab, ``\s`` a space at
the argument's edge, ``\e`` the empty text and ``\N`` null. JSON: ``{"name": verb, "arguments": {...}}``, also inside a
```` ```json ```` fence or ``<tool_call>`` tags, in OpenAI's ``function`` envelope, with arguments as a JSON string.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from frontier_tune.contracts import Message, canonical_json
from frontier_tune.sdk.tools import Parameter, Signature

# Markers of the compact rendering: single special tokens of the nano base's tokenizer.
USER = "<|user|>"
CALL = "<|call|>"
TOOL = "<|tool|>"
END = "<|end|>"
MARKERS = (USER, CALL, TOOL, END)
_MARKER_OF_ROLE = {"system": USER, "user": USER, "assistant": CALL, "tool": TOOL}

_ESCAPES = {"\\": "\\\\", "|": "\\|", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNESCAPES = {"\\": "\\", "|": "|", "n": "\n", "r": "\r", "t": "\t", "s": " ", "e": ""}
_NULL = "\\N"
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_LARGEST = 10**18
_SHOWN = 40  # characters of the model's own text that an error repeats


class GrammarError(ValueError):
    """The text is no valid call. The message is short and fit to be shown to the model as an observation."""


@dataclass(frozen=True)
class ToolCall:
    """A call with every argument by name, defaults filled in: equal calls compare equal, however they were written."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


def parse(text: str, signatures: Mapping[str, Signature]) -> ToolCall:
    """Read one call. ``{``, a code fence or ``<tool_call>`` starts JSON, anything else compact text. Raises GrammarError."""
    text = text.strip(" \t\r\n")
    if not text:
        raise GrammarError(f"no call; tools: {', '.join(signatures)}")
    if text.startswith(("{", "[", "```", "<tool_call>")):
        return _parse_json(text, signatures)
    return _parse_compact(text, signatures)


def render_compact(call: ToolCall, signatures: Mapping[str, Signature]) -> str:
    """The compact text of a call; ``parse`` of it gives the call back. Raises GrammarError for a call that doesn't fit."""
    call = bind(call.name, call.arguments, signatures)
    parameters = list(signatures[call.name].parameters)
    while parameters and not parameters[-1].required and call.arguments[parameters[-1].name] == parameters[-1].default:
        parameters.pop()
    values = [_write(call.arguments[p.name]) for p in parameters]
    return call.name + (" " + " | ".join(values) if values else "")


def render_json(call: ToolCall) -> str:
    """The JSON text of a call, on one line."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False, allow_nan=False)


def bind(name: str, arguments: Mapping[str, Any], signatures: Mapping[str, Signature]) -> ToolCall:
    """Check JSON values against the signature and fill in the defaults. Raises GrammarError."""
    signature = _signature(name, signatures)
    unknown = [a for a in arguments if a not in {p.name for p in signature.parameters}]
    missing = [p.name for p in signature.parameters if p.required and p.name not in arguments]
    if unknown or missing:
        problem = f"unknown argument {_show(unknown[0])}" if unknown else f"missing argument '{missing[0]}'"
        raise GrammarError(f"{name}: {problem}; usage: {signature.usage}")
    values = {p.name: _check(name, p, arguments[p.name]) if p.name in arguments else p.default for p in signature.parameters}
    return ToolCall(name, values)


def escape_markers(content: str) -> str:
    """``content`` with ``<|`` broken up, so that no data can pose as the start or end of a message."""
    return content.replace("<|", "< |")


def compact_dialogue(messages: Iterable[Message]) -> str:
    """A dialogue in the compact rendering: ``<|user|>task<|end|><|call|>verb arg<|end|><|tool|>result<|end|>``."""
    return "".join(f"{_MARKER_OF_ROLE[m.role]}{escape_markers(m.content)}{END}" for m in messages)


def _parse_compact(text: str, signatures: Mapping[str, Signature]) -> ToolCall:
    if "\n" in text:
        raise GrammarError("one call on one line; write a line end inside an argument as \\n")
    verb = re.match(r"[^ \t|]*", text)[0]  # type: ignore[index]  # the pattern matches every text
    signature = _signature(verb, signatures)
    rest = text[len(verb) :].strip(" \t")
    # A bar behind an even number of backslashes separates; one behind an odd number is escaped.
    raw = re.findall(r"(?:[^\\|]|\\.)+|\||\\$", rest)
    fields: list[str] = [""] if rest else []
    for piece in raw:
        if piece == "|":
            fields.append("")
        else:
            fields[-1] += piece
    required = sum(p.required for p in signature.parameters)
    if not required <= len(fields) <= len(signature.parameters):
        count = f"{len(fields)} argument" + ("" if len(fields) == 1 else "s")
        raise GrammarError(f"{verb}: got {count}; usage: {signature.usage}")
    values = {p.name: p.default for p in signature.parameters}
    for p, value in zip(signature.parameters, fields, strict=False):
        values[p.name] = _read(verb, p, value.strip(" "))
    return ToolCall(verb, values)


def _parse_json(text: str, signatures: Mapping[str, Signature]) -> ToolCall:
    if text.startswith("```"):
        text = re.sub(r"\A```[a-z]*\s*|\s*```\Z", "", text)
    elif text.startswith("<tool_call>"):
        text = text.removeprefix("<tool_call>").partition("</tool_call>")[0]
    data = _loads(text)
    if isinstance(data, dict) and isinstance(data.get("function"), dict):
        data = data["function"]
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise GrammarError('a call in JSON is one object: {"name": "...", "arguments": {...}}')
    arguments = data.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _loads(arguments)
    if not isinstance(arguments, dict):
        raise GrammarError(f'{_show(data["name"])}: "arguments" is an object of names and values')
    return bind(data["name"], arguments, signatures)


def _loads(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise GrammarError(f"not valid JSON: {constant} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except GrammarError:
        raise
    except RecursionError:
        raise GrammarError("not valid JSON: nested too deeply") from None
    except ValueError as e:  # also integers past Python's digit limit
        raise GrammarError(f"not valid JSON: {str(e)[:100]}") from None


def _signature(name: str, signatures: Mapping[str, Signature]) -> Signature:
    if name not in signatures:
        raise GrammarError(f"unknown tool {_show(name)}; tools: {', '.join(signatures)}")
    return signatures[name]


def _read(verb: str, p: Parameter, raw: str) -> Any:
    """The value of a compact argument's text."""
    if raw == _NULL:
        return _check(verb, p, None)
    text = re.sub(r"\\(.?)", lambda m: _unescape(verb, p, m[1]), raw)
    if p.type is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if p.type is int and _INTEGER.fullmatch(text):
        return _check(verb, p, int(text))
    if p.type is float and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
        return _check(verb, p, float(text))
    return _check(verb, p, text)


def _unescape(verb: str, p: Parameter, character: str) -> str:
    if character not in _UNESCAPES or (not character):
        raise GrammarError(f"{verb}: {p.name}: '\\{character}' is no escape; write a backslash as \\\\")
    return _UNESCAPES[character]


def _write(value: Any) -> str:
    if value is None:
        return _NULL
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = "".join(_ESCAPES.get(c, c) for c in value)
        inner = text.strip(" ")
        left = len(text) - len(text.lstrip(" "))
        right = len(text) - len(inner) - left
        return "\\s" * left + inner + "\\s" * right if text else "\\e"
    return repr(value)


def _check(verb: str, p: Parameter, value: Any) -> Any:
    """``value`` as the parameter's type; a number where text is wanted is its text (models write ``"value": 5``)."""
    if value is None and p.nullable:
        return None
    if isinstance(value, float) and not math.isfinite(value):  # JSON's 1e999
        raise GrammarError(f"{verb}: {p.name} is not finite")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise GrammarError(f"{verb}: {p.name} is not valid Unicode")
    if p.type is str and isinstance(value, int | float):
        value = canonical_json(value)
    if p.type is float and type(value) is int and abs(value) < _LARGEST:
        value = float(value)
    if p.type is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not p.type or (type(value) is int and abs(value) >= _LARGEST):
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[p.type]
        raise GrammarError(f"{verb}: {p.name} is {wanted}, got {_show(value)}")
    if p.choices and value not in p.choices:
        raise GrammarError(f"{verb}: {p.name} is one of {', '.join(str(c) for c in p.choices)}, got {_show(value)}")
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
