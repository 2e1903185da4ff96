"""Whether a JSON value fits a schema: the part of JSON Schema 2020-12 that answers need. What it doesn't know it refuses,
wherever in the schema it stands and whatever the answer is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any] | bool
_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda v: v is None,
    "boolean": lambda v: isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "integer": lambda v: (isinstance(v, int) and not isinstance(v, bool)) or (isinstance(v, float) and v.is_integer()),
    "string": lambda v: isinstance(v, str),
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
}
_NOTES = {"title", "description", "default", "examples", "$schema", "$id", "$comment"}
_DEEPEST = 64  # levels of an answer, and schemas that apply to one place of it by way of another


class SchemaError(ValueError):
    """The schema itself is wrong, or uses what is not known here."""


def matches_schema(answer: Any, schema: Schema) -> bool:
    """Whether ``answer``, a JSON value or its text, fits. Text that is no JSON does not. Raises SchemaError."""
    _require_sound(schema, schema, "$")
    if isinstance(answer, str):
        try:
            answer = json.loads(answer, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
    return next(_check(answer, schema, schema, "$", 0, 0), None) is None


def schema_errors(value: Any, schema: Schema) -> list[str]:
    """What does not fit, each with its place (``$.rows[2].amount``). Raises SchemaError."""
    _require_sound(schema, schema, "$")
    return [f"{place}: {problem}" for place, problem in _check(value, schema, schema, "$", 0, 0)]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _require_sound(schema: Any, root: Any, place: str) -> None:
    """Raises SchemaError for what is wrong in ``schema`` or in any schema within."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise SchemaError(f"schema at {place}: {schema!r:.60} is no schema")
    for keyword, argument in schema.items():
        if keyword in _NOTES:
            continue
        if keyword not in _ARGUMENTS:
            raise SchemaError(f"schema at {place}: '{keyword}' is not known here; known: {', '.join(sorted(_KEYWORDS))}")
        wanted, fits = _ARGUMENTS[keyword]
        if not fits(argument):
            raise SchemaError(f"schema at {place}: '{keyword}' takes {wanted}, not {argument!r:.60}")
        there = root.get("$defs") if _is_map(root.get("$defs")) else {}
        if keyword == "$ref" and _name(argument) not in there:
            said = f"only '#/$defs/NAME' of the schema itself; there are {', '.join(there) or 'none'}"
            raise SchemaError(f"schema at {place}: $ref '{argument}': {said}")
        within: Mapping[Any, Any] = {}
        if keyword in ("properties", "$defs"):
            within = {f".{keyword}.{name}": part for name, part in argument.items()}
        elif keyword in ("anyOf", "oneOf", "allOf"):
            within = {f".{keyword}[{i}]": part for i, part in enumerate(argument)}
        elif keyword in ("items", "additionalProperties", "not"):
            within = {f".{keyword}": argument}
        for at, part in within.items():
            _require_sound(part, root, place + at)


def _check(value: Any, schema: Any, root: Any, place: str, depth: int, hops: int) -> Iterator[tuple[str, str]]:
    """``depth``: levels of the answer above ``value``; ``hops``: schemas for this very value that led here."""
    if isinstance(schema, bool):
        if not schema:
            yield place, "nothing may be here"
        return
    if hops > _DEEPEST:
        raise SchemaError(f"schema at {place}: more than {_DEEPEST} schemas for one value; does a $ref lead to itself?")
    if depth > _DEEPEST:
        yield place, f"is nested deeper than {_DEEPEST}"
        return

    def sub(value: Any, schema: Schema, place: str) -> Problems:
        return _check(value, schema, root, place, depth + bool(place), 0 if place else hops + 1)

    for keyword, argument in schema.items():
        if keyword in _KEYWORDS:
            for at, problem in _KEYWORDS[keyword](value, argument, schema, sub, root):
                yield place + at, problem


Problems = Iterator[tuple[str, str]]
Sub = Callable[[Any, Schema, str], Problems]


def _type(value: Any, names: Any, schema: Any, sub: Sub, root: Any) -> Problems:
    names = [names] if isinstance(names, str) else names
    if not any(_TYPES[name](value) for name in names):
        yield "", f"is no {' or '.join(names)}"


