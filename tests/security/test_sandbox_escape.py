"""Ways out of the sandbox, each tried under each confinement that this machine can make: all are stopped.

Every attempt is code as a model could write it. It prints what it got hold of; the host's side is looked at, too.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from frontier_tune.contracts import EpisodeFailed
from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sandbox.confine import KINDS, available, bubblewrap_command
from frontier_tune.sandbox.process import descendants
from frontier_tune.sandbox.runtime import runtime
from frontier_tune.sdk import CodeLimits, CodeOutcome

LIMITS = CodeLimits(wall_s=120.0, cpu_s=20.0, memory_mb=512, disk_mb=8, file_mb=4, entries=200, output_kb=32)
TOKEN = secrets.token_hex(16)
ROOT = Path(__file__).resolve().parents[2]

# Calls a function and tells whether it was let through: the form of most attempts below.
TRY = """
import ctypes, os, sys
def attempt(name, function):
    try:
        print(name, "GOT", repr(function())[:300])
    except BaseException as e:
        print(name, "stopped", type(e).__name__, e)
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""


@pytest.fixture(scope="module", params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[CodeSandbox]:
    if reason := available()[request.param]:
        pytest.skip(f"{request.param}: {reason}")
    os.environ["FRONTIER_TUNE_TEST_SECRET"] = TOKEN
    try:
        with CodeSandbox(LIMITS, confinement=request.param) as made:
            made.run_python("pass")
            yield made
    finally:
        del os.environ["FRONTIER_TUNE_TEST_SECRET"]


def attempts(sandbox: CodeSandbox, code: str) -> list[str]:
    """Run ``code`` after TRY; the lines of its attempts. It must have come to its end."""
    outcome = sandbox.run_python(TRY + code + "\nprint('END')")
    lines = outcome.stdout.splitlines()
    assert lines and lines[-1] == "END", outcome
    return lines[:-1]


def none_got_through(lines: list[str]) -> None:
    assert lines and all(" stopped " in line for line in lines), lines


def alive_and_clean(sandbox: CodeSandbox) -> None:
    """The sandbox serves on, and nothing of the last run is there."""
    assert sandbox.run_python("import os; print(os.listdir())").stdout == "[]\n"


def test_the_attempts_get_through_where_nothing_stops_them(tmp_path: Path) -> None:
    """The suite itself: a plain interpreter does what the sandbox stops, so a stopped attempt tells of the sandbox."""
    (tmp_path / "a").write_text("x")
    code = """
import fcntl, socket
attempt("socket", lambda: socket.socket())
attempt("pair", lambda: socket.socketpair())
attempt("account", lambda: open("/etc/passwd").read())
attempt("environment", lambda: open("/proc/self/environ").read())
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("program", lambda: os.posix_spawn(sys.executable, [sys.executable, "-c", "1"], {}))
attempt("signal", lambda: os.kill(os.getppid(), 0))
attempt("memfd", lambda: call(319, b"x", 0))
attempt("traceme", lambda: call(101, 0, 0, 0, 0))
attempt("limits", lambda: __import__("resource").setrlimit(4, (0, 0)))
attempt("link", lambda: os.link("a", "b"))
"""
    done = subprocess.run([sys.executable, "-c", TRY + code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count(" GOT ") == 11 and " stopped " not in done.stdout, done.stdout


@pytest.mark.skipif(available()["bubblewrap"] is not None, reason=f"bubblewrap: {available()['bubblewrap']}")
def test_bubblewrap_alone_stops_the_network_and_hides_files(tmp_path: Path) -> None:
    """The outer wall by itself, without the filter: namespaces and mounts hold also where a system call slips through."""
    (tmp_path / "secret").write_text(TOKEN)
    command = bubblewrap_command(shutil.which("bwrap") or "", runtime(()), 8)
    code = f"""
import socket
attempt("tcp", lambda: socket.create_connection(("192.0.2.1", 80), 2))
attempt("dns", lambda: socket.getaddrinfo("example.com", 80))
for path in ("/etc/passwd", "/proc/self/environ", "/proc/1/environ", {str(tmp_path / "secret")!r}, {__file__!r}):
    attempt(path, lambda: open(path).read())
attempt("host's process", lambda: os.kill({os.getpid()}, 0))
attempt("write", lambda: open("/usr/lib/x", "w"))
attempt("mount", lambda: call(165, b"none", b"/work", b"tmpfs", 0, 0))
attempt("chroot", lambda: os.chroot("/work"))
attempt("user", lambda: os.setuid(0))
print([e for e in os.environ if "SECRET" in e])
"""
    inside = [*command[: command.index("--") + 1], runtime(()).interpreter, "-I", "-S", "-c", TRY + code]
    environment = os.environ | {"FRONTIER_TUNE_TEST_SECRET": TOKEN}
    done = subprocess.run(inside, env=environment, capture_output=True, text=True, check=True)
    *lines, secrets_seen = done.stdout.splitlines()
    none_got_through(lines)
    assert secrets_seen == "[]" and TOKEN not in done.stdout


def test_network(sandbox: CodeSandbox) -> None:
    """TCP, UDP, raw, Unix and abstract sockets, name look-up; a listener on the host hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(f"{folder}/s")
        unix.listen()
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0{TOKEN}")
        abstract.listen()
        port = server.getsockname()[1]
        lines = attempts(
            sandbox,
            f"""
import socket, urllib.request, http.client
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {port}), 2))
attempt("tcp outside", lambda: socket.create_connection(("192.0.2.1", 80), 2))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("packet", lambda: socket.socket(17, socket.SOCK_RAW))
attempt("netlink", lambda: socket.socket(16, socket.SOCK_RAW))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("unix", lambda: socket.socket(socket.AF_UNIX).connect({folder + "/s"!r}))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0{TOKEN}"))
attempt("pair", lambda: socket.socketpair())
attempt("dns", lambda: socket.getaddrinfo("example.com", 80))
attempt("dns of itself", lambda: socket.gethostbyname("localhost.localdomain.invalid"))
attempt("http", lambda: urllib.request.urlopen("http://127.0.0.1:{port}/", timeout=2))
attempt("syscall", lambda: call(41, 2, 1, 0))
attempt("io_uring", lambda: call(425, 8, ctypes.create_string_buffer(120)))
""",
        )
        none_got_through(lines)
        for listener in (server, unix, abstract):
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listener.accept()
            listener.close()


def test_host_files(sandbox: CodeSandbox, tmp_path: Path) -> None:
    """Accounts, the home directory, the repository, a neighbour's file, other processes, devices: neither read nor listed."""
    secret = tmp_path / "secret.txt"
    secret.write_text(TOKEN)
    places = [
        "/etc",
        "/home",
        "/var",
        "/tmp",
        "/proc",
        "/sys",
        "/dev/shm",
        "/run",
        "/opt",
        str(Path.home()),
        str(ROOT),
        str(tmp_path),
    ]
    files = [
        "/etc/passwd",
        "/etc/shadow",
        "/etc/hostname",
        "/proc/self/environ",
        "/proc/1/environ",
        "/proc/mounts",
        "/proc/kcore",
    ]
    files += ["/dev/mem", "/dev/vda", "/dev/sda", "/dev/tty", "/dev/kmsg", str(secret), str(ROOT / "pyproject.toml"), __file__]
    outcome = sandbox.run_python(
        TRY
        + f"""
for p in {files!r}:
    attempt(p, lambda: open(p, "rb").read(100))
    attempt(p + " without following", lambda: os.open(p, os.O_RDONLY | os.O_NOFOLLOW))
def found(place):
    names = [n for n in os.listdir(place)]
    if not names:
        raise OSError("nothing to be seen")
    return names
for p in {places!r}:
    attempt(p, lambda: found(p))
print("END")
"""
    )
    lines = outcome.stdout.splitlines()
    assert lines[-1] == "END"
    # Under bubblewrap directories that lead to what is mounted exist, with that alone in them.
    shown = [line for line in lines[:-1] if " stopped " not in line]
    if sandbox.confinement == "bubblewrap":
        harmless = {"/etc GOT ['ld.so.cache']"}
        leads = {str(Path.home()), str(ROOT), "/opt", "/home", "/tmp", "/var"}
        shown = [
            line for line in shown if line not in harmless and not (line.split(" GOT ")[0] in leads and line.count("'") == 2)
        ]
    assert not shown, shown
    assert TOKEN not in outcome.stdout + outcome.stderr


