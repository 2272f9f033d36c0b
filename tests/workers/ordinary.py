"""Runs what the sandbox does as root, where the tests are, and as an ordinary user."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ORDINARY = 12345


def prefixes():
    """Give what to put before a command: nothing, and what makes it an ordinary user's."""
    yield []
    if os.geteuid() == 0:
        yield ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups"]


def python_for(prefix):
    """Choose an interpreter; that of the tests may be where only root can read."""
    return "/usr/bin/python3" if prefix else sys.executable


def copied_code(folder, prefix):
    """Copy the sandbox, which needs no more than Python, to where that user can read it."""
    copied = folder / "code" / "workers"
    copied.mkdir(parents=True)
    for name in ("__init__.py", "sandbox.py", "landlock.py", "seccomp.py"):
        (copied / name).write_bytes((ROOT / "workers" / name).read_bytes())
    if prefix:
        for parent in (folder, *list(folder.parents)[:3]):
            parent.chmod(0o777)
    return folder / "code"
