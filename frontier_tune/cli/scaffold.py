"""Write a new environment into a workspace: a small real workflow that passes its own audit, to be changed step by step."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from frontier_tune.contracts import BadInput

TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9_]{1,40}")


def create(name: str, root: Path) -> list[Path]:
    """Scaffold ``envs/<name>`` with README and test, and ``recipes/<name>.yaml``, under ``root``; returns what was written.

    Raises BadInput for a name that is no package's, or where something is there already; then nothing is written.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise BadInput(
            f"env init: '{name}' can't be imported; name it in lower case letters, digits and _, such as travel_expenses"
        )
    if not root.is_dir():
        raise BadInput(f"env init: {root} is no directory; name the workspace with --root")
    home = root / "envs" / name
    written = {
        home / "__init__.py": "__init__.py.j2",
        home / "environment.py": "environment.py.j2",
        home / "README.md": "README.md.j2",
        home / "tests" / f"test_{name}.py": "test_environment.py.j2",
        root / "recipes" / f"{name}.yaml": "recipe.yaml.j2",
    }
    there = next((path for path in (home, *written) if path.exists()), None)
    if there is not None:
        raise BadInput(f"env init: {there} is there already; choose another name")
    values = {"name": name, "title": name.replace("_", " ").capitalize(), "class_name": _class_name(name)}
    for path, template in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_render(template, values), encoding="utf-8")
    return list(written)


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _render(template: str, values: dict[str, str]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string((TEMPLATES / template).read_text(encoding="utf-8")).render(values)
