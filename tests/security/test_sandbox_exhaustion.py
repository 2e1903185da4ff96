"""Code that would use the machine up, outlive its run, or reach its grader: ended, with nothing left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from frontier_tune.contracts import EpisodeFailed
from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sandbox.process import descendants
from frontier_tune.sdk import CodeOutcome
from tests.security.escape import LIMITS, alive_and_clean, attempts, none_got_through


def test_fork_bomb_and_programs(sandbox: CodeSandbox) -> None:
    before = len(descendants(os.getpid()))
    none_got_through(
        attempts(
            sandbox,
            """
import subprocess, multiprocessing, pty
for i in range(300):
    attempt("fork", lambda: os.fork())
attempt("vfork", lambda: call(58))
attempt("clone", lambda: call(56, 17, 0, 0, 0, 0))
attempt("clone into namespaces", lambda: call(56, 0x10000000 | 0x20000000 | 17, 0, 0, 0, 0))
attempt("clone3", lambda: call(435, ctypes.create_string_buffer(88), 88))
attempt("unshare", lambda: call(272, 0x10000000))
attempt("setns", lambda: call(308, 0, 0))
attempt("exec", lambda: os.execv(sys.executable, [sys.executable, "-c", "1"]))
attempt("execveat", lambda: call(322, -100, b"/bin/sh", 0, 0, 0))
attempt("spawn", lambda: os.posix_spawn(sys.executable, [sys.executable], {}))
attempt("subprocess", lambda: subprocess.run(["/bin/sh", "-c", "id"]))
attempt("system", lambda: 1 / 0 if os.system("id") else "ran")
attempt("process", lambda: multiprocessing.Process(target=print).start())
attempt("pty", lambda: pty.fork())
""",
        )
    )
    assert len(descendants(os.getpid())) <= before
    alive_and_clean(sandbox)


def test_grandchildren(sandbox: CodeSandbox, tmp_path: Path) -> None:
    """A child of a child in a session of its own, which no parent waits for, would outlive its run: none comes to be."""
    before = set(descendants(os.getpid()))
    code = f"""
import multiprocessing, subprocess, threading, time
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(2)
            open("left", "w").write("x"); open({str(tmp_path / "left")!r}, "w").write("x")
        os._exit(0)
    return "forked"
def from_a_thread():
    found = []
    def run():
        try:
            found.append(daemon())
        except OSError as e:
            found.append(e)
    thread = threading.Thread(target=run); thread.start(); thread.join()
    if isinstance(found[0], OSError):
        raise found[0]
    return found
attempt("double fork", daemon)
attempt("from a thread", from_a_thread)
attempt("session", os.setsid)
attempt("group", lambda: os.setpgid(0, 0))
attempt("in a new session", lambda: subprocess.Popen(["/bin/sleep", "9"], start_new_session=True))
attempt("shell", lambda: 1 / 0 if os.system("(sleep 9 &) &") else "ran")
attempt("child of a child", lambda: multiprocessing.get_context("fork").Process(target=daemon).start())
attempt("subreaper", lambda: call(157, 36, 1, 0, 0, 0))
"""
    none_got_through(attempts(sandbox, code))
    assert set(descendants(os.getpid())) == before and not (tmp_path / "left").exists()
    alive_and_clean(sandbox)


def test_threads_without_end(sandbox: CodeSandbox) -> None:
    """They run into the address space or the count of processes, and end with their interpreter."""
    outcome = sandbox.run_python(
        """
import threading, time
try:
    for i in range(100000):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
except RuntimeError as e:
    print(i < 1000, e)
