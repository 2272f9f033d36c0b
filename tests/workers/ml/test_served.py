"""Processes that compute for a job: how they end."""

import signal
import subprocess
import sys

from workers.ml.served import end

BUSY = [sys.executable, "-c", "while True: pass"]


class Unreachable(subprocess.Popen):
    """What a sandbox makes of its neighbour."""

    def send_signal(self, _):
        raise PermissionError


def test_a_busy_process_is_ended():
    process = subprocess.Popen(BUSY)
    end(process)
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_no_signal_reaches_runs_out_of_its_time():
    process = Unreachable(BUSY)
    end(process)
    assert process.returncode in {-signal.SIGKILL, -signal.SIGXCPU}


def test_a_process_that_has_ended_is_left_alone():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(60)
    end(process)
    assert process.returncode == 0
