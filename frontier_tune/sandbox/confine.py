"""How a sandbox is closed: by bubblewrap, or by Landlock; in both, each run sets a seccomp filter, too. Nothing else is offered.

``available()`` says of each what is missing here; ``choose`` takes the first that works and refuses where none does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from frontier_tune.contracts import BadInput
from frontier_tune.sandbox.jail import landlock, seccomp
from frontier_tune.sandbox.runtime import DEVICES, FOREIGN, SYSTEM, Runtime, runtime

Confinement = Literal["bubblewrap", "landlock"]
KINDS: tuple[Confinement, ...] = ("bubblewrap", "landlock")

LIBRARY = str(Path(__file__).parent / "jail")
# Places inside.
WORK, PACKAGES, OURS = "/work", "/packages", "/library"
START = "import sys; sys.path.insert(0, sys.argv[1]); from jail.zygote import main; main()"
ENVIRONMENT = {
    **{"PATH": "/nowhere", "HOME": WORK, "TMPDIR": WORK, "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0"},
    **{"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
}


class SandboxUnavailable(BadInput):
    """Model-written code can't be confined here. It says what is missing and what to install; nothing was run."""


def bubblewrap_command(bwrap: str, seen: Runtime, disk_mb: int) -> list[str]:
    """The command that starts a zygote in namespaces of its own: ``seen`` read-only, a tmpfs for the work."""
    command = [bwrap, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    command += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    for path in SYSTEM:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for path in (*seen.standard, *seen.libraries, seen.interpreter):
        command += ["--ro-bind", path, path]
    for directory in seen.standard:
        for hidden in (os.path.join(directory, name) for name in FOREIGN):
            if os.path.isdir(hidden):
                command += ["--tmpfs", hidden, "--remount-ro", hidden]
    for name, path in seen.packages:
        command += ["--ro-bind", path, f"{PACKAGES}/{name}"]
    for device in DEVICES:
        command += ["--dev-bind", device, device]
    command += ["--ro-bind", LIBRARY, f"{OURS}/jail", "--size", str(disk_mb << 20), "--tmpfs", WORK]
    return [*command, "--remount-ro", "/", "--chdir", WORK, "--", *python_command(seen, OURS)]


def python_command(seen: Runtime, library: str) -> list[str]:
    """The zygote's interpreter: no site-packages, no user's, no bytecode written, its own environment alone."""
    return [seen.interpreter, "-S", "-s", "-P", "-B", "-X", "utf8", "-c", START, library]


def landlock_rules(seen: Runtime, packages: str) -> dict[str, list[str]]:
    """What the zygote and its runs may read without bubblewrap. ``packages``: directory of links to the granted packages.

    ``roots`` is coarser than ``readable``: a run is held by both, and its own has to be set at each run.
    """
    paths = [path for _, path in seen.packages]
    exact = [*SYSTEM, *DEVICES, seen.interpreter, *seen.libraries, *seen.standard_parts(), *paths, packages]
    roots = [*SYSTEM, *DEVICES, seen.interpreter, *seen.libraries, *seen.standard, *paths, packages]
    return {"readable": exact, "roots": roots, "listable": [*seen.standard]}


@lru_cache(maxsize=8)
def _without_bubblewrap(bwrap: str | None) -> str | None:
    if bwrap is None:
        return "bwrap is not installed (on Debian or Ubuntu: sudo apt-get install bubblewrap)"
    seen = runtime(())
    command = bubblewrap_command(bwrap, seen, 8)
    probe = [*command[: command.index("--") + 1], seen.interpreter, "-I", "-S", "-c", "print('sealed')"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=30, check=False, env={})
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"bwrap does not start: {e}"
    if done.stdout.strip() != "sealed":
        return f"bwrap can't make a sandbox here: {done.stderr.strip()[-300:] or f'exit status {done.returncode}'}"
    return None


def available() -> Mapping[Confinement, str | None]:
    """For each confinement None, or why it does not work here."""
    filtered = seccomp.unsupported()
    abi = landlock.version()
    without = f"Landlock {landlock.NEEDED} (Linux 6.2) is needed, " + (
        f"this kernel has {abi}" if abi else "this kernel has none"
    )
    return {
        "bubblewrap": filtered or _without_bubblewrap(shutil.which("bwrap")),
        "landlock": filtered or (None if abi >= landlock.NEEDED else without),
    }


def choose(wanted: Confinement | Literal["auto"] = "auto") -> Confinement:
    """The confinement to use: the ``wanted`` one, or the first that works. Raises SandboxUnavailable."""
    if wanted != "auto" and wanted not in KINDS:
        raise BadInput(f"confinement '{wanted}': known are auto, {', '.join(KINDS)}")
    reasons = available()
    for kind in KINDS if wanted == "auto" else (wanted,):
        if reasons[kind] is None:
            return kind
    asked = KINDS if wanted == "auto" else (wanted,)
    told = "; ".join(f"{kind}: {reasons[kind]}" for kind in asked)
    raise SandboxUnavailable(f"model-written code can't be confined here, so it is not run. {told}")