def test_writing_outside(sandbox: CodeSandbox, tmp_path: Path) -> None:
    """No place but its own directory takes a file, a change or a removal; attributes stay as they are, whatever chmod returns."""
    victim = tmp_path / "victim"
    victim.write_text("kept")
    victim.chmod(0o640)
    openpyxl = sandbox.run_python("import openpyxl; print(openpyxl.__file__)").stdout.strip()
    none_got_through(
        attempts(
            sandbox,
            f"""
import openpyxl, json
roots = ["/", "/tmp", "/dev", "/dev/shm", "/var/tmp", "/usr/lib", "/etc", "/packages", "/library"]
roots += [{str(tmp_path)!r}, {str(ROOT)!r}, os.path.dirname(os.getcwd()), os.path.expanduser("~/..")]
roots += [os.path.dirname(openpyxl.__file__), os.path.dirname(json.__file__)]
for root in roots:
    attempt(root, lambda: open(os.path.join(root, "left-behind"), "w"))
    attempt(root + " mkdir", lambda: os.mkdir(os.path.join(root, "left-behind-dir")))
    attempt(root + " unnamed", lambda: os.open(root, os.O_TMPFILE | os.O_WRONLY))
for path in ({str(victim)!r}, openpyxl.__file__, json.__file__):
    attempt("append", lambda: open(path, "a"))
    attempt("truncate", lambda: os.truncate(path, 0))
    attempt("open and truncate", lambda: os.open(path, os.O_RDONLY | os.O_TRUNC) if open(path).read() == "" else 1 / 0)
    attempt("remove", lambda: os.remove(path))
    attempt("rename", lambda: os.rename(path, "mine"))
    attempt("hard link", lambda: os.link(path, "mine"))
    attempt("over it", lambda: (open("a", "w").close(), os.rename("a", path)))
""",
        )
    )
    sandbox.run_python(f"import os\nos.chmod({str(victim)!r}, 0o777); os.utime({str(victim)!r}, (0, 0))")
    assert victim.read_text() == "kept" and victim.stat().st_mode & 0o777 == 0o640 and victim.stat().st_mtime > 0
    assert sandbox.run_python("import openpyxl; print(openpyxl.__file__)").stdout.strip() == openpyxl


