"""Ways out of the sandbox, each tried under each confinement that this machine can make: all are stopped.

Every attempt is code as a model could write it. It prints what it got hold of; the host's side is looked at, too.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from frontier_tune.sandbox.code import CodeSandbox
from frontier_tune.sandbox.confine import available, bubblewrap_command
from frontier_tune.sandbox.runtime import runtime
from tests.security.escape import ROOT, TOKEN, TRY, alive_and_clean, attempts, none_got_through


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
def traced():  # in a child: a traced process stops for good at the next signal, SIGCHLD of an earlier attempt for one
    pid = os.fork()
    if not pid:
        try:
            call(101, 0, 0, 0, 0)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise OSError("refused")
attempt("traceme", traced)
attempt("limits", lambda: __import__("resource").setrlimit(4, (0, 0)))
attempt("link", lambda: os.link("a", "b"))
"""
    done = subprocess.run(
        [sys.executable, "-c", TRY + code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
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
