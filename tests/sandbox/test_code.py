"""Model-written code in the sandbox: results, limits by name, nothing carried from run to run, faults with the right blame."""

import io
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import openpyxl
import pytest

from frontier_tune.contracts import BadInput, Blame, EpisodeFailed
from frontier_tune.sandbox import confine
from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sandbox.process import descendants
from frontier_tune.sandbox.runtime import runtime

WORKBOOK = """
import openpyxl, shutil
shutil.copy("in.xlsx", "out.xlsx")
wb = openpyxl.load_workbook("out.xlsx")
wb.active["B1"] = wb.active["A1"].value * 2
wb.save("out.xlsx")
print("doubled")
"""


def workbook(value: int) -> bytes:
    book, buffer = openpyxl.Workbook(), io.BytesIO()
    book.active["A1"] = value
    book.save(buffer)
    return buffer.getvalue()


def test_python_on_a_workbook(sandbox: CodeSandbox) -> None:
    outcome = sandbox.run_python(WORKBOOK, {"in.xlsx": workbook(21)}, ["out.xlsx", "absent.xlsx"])
    assert outcome.ok and outcome.failure is None, outcome
    assert outcome.stdout == "doubled\n" and outcome.confinement == sandbox.confinement
    assert openpyxl.load_workbook(io.BytesIO(outcome.files["out.xlsx"])).active["B1"].value == 42
    assert list(outcome.files) == ["out.xlsx"]  # in.xlsx is still there, and was not asked for


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("print(1 / 0)", 1, 'File "code.py", line 1, in <module>\n    print(1 / 0)'),
        ("def f(:", 1, "SyntaxError"),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why"),
        ("raise KeyboardInterrupt", 1, "KeyboardInterrupt"),
        ("print('\\udcff')", 0, ""),
    ],
)
def test_code_ends_as_a_script_would(sandbox: CodeSandbox, source: str, status: int, words: str) -> None:
    outcome = sandbox.run_python(source)
    assert (outcome.exit, outcome.killed_by) == (status, None)
    assert words in outcome.stderr
    assert "jail" not in outcome.stderr  # no frame of ours


def test_standard_input_is_empty_and_threads_work(sandbox: CodeSandbox) -> None:
    source = (
        "import sys, threading, tempfile, sqlite3, decimal\nassert sys.stdin.read() == ''\nfound = []\n"
        "t = threading.Thread(target=found.append, args=(1,)); t.start(); t.join()\n"
        "with tempfile.NamedTemporaryFile() as f: f.write(b'x')\nprint(found)"
    )
    outcome = sandbox.run_python(source)
    assert outcome.stdout == "[1]\n", outcome.stderr


HASTY = {"wall_s": 1.0, "cpu_s": 1.0}
PASSED = {
    "wall": ("import time; time.sleep(60)", HASTY),
    "wall of one that stopped itself": (
        "import os, signal, threading, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\nwhile True: time.sleep(1)",
        HASTY,
    ),
    "cpu": ("while True: pass", {"cpu_s": 1.0}),
    "cpu of one that ignores it": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        {"cpu_s": 1.0},
    ),
    "memory": ("x = bytearray(1 << 30)", {}),
    "output": ("while True: print('x' * 1000)", {}),
    "output to stderr": ("import os\nwhile True: os.write(2, b'x' * 100000)", {}),
    "disk, many files": ("for i in range(100): open(f'{i}', 'wb').write(b'x' * 1_000_000)\nimport time; time.sleep(60)", {}),
    "disk, many entries": ("import os, time\nfor i in range(1000): os.mkdir(f'{i}')\ntime.sleep(60)", {}),
    "signal": ("import os; os.abort()", {}),
}


@pytest.mark.parametrize("what", [pytest.param(w, marks=pytest.mark.slow) if "cpu" in w else w for w in PASSED])
def test_a_limit_passed_is_the_agents_failure(sandbox: CodeSandbox, what: str) -> None:
    source, changed = PASSED[what]
    expected = what.partition(" ")[0].rstrip(",")
    with CodeSandbox(replace(sandbox.limits, **changed), confinement=sandbox.confinement) as strict:
        outcome = strict.run_python(source, {"a": b"1"}, ["a"])
        if expected == "disk" and sandbox.confinement == "bubblewrap" and "files" in what:
            assert "No space left on device" in outcome.stderr  # the kernel's own limit comes first
        else:
            assert outcome.killed_by == expected, outcome
            assert outcome.failure and outcome.failure.blame is Blame.AGENT and outcome.failure.kind == f"code-{expected}"
            assert not outcome.files
            assert f"limit: {expected}" in outcome.observation()
        assert len(outcome.stdout) + len(outcome.stderr) <= strict.limits.output_kb * 1024
        assert strict.run_python("import os; print(os.listdir())").stdout == "[]\n"  # the next run finds a clean place


def test_one_file_is_bounded(sandbox: CodeSandbox) -> None:
    assert "File too large" in sandbox.run_python("open('a', 'wb').write(b'x' * (5 << 20))").stderr


def test_a_sparse_artifact_is_not_brought_back(sandbox: CodeSandbox) -> None:
    source = "for i in range(3): open(str(i), 'wb').truncate(4 << 20)"
    outcome = sandbox.run_python(source, {}, ["0", "1", "2"])
    assert outcome.killed_by == "disk" and not outcome.files


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../b", "", ".", "a//b", "a\0b", "./a"])
def test_names_are_plain_relative_paths(sandbox: CodeSandbox, name: str) -> None:
    with pytest.raises(BadInput, match="plain relative path"):
        sandbox.run_python("pass", {name: b""})
    with pytest.raises(BadInput, match="plain relative path"):
        sandbox.run_python("pass", {}, [name])


