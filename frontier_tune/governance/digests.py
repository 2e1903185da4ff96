"""SHA-256 of files and of directories."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from frontier_tune.contracts import BadInput, content_hash

_BUILT = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}  # made by running the code, not part of it


def file_digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def walk(directory: Path) -> Iterator[Path]:
    """Everything but directories below ``directory``, dot files and links included, in order; links are not followed."""
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))
        else:
            yield Path(entry.path)


def irregular(path: Path) -> str | None:
    """What ``path`` is where it is no plain file: a link's target, or what a pipe yields, could change under a digest."""
    if path.is_symlink():
        return f"a symbolic link (to {os.readlink(path)})"
    return None if path.is_file() else "neither file nor directory"


def tree(directory: Path, *, code: bool = False) -> dict[str, str]:
    """Digest of every file below ``directory`` by relative path; ``code`` leaves out what running Python code leaves behind.

    A link to a file counts as that file (a hub's cache is made of such links), and one file is a tree of itself. Raises BadInput
    for a missing directory, and for anything in it that is no file: a link to a directory, a broken link, a pipe.
    """
    if directory.is_file():
        return {directory.name: file_digest(directory)}
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such directory")
    files = {}
    for path in walk(directory):
        relative = path.relative_to(directory)
        if code and (_BUILT & set(relative.parts) or path.suffix == ".pyc"):
            continue
        if not path.is_file():
            raise BadInput(f"{path}: {irregular(path)} can't be recorded; put the files themselves there")
        files[relative.as_posix()] = file_digest(path)
    return files


def tree_digest(files: Mapping[str, str]) -> str:
    """One digest of a whole tree: of the canonical JSON of its path-to-digest mapping."""
    return content_hash(dict(files))
