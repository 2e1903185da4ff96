"""Builds and loads the C++ kernels, once for each source, compiler and torch, into the user's cache.

The library is compiled against torch's stable ABI (no tie beyond torch's minor version) with the machine's own
g++, in seconds. Every kernel is compiled for three instruction sets, those in bfloat16 for two more; the best that the processor
has is chosen when it is loaded. ``FRONTIER_TUNE_ISA`` (amx_bf16, avx512_bf16, avx512, avx2, portable) lowers that choice,
``FRONTIER_TUNE_CACHE`` moves the cache.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from frontier_tune.contracts import BadInput

CSRC = Path(__file__).parent / "csrc"
# The oldest torch whose stable ABI has everything that is used here: 2.11.
_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
_COMMON = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    "-Wall",
)
# Instruction set -> flags. The order is that of preference.
_X86 = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
}
# For kernels in bfloat16 alone; the others run as avx512.
_X86_BF16 = {
    "avx512_bf16": (*_X86["avx512"], "-mavx512bf16"),
    "amx_bf16": (*_X86["avx512"], "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
NAMES = ("portable", "avx2", "avx512", "avx512_bf16", "amx_bf16")  # by the number that the library gives them
KERNELS, KERNELS_BF16 = "kernels.cpp", "kernels_bf16.cpp"  # compiled once for each instruction set
OPS = ("ops.cpp", "attention_ops.cpp", "route_ops.cpp", "training_ops.cpp")  # compiled once: what torch sees


def cache_directory() -> Path:
    """Where built libraries lie: ``FRONTIER_TUNE_CACHE``, else the user's cache directory."""
    own = os.environ.get("FRONTIER_TUNE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frontier-tune"


def compiler() -> str:
    """The C++ compiler: ``CXX``, else g++. Raises BadInput where there is none."""
    name = os.environ.get("CXX") or "g++"
    found = shutil.which(name)
    if found is None:
        raise BadInput(
            f"no C++ compiler: {name} is not on the path, and the CPU kernels are built on the machine that runs them; "
            "on Debian or Ubuntu: sudo apt-get install g++"
        )
    return found


def _sets(bf16: bool = False) -> dict[str, tuple[str, ...]]:
    sets = (_X86 | _X86_BF16 if bf16 else _X86) if platform.machine() in ("x86_64", "AMD64") else {}
    return sets | {"portable": ()}


def _key(cxx: str, extra: Sequence[str]) -> str:
    """Digest of everything that the library is made from."""
    digest = hashlib.sha256()
    for path in sorted(CSRC.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()[:1]
    minor = ".".join(torch.__version__.split(".")[:2])
    digest.update(repr((version, minor, platform.machine(), _COMMON, _sets(True), tuple(extra))).encode())
    return digest.hexdigest()[:16]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(
            f"the CPU kernels could not be compiled by {command[0]} (it takes C++20: g++ 11 or newer):\n{done.stderr[-3000:]}"
        )


def build(directory: Path | None = None, extra: Sequence[str] = ()) -> Path:
    """Compile the library unless it lies in the cache already; returns its path. ``extra``: more compiler flags (sanitizers).

    Several processes may call this at once: one builds, the others wait; nothing half-written is ever loaded.
    Raises BadInput without a working compiler.
    """
    cxx = compiler()
    directory = directory or cache_directory()
    target = directory / f"frontier_tune_native-{_key(cxx, extra)}.so"
    if target.is_file():
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / ".build.lock").touch()
    except OSError as e:
        raise BadInput(
            f"the CPU kernels can't be kept in {directory}: {e.strerror}; name a directory in FRONTIER_TUNE_CACHE"
        ) from None
    root = Path(torch.__file__).parent
    include = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", f"-I{CSRC}"]
    with (directory / ".build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            return target
        with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as scratch:
            jobs = []
            for source, sets in ((KERNELS, _sets()), (KERNELS_BF16, _sets(True))):
                for name, flags in sets.items():
                    out = f"{scratch}/{Path(source).stem}-{name}.o"
                    jobs.append(
                        [cxx, *_COMMON, *flags, *extra, f"-DFT_ISA={name}", *include, "-c", str(CSRC / source), "-o", out]
                    )
            has = [f"-DFT_HAS_{name.upper()}" for name in _sets(True)]
            for source in OPS:
                out = f"{scratch}/{Path(source).stem}.o"
                jobs.append([cxx, *_COMMON, *extra, _TARGET, *include, *has, "-c", str(CSRC / source), "-o", out])
            with ThreadPoolExecutor(max_workers=2) as pool:
                list(pool.map(_run, jobs))
            objects = sorted(str(p) for p in Path(scratch).glob("*.o"))
            made = f"{scratch}/library.so"
            _run([cxx, "-shared", *extra, *objects, "-o", made, f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10"])
            os.replace(made, target)
    return target


@functools.cache
def load() -> str:
    """Build if need be, and register the operators as ``torch.ops.frontier_tune``. Returns the instruction set in use; that of
    the kernels in bfloat16 is ``NAMES[torch.ops.frontier_tune.isa(True)]``.

    Raises BadInput without a working compiler, or for an unknown ``FRONTIER_TUNE_ISA``.
    """
    wanted = os.environ.get("FRONTIER_TUNE_ISA", "")
    if wanted not in ("", *NAMES):
        raise BadInput(f"FRONTIER_TUNE_ISA: {wanted!r}; known are {', '.join(reversed(NAMES))}")
    torch.ops.load_library(str(build()))
    return NAMES[torch.ops.frontier_tune.isa()]


def usable(t: torch.Tensor) -> bool:
    """Whether the operators take ``t``'s device and type; the first call loads them."""
    if t.device.type != "cpu" or t.dtype != torch.float32:
        return False
    load()
    return True
