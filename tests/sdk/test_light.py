"""The SDK works where nothing heavy is installed: imported, an environment loaded, an episode played and graded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Whatever an environment's author need not have. None in sys.modules: importing it fails as if it were not installed.
ABSENT = ("torch", "ray", "vllm", "transformers", "peft", "trl", "numba", "pandas", "scipy", "safetensors", "datasets")
PLAY = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from frontier_tune.sdk import load_environment
env = load_environment("envs/month_end_close", ".")
task = env.tasks("heldout", 1, 0)[0]
env.reset(options={"task": task})
for call in env.golden(task):
    messages, reward, terminated, truncated, info = env.step(call)
import openpyxl, formualizer
print(json.dumps([reward, info["success"], sorted(m for m in json.loads(sys.argv[1]) if sys.modules[m] is not None)]))
"""


def test_an_episode_needs_nothing_heavy(root: Path) -> None:
    command = [sys.executable, "-c", PLAY, json.dumps(ABSENT)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1.0, True, []]


def test_importing_the_sdk_imports_no_workbook_library(root: Path) -> None:
    """What half of the environments never use is imported when it is used."""
    # What measures coverage is in this process before anything else, and has modules of its own.
    code = "import sys; had = set(sys.modules); import frontier_tune.sdk; "
    code += "print(sorted(set(sys.argv[1:]) & sys.modules.keys() - had))"
    command = [sys.executable, "-c", code, *ABSENT, "openpyxl", "formualizer", "sqlite3"]
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == "[]\n"
