"""Directories of adapters and states that travel to other nodes, as files through Ray's object store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

Files = Mapping[str, np.ndarray]  # name -> content, uint8 [bytes]


def packed(directory: str | Path) -> dict[str, np.ndarray]:
    """The files of ``directory``, which has no directories in it."""
    return {p.name: np.frombuffer(p.read_bytes(), np.uint8) for p in Path(directory).iterdir() if p.is_file()}


@contextmanager
def unpacked(files: Files) -> Iterator[str]:
    """A directory that has them, for the body's duration."""
    with tempfile.TemporaryDirectory(prefix="travel-") as directory:
        for name, content in files.items():
            Path(directory, name).write_bytes(content.tobytes())
        yield directory


@contextmanager
def at_hand(directory: str | Files) -> Iterator[str]:
    """``directory`` itself, or, of one that was sent, a copy."""
    if isinstance(directory, str):
        yield directory
        return
    with unpacked(directory) as copy:
        yield copy
