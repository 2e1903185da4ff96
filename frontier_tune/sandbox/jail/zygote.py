"""The first process of a sandbox: imports once what runs will want, then forks an interpreter for each run, one at a time.

Standard input brings, standard output takes frames: a line of JSON, whose ``sizes`` are the lengths of what follows it.
The first frame is the set-up; it is answered by ``{"ready": ...}``. This process runs no code but this library's.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import sys
from typing import Any, BinaryIO

from . import landlock, limits
from .run import run

# Modules that workbook code imports all the time. What isn't there is left out.
PRELOAD = (
    *(
        "collections",
        "copy",
        "csv",
        "datetime",
        "decimal",
        "io",
        "itertools",
        "json",
        "math",
        "pathlib",
        "random",
        "re",
        "shutil",
    ),
    *("sqlite3", "statistics", "string", "tempfile", "textwrap", "typing", "zipfile", "zoneinfo", "xml.etree.ElementTree"),
)


def main() -> None:
    """Serve until standard input closes."""
    commands, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    setup, _ = read(commands) or ({}, [])
    if not setup:
        return
    # The library's own directory has done its work: a run finds the standard library and the packages that were granted.
    sys.path[:] = [p for p in sys.path if p != setup["library"]] + [setup["packages"]]
    missing = _preload((*PRELOAD, *setup["preload"]))
    setup["parent"] = commands.fileno()
    if setup["landlock"] is not None:
        limits.drop_capabilities()
        lock = setup["landlock"]
        # It watches its runs' open files by /proc; a run's own, narrower lock leaves that out.
        landlock.restrict([*lock["readable"], "/proc"], [setup["work"], os.devnull], lock["listable"])
    gc.collect()
    gc.freeze()  # the runs' collectors leave our objects, and so their pages, alone
    write(answers, {"ready": True, "missing": missing})
    while (frame := read(commands)) is not None:
        head, contents = frame
        ended = run(setup, head["source"], dict(zip(head["names"], contents)), head["artifacts"])
        told = {"exit": ended.exit, "killed_by": ended.killed_by, "seconds": ended.seconds, "names": list(ended.files)}
        write(answers, told, [ended.stdout, ended.stderr, *ended.files.values()])


def _preload(modules: tuple[str, ...]) -> list[str]:
    missing = []
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as e:
            missing.append(f"{name}: {e}")
    if "openpyxl" in modules:
        _open_a_workbook()
    return missing


def _open_a_workbook() -> None:
    """A first workbook imports what openpyxl leaves for later."""
    import openpyxl

    buffer = io.BytesIO()
    openpyxl.Workbook().save(buffer)
    openpyxl.load_workbook(buffer)


def read(stream: BinaryIO) -> tuple[dict[str, Any], list[bytes]] | None:
    """One frame; None where the other end is closed."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    return head, [stream.read(size) for size in head["sizes"]]


def write(stream: BinaryIO, head: dict[str, Any], contents: list[bytes] | None = None) -> None:
    contents = contents or []
    stream.write(json.dumps(head | {"sizes": [len(c) for c in contents]}).encode() + b"\n")
    for content in contents:
        stream.write(content)
    stream.flush()
