"""What a job's process is started in: it dies with its parent and takes no more than its part."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

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
