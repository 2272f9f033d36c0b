"""Seccomp: what a process may ask the kernel for, as a filter put together here.

Standard library only, x86_64 and aarch64. The filter looks at numbers, never through pointers: what
an address or a path says is for namespaces and Landlock to judge.
"""

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass, field

_PR_SET_SECCOMP_MODE_FILTER = 1
_SYNCHRONISE_THREADS = 1

_ALLOW = 0x7FFF_0000
_KILL = 0x8000_0000
_ERROR = 0x0005_0000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
# Numbers of the x32 ABI begin here; another way to say the same, which nobody here speaks.
_X32 = 0x4000_0000

# column of the table, AUDIT_ARCH_*, number of seccomp(2)
_MACHINES = {"x86_64": (0, 0xC000_003E, 317), "aarch64": (1, 0xC000_00B7, 277)}

_THREAD_FLAGS = 0x0001_0000
_NAMESPACE_FLAGS = 0x7E02_0080
_FAMILY_INET, _FAMILY_INET6, _FAMILY_NETLINK = 2, 10, 16
_SET_DEATH_SIGNAL = 1
_PUSH_INPUT, _CONSOLE = 0x5412, 0x541C
_SET_FLAGS, _SET_ATTRIBUTES = 0x4008_6602, 0x401C_5820
# The first number that this file knows nothing of, the same on every machine since 2019.
_UNKNOWN = 463
_CLOSE_ON_EXEC = 0x5451

