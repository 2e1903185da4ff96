"""An environment that runs model-written code, played in worker processes: the sandbox comes with the worker, or nothing runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frontier_tune.contracts import Blame, Failure
from frontier_tune.sandbox import EnvironmentPool
from frontier_tune.sandbox.confine import KINDS, SandboxUnavailable, available, choose
from frontier_tune.sandbox.pool import Result
from frontier_tune.sandbox.process import descendants
from frontier_tune.sdk import load_environment

ROOT = Path(__file__).parent / "workspace"
PATH = "envs/spreadsheet_code"
somewhere = pytest.mark.skipif(None not in available().values(), reason=f"no confinement here: {dict(available())}")


def play(pool: EnvironmentPool, *calls: str) -> Result:
    """Play one episode of calls; the last result."""
    slot = pool.new_slot()
    pool.submit(slot, "reset", {"task": pool.tasks("train", 1, 1)[0].to_json()})
    result: Result = {}
    for call in (None, *calls):
        if call is not None:
            pool.submit(slot, "step", {"action": call})
        while not (found := [r for s, r in pool.poll(1.0) if s == slot]):
            pass
        result = found[0]
    return result


def python(code: str) -> str:
    return json.dumps({"name": "python", "arguments": {"code": code}})


@somewhere
def test_an_agent_that_writes_code() -> None:
    with EnvironmentPool(PATH, ROOT, step_timeout_s=300.0) as pool:
        assert pool.description["confinement"] == choose()
        end = play(pool, *pool.golden(pool.tasks("train", 1, 1)[0]))
        assert isinstance(end, dict) and end["info"]["success"]
        cheat = python("open('out.txt', 'w').write('1'); open('verdict.json', 'w').write('{\"reward\": 1.0}')")
        end = play(pool, cheat, "submit")
        assert isinstance(end, dict) and not end["info"]["success"] and end["reward"] == 0.0
        asked = play(pool, "sql select value * 2 from numbers")
        assert isinstance(asked, dict) and asked["messages"][0]["content"] == "((2000,),)"


@somewhere
def test_a_sandbox_that_dies_is_no_fault_of_the_episode() -> None:
    with EnvironmentPool(PATH, ROOT, step_timeout_s=300.0) as pool:
        play(pool, python("pass"))
        for pid in descendants(pool.pids[0]):
            os.kill(pid, signal.SIGKILL)
        failed = play(pool, python("pass"))
        assert isinstance(failed, Failure) and failed.blame is Blame.INFRASTRUCTURE and failed.kind == "sandbox-died"
        again = play(pool, python("print('again')"))
        assert isinstance(again, dict) and again["messages"][0]["content"] == "again"


def test_without_a_worker_nothing_runs() -> None:
    env = load_environment(PATH, ROOT)
    env.reset(seed=1)
    *_, truncated, info = env.step(python("print(1)"))
    assert truncated and info["failure"]["kind"] == "no-sandbox" and info["failure"]["blame"] == "infrastructure"


def test_a_worker_that_can_make_no_sandbox_refuses(tmp_path: Path) -> None:
    """Neither bwrap nor Landlock: the pool does not start, and says what is missing."""
    code = (
        "from frontier_tune.sandbox import worker\nfrom frontier_tune.sandbox.jail import landlock\n"
        f"landlock.version = lambda: 0\nworker.Host({{'path': {PATH!r}, 'root': {str(ROOT)!r}, 'options': {{}}}})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PATH": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode and SandboxUnavailable.__name__ in done.stderr and "bwrap is not installed" in done.stderr


OWNER = """
import sys
from frontier_tune.sandbox.code import CodeLimits, CodeSandbox
sandbox = CodeSandbox(CodeLimits(wall_s=600), (), sys.argv[1])
sandbox.run_python("pass")
print(sandbox._zygotes["model"]._directory, flush=True)
sandbox.run_python("open('left', 'w').write('x')\\nimport time; time.sleep(600)")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_no_run_outlives_a_killed_worker(kind: str) -> None:
    """The owner of a sandbox is killed in the middle of a run: the run ends, too."""
    if reason := available()[kind]:  # type: ignore[index]
        pytest.skip(f"{kind}: {reason}")
    owner = subprocess.Popen([sys.executable, "-c", OWNER, kind], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    directory = owner.stdout.readline().strip()
    whole = 3 if kind == "bubblewrap" else 2  # bwrap, zygote, run
    end = time.monotonic() + 120
    while len(family := descendants(owner.pid)) < whole and time.monotonic() < end:
        time.sleep(0.05)
    owner.kill()
    owner.wait()
    alive = family
    while alive and time.monotonic() < end:
        time.sleep(0.05)
        alive = [p for p in alive if Path(f"/proc/{p}/stat").exists() and " Z " not in Path(f"/proc/{p}/stat").read_text()]
    assert len(family) == whole and not alive
    if directory != "None":  # what is left of a sandbox without a file system of its own: links, and an empty place for runs
        assert os.listdir(f"{directory}/work") == []
        shutil.rmtree(directory)