def test_environment_secrets(sandbox: CodeSandbox) -> None:
    """The host's variables are neither in os.environ nor in the memory that the C library keeps them in, nor in any open file."""
    outcome = sandbox.run_python(
        TRY
        + """
print(dict(os.environ))
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
i = 0
while environ[i]:
    print(environ[i]); i += 1
for fd in range(3, 1000):
    try:
        os.fstat(fd); print("DESCRIPTOR", fd)
    except OSError:
        pass
print(sys.orig_argv, "END")
"""
    )
    assert outcome.stdout.rstrip().endswith("END"), outcome
    assert TOKEN not in outcome.stdout and "FRONTIER_TUNE_TEST_SECRET" not in outcome.stdout
    assert "DESCRIPTOR" not in outcome.stdout


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


def test_signals(sandbox: CodeSandbox) -> None:
    """To its parent, its sandbox, every process, a process of the host; by every call that can send one."""
    none_got_through(
        attempts(
            sandbox,
            f"""
import fcntl, signal
for pid in (os.getppid(), 1, -1, 0, {os.getpid()}, {os.getppid()}):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, 0):
        attempt(f"kill {{pid}} {{number}}", lambda: os.kill(pid, number))
attempt("kill itself", lambda: os.kill(os.getpid(), signal.SIGKILL))
attempt("group", lambda: os.killpg(os.getpgrp(), signal.SIGTERM))
attempt("tgkill", lambda: call(234, os.getppid() or 1, os.getppid() or 1, 15))
attempt("tkill", lambda: call(200, os.getppid() or 1, 15))
attempt("queue", lambda: call(129, os.getppid() or 1, 15, ctypes.create_string_buffer(128)))
attempt("pidfd_open", lambda: os.pidfd_open(os.getppid() or 1))
attempt("pidfd_send_signal", lambda: call(424, 0, 15, 0, 0))
r, w = os.pipe()
attempt("owner", lambda: fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid() or 1))
attempt("signal of a descriptor", lambda: fcntl.fcntl(r, fcntl.F_SETSIG, signal.SIGKILL))
attempt("terminal", lambda: fcntl.ioctl(0, 0x5412, b"x"))
""",
        )
    )
    alive_and_clean(sandbox)