def _equal(a: Any, b: Any) -> bool:
    """JSON's equality: 1 is 1.0, true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return bool(a == b)


def _object(value: Any, _: Any, schema: Any, sub: Sub, root: Any) -> Problems:
    """properties, required and additionalProperties, which look at one another; called for the first of them that is there."""
    if not isinstance(value, dict):
        return
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f".{name}", "is missing"
    for name, content in value.items():
        wanted = known[name] if name in known else schema.get("additionalProperties", True)
        yield from sub(content, wanted, f".{name}")


def _once(keyword: str) -> Callable[..., Problems]:
    group = ("properties", "required", "additionalProperties")

    def check(value: Any, argument: Any, schema: Any, sub: Sub, root: Any) -> Problems:
        if keyword == next(k for k in group if k in schema):
            yield from _object(value, argument, schema, sub, root)

    return check


def _bound(kind: str, holds: Callable[[Any, Any], bool], said: str, size: bool = False) -> Callable[..., Problems]:
    def check(value: Any, limit: Any, schema: Any, sub: Sub, root: Any) -> Problems:
        if _TYPES[kind](value) and not holds(len(value) if size else value, limit):
            yield "", f"{said} {limit}"

    return check


def _items(value: Any, argument: Any, schema: Any, sub: Sub, root: Any) -> Problems:
    for i, item in enumerate(value if isinstance(value, list) else ()):
        yield from sub(item, argument, f"[{i}]")


def _unique(value: Any, wanted: Any, schema: Any, sub: Sub, root: Any) -> Problems:
    if wanted and isinstance(value, list) and any(_equal(a, b) for i, a in enumerate(value) for b in value[:i]):
        yield "", "holds something twice"


def _some(holds: Callable[[int, int], bool], said: str) -> Callable[..., Problems]:
    def check(value: Any, schemas: Any, schema: Any, sub: Sub, root: Any) -> Problems:
        fitting = sum(not list(sub(value, s, "")) for s in schemas)
        if not holds(fitting, len(schemas)):
            yield "", f"fits {fitting} of {len(schemas)} alternatives, {said}"

    return check


def _not(value: Any, argument: Any, schema: Any, sub: Sub, root: Any) -> Problems:
    if not list(sub(value, argument, "")):
        yield "", "fits what it must not"


def _reference(value: Any, reference: Any, schema: Any, sub: Sub, root: Any) -> Problems:
    yield from sub(value, root["$defs"][_name(reference)], "")


def _name(reference: str) -> str:
    return reference.removeprefix("#/$defs/") if reference.startswith("#/$defs/") else ""


def _enum(value: Any, options: Any, schema: Any, sub: Sub, root: Any) -> Problems:
    if not any(_equal(value, option) for option in options):
        yield "", f"is none of {json.dumps(options)[:100]}"


_KEYWORDS: dict[str, Callable[..., Problems]] = {
    "type": _type,
    "enum": _enum,
    "const": lambda value, only, schema, sub, root: _enum(value, [only], schema, sub, root),
    **{keyword: _once(keyword) for keyword in ("properties", "required", "additionalProperties")},
    "items": _items,
    "uniqueItems": _unique,
    "minItems": _bound("array", lambda n, limit: n >= limit, "holds fewer than", size=True),
    "maxItems": _bound("array", lambda n, limit: n <= limit, "holds more than", size=True),
    "minLength": _bound("string", lambda n, limit: n >= limit, "is shorter than", size=True),
    "maxLength": _bound("string", lambda n, limit: n <= limit, "is longer than", size=True),
    "pattern": _bound("string", lambda text, pattern: re.search(pattern, text) is not None, "does not match"),
    "minimum": _bound("number", lambda n, limit: n >= limit, "is below"),
    "maximum": _bound("number", lambda n, limit: n <= limit, "is above"),
    "exclusiveMinimum": _bound("number", lambda n, limit: n > limit, "is not above"),
    "exclusiveMaximum": _bound("number", lambda n, limit: n < limit, "is not below"),
    "anyOf": _some(lambda n, of: n > 0, "one is needed"),
    "oneOf": _some(lambda n, of: n == 1, "just one may be"),
    "allOf": _some(lambda n, of: n == of, "all are needed"),
    "not": _not,
    "$ref": _reference,
}


def _are(kind: Callable[[Any], bool], least: int = 0, once: bool = False) -> Callable[[Any], bool]:
    """A list of at least ``least`` of a kind, each but ``once``."""
    return lambda v: isinstance(v, list) and len(v) >= least and all(map(kind, v)) and not (once and len({*v}) < len(v))


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _is_schema(value: Any) -> bool:
    return isinstance(value, bool | Mapping)


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and value in _TYPES


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


# What a keyword takes, in words and as a test; the schemas within are looked at one by one.
_ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "type": (f"one or more of {', '.join(_TYPES)}", lambda v: _is_type(v) or _are(_is_type, 1, once=True)(v)),
    "enum": ("a list of values", lambda v: isinstance(v, list)),
    "const": ("any value", lambda v: True),
    **dict.fromkeys(("properties", "$defs"), ("schemas by name", _is_map)),
    "required": ("a list of names, each once", _are(_TYPES["string"], once=True)),
    **dict.fromkeys(("items", "additionalProperties", "not"), ("a schema", _is_schema)),
    "uniqueItems": ("true or false", _TYPES["boolean"]),
    **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength"), ("a count", lambda v: _TYPES["integer"](v) and v >= 0)),
    "pattern": ("a regular expression", _is_pattern),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), ("a number", _TYPES["number"])),
    **dict.fromkeys(("anyOf", "oneOf", "allOf"), ("a list of schemas", _are(_is_schema, 1))),
    "$ref": ("a reference", _TYPES["string"]),
}
