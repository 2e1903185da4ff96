"""A seccomp filter for model-written code: a list of the system calls that an interpreter needs, and nothing else. x86-64.

No new process, program, socket, IPC object, namespace or kernel facility; signals to itself alone. What is not listed fails with
EPERM, which Python code sees as PermissionError. BPF program by seccomp(2) and linux/filter.h; numbers by asm/unistd_64.h.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

ARCHITECTURE = 0xC000003E  # AUDIT_ARCH_X86_64
X32 = 0x40000000  # system calls of the x32 ABI: the same kernel functions under other numbers
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, RET|K
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

FILES = dict(
    **dict(read=0, write=1, open=2, close=3, stat=4, fstat=5, lstat=6, lseek=8, pread64=17, pwrite64=18, readv=19, writev=20),
    **dict(access=21, pipe=22, dup=32, dup2=33, sendfile=40, flock=73, fsync=74, fdatasync=75, truncate=76, ftruncate=77),
    **dict(getdents=78, getcwd=79, chdir=80, fchdir=81, rename=82, mkdir=83, rmdir=84, creat=85, link=86, unlink=87, symlink=88),
    **dict(readlink=89, umask=95, statfs=137, fstatfs=138, getxattr=191, lgetxattr=192, fgetxattr=193, listxattr=194),
    **dict(llistxattr=195, flistxattr=196, getdents64=217, fadvise64=221, openat=257, mkdirat=258, newfstatat=262, unlinkat=263),
    **dict(renameat=264, linkat=265, symlinkat=266, readlinkat=267, faccessat=269, fallocate=285, dup3=292, pipe2=293),
    **dict(preadv=295, pwritev=296, renameat2=316, copy_file_range=326, preadv2=327, pwritev2=328, statx=332, close_range=436),
    **dict(openat2=437, faccessat2=439),
)
MEMORY_AND_THREADS = dict(
    **dict(mmap=9, mprotect=10, munmap=11, brk=12, mremap=25, msync=26, mincore=27, madvise=28, sched_yield=24, arch_prctl=158),
    **dict(gettid=186, futex=202, sched_getaffinity=204, set_tid_address=218, restart_syscall=219, set_robust_list=273),
    **dict(get_robust_list=274, getcpu=309, membarrier=324, rseq=334, exit=60, exit_group=231),
)
SIGNALS_AND_TIME = dict(
    **dict(rt_sigaction=13, rt_sigprocmask=14, rt_sigreturn=15, pause=34, nanosleep=35, getitimer=36, alarm=37, setitimer=38),
    **dict(gettimeofday=96, times=100, rt_sigpending=127, rt_sigtimedwait=128, rt_sigsuspend=130, sigaltstack=131, time=201),
    **dict(clock_gettime=228, clock_getres=229, clock_nanosleep=230, poll=7, select=23, pselect6=270, ppoll=271),
    **dict(epoll_create=213, epoll_wait=232, epoll_ctl=233, epoll_pwait=281, epoll_create1=291),
)
QUESTIONS = dict(
    **dict(getpid=39, wait4=61, uname=63, getrlimit=97, getrusage=98, sysinfo=99, getuid=102, getgid=104, geteuid=107),
    **dict(getegid=108, getppid=110, getpgrp=111, getgroups=115, getresuid=118, getresgid=120, getpgid=121, getsid=124),
    **dict(getpriority=140, sched_getparam=143, sched_getscheduler=145, waitid=247, getrandom=318),
)
# Attributes of files: these succeed and do nothing, since shutil.copy would fail over them and none of them matters in here.
IGNORED = dict(
    **dict(chmod=90, fchmod=91, chown=92, fchown=93, lchown=94, utime=132, setxattr=188, lsetxattr=189, fsetxattr=190),
    **dict(utimes=235, fchownat=260, futimesat=261, fchmodat=268, utimensat=280, fchmodat2=452),
)
CLONE, KILL_CALL, TGKILL, FCNTL, IOCTL, PRLIMIT, CLONE3 = 56, 62, 234, 72, 16, 302, 435
# clone(2) as glibc (0x3d0f00) and musl (0x7d0f00) call it for a thread; any other flags would be a process or a namespace.
THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
# fcntl(2): duplicate, flags, locks, sizes. Not F_SETOWN and F_SETSIG, which send signals to others by way of a descriptor.
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)
IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
SIGKILL, SIGSTOP = 9, 19


def unsupported() -> str | None:
    """Why no filter can be set here, or None."""
    if platform.machine() != "x86_64" or struct.calcsize("P") != 8:
        return f"the system call filter is written for x86-64, this is {platform.machine()}"
    with open("/proc/self/status") as f:
        if "Seccomp:" not in f.read():
            return "this kernel has no seccomp"
    return None


def program(pid: int) -> bytes:
    """The filter for the process ``pid`` (as the process itself sees its number), as an array of struct sock_filter."""
    refuse, vanish = _return(ERRNO | errno.EPERM), _return(ERRNO | errno.ENOSYS)
    code = [_load(_ARCH), _op(_EQUAL, ARCHITECTURE, 1, 0), _return(KILL)]
    code += [_load(_NUMBER), _op(_AT_LEAST, X32, 0, 1), _return(KILL)]
    for number in sorted({**FILES, **MEMORY_AND_THREADS, **SIGNALS_AND_TIME, **QUESTIONS}.values()):
        code += [_op(_EQUAL, number, 0, 1), _return(ALLOW)]
    for number in IGNORED.values():
        code += [_op(_EQUAL, number, 0, 1), _return(ERRNO)]
    code += [_op(_EQUAL, CLONE3, 0, 1), vanish]  # its flags lie in memory; told that it isn't there, libc uses clone
    code += _if(CLONE, _one_of(0, THREAD_FLAGS))
    code += _if(FCNTL, _one_of(1, FCNTL_COMMANDS))
    code += _if(IOCTL, _one_of(1, IOCTL_REQUESTS))
    # SIGKILL comes from outside or from the kernel alone: a run can't pass its own end off as the machine's fault.
    for call, signal_argument in ((KILL_CALL, 1), (TGKILL, 2)):
        fatal = [_argument(signal_argument), _op(_EQUAL, SIGKILL, 0, 1), refuse, _op(_EQUAL, SIGSTOP, 0, 1), refuse]
        code += _if(call, [*fatal, *_one_of(0, (pid,))])
    # prlimit64(0, resource, NULL, old): asking, of itself.
    high = _ARGUMENTS + 2 * 8 + 4
    asking = [_argument(0), _op(_EQUAL, 0, 1, 0), refuse, _argument(2), _op(_EQUAL, 0, 1, 0), refuse]
    code += _if(PRLIMIT, [*asking, _load(high), _op(_EQUAL, 0, 1, 0), refuse, _return(ALLOW)])
    return b"".join([*code, refuse])


def install(pid: int) -> None:
    """Set the filter for this process and all that it will be, for good. Raises OSError. Needs no privilege."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = program(pid)
    buffer = ctypes.create_string_buffer(code, len(code))
    fprog = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({arguments[0]}) failed")


def _op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, k)


def _load(offset: int) -> bytes:
    return _op(_LOAD, offset)


def _argument(i: int) -> bytes:
    """Load the low half of argument ``i``: all that the kernel reads of an int."""
    return _load(_ARGUMENTS + 8 * i)


def _return(action: int) -> bytes:
    return _op(_RETURN, action)


def _one_of(argument: int, values: tuple[int, ...]) -> list[bytes]:
    code = [_argument(argument)]
    for value in values:
        code += [_op(_EQUAL, value, 0, 1), _return(ALLOW)]
    return [*code, _return(ERRNO | errno.EPERM)]


def _if(number: int, body: list[bytes]) -> list[bytes]:
    """``body``, which always returns, for the system call ``number``; the number is still loaded behind it for all others."""
    return [_op(_EQUAL, number, 0, len(body)), *body]