def test_ptrace_and_other_memory(sandbox: CodeSandbox) -> None:
    none_got_through(
        attempts(
            sandbox,
            f"""
parent = os.getppid() or 1
for pid in (parent, 1, {os.getpid()}):
    attempt("attach", lambda: call(101, 16, pid, 0, 0))
    attempt("seize", lambda: call(101, 0x4206, pid, 0, 0))
    attempt("read memory", lambda: call(310, pid, 0, 0, 0, 0, 0))
    attempt("write memory", lambda: call(311, pid, 0, 0, 0, 0, 0))
    attempt("memory file", lambda: open(f"/proc/{{pid}}/mem", "rb"))
    attempt("root", lambda: os.listdir(f"/proc/{{pid}}/root/"))
    attempt("descriptors", lambda: os.listdir(f"/proc/{{pid}}/fd"))
    attempt("limits", lambda: call(302, pid, 7, 0, ctypes.create_string_buffer(16)))
attempt("traceme", lambda: call(101, 0, 0, 0, 0))
attempt("own limits", lambda: __import__("resource").setrlimit(7, (10, 10)))
for name, number in dict(bpf=321, perf=298, keyctl=250, add_key=248, userfaultfd=323, memfd=319, mount=165, chroot=161, pivot=155,
                         mknod=133, shmget=29, msgget=68, semget=64, mq_open=240, reboot=169, module=175, kexec=246, settime=227,
                         swapon=167, setuid=105, capset=126, personality=135, fanotify=300, open_by_handle=304, seccomp=317,
                         prctl=157, name_to_handle=303, fsopen=430, open_tree=428, quotactl=179, syslog=103, ioperm=173).items():
    attempt(name, lambda: call(number, 0, 0, 0, 0, 0))
""",
        )
    )
    alive_and_clean(sandbox)


def test_symlink_out(sandbox: CodeSandbox, tmp_path: Path) -> None:
    """A link is worth no more than the path that it stands for, to the code and to whoever collects its artifacts."""
    secret = tmp_path / "secret.txt"
    secret.write_text(TOKEN)
    outcome = sandbox.run_python(
        f"""
import os
os.symlink({str(secret)!r}, "out.xlsx"); os.symlink({str(tmp_path)!r}, "folder"); os.symlink("/", "root")
for path in ("out.xlsx", "folder/secret.txt", "root{secret}", "root/etc/passwd"):
    try:
        print("GOT", open(path).read())
    except OSError as e:
        print("stopped", e)
""",
        {},
        ["out.xlsx", "folder/secret.txt", "root/etc/passwd"],
    )
    assert outcome.ok and "GOT" not in outcome.stdout, outcome
    assert not outcome.files and TOKEN not in outcome.stdout
    assert secret.read_text() == TOKEN  # emptying the run's directory did not reach it either
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
