"""Other people's tools as ours: a signature from their JSON schema, and arguments back as they want them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from frontier_tune.sdk import BadInput, Parameter, Signature, ToolError, WorkflowEnv

_TYPES: dict[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool}
Invoke = Callable[[dict[str, Any]], str]


def signature_of(name: str, description: str, schema: Mapping[str, Any]) -> Signature:
    """A tool's signature. What is neither text nor a number nor yes or no (lists, objects, unions) is written as JSON text."""
    needed = set(schema.get("required", ()))
    parameters = []
    for key, declared in schema.get("properties", {}).items():
        declared = declared if isinstance(declared, Mapping) else {}  # a schema may be just ``true``
        named = declared.get("type")
        options = declared.get("anyOf") or ([{**declared, "type": t} for t in named] if isinstance(named, list) else [declared])
        kinds = [o for o in options if o.get("type") != "null"]
        kind = kinds[0] if len(kinds) == 1 else {}
        plain = kind.get("type") in _TYPES
        choices = tuple(c for c in kind.get("enum", ()) if c is not None) if plain else ()
        about = declared.get("description") or declared.get("title") or key
        parameters.append(
            Parameter(
                name=key,
                type=_TYPES[kind["type"]] if plain else str,
                description=about if plain else f"{about} (as JSON)",
                required=key in needed,
                default=declared.get("default") if plain else None,
                choices=choices,
                nullable=len(kinds) < len(options) or (key not in needed and declared.get("default") is None) or not plain,
            )
        )
    parameters.sort(key=lambda p: not p.required)  # the compact form leaves out trailing ones
    return Signature(name, description or name, tuple(parameters))


def arguments_for(signature: Signature, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` (by our signature) as the other side wants it; optional ones that were not given are left out.

    Raises ToolError where text is no JSON that has to be.
    """
    wanted = {}
    for parameter in signature.parameters:
        value = given[parameter.name]
        if not parameter.required and value == parameter.default:
            continue
        if parameter.description.endswith("(as JSON)") and isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise ToolError(f"{parameter.name} is JSON, got {value!r:.40}") from None
        wanted[parameter.name] = value
    return wanted


def add_tool(env: WorkflowEnv, signature: Signature, invoke: Invoke) -> None:
    """Give one environment, not its class, a tool that its class does not know. Raises BadInput for a name twice."""
    if signature.name in env.signatures:
        raise BadInput(f"{env.name}: two tools are called '{signature.name}'")
    attribute = f"_tool_{len(env.signatures)}"
    setattr(env, attribute, lambda **given: invoke(given))
    env.signatures = {**env.signatures, signature.name: signature}  # type: ignore[misc]
    env._methods = {**env._methods, signature.name: attribute}  # type: ignore[misc]


def shown(observation: Any, field: str | None = None) -> str:
    """An observation as text: its ``field``, its only text, or JSON."""
    if field is not None and isinstance(observation, Mapping):
        observation = observation.get(field)
    if isinstance(observation, Mapping):
        told = {k: v for k, v in observation.items() if v not in (None, "", [], {})}
        if len(told) == 1 and isinstance(only := next(iter(told.values())), str):
            return only
        return json.dumps(told, ensure_ascii=False)
    return observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)
