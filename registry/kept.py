"""Secrets that are made once, in the data folder, and kept."""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def keep_secret(path: Path, make: Callable[[], str]) -> str:
    """Read a secret, or make it; several processes may be the first at once, and one of them wins.

    A process that is killed meanwhile leaves the place empty, never half a secret.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        mine = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(make().strip() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(mine, path)
        mine.unlink()
    return path.read_text(encoding="ascii").strip()
