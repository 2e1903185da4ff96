"""The import arrows of docs/architecture.md, held by reading every file: imports inside functions count, too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "frontier_tune"

EVERYWHERE = {"contracts", "recipe"}
# room: the rooms that it may import, besides itself and EVERYWHERE. What stands below an arrow may be imported from above it.
ARROWS: dict[str, set[str]] = {
    "sdk": set(),
    "algorithms": set(),
    "governance": set(),
    "reporting": set(),
    "native": set(),
    "experts": {"native"},
    "interop": {"sdk"},
    "sandbox": {"sdk"},
    "bases": {"experts", "sdk"},
    "sampling": {"experts", "native"},
    "serving": {"experts"},
    "learning": {"algorithms", "experts", "bases", "native"},
    "episodes": {"sdk", "sandbox"},
    "evaluation": {"episodes", "sdk", "sandbox"},
    "traces": {"episodes", "sdk", "governance"},
    "contracts": set(),
    "recipe": set(),
}
ROOMS = {*ARROWS, "orchestration", "cli"}
ARROWS["orchestration"] = ROOMS - {"cli", "orchestration"}
ARROWS["cli"] = ROOMS - {"cli"}

# An environment's author and a worker process pay for none of these.
HEAVY = {"torch", "ray", "vllm", "transformers", "peft", "trl", "pandas"}


def imported(path: Path) -> set[tuple[str, int]]:
    """Every module that ``path`` imports, anywhere in it, as an absolute dotted name with its line."""
    found: set[tuple[str, int]] = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, node.lineno) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from frontier_tune import sdk` names the room in its second half
            found |= {(f"{module}.{alias.name}", node.lineno) for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(LIBRARY).with_suffix("").parts[0]


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def test_every_room_is_in_the_table() -> None:
    there = {room_of(p) for p in files(LIBRARY)} - {"__init__", "__main__"}
    assert there == ROOMS


def test_arrows_run_downward() -> None:
    wrong = []
    for path in files(LIBRARY):
        room = room_of(path)
        allowed = ARROWS.get(room, ROOMS) | EVERYWHERE | {room}
        for name, line in imported(path):
            parts = name.split(".")
            if parts[0] in {"envs", "rewards", "tests", "benchmarks", "scripts"}:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}: content of the workspace is loaded by path")
            if parts[0] == "frontier_tune" and len(parts) > 1 and parts[1] in ROOMS and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}: {room} may import {sorted(allowed - {room})}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("folder", ["envs", "rewards"])
def test_workspace_content_imports_the_sdk_alone(folder: str) -> None:
    wrong = []
    for path in files(ROOT / folder):
        for name, line in imported(path):
            parts = name.split(".")
            library = parts[0] == "frontier_tune" and (len(parts) < 2 or parts[1] != "sdk")
            if "tests" not in path.parts and (library or parts[0] in HEAVY):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_table_has_no_cycle() -> None:
    """Arrows that all run downward can be put in one order."""
    left, order = {room: set(below) for room, below in ARROWS.items()}, []
    while ready := sorted(room for room, below in left.items() if not below - set(order)):
        order += ready
        for room in ready:
            del left[room]
    assert not left, f"rooms that import each other: {sorted(left)}"


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that are loaded after ``statement`` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["sdk", "sdk.registry", "sandbox", "contracts", "recipe", "governance", "traces", "cli.main"])
def test_light_rooms_load_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import frontier_tune.{module}") & HEAVY


def test_the_reader_sees_lazy_and_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader itself: an arrow hidden in a function, behind `from . import` or an alias is found."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "frontier_tune" / "sdk" / "env.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "def f():\n    import frontier_tune.learning.learner as x\n    from ..sampling import engine\n    from . import rubric\n"
    )
    assert {name for name, _ in imported(path)} == {
        "frontier_tune.learning.learner",
        "frontier_tune.sampling.engine",
        "frontier_tune.sdk.rubric",
    }
