"""Landlock: a process gives up, for itself and all it starts, every file that is not listed.

Standard library only. Linux 5.13 brought it (ABI 1); what later ones add is used where it is there:
truncation (3), TCP ports (4), device controls (5), signals and abstract sockets (6).
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# The same numbers on every architecture.
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
# Folders and files of every kind but devices.
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13) if bit not in {6, 11})
# What may be allowed on a file; the rest makes sense for folders only.
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_TCP = 0b11
_SCOPES = 0b11

_ALL_BY_ABI = {
    1: (1 << 13) - 1,
    2: (1 << 14) - 1,
    3: (1 << 15) - 1,
    4: (1 << 15) - 1,
    5: (1 << 16) - 1,
}


class Paths(NamedTuple):
    """What stays open: to read and run, only to read, to write below, to use as devices."""

    runnable: Iterable[Path] = ()
    readable: Iterable[Path] = ()
    writable: Iterable[Path] = ()
    devices: Iterable[Path] = ()


def abi() -> int:
    """Give the version of Landlock that the kernel speaks; 0 where there is none."""
    version = _syscall(_CREATE, None, 0, _VERSION_FLAG)
    return max(0, version)


def restrict(paths: Paths, *, tcp: bool) -> None:
    """Give up everything but `paths`, for good; without `tcp` no port can be bound or reached.

    Raises:
        OSError: the kernel has no Landlock, or refuses.

    """
    version = abi()
    if version < 1:
        raise OSError(os.strerror(38), "landlock")
    handled = _ALL_BY_ABI[min(version, 5)]
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", 0 if tcp else _TCP)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    ruleset = _checked(_CREATE, attributes, len(attributes), 0)
    try:
        read = _READ_FILE | _READ_DIR
        write = read | _WRITE_FILE | _MAKE_AND_REMOVE | _REFER | _TRUNCATE
        for path in paths.runnable:
            _allow(ruleset, path, (read | _EXECUTE) & handled)
        for path in paths.readable:
            _allow(ruleset, path, read & handled)
        for path in paths.writable:
            _allow(ruleset, path, write & handled)
        for path in paths.devices:
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _IOCTL_DEVICE) & handled)
        _checked(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int) -> None:
    """Allow `access` at and below `path`; what is not there needs no rule."""
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if not os.path.isdir(path):  # noqa: PTH112 - the same path, as it was opened
            access &= _ON_FILES
        rule = struct.pack("=Qi", access, handle)
        _checked(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(handle)


def _checked(number: int, *arguments: int | bytes) -> int:
    result = _syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "landlock")
    return result


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    sent = [
        ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_long(value or 0)
        for value in arguments
    ]
    return int(library.syscall(ctypes.c_long(number), *sent))
