"""Which files of the host a sandboxed interpreter sees: its binary, standard and shared libraries, granted packages."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from frontier_tune.contracts import BadInput

# Where the loader finds libraries, and the time zones. No programs: neither a shell nor a compiler is to be seen.
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/urandom", "/dev/random")
FOREIGN = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Runtime:
    """``interpreter``: the binary; ``libraries``: what it loads; ``standard``: directories of the standard library; ``packages``:
    name -> directory or file of each granted package."""

    interpreter: str
    libraries: tuple[str, ...]
    standard: tuple[str, ...]
    packages: tuple[tuple[str, str], ...]

    def standard_parts(self) -> list[str]:
        """What the standard library consists of, without the packages that may be installed below it."""
        return [str(p) for d in self.standard for p in sorted(Path(d).iterdir()) if p.name not in FOREIGN]


@lru_cache(maxsize=8)
def runtime(distributions: tuple[str, ...]) -> Runtime:
    """The runtime of this interpreter with the packages of ``distributions`` and of what they require. Raises BadInput."""
    interpreter = os.path.realpath(sys.executable)
    standard = {os.path.realpath(sysconfig.get_path(name, vars=_base())) for name in ("stdlib", "platstdlib")}
    libraries = []
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        directory = sysconfig.get_config_var("LIBDIR") or ""
        libraries += [str(p) for p in Path(directory).glob("libpython*.so*")]
    packages = {name: path for d in _closure(distributions) for name, path in _top_level(d)}
    return Runtime(interpreter, tuple(libraries), tuple(sorted(standard)), tuple(sorted(packages.items())))


def _base() -> dict[str, str]:
    """A virtual environment's interpreter has its standard library where its base is."""
    prefix, exec_prefix = sys.base_prefix, sys.base_exec_prefix
    return {"base": prefix, "installed_base": prefix, "platbase": exec_prefix, "installed_platbase": exec_prefix}


def _closure(distributions: tuple[str, ...]) -> list[importlib.metadata.Distribution]:
    found: dict[str, importlib.metadata.Distribution] = {}
    queue = [(name, True) for name in distributions]
    while queue:
        name, asked = queue.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if asked:
                raise BadInput(f"sandbox packages: '{name}' is not installed here; install it, or take it out") from None
            continue  # a requirement for another platform
        for requirement in found[key].requires or ():
            text, _, marker = requirement.partition(";")
            if "extra" not in marker:
                queue.append((re.split(r"[\s\[(<>=!~;]", text.strip(), maxsplit=1)[0], False))
    return list(found.values())


def _top_level(distribution: importlib.metadata.Distribution) -> list[tuple[str, str]]:
    names = {f.parts[0] for f in distribution.files or () if f.parts[0] != ".." and not os.path.isabs(str(f))}
    kept = sorted(n for n in names if n != "__pycache__" and not n.endswith(".pth"))
    return [(n, os.path.realpath(str(distribution.locate_file(n)))) for n in kept]
