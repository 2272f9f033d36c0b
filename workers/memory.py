"""How much memory a job may use, and how much its processes do."""

import os
from contextlib import suppress
from pathlib import Path

# Where a container says what it may use: cgroups of the second version, then of the first.
_CGROUP = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_OWN = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_PROC = Path("/proc")


def job_limit(configured: int) -> int:
    """Give the limit of one job: as configured, else three quarters of what there is."""
    return configured or machine_bytes() * 3 // 4


def machine_bytes(limits: tuple[Path, ...] = _CGROUP) -> int:
    """Give the memory of this machine, or of the container that this is."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        with suppress(OSError, ValueError):
            found.append(int(path.read_text(encoding="ascii")))
    return min(found)


def session_bytes(session: int) -> int:
    """Add up what the processes of a session hold for themselves, in memory and swapped out.

    Files they have mapped do not count: the kernel takes those pages back when it needs them.
    Address space does not either: CUDA and memory-mapped weights reserve far more than they use.
    """
    return sum(map(_own_bytes, _folders_of(session)))


def session_processes(session: int) -> frozenset[int]:
    """Give the processes of a session."""
    return frozenset(int(folder.name) for folder in _folders_of(session))


def _folders_of(session: int) -> list[Path]:
    return [folder for folder in _PROC.glob("[0-9]*") if _is_in(folder, session)]


def _is_in(folder: Path, session: int) -> bool:
    try:
        # The name in front may hold anything, brackets too: state, parent, group, session follow.
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return len(fields) > 3 and int(fields[3]) == session


def _own_bytes(folder: Path) -> int:
    try:
        lines = (folder / "status").read_bytes().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_OWN))
