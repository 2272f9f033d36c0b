"""Wait for what another process does, with a limit."""

import threading
import time
from pathlib import Path


def wait_until(condition, what, seconds=30):
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        pause.wait(0.02)
    return found


def wait_for_text(path):
    wait_until(path.exists, path)
    return path.read_text()


def has_ended(pid):
    """Say whether a process that is not our child is gone (or a zombie nobody has collected)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"
