"""Find an environment by name: a directory of the workspace, an import path, or an installed package's entry point."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from frontier_tune.contracts import BadInput
from frontier_tune.sdk.env import WorkflowEnv

ENTRY_POINTS = "frontier_tune.environments"


def load_environment(path: str, root: str | Path = ".", **options: Any) -> WorkflowEnv:
    """The environment at ``path``, constructed with ``options``.

    ``path`` is a directory under the workspace ``root`` (``envs/month_end_close``), an import path ``module:Class``, or the name
    of an entry point in the group ``frontier_tune.environments``. ``envs.*`` and ``rewards.*`` of ``root`` become importable.

    Raises BadInput, which says what was looked for, where, and what there is.
    """
    cls = find_class(path, root)
    try:
        inspect.signature(cls).bind(**options)
    except TypeError as e:
        known = [p for p in inspect.signature(cls).parameters if p not in ("args", "kwargs")]
        raise BadInput(f"environment.options of '{path}': {e}; options here: {', '.join(known) or 'none'}") from None
    return cls(**options)


def find_class(path: str, root: str | Path = ".") -> type[WorkflowEnv]:
    """The class behind ``path``; see load_environment."""
    root = Path(root).resolve()
    _make_importable(root)
    if ":" in path:
        module_name, _, attribute = path.partition(":")
        found = getattr(_import(module_name, path), attribute, None)
        if found is None:
            raise BadInput(f"environment '{path}': {module_name} has no '{attribute}'")
        return _checked(found, path)
    if (root / path).is_dir():
        return _from_directory((root / path).resolve(), root, path)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == path:
            return _checked(point.load(), path)
    near = difflib.get_close_matches(path, list_environments(root), n=1, cutoff=0.4)
    known = f"did you mean '{near[0]}'?" if near else f"here are: {', '.join(list_environments(root)) or 'none'}"
    raise BadInput(f"environment '{path}': no such directory under {root}, no entry point, no module:Class; {known}")


def list_environments(root: str | Path = ".") -> list[str]:
    """Names that load_environment takes here: directories of ``envs/``, then entry points."""
    folder = Path(root) / "envs"
    names = [f"envs/{d.name}" for d in sorted(folder.glob("[a-z]*")) if (d / "__init__.py").is_file()]
    return names + sorted(point.name for point in entry_points(group=ENTRY_POINTS))


def source(path: str, root: str | Path = ".") -> Path:
    """Where an environment's own files lie: its directory in the workspace, or that of the package that defines its class. Of a
    module in no package it is the module: what lies beside that one is not the environment's."""
    directory = (Path(root) / path).resolve()
    if directory.is_dir():
        return directory
    cls = find_class(path, root)
    file = Path(inspect.getfile(cls))
    return file.parent if "." in cls.__module__ else file


def environment_hash(path: str, root: str | Path = ".") -> str:
    """SHA-256 over names and contents of the environment's files, compiled and hidden ones left out."""
    return _hash(source(path, root))


def loaded_code(path: str, root: str | Path = ".") -> dict[str, str]:
    """SHA-256 of every module of the environment, and of the workspace's ``rewards``, that this process has imported, by file."""
    where = source(path, root)
    own = [where, (Path(root) / "rewards").resolve()]
    found = {}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(".py") and any(Path(file).resolve().is_relative_to(o) for o in own):
            with contextlib.suppress(OSError):
                found[file] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def _hash(where: Path) -> str:
    digest = hashlib.sha256()
    directory, files = (where.parent, [where]) if where.is_file() else (where, list(where.rglob("*")))
    for file in sorted(files, key=lambda f: f.relative_to(directory).as_posix()):
        relative = file.relative_to(directory)
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
            digest.update(f"{relative.as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _make_importable(root: Path) -> None:
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    for top in ("envs", "rewards"):
        folder = root / top
        if folder.is_dir() and importlib.util.find_spec(top) is not None:
            # Another workspace's regular package of that name hides a folder without __init__.py, wherever it stands on the path.
            search = importlib.import_module(top).__path__
            if str(folder) not in search:
                search.insert(0, str(folder))


def _from_directory(directory: Path, root: Path, path: str) -> type[WorkflowEnv]:
    if not directory.is_relative_to(root):
        raise BadInput(f"environment '{path}': {directory} lies outside the workspace {root}")
    parts = directory.relative_to(root).parts
    if not parts or not all(part.isidentifier() for part in parts):
        raise BadInput(f"environment '{path}': rename it so that it can be imported (letters, digits, _)")
    package = ".".join(parts)
    modules = [_import(package, path)]
    if (directory / "environment.py").is_file():
        modules.append(_import(package + ".environment", path))
    origin = getattr(modules[0], "__path__", [""])
    if directory not in [Path(p).resolve() for p in origin]:
        raise BadInput(f"environment '{path}': another '{package}' is imported already, from {list(origin)[0]}")
    for module in modules:
        named = getattr(module, "ENVIRONMENT", None)
        if named is not None:
            return _checked(named, path)
        classes: set[type[WorkflowEnv]] = {c for _, c in inspect.getmembers(module, inspect.isclass) if _is_own(c, package)}
        if len(classes) == 1:
            return classes.pop()
        if classes:
            names = ", ".join(sorted(c.__name__ for c in classes))
            raise BadInput(f"environment '{path}': {module.__name__} has several environments ({names}); set ENVIRONMENT to one")
    raise BadInput(f"environment '{path}': neither {package} nor {package}.environment defines a WorkflowEnv or ENVIRONMENT")


def _is_own(cls: type, package: str) -> TypeGuard[type[WorkflowEnv]]:
    own = cls.__module__ == package or cls.__module__.startswith(package + ".")
    return own and issubclass(cls, WorkflowEnv) and not inspect.isabstract(cls)


def _import(module: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        place = "" if "importlib" in frame.filename else f" ({frame.filename}:{frame.lineno})"
        raise BadInput(f"environment '{path}': import of {module} failed: {type(e).__name__}: {e}{place}") from e


def _checked(found: Any, path: str) -> type[WorkflowEnv]:
    if not (inspect.isclass(found) and issubclass(found, WorkflowEnv)):
        raise BadInput(f"environment '{path}': {found!r} is no subclass of frontier_tune.sdk.WorkflowEnv")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise BadInput(f"environment '{path}': {found.__name__} lacks {missing}")
    return found
