"""Run a command where no network is, and tell what it tried to reach.

The command runs in a network namespace of its own that has loopback alone. strace records the system calls of all its processes,
where it is installed; an audit hook in every Python process records the calls with their Python stack, so that a finding can be
traced to a line. A name look-up counts as an attempt even if the name server is on loopback.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

DNS = 53
# Bring `lo` up (SIOCSIFFLAGS with IFF_UP | IFF_RUNNING), then become the command.
LOOPBACK_UP = (
    "import fcntl, os, socket, struct, sys\n"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh22x', b'lo', 0x1 | 0x40))\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)
# Loaded as sitecustomize by every Python process below. Keeps to one write a finding: lines of many processes don't mix.
AUDIT_HOOK = """
import json, os, sys, traceback

def _record(event, arguments):
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        return
    address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[:2]
    if not isinstance(address, tuple):
        return
    host, port = str(address[0]), address[1] if len(address) > 1 else None
    line = json.dumps({"call": event, "host": host, "port": port, "pid": os.getpid(), "stack": traceback.format_stack(limit=8)})
    out = os.open(os.environ["FRONTIER_TUNE_AUDIT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(out, (line + chr(10)).encode())
    os.close(out)

sys.addaudithook(_record)
"""
# connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("192.0.2.1")}, 16) = -1 ENETUNREACH
CALL = re.compile(r"\b(connect|sendto|sendmmsg)\(.*?sa_family=AF_INET6?, .*?port=htons\((\d+)\)(?P<rest>.*)")
ADDRESS = re.compile(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"')


def refused_here() -> str | None:
    """Why no namespace can be made here, or None where one can."""
    if shutil.which("unshare") is None:
        return "unshare (util-linux) is not installed"
    tried = subprocess.run(
        ["unshare", "-rn", sys.executable, "-c", LOOPBACK_UP, "true"], capture_output=True, text=True, check=False
    )
    return f"no network namespace can be made here: {tried.stderr.strip()}" if tried.returncode else None


def outside(host: str, port: int | None) -> bool:
    """Would this address have left the machine? Any name does but those of the machine itself."""
    if port == DNS:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host not in {"", "None", "localhost", "ip6-localhost", os.uname().nodename}
    mapped = getattr(address, "ipv4_mapped", None)
    return not ((mapped or address).is_loopback or address.is_unspecified)


def from_strace(text: str) -> list[str]:
    """The calls in strace's output that were aimed outside."""
    found = []
    for line in text.splitlines():
        if call := CALL.search(line):
            hosts = ADDRESS.findall(call["rest"])
            if any(outside(host, int(call[2])) for host in hosts):
                found.append(line.strip())
    return found


def from_audit(text: str) -> list[str]:
    """The Python calls that were aimed outside, each with the stack that led to it."""
    rows = [json.loads(line) for line in text.splitlines()]
    return [
        f"{r['call']} {r['host']}:{r['port']} in process {r['pid']}\n{''.join(r['stack'])}"
        for r in rows
        if outside(r["host"], r["port"] if isinstance(r["port"], int) else None)
    ]


def run(command: Sequence[str], scratch: Path, environment: Mapping[str, str], timeout_s: float) -> tuple[int, str, list[str]]:
    """Run ``command`` sealed. Returns its exit code, its output (stdout and stderr) and the attempts to reach outside."""
    hook, audit, trace = scratch / "hook", scratch / "audit.jsonl", scratch / "strace.txt"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(AUDIT_HOOK)
    audit.touch()
    trace.touch()
    path = os.pathsep.join([str(hook), *filter(None, [environment.get("PYTHONPATH")])])
    env = {**environment, "PYTHONPATH": path, "FRONTIER_TUNE_AUDIT": str(audit)}
    traced = (
        ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmmsg", "-o", str(trace)]
        if shutil.which("strace")
        else []
    )
    sealed = ["unshare", "-rn", sys.executable, "-c", LOOPBACK_UP, *traced, *command]
    output = scratch / "output.txt"
    with output.open("w") as out:  # a file, not a pipe: a daemon that outlives the command must not keep us waiting
        process = subprocess.Popen(sealed, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"not done after {timeout_s:.0f} s; so far:\n{output.read_text()[-2000:]}") from None
    return code, output.read_text(), from_strace(trace.read_text(errors="replace")) + from_audit(audit.read_text())