def test_files_in_directories_and_large_ones(sandbox: CodeSandbox) -> None:
    content = os.urandom(3 << 20)
    outcome = sandbox.run_python("import shutil; shutil.copytree('in', 'out/deep')", {"in/a.bin": content}, ["out/deep/a.bin"])
    assert outcome.files == {"out/deep/a.bin": content}, outcome.stderr


def test_sql_on_a_copy(sandbox: CodeSandbox, tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("create table t (a integer, b text, c blob, d real)")
        connection.executemany("insert into t values (?, ?, ?, ?)", [(1, "x", b"\x00\xff", 0.5), (2, None, None, float("inf"))])
    connection.close()
    before = path.read_bytes()
    found = sandbox.run_sql("select * from t order by a", before)
    assert found.columns == ("a", "b", "c", "d") and found.error is None and found.confinement == sandbox.confinement
    assert found.rows == ((1, "x", "x'00ff'", 0.5), (2, None, None, "inf"))
    changed = sandbox.run_sql("update t set a = a + 10", before, keep=True)
    assert changed.changes == 2 and changed.database is not None
    assert sandbox.run_sql("select sum(a) from t", changed.database).rows == ((23,),)
    assert sandbox.run_sql("select sum(a) from t", before).rows == ((3,),)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("selec 1", "syntax error"),
        ("select 1; select 2", "one statement"),
        ("select load_extension('x')", "not authorized"),
        ("attach '/etc/passwd' as p", "unable to open"),
    ],
)
def test_sql_errors_are_told(sandbox: CodeSandbox, query: str, words: str) -> None:
    assert words in (sandbox.run_sql(query, b"").error or "")


ENDLESS = "with recursive c(x) as (select 1 union all select x + 1 from c)"


def test_endless_sql_is_cut(sandbox: CodeSandbox) -> None:
    cut = sandbox.run_sql(f"{ENDLESS} select x from c", b"", max_rows=3)
    assert cut.truncated and cut.rows == ((1,), (2,), (3,))


@pytest.mark.slow
def test_endless_sql_is_ended(sandbox: CodeSandbox) -> None:
    with CodeSandbox(replace(sandbox.limits, cpu_s=1.0), confinement=sandbox.confinement) as strict:
        assert "limit: cpu" in (strict.run_sql(f"{ENDLESS} select count(*) from c", b"").error or "")


def test_a_grader_that_fails_is_the_environments_fault(sandbox: CodeSandbox) -> None:
    for source in ("1 / 0", "pass", "open('verdict.json', 'w').write('[]')"):
        with pytest.raises(EpisodeFailed) as e:
            sandbox.grade(source, {})
        assert e.value.failure.blame is Blame.ENVIRONMENT


def test_a_sandbox_that_is_killed_is_infrastructure_and_replaced(sandbox: CodeSandbox) -> None:
    sandbox.run_python("pass")
    for pid in descendants(os.getpid()):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(EpisodeFailed) as e:
        sandbox.run_python("pass")
    assert e.value.failure.blame is Blame.INFRASTRUCTURE
    assert sandbox.run_python("print(1)").stdout == "1\n"


def test_close_leaves_nothing(sandbox: CodeSandbox) -> None:
    before = set(descendants(os.getpid()))
    with CodeSandbox(sandbox.limits, confinement=sandbox.confinement) as another:
        another.run_python("pass")
        directories = [Path(z._directory) for z in another._zygotes.values() if z._directory]
        assert set(descendants(os.getpid())) > before
    end = time.monotonic() + 30
    while set(descendants(os.getpid())) - before and time.monotonic() < end:
        time.sleep(0.05)  # the kernel ends a pid namespace after its first process is reaped
    assert not set(descendants(os.getpid())) - before
    assert not any(d.exists() for d in directories)


def test_packages_that_are_not_installed_are_refused() -> None:
    with pytest.raises(BadInput, match="no-such-package"):
        runtime(("no-such-package",))


def test_code_finds_the_granted_packages_and_no_others(sandbox: CodeSandbox) -> None:
    outcome = sandbox.run_python("import openpyxl, et_xmlfile\nimport pytest")
    assert "No module named 'pytest'" in outcome.stderr


def test_without_any_confinement_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts missing, each with its reason: nothing runs."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(confine.landlock, "version", lambda: 2)
    for wanted in ("auto", "bubblewrap", "landlock"):
        with pytest.raises(confine.SandboxUnavailable, match="not run") as e:
            CodeSandbox(confinement=wanted)
        assert ("apt-get install bubblewrap" in str(e.value)) == (wanted != "landlock")
        assert ("this kernel has 2" in str(e.value)) == (wanted != "bubblewrap")


def test_on_another_architecture_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confine.seccomp.platform, "machine", lambda: "riscv64")
    with pytest.raises(confine.SandboxUnavailable, match="riscv64"):
        CodeSandbox()


def test_a_bwrap_that_fails_is_told_and_the_other_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'No permissions to create a new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert "No permissions" in (confine.available()["bubblewrap"] or "")
    if confine.available()["landlock"] is None:
        assert CodeSandbox().confinement == "landlock"
