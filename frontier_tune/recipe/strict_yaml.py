"""YAML as people's files are read: recipes, policies, data sheets."""

from __future__ import annotations

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


def read(text: str) -> Any:
    """The one document in ``text`` (JSON is YAML, too); None where it is empty. Raises yaml.YAMLError, also for a key twice."""
    return _Loader(text).get_single_data()
