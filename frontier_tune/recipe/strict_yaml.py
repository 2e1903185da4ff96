"""YAML as people's files are read: recipes, policies, data sheets."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: of a section that was pasted in again YAML would keep the last alone, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, Any] = {}
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError("a key stands twice, first", seen[key.value], f"'{key.value}' again", key.start_mark)
            seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


class _RecipeLoader(_Loader):
    """Reads an unquoted 1e-3 as a number, which YAML 1.1 takes for text, and a date as text, as JSON has no dates."""

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in _Loader.yaml_implicit_resolvers.items()
    }


class _RecipeDumper(yaml.SafeDumper):
    """Quotes texts that ``_RecipeLoader`` would read as numbers."""


_POWER = re.compile(r"[-+]?(?:[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.)[eE][-+]?[0-9]+\Z")
for _kind in (_RecipeLoader, _RecipeDumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _POWER, list("-+.0123456789"))


def read(text: str) -> Any:
    """The one document in ``text`` (JSON is YAML, too); None where it is empty. Raises yaml.YAMLError, also for a key twice."""
    return _load(_Loader(text))


def read_recipe(text: str) -> Any:
    """``read`` for recipes: 1e-3 is a number unless it is quoted, a date is text."""
    return _load(_RecipeLoader(text))


def write_recipe(data: Any) -> str:
    """Text that ``read_recipe`` gives ``data`` for."""
    return yaml.dump(data, Dumper=_RecipeDumper, sort_keys=False)


def _load(loader: _Loader) -> Any:
    try:
        return loader.get_single_data()
    except ValueError as e:  # of a value that has the form of its type alone: 2024-02-30
        raise yaml.YAMLError(str(e)) from None
