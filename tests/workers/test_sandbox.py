"""What a job's process is started in: it dies with its parent and takes no more than its part."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.workers.ordinary import ORDINARY, copied_code, prefixes
from workers import sandbox

ROOT = Path(__file__).resolve().parents[2]


def finish(command, folder, **limits):
    process = sandbox.start(
        command,
        folder=folder,
        environment=sandbox.clean_environment(folder, threads=1, gpu=None),
        limits=sandbox.Limits(**limits),
    )
    out, errors = process.communicate(timeout=60)
    return process.returncode, out.decode(), errors.decode()


def test_a_command_that_is_missing_says_so(tmp_path):
    code, _, errors = finish(["/nowhere/python"], tmp_path)
    assert code == sandbox.CANNOT_START
    assert "could not be started" in errors


def test_memory_is_limited(tmp_path):
    hog = [sys.executable, "-c", "x = bytearray(1 << 30)"]
    code, _, errors = finish(hog, tmp_path, memory_bytes=512 << 20)
    assert code == 1
    assert "MemoryError" in errors


def test_computing_time_is_limited(tmp_path):
    code, _, _ = finish([sys.executable, "-c", "while True: pass"], tmp_path, cpu_seconds=1)
    assert code == -signal.SIGKILL


def test_the_size_of_a_file_is_limited(tmp_path):
    write = [sys.executable, "-c", "open('big', 'wb').write(bytes(1 << 20))"]
    code, _, errors = finish(write, tmp_path, file_bytes=1000)
    assert code == 1
    assert "File too large" in errors


def test_nothing_of_the_worker_is_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_SECRET_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = sandbox.clean_environment(tmp_path, threads=3, gpu=1)
    assert "secret" not in environment.values()
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["PYTHONPATH"] == str(tmp_path / "code")
    assert sandbox.clean_environment(tmp_path, threads=1, gpu=None)["CUDA_VISIBLE_DEVICES"] == ""


def test_it_dies_with_its_parent(tmp_path):
    program = f"""
import pathlib, sys, time
from workers import sandbox
sandbox.start(
    [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
    folder=pathlib.Path({str(tmp_path)!r}),
    environment={{}},
    limits=sandbox.Limits(),
).stdout.readline()
print("started", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout.readline() == b"started\n"
        assert len(sandbox.processes_in(tmp_path)) == 1
        parent.kill()
    until = time.monotonic() + 5
    while sandbox.processes_in(tmp_path):
        assert time.monotonic() < until
        threading.Event().wait(0.02)


def test_leftovers_are_found_by_where_they_work(tmp_path):
    inside, beside = tmp_path / "job" / "attempt-1", tmp_path / "job-2"
    inside.mkdir(parents=True)
    beside.mkdir()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep, cwd=inside) as one, subprocess.Popen(sleep, cwd=beside) as other:
        reaper = threading.Thread(target=one.wait)
        reaper.start()
        assert sandbox.kill_leftovers(tmp_path / "job") == 1
        reaper.join(5)
        assert one.returncode == -signal.SIGKILL
        assert other.poll() is None
        assert sandbox.kill_leftovers(tmp_path / "job") == 0
        os.kill(other.pid, signal.SIGKILL)


# --- As root, and as an ordinary user ------------------------------------------------------------

STARTING = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[1])
from workers import sandbox
folder = pathlib.Path(sys.argv[2])
{before}
process = sandbox.start(
    [sys.executable, "-I", "-c", {program!r}, *sys.argv[3:]],
    folder=folder,
    environment=sandbox.clean_environment(folder, threads=2, gpu=None),
    limits=sandbox.Limits(),
)
out, errors = process.communicate(timeout=60)
sys.stdout.buffer.write(out)
sys.stderr.buffer.write(errors)
"""
CHANGES = """
import os, sys, threading
big, own = sys.argv[1], "own"
open(own, "w").close()
with open(big, "rb") as taken, open(own, "rb+") as made:
    attempts = {
        "chmod": lambda: os.chmod(big, 0),
        "fchmod": lambda: os.fchmod(taken.fileno(), 0),
        "its own": lambda: os.chmod(own, 0o777),
        "its own, open": lambda: os.fchmod(made.fileno(), 0o777),
        "chown": lambda: os.chown(own, -1, os.getgid()),
        "lchown": lambda: os.lchown(own, -1, os.getgid()),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except PermissionError:
            continue
        print("It did", name)
thread = threading.Thread(target=print, args=("It ran",))
thread.start()
thread.join()
"""
# Has the kernel answer as one without Landlock does.
WITHOUT_LANDLOCK = """
import ctypes, struct
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50026), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
header = struct.pack("=H6xQ", len(lines), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, header, 0, 0) == 0
from workers import landlock
assert landlock.abi() == 0
"""


def run_in(folder, prefix, program, *arguments, before=""):
    code = copied_code(folder, prefix or ["any"])
    work = folder / "work"
    work.mkdir()
    if prefix:
        os.chown(work, ORDINARY, ORDINARY)
    starting = STARTING.format(before=before, program=program)
    return subprocess.run(
        [*prefix, "/usr/bin/python3", "-c", starting, str(code), str(work), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=folder,
    )


@pytest.mark.parametrize("prefix", prefixes(), ids=lambda prefix: prefix[0] if prefix else "as is")
def test_a_job_changes_the_modes_of_nothing(tmp_path, prefix):
    """A large input is a link to the stored bytes, which may be its own user's."""
    big = tmp_path / "work" / "big"
    stored = tmp_path / "stored"
    stored.write_bytes(b"weights")
    stored.chmod(0o444)
    if prefix:
        os.chown(stored, ORDINARY, ORDINARY)
    before = f"import os; os.link({str(stored)!r}, {str(big)!r})"
    done = run_in(tmp_path, prefix, CHANGES, str(big), before=before)
    assert (done.stdout, done.stderr) == ("It ran\n", "")
    assert stored.stat().st_mode & 0o777 == 0o444


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a right to give up")
def test_without_landlock_a_job_keeps_no_right_to_read_everything(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    done = run_in(
        tmp_path,
        [],
        "import sys; print(open(sys.argv[1]).read())",
        str(secret),
        before=WITHOUT_LANDLOCK,
    )
    assert "PermissionError" in done.stderr
    assert "secret\n" not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a right to give up")
def test_without_landlock_our_own_code_runs_below_roots_folder_too(tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    done = run_in(private, [], "print('It ran')", before=WITHOUT_LANDLOCK)
    assert (done.stdout, done.stderr) == ("It ran\n", "")
