"""What this machine has: memory that may still be used, disk, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class GPU:
    """``memory`` in bytes, as the driver states it."""

    name: str
    memory: int


def gpus() -> list[GPU]:
    """The GPUs that the driver's own tool lists and CUDA_VISIBLE_DEVICES leaves; none where there is no such tool or it fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return visible(read_gpus(done.stdout), os.environ.get("CUDA_VISIBLE_DEVICES")) if done.returncode == 0 else []


def visible(found: list[GPU], shown: str | None) -> list[GPU]:
    """Those that CUDA shows to a process with this CUDA_VISIBLE_DEVICES (None: all): numbers, up to the first that is none."""
    if shown is None:
        return found
    names = [name.strip() for name in shown.split(",")]
    if any(name.startswith(("GPU-", "MIG-")) for name in names):  # by identity, which the list does not tell
        return found[: len(names)]
    there = [name.isdigit() and int(name) < len(found) for name in names]
    return [found[int(name)] for name in names[: there.index(False) if False in there else None]]


def read_gpus(text: str) -> list[GPU]:
    """From lines ``name, MiB``."""
    rows = [line.rsplit(",", 1) for line in text.splitlines() if line.count(",")]
    return [GPU(name.strip(), int(memory) * MIB) for name, memory in rows if memory.strip().isdigit()]


def available_memory() -> int:
    """Bytes that may still be used: the machine's, or the container's limit where that is lower."""
    import psutil

    free = int(psutil.virtual_memory().available)
    left = cgroup_left(Path("/sys/fs/cgroup"))
    return free if left is None else min(free, left)


def cgroup_left(group: Path) -> int | None:
    """Bytes that a cgroup (version 2) has left, None without a limit. Its file cache counts as used there, but gives way."""
    limit, used, stat = group / "memory.max", group / "memory.current", group / "memory.stat"
    if not (limit.is_file() and used.is_file()) or limit.read_text().strip() == "max":
        return None
    cached = dict(line.split() for line in stat.read_text().splitlines()).get("inactive_file", 0) if stat.is_file() else 0
    return int(limit.read_text()) - int(used.read_text()) + int(cached)


def free_disk(directory: Path) -> tuple[int, Path]:
    """Bytes free where ``directory`` is or would be, and the nearest directory that exists."""
    existing = next(p for p in [directory, *directory.absolute().parents] if p.exists())
    return shutil.disk_usage(existing).free, existing


def size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / MIB:.0f} MiB"
