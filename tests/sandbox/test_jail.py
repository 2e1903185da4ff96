"""The parts of the jail by themselves: the filter's arithmetic, directories that resist removal."""

import os
import re
import struct
from pathlib import Path

import pytest

from frontier_tune.sandbox.jail import landlock, seccomp, workdir

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def decide(number: int, *arguments: int, pid: int = 7, arch: int = seccomp.ARCHITECTURE) -> int:
    """What the filter answers, by an interpreter of the four instructions that it is made of."""
    data = struct.pack("IIQ6Q", number, arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = list(struct.iter_unpack("HBBI", seccomp.program(pid)))
    at, accumulator = 0, 0
    while True:
        operation, yes, no, k = code[at]
        at += 1
        if operation == seccomp._LOAD:
            accumulator = struct.unpack_from("I", data, k)[0]
        elif operation == seccomp._EQUAL:
            at += yes if accumulator == k else no
        elif operation == seccomp._AT_LEAST:
            at += yes if accumulator >= k else no
        else:
            assert operation == seccomp._RETURN
            return k


EPERM, ENOSYS, NOTHING = seccomp.ERRNO | 1, seccomp.ERRNO | 38, seccomp.ERRNO


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ((0,), seccomp.ALLOW),  # read
        ((90,), NOTHING),  # chmod
        ((41, 2, 1), EPERM),  # socket
        ((57,), EPERM),  # fork
        ((59,), EPERM),  # execve
        ((101,), EPERM),  # ptrace
        ((310,), EPERM),  # process_vm_readv
        ((425,), EPERM),  # io_uring_setup, which does other calls' work unseen
        ((319,), EPERM),  # memfd_create, memory that no limit counts
        ((999,), EPERM),
        ((435,), ENOSYS),  # clone3
        ((56, 0x3D0F00), seccomp.ALLOW),  # a thread
        ((56, 0x01200011), EPERM),  # fork as libc does it
        ((56, 0x3D0F00 | 0x10000000), EPERM),  # ... with a user namespace
        ((62, 7, 15), seccomp.ALLOW),  # kill itself by SIGTERM
        ((62, 7, 9), EPERM),
        ((62, 8, 15), EPERM),
        ((62, 2**32 - 1, 15), EPERM),  # everybody
        ((234, 7, 9, 6), seccomp.ALLOW),  # tgkill: abort
        ((234, 7, 9, 9), EPERM),
        ((72, 3, 1), seccomp.ALLOW),  # F_GETFD
        ((72, 3, 8), EPERM),  # F_SETOWN
        ((16, 1, 0x5412), EPERM),  # TIOCSTI
        ((302, 0, 7, 0), seccomp.ALLOW),  # prlimit64, asking
        ((302, 0, 7, 1 << 40), EPERM),  # ... with the address of a new limit
        ((302, 1, 7, 0), EPERM),
        ((0x40000000,), seccomp.KILL),  # x32
    ],
)
def test_the_filter_decides(call: tuple[int, ...], answer: int) -> None:
    assert decide(*call) == answer


def test_another_architectures_calls_are_fatal() -> None:
    assert decide(0, arch=0x40000003) == seccomp.KILL  # i386, by int 0x80


@pytest.mark.skipif(not HEADER.is_file(), reason="no kernel headers of x86-64 here")
def test_numbers_are_the_kernels() -> None:
    true = {name: int(number) for name, number in re.findall(r"__NR_(\w+)\s+(\d+)", HEADER.read_text())}
    ours = {**seccomp.FILES, **seccomp.MEMORY_AND_THREADS, **seccomp.SIGNALS_AND_TIME, **seccomp.QUESTIONS, **seccomp.IGNORED}
    ours |= {"clone": seccomp.CLONE, "kill": seccomp.KILL_CALL, "tgkill": seccomp.TGKILL, "fcntl": seccomp.FCNTL}
    ours |= {"ioctl": seccomp.IOCTL, "prlimit64": seccomp.PRLIMIT, "clone3": seccomp.CLONE3}
    ours |= {"landlock_create_ruleset": landlock.CREATE, "landlock_restrict_self": landlock.RESTRICT}
    assert {name: number for name, number in ours.items() if name in true and true[name] != number} == {}
    assert len(ours) - len(ours.keys() & true.keys()) <= 1  # fchmodat2 is newer than some headers


def test_rights_of_each_landlock_version() -> None:
    assert [landlock.everything(abi).bit_length() for abi in (1, 2, 3, 4, 5, 7)] == [13, 14, 15, 15, 16, 16]


def test_clear_removes_what_resists(tmp_path: Path) -> None:
    """Deeper than any path may be long, forbidden to its owner, and with names that meet those of the removal itself."""
    target = tmp_path / "kept"
    target.write_text("x")
    start, place = os.getcwd(), tmp_path / "work"
    place.mkdir()
    (place / ".1").mkdir()
    (place / ".2").write_text("x")
    (place / "link").symlink_to(target)
    (place / "folder").symlink_to(tmp_path)
    os.mkfifo(place / "pipe")
    try:
        os.chdir(place)
        for _ in range(1200):
            os.mkdir("d" * 40)
            os.chdir("d" * 40)
        os.mkdir("locked", 0)
        os.chdir(place)
        os.makedirs("a/b/c", 0o700)
        os.chmod("a/b", 0)
    finally:
        os.chdir(start)
    workdir.clear(str(place))
    assert os.listdir(place) == [] and target.read_text() == "x"


def test_collect_follows_no_link_and_opens_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    place = tmp_path / "work"
    (place / "real").mkdir(parents=True)
    (place / "real" / "a").write_text("a")
    (place / "link").symlink_to("../secret")
    (place / "folder").symlink_to("real")
    os.mkfifo(place / "pipe")
    names = ["real/a", "link", "folder/a", "pipe", "real", "absent"]
    assert workdir.collect(str(place), names, 100) == {"real/a": b"a"}
    assert workdir.collect(str(place), names, 0) is None
