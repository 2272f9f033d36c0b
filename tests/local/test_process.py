"""A child that is watched: started again with growing pauses, and stopped with all it started."""

import os
import signal
import sys
from pathlib import Path

import pytest

from config.local.process import LONGEST_PAUSE_SECONDS, TRIES, WELL_SECONDS, Child
from tests.local.waiting import has_ended, wait_for_text, wait_until


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_child(tmp_path, clock):
    made = []

    def make(script, **options):
        child = Child(
            name="it", command=("/bin/sh", "-c", script), log=tmp_path / "it.log", **options
        )
        child.clock = clock
        made.append(child)
        return child

    yield make
    for child in made:
        child.kill()
        child.stop()


def test_a_killed_child_is_started_again_after_a_pause(make_child, clock):
    child = make_child("exec sleep 100")
    child.start()
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    child.process.wait()

    assert "it ended with status -9; starting it again in 0.5 s" in child.watch()
    assert child.watch() == ""
    assert not child.alive

    clock.now += 0.6
    assert child.watch() == ""
    assert child.alive
    assert child.process.pid != first


def test_what_a_dead_child_leaves_behind_is_ended_before_it_starts_again(make_child, tmp_path):
    child = make_child("sleep 1000 & echo $! >draft; mv draft pid; wait", folder=tmp_path)
    child.start()
    left_behind = int(wait_for_text(tmp_path / "pid"))
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    child.watch()
    wait_until(lambda: has_ended(left_behind), "the end of what was left behind")


def test_pauses_double_up_to_a_limit_and_shrink_after_a_good_run(make_child, clock):
    child = make_child("exit 3")
    pauses = []
    for _ in range(9):
        child.start()
        child.process.wait()
        child.watch()
        pauses.append(child.pause_seconds)
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, LONGEST_PAUSE_SECONDS]

    child.start()
    child.process.wait()
    clock.now += WELL_SECONDS + 1
    child.watch()
    assert child.pause_seconds == 0.5


def test_a_child_with_one_task_is_not_started_again_when_it_is_done(make_child, clock):
    child = make_child("exit 0", once=True)
    child.start()
    child.process.wait()
    assert child.watch() == ""
    clock.now += 100
    assert child.watch() == ""
    assert child.finished
    assert not child.alive


def test_a_child_with_one_task_gives_up_after_some_tries(make_child, clock):
    child = make_child("exit 1", once=True)
    said = []
    for _ in range(TRIES):
        child.start()
        child.process.wait()
        said.append(child.watch())
        clock.now += 100
    assert "left alone" in said[-1]
    assert child.watch() == ""
    assert not child.alive


def test_stop_ends_a_child_that_ignores_the_signal_and_what_it_started(make_child, tmp_path):
    script = "trap '' TERM; sleep 1000 & echo $! >grandchild; mv grandchild pid; wait; wait"
    child = make_child(script, grace_seconds=0.2, folder=tmp_path)
    child.start()
    grandchild = int(wait_for_text(tmp_path / "pid"))
    child.stop()
    assert not child.alive
    assert child.process.returncode == -signal.SIGKILL
    wait_until(lambda: has_ended(grandchild), "the end of the grandchild")


def test_output_goes_to_the_log_and_a_large_log_is_put_aside(make_child, tmp_path, monkeypatch):
    monkeypatch.setattr("config.local.process.LOG_BYTES", 10)
    child = make_child("echo out; echo err >&2")
    for _ in range(3):
        child.start()
        child.process.wait()
    assert (tmp_path / "it.log").read_text() == "out\nerr\n"
    assert (tmp_path / "it.log.1").exists()


def test_children_hear_of_the_death_of_their_parent(tmp_path):
    if sys.platform != "linux":
        pytest.skip("Linux tells children; other systems do not")
    program = (
        "import os, pathlib, signal\n"
        "from config.local.process import Child\n"
        "child = Child('it', ('/bin/sleep', '1000'), pathlib.Path('it.log'))\n"
        "child.start()\n"
        "pathlib.Path('draft').write_text(str(child.process.pid))\n"
        "os.rename('draft', 'pid')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = Child(
        name="parent",
        command=(sys.executable, "-c", program),
        log=tmp_path / "parent.log",
        folder=tmp_path,
        environment={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    parent.start()
    parent.process.wait(30)
    child = int(wait_for_text(tmp_path / "pid"))
    wait_until(lambda: has_ended(child), "the end of the orphan")