"""
    )
    assert outcome.stdout.startswith("True can't start new thread"), outcome
    alive_and_clean(sandbox)


def disk_bound(outcome: CodeOutcome) -> bool:
    return outcome.killed_by == "disk" or "No space left" in outcome.stderr or "File too large" in outcome.stderr


@pytest.mark.parametrize(
    "code",
    [
        "f = open('a', 'wb')\nwhile True: f.write(b'x' * 65536)",
        "i = 0\nwhile True:\n    i += 1\n    open(f'{i}', 'wb').write(b'x' * 65536)",
        # Deleted at once: no directory shows them.
        "import os, time\nkept = []\nfor i in range(40):\n    f = open(f'{i}', 'wb', buffering=0)\n    os.unlink(f'{i}')\n"
        "    f.write(b'x' * 1_000_000)\n    kept.append(f)\ntime.sleep(1000)",
        "import os, time\nfor i in range(100000):\n    os.mkdir('d'); os.chdir('d')",
        "import os\nos.mkdir('a', 0)\nwhile True: open(f'{len(os.listdir())}', 'w')",
        "import os, time\nfor i in range(100000): os.symlink('x', str(i))\ntime.sleep(1000)",
    ],
    ids=["one file", "many files", "deleted files", "deep", "empty files", "links"],
)
def test_disk_fill(sandbox: CodeSandbox, code: str) -> None:
    outcome = sandbox.run_python(code)
    assert disk_bound(outcome), outcome
    alive_and_clean(sandbox)


@pytest.mark.parametrize("descriptor", [1, 2])
def test_output_flood(sandbox: CodeSandbox, descriptor: int) -> None:
    outcome = sandbox.run_python(f"import os\nwhile True: os.write({descriptor}, b'x' * 1_000_000)")
    assert outcome.killed_by == "output"
    assert len(outcome.stdout) + len(outcome.stderr) == LIMITS.output_kb * 1024
    alive_and_clean(sandbox)


def test_nothing_is_left_running(sandbox: CodeSandbox) -> None:
    """Threads, timers and ignored signals end with the run; there is no process more than before."""
    before = set(descendants(os.getpid()))
    code = (
        "import atexit, os, signal, threading, time\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "threading.Thread(target=lambda: time.sleep(1000)).start()\natexit.register(lambda: time.sleep(1000))\nprint('done')"
    )
    start = time.monotonic()
    outcome = sandbox.run_python(code)
    assert outcome.stdout == "done\n" and time.monotonic() - start < LIMITS.wall_s
    assert set(descendants(os.getpid())) == before


POISON = """
import builtins, json, openpyxl, sys
class Always:
    def __eq__(self, other): return True
openpyxl.load_workbook = lambda *a, **k: Always()
json.load = json.loads = lambda *a, **k: {"reward": 1.0}
builtins.open = builtins.float = lambda *a, **k: Always()
sys.modules["math"] = Always()
sys.path.insert(0, ".")
sys.meta_path.clear()
with __builtins__.__dict__["__import__"]("io").open("json.py", "w") as f: f.write("raise SystemExit(0)")
with __builtins__.__dict__["__import__"]("io").open("sitecustomize.py", "w") as f: f.write("print('POISONED')")
with __builtins__.__dict__["__import__"]("io").open("verdict.json", "w") as f: f.write('{"reward": 1.0}')
with __builtins__.__dict__["__import__"]("io").open("answer.txt", "w") as f: f.write("41")
"""


GRADER = """
import json, os, openpyxl, math, sys
with open("artifacts/answer.txt") as f: given = f.read()
with open("files/expected.txt") as f: expected = f.read()
seen = sorted(os.listdir("."))
with open("verdict.json", "w") as f:
    json.dump({"reward": float(given == expected), "seen": seen, "own": openpyxl.load_workbook.__module__, "pi": math.pi}, f)
"""


def test_grader_tampering(sandbox: CodeSandbox) -> None:
    """Poisoned modules, a forged verdict, a module laid in the way: the grader sees the declared artifact and its own files."""
    outcome = sandbox.run_python(POISON, {}, ["answer.txt", "verdict.json"])
    assert outcome.ok, outcome
    verdict = sandbox.grade(GRADER, {"answer.txt": outcome.files["answer.txt"]}, {"expected.txt": b"42"})
    assert verdict == {
        "reward": 0.0,
        "seen": ["artifacts", "files"],
        "own": "openpyxl.reader.excel",
        "pi": pytest.approx(3.14159, 1e-5),
    }
    # Even the same sandbox's next run is untouched.
    after = sandbox.run_python(
        "import json, openpyxl, math; print(openpyxl.load_workbook.__module__, json.loads('[1]'), math.pi > 3)"
    )
    assert after.stdout == "openpyxl.reader.excel [1] True\n", after
    # What the grader expects is nowhere in the sandbox of the model's code.
    assert sandbox._zygotes["model"].pid != sandbox._zygotes["grader"].pid
    with pytest.raises(EpisodeFailed):
        sandbox.grade("import sys; sys.exit(0)", {"answer.txt": b""})  # no verdict is no reward


def test_nothing_survives_a_run(sandbox: CodeSandbox) -> None:
    """Files (hidden, deep, in the place for temporary ones), variables, modules, environment, limits, working directory."""
    first = sandbox.run_python(
        """
import builtins, json, os, sys, tempfile, resource, signal
open(".hidden", "w").write("x"); os.makedirs("a/b/c"); open("a/b/c/d", "w").write("x")
tempfile.NamedTemporaryFile(delete=False).write(b"x"); os.environ["LEFT"] = "1"; builtins.left = 1; json.left = 1
os.chdir("a"); os.umask(0o777); signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.setrecursionlimit(50)
"""
    )
    assert first.ok, first
    second = sandbox.run_python(
        """
import builtins, json, os, sys, signal
print(os.listdir(), "LEFT" in os.environ, hasattr(builtins, "left"), hasattr(json, "left"), sys.getrecursionlimit() > 100,
      signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, os.umask(0) != 0o777, os.getcwd() == os.environ["HOME"])
"""
    )
    assert second.stdout == "[] False False False True True True True\n", second
