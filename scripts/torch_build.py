"""Is the torch that pip finds, or that is installed, the build that this machine needs? Exit code 2 and what to do if not.

torch comes under one version number in a CPU build and several CUDA builds, from different indexes. Which one a plain
`pip install` brings depends on the user's pip configuration, so set-up asks before it downloads and looks again afterwards.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

HELP = """
Set-up needs torch's CPU build here. Tell pip where it lies, in one of these ways, then run make setup again:

  an index that holds it        PIP_EXTRA_INDEX_URL=https://<index with torch's CPU wheels> make setup
  a folder of wheels            PIP_FIND_LINKS=/path/to/wheels make setup
  for good                      pip config set global.extra-index-url https://<index with torch's CPU wheels>

docs/install.md has the details. If this machine does have an NVIDIA GPU, use DEVICE=gpu make setup.
"""

GPU_HELP = """pip prefers a local index or wheel folder that holds the CPU build. Run
  .venv/bin/python -m pip uninstall -y torch
and then PIP_CONFIG_FILE=/dev/null make setup, or DEVICE=cpu make setup to do without the GPU."""


def wanted(lock: Path) -> str:
    """The lock's line for torch (``torch==x.y.z``)."""
    match = re.search(r"^torch==\S+$", lock.read_text(), re.MULTILINE)
    if match is None:
        raise SystemExit(f"{lock}: no line for torch; write it anew with scripts/lock.py")
    return match.group()


def before(lock: Path) -> int:
    """What would pip bring? Its metadata tells: a CUDA build asks for NVIDIA's libraries."""
    requirement = wanted(lock)
    try:
        if importlib.metadata.version("torch").split("+")[0] == requirement.split("==")[1]:
            return 0  # it is here; `after` looks at the build itself
    except importlib.metadata.PackageNotFoundError:
        pass
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-"]
    asked = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    if asked.returncode:
        print(
            asked.stderr.strip(),
            f"pip finds no {requirement} for Python {sys.version.split()[0]}.",
            HELP,
            sep="\n",
            file=sys.stderr,
        )
        return 2
    found = json.loads(asked.stdout)["install"][0]
    needs = [r for r in found["metadata"].get("requires_dist", []) if re.match(r"(nvidia|cuda)[-_]", r, re.IGNORECASE)]
    if needs:
        where = found["download_info"]["url"].rsplit("/", 1)[0]
        print(f"pip would bring a CUDA build of {requirement} (from {where}).", HELP, sep="\n", file=sys.stderr)
        return 2
    return 0


def after(device: str) -> int:
    """Does the installed torch match the device? On the CPU path ``torch.version.cuda`` must be None."""
    import torch

    cuda = torch.version.cuda
    if device == "cpu" and cuda is not None:
        print(f"torch {torch.__version__} in .venv is a CUDA {cuda} build.", HELP, sep="\n", file=sys.stderr)
        print("Then remove this one first: .venv/bin/python -m pip uninstall -y torch", file=sys.stderr)
        return 2
    if device == "gpu" and cuda is None:
        print(
            f"torch {torch.__version__} in .venv is a CPU build, but this set-up is for a GPU.",
            GPU_HELP,
            sep="\n",
            file=sys.stderr,
        )
        return 2
    if device == "gpu" and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no GPU: is the driver recent enough for CUDA {cuda}? (nvidia-smi)", file=sys.stderr
        )
        return 2
    print(f"torch {torch.__version__} ({'CUDA ' + cuda if cuda else 'CPU build'})", file=sys.stderr)
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--before", type=Path, metavar="LOCK", help="ask pip, download nothing")
    which.add_argument("--after", choices=["cpu", "gpu"], help="look at the installed torch")
    arguments = parser.parse_args()
    sys.exit(before(arguments.before) if arguments.before else after(arguments.after))


if __name__ == "__main__":
    main()