_NUMBERS = {
    "access": (21, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "arch_prctl": (158, None),
    "bpf": (321, 280),
    "brk": (12, 214),
    "chmod": (90, None),
    "chown": (92, None),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "delete_module": (176, 106),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "execve": (59, 221),
    "execveat": (322, 281),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fadvise64": (221, 223),
    "fallocate": (285, 47),
    "fanotify_init": (300, 262),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "fcntl": (72, 25),
    "fdatasync": (75, 83),
    "finit_module": (313, 273),
    "fork": (57, None),
    "fsconfig": (431, 431),
    "fsetxattr": (190, 7),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "fstat": (5, 80),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "futex": (202, 98),
    "futex_waitv": (449, 449),
    "get_robust_list": (274, 100),
    "getcpu": (309, 168),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "lchown": (94, None),
    "lseek": (8, 62),
    "lsetxattr": (189, 6),
    "lstat": (6, None),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "mmap": (9, 222),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mprotect": (10, 226),
    "mq_open": (240, 180),
    "mremap": (25, 216),
    "msgget": (68, 186),
    "munmap": (11, 215),
    "name_to_handle_at": (303, 264),
    "nanosleep": (35, 101),
    "newfstatat": (262, 79),
    "open": (2, None),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "openat": (257, 56),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pselect6": (270, 72),
    "ptrace": (101, 117),
    "pwrite64": (18, 68),
    "pwritev": (296, 70),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "read": (0, 63),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "readv": (19, 65),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigqueueinfo": (129, 138),
    "rt_sigreturn": (15, 139),
    "rt_tgsigqueueinfo": (297, 240),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "select": (23, None),
    "semget": (64, 190),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpgid": (109, 154),
    "setsid": (112, 157),
    "settimeofday": (164, 170),
    "setxattr": (188, 5),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "sigaltstack": (131, 132),
    "socket": (41, 198),
    "stat": (4, None),
    "statx": (332, 291),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysinfo": (99, 179),
    "syslog": (103, 116),
    "tgkill": (234, 131),
    "time": (201, None),
    "times": (100, 153),
    "tkill": (200, 130),
    "truncate": (76, 45),
    "umount2": (166, 39),
    "uname": (63, 160),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vfork": (58, None),
    "vhangup": (153, 58),
    "write": (1, 64),
    "writev": (20, 66),
}

# All that a process needs to read one descriptor, compute and write another.
_COMPUTING = """
    read write readv writev pread64 pwrite64 preadv pwritev lseek close fstat newfstatat
    stat lstat statx fcntl mmap munmap mprotect mremap madvise brk futex futex_waitv
    sched_yield sched_getaffinity getpid gettid getppid getuid geteuid getgid getegid
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time getrandom
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack exit exit_group set_robust_list
    get_robust_list rseq set_tid_address getrlimit getrusage sysinfo uname poll ppoll select
    pselect6 dup dup2 dup3 ftruncate fallocate fsync fdatasync getcwd open openat readlink
    readlinkat access faccessat faccessat2 getdents64 membarrier restart_syscall arch_prctl
    fadvise64 getcpu times
""".split()  # noqa: SIM905 - as a list it fills a page

# What no job needs: other processes, the machine, its namespaces, the kernel's wide doors; and the
# modes of files, for a large input is a link to the stored bytes, and may be the same user's.
_FORBIDDEN = """
    ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp
    pidfd_open pidfd_getfd pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo mount umount2
    pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr
    unshare setns bpf perf_event_open keyctl add_key request_key userfaultfd io_uring_setup
    io_uring_enter io_uring_register kexec_load kexec_file_load init_module finit_module
    delete_module reboot swapon swapoff acct quotactl quotactl_fd syslog settimeofday
    clock_settime adjtimex clock_adjtime sethostname setdomainname iopl ioperm modify_ldt
    name_to_handle_at open_by_handle_at personality vhangup fanotify_init setsid setpgid
    setxattr lsetxattr fsetxattr shmget shmat msgget semget mq_open move_pages
    migrate_pages memfd_secret execveat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
""".split()  # noqa: SIM905 - likewise


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which system calls pass."""

    # Only what computing takes: no program, no socket, no file that is not open already.
    computing_only: bool
    loopback: bool = False
    # Landlock lets no signal out of its domain, so that they need no rule here.
    signals_are_scoped: bool = False
    # Landlock watches over truncation.
    truncation_is_scoped: bool = False


@dataclass
class _Program:
    """A filter under construction; every rule ends with a verdict."""

    column: int
    code: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, code: int, value: int, *, yes: int = 0, no: int = 0) -> None:
        self.code.append((code, yes, no, value))

    def always(self, name: str, verdict: int) -> None:
        self._rule(name, [(_RETURN, 0, 0, verdict)])

    def when_equal(
        self, name: str, argument: int, values: list[int], *, then: int, other: int
    ) -> None:
        """Judge by the low half of an argument, which is all that an `int` has."""
        body = [(_LOAD, 0, 0, _AT_ARGUMENTS + 8 * argument)]
        for position, value in enumerate(values):
            left = len(values) - position - 1
            body.append((_EQUAL, left + 1, 0, value))
        body += [(_RETURN, 0, 0, other), (_RETURN, 0, 0, then)]
        self._rule(name, body)

    def when_any_bit(self, name: str, argument: int, bits: int, *, then: int, other: int) -> None:
        self._rule(
            name,
            [
                (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * argument),
                (_ANY_BIT, 1, 0, bits),
                (_RETURN, 0, 0, other),
                (_RETURN, 0, 0, then),
            ],
        )

    def _rule(self, name: str, body: list[tuple[int, int, int, int]]) -> None:
        number = _NUMBERS[name][self.column]
        if number is not None:
            self.add(_EQUAL, number, no=len(body))
            self.code += body

    def to_bytes(self) -> bytes:
        return b"".join(struct.pack("=HBBI", *line) for line in self.code)


def is_supported() -> bool:
    """Say whether the machine and its kernel can filter."""
    if platform.machine() not in _MACHINES:
        return False
    actions = "/proc/sys/kernel/seccomp/actions_avail"
    return os.path.exists(actions)  # noqa: PTH110 - one question, no path to keep


def restrict(rules: Rules) -> None:
    """Filter the calls of this process, all its threads and all it starts, for good.

    Raises:
        OSError: the kernel has no filters, or the machine is of another kind.

    """
    if platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "seccomp")
    code = assemble(rules)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    done = library.syscall(
        ctypes.c_long(_MACHINES[platform.machine()][2]),
        ctypes.c_long(_PR_SET_SECCOMP_MODE_FILTER),
        ctypes.c_long(_SYNCHRONISE_THREADS),
        ctypes.c_char_p(header),
    )
    if done != 0:
        number = ctypes.get_errno() or errno.EPERM
        raise OSError(number, os.strerror(number), "seccomp")


def assemble(rules: Rules) -> bytes:
    """Write the filter for the machine this runs on."""
    column, architecture, _ = _MACHINES[platform.machine()]
    program = _Program(column)
    program.add(_LOAD, _AT_ARCHITECTURE)
    program.add(_EQUAL, architecture, yes=1)
    program.add(_RETURN, _KILL)
    program.add(_LOAD, _AT_NUMBER)
    if column == 0:
        program.add(_AT_LEAST, _X32, no=1)
        program.add(_RETURN, _KILL)
    # So that the C library falls back to `clone`, whose flags can be seen.
    program.always("clone3", _ERROR | errno.ENOSYS)
    # What a later kernel brings is judged when it is known here.
    program.add(_AT_LEAST, _UNKNOWN, no=1)
    program.add(_RETURN, _ERROR | errno.ENOSYS)
    if rules.computing_only:
        _allow_computing(program)
    else:
        _forbid(program, rules)
    return program.to_bytes()


def _allow_computing(program: _Program) -> None:
    refused = _ERROR | errno.EPERM
    for name in _COMPUTING:
        program.always(name, _ALLOW)
    program.when_equal("kill", 0, [os.getpid()], then=_ALLOW, other=refused)
    program.when_equal("tgkill", 0, [os.getpid()], then=_ALLOW, other=refused)
    program.when_equal("ioctl", 1, [_CLOSE_ON_EXEC], then=_ALLOW, other=refused)
    # Of its own limits it may only ask.
    program.when_equal("prlimit64", 2, [0], then=_ALLOW, other=refused)
    program.add(_RETURN, refused)


def _forbid(program: _Program, rules: Rules) -> None:
    refused = _ERROR | errno.EPERM
    for name in _FORBIDDEN:
        program.always(name, refused)
    families = [_FAMILY_INET, _FAMILY_INET6, _FAMILY_NETLINK] if rules.loopback else []
    program.when_equal("socket", 0, families, then=_ALLOW, other=refused)
    program.when_any_bit("clone", 0, _NAMESPACE_FLAGS, then=refused, other=_ALLOW)
    program.when_equal("prctl", 0, [_SET_DEATH_SIGNAL], then=refused, other=_ALLOW)
    doors = [_PUSH_INPUT, _CONSOLE, _SET_FLAGS, _SET_ATTRIBUTES]
    program.when_equal("ioctl", 1, doors, then=refused, other=_ALLOW)
    if not rules.signals_are_scoped:
        program.when_equal("kill", 0, [os.getpid()], then=_ALLOW, other=refused)
        program.when_equal("tgkill", 0, [os.getpid()], then=_ALLOW, other=refused)
        program.always("tkill", refused)
    if not rules.truncation_is_scoped:
        program.always("truncate", refused)
    program.add(_RETURN, _ALLOW)
