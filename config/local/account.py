"""Which account a child process runs as: never root for a server, and always one that can work."""

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 4
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_CAPABILITY_VERSION = 0x20080522
# Loaded before any fork: between fork and exec there is no importing.
_libc = ctypes.CDLL(None, use_errno=True)


class ServerError(RuntimeError):
    """A part cannot be made ready; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Account:
    """A user and group id; `passes` means that it may pass folders that are closed to it."""

    uid: int
    gid: int
    passes: bool = False

    def make_folder(self, path: Path) -> None:
        """Make a folder that only this account (and root) may enter."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.give(path)

    def give(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.uid, self.gid)


OWN = Account(os.geteuid(), os.getegid())


def server_account(data: Path, program: Path) -> Account:
    """Choose who runs a server whose files are in `data`.

    An ordinary user runs it himself. Root hands it to `postgres` or `nobody`; data that exists
    stays with the account that made it. Where that user cannot reach the program or the data (a
    checkout below a 0700 home), he gets the one capability to pass, so that no permission of any
    folder has to change. A user namespace would do too, but containers and chroots have none.
    """
    if os.geteuid() != 0:
        return OWN
    passes = not (_open_to_all(program) and _open_to_all(data.parent))
    if data.exists() and data.stat().st_uid != 0:
        return Account(data.stat().st_uid, data.stat().st_gid, passes)
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return Account(entry.pw_uid, entry.pw_gid, passes)


def _open_to_all(path: Path) -> bool:
    return all(step.stat().st_mode & 0o001 for step in (path, *path.resolve().parents))


def spawn(
    command: Sequence[str | Path],
    *,
    account: Account = OWN,
    output: IO[bytes] | int | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    when_orphaned: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, that is told to stop should this process die."""
    changes_user = os.geteuid() == 0 and account.uid != 0
    at_once = changes_user and not account.passes
    try:
        return subprocess.Popen(  # noqa: S603 - the command is ours
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            env=environment,
            cwd=folder,
            start_new_session=True,
            user=account.uid if at_once else None,
            group=account.gid if at_once else None,
            extra_groups=[] if at_once else None,
            preexec_fn=_before_exec(account, when_orphaned),  # noqa: PLW1509 - we hold no threads
        )
    except (OSError, subprocess.SubprocessError) as error:
        way_out = (
            "; root cannot hand it to another user here: start as an ordinary user, or keep the "
            "checkout and MODELYARD_HOME where the user nobody can reach them"
        )
        raise ServerError(
            f"cannot start {command[0]}: {error}{way_out if account.passes else ''}"
        ) from error


def _before_exec(account: Account, when_orphaned: signal.Signals) -> Callable[[], None]:
    drops_root = account.passes and os.geteuid() == 0 and account.uid != 0
    capability = _capability_to_pass() if drops_root else 0

    def enter() -> None:
        if drops_root:
            _become(account, capability)
        if sys.platform == "linux":
            _libc.prctl(_PR_SET_PDEATHSIG, when_orphaned.value)

    return enter


def _capability_to_pass() -> int:
    """Name the least of the capabilities we hold that lets a process pass closed folders."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = int(status.split("CapPrm:")[1].split()[0], 16)
    return _CAP_DAC_READ_SEARCH if held >> _CAP_DAC_READ_SEARCH & 1 else _CAP_DAC_OVERRIDE


def _become(account: Account, capability: int) -> None:
    """Give up root for good, and everything root may do but for one capability."""
    # The capability then holds for access(2) too, by which initdb looks for its programs.
    _checked(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    only = 1 << capability
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    # Effective, permitted, inheritable: of the lower capabilities, then of the higher ones.
    sets = (ctypes.c_uint32 * 6)(only, only, only, 0, 0, 0)
    _checked(_libc.capset(header, sets))
    _checked(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0))


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "root's rights cannot be given up")
