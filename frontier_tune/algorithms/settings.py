"""What a setting's value may be: the types of an algorithm's fields, and those of the recipe's ``algorithm`` section."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from frontier_tune import recipe as recipes
from frontier_tune.contracts import BadInput

SECTION = recipes.Algorithm


def nearest(value: Any, allowed: Sequence[Any]) -> str:
    """A hint: the allowed value that is spelt most like ``value``, else all of them."""
    near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"one of {', '.join(map(str, allowed))}"


def choices(annotation: Any) -> tuple[Any, ...]:
    """The values that a Literal allows, alone or as a member of a union; empty for any other type."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for member in get_args(annotation) for value in choices(member))


def check_literals(algorithm: Any) -> None:
    """Raises ValueError where a Literal field of this dataclass has none of its values: it would act as one of them unnoticed."""
    try:
        hints = get_type_hints(type(algorithm))
    except NameError as e:
        raise ValueError(f"a field's type can't be resolved: {e}; import it where it is used, not under TYPE_CHECKING") from None
    for field in fields(algorithm):
        hint, value = hints[field.name], getattr(algorithm, field.name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{field.name} {value!r}: {nearest(value, get_args(hint))}")


def checked_options(name: str, options: dict[str, Any], cls: type[Any]) -> dict[str, Any]:
    """An own algorithm's ``options``; those named like a key of the recipe's section have that key's type and bounds.

    Raises BadInput for the first that is out of them.
    """
    shared = {key: value for key, value in options.items() if key in SECTION.model_fields.keys() - recipes.LOOP_SETTINGS}
    for key, value in shared.items():
        default = default_of(cls, key)
        if value is None and default is not None:
            raise BadInput(f"algorithm.options.{key}: nothing is given; leave it out for {name}'s default, {default!r}")
    try:
        section = SECTION.model_validate({**shared, "name": name})
    except ValidationError as e:
        found = e.errors()[0]
        key = str(found["loc"][0])
        allowed = choices(SECTION.model_fields[key].annotation)
        hint = f"{found['msg']}; {nearest(found['input'], allowed)}" if allowed else found["msg"]
        raise BadInput(f"algorithm.options.{key}: {hint} (got {found['input']!r})") from None
    return {**options, **{key: getattr(section, key) for key in shared}}


def default_of(cls: type[Any], name: str) -> Any:
    """The default of one of an algorithm's settings; MISSING where it has none, or no such setting."""
    return next((f.default for f in fields(cls) if f.name == name), MISSING)
