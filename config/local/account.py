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

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
# Loaded before any fork: between fork and exec there is no importing.
_libc = ctypes.CDLL(None, use_errno=True)


class ServerError(RuntimeError):
    """A part cannot be made ready; the message is for the person at the terminal."""


@dataclass(frozen=True)
class Account:
    """A user and group id; `namespaced` means our own id, seen as this one in a user namespace."""

    uid: int
    gid: int
    namespaced: bool = False

    def make_folder(self, path: Path) -> None:
        """Make a folder that only this account (and root) may enter."""
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.give(path)

    def give(self, path: Path) -> None:
        if os.geteuid() == 0 and not self.namespaced:
            os.chown(path, self.uid, self.gid)


OWN = Account(os.geteuid(), os.getegid())


def server_account(data: Path, program: Path) -> Account:
    """Choose who runs a server whose files are in `data`.

    An ordinary user runs it himself. Root hands it to `postgres` or `nobody`, who must be able to
    reach the program and the data; where they cannot (a checkout below a 0700 home), the server
    runs in a user namespace: there it is not root, and no permission has to change. Data that
    exists stays with the account that made it.
    """
    if os.geteuid() != 0:
        return OWN
    nobody = pwd.getpwnam("nobody")
    namespaced = Account(nobody.pw_uid, nobody.pw_gid, namespaced=True)
    if data.exists():
        owner = data.stat()
        return Account(owner.st_uid, owner.st_gid) if owner.st_uid else namespaced
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if _open_to_all(program) and _open_to_all(data.parent):
            return Account(entry.pw_uid, entry.pw_gid)
    return namespaced


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
    changes_user = os.geteuid() == 0 and account.uid != 0 and not account.namespaced
    try:
        return subprocess.Popen(  # noqa: S603 - the command is ours
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            env=environment,
            cwd=folder,
            start_new_session=True,
            user=account.uid if changes_user else None,
            group=account.gid if changes_user else None,
            extra_groups=[] if changes_user else None,
            preexec_fn=_before_exec(account, when_orphaned),  # noqa: PLW1509 - we hold no threads
        )
    except (OSError, subprocess.SubprocessError) as error:
        way_out = (
            "; root cannot run it here: start as an ordinary user, or keep the checkout and "
            "MODELYARD_HOME where the user nobody can reach them"
        )
        raise ServerError(
            f"cannot start {command[0]}: {error}{way_out if account.namespaced else ''}"
        ) from error


def _before_exec(account: Account, when_orphaned: signal.Signals) -> Callable[[], None]:
    def enter() -> None:
        if account.namespaced:
            if _libc.unshare(_CLONE_NEWUSER) != 0:
                raise OSError(ctypes.get_errno(), "no user namespace to run a server in")
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{account.uid} 0 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{account.gid} 0 1", encoding="ascii")
        if sys.platform == "linux":
            _libc.prctl(_PR_SET_PDEATHSIG, when_orphaned.value)

    return enter
