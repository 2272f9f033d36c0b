"""Real workers that are killed, real brokers that forget: no job is lost, none ends twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from django.conf import settings
from django.db import connection

from registry.models import Attempt, Job, JobEvent, JobState, Version
from registry.services import jobs
from tests.factories import actor_of
from tests.local.waiting import wait_until
from tests.workers.tiny import training
from workers import sandbox
from workers.folder import jobs_folder

ROOT = Path(__file__).resolve().parents[2]
LONG = {"epochs": 8, "batch_size": 1, "checkpoint_interval": 100}


@pytest.fixture
def start_worker(process_environment, tmp_path):
    """Start real Celery workers; what is left of them ends with the test."""
    started = []

    def start(**environment):
        command = "-m celery --app config.celery worker --pool threads --concurrency 1"
        command += " --queues default,cpu,gpu --without-gossip --without-mingle"
        with (tmp_path / f"worker-{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command.split(), "--hostname", f"w{len(started)}@%h"],
                cwd=ROOT,
                env={**process_environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    sandbox.kill_leftovers(jobs_folder())
    for log in sorted(tmp_path.glob("worker-*.log")):
        sys.stdout.write(f"{log.name}\n{log.read_text(errors='replace')}")


def state_of(job):
    job.refresh_from_db()
    return job.state


def checkpoints_of(job):
    return JobEvent.objects.filter(job=job, data__has_key="checkpoint").count()


@pytest.mark.slow
def test_training_goes_on_after_its_worker_was_killed(owner, digits_dataset, start_worker):
    job = jobs.submit_job(actor=actor_of(owner), recipe=training(**LONG))
    first = start_worker()
    wait_until(lambda: checkpoints_of(job) >= 2, job.pk, seconds=60)
    reached = job.events.filter(data__has_key="checkpoint").last().data["checkpoint"]
    first.kill()
    killed = time.monotonic()
    first.wait()
    folder = jobs_folder() / str(job.pk)
    wait_until(lambda: not sandbox.kill_leftovers(folder), job.pk, seconds=1)

    start_worker()
    wait_until(lambda: Attempt.objects.filter(job=job).count() == 2, job.pk, seconds=30)
    seen = job.events.latest("pk").pk
    wait_until(lambda: job.events.filter(pk__gt=seen, type="metric").exists(), job.pk, seconds=30)
    assert time.monotonic() - killed < 30
    step = job.events.filter(pk__gt=seen, type="metric").first().data["step"]
    assert step > reached - LONG["checkpoint_interval"]

    wait_until(lambda: state_of(job) == JobState.SUCCEEDED, job.pk, seconds=120)
    assert Version.objects.filter(job=job).count() == 1
    assert job.events.filter(type="state", data__state="succeeded").count() == 1
    assert list(job.attempts.order_by("fence").values_list("outcome", flat=True)) == [
        "lost",
        "succeeded",
    ]


@pytest.mark.slow
def test_a_worker_that_stops_in_good_order_hands_its_job_on(owner, digits_dataset, start_worker):
    job = jobs.submit_job(actor=actor_of(owner), recipe=training(**LONG))
    first = start_worker()
    wait_until(lambda: checkpoints_of(job) >= 1, job.pk, seconds=60)
    first.terminate()
    assert first.wait(timeout=30) == 0
    assert state_of(job) == JobState.QUEUED
    assert job.attempts.get().outcome == "released"
    second = start_worker()
    wait_until(lambda: state_of(job) == JobState.RUNNING, job.pk, seconds=20)
    jobs.cancel_job(actor=actor_of(owner), job=job)
    asked = time.monotonic()
    wait_until(lambda: state_of(job) == JobState.CANCELLED, job.pk, seconds=10)
    assert time.monotonic() - asked < 5
    assert second.poll() is None


@pytest.mark.slow
def test_a_broker_that_forgets_everything_loses_no_job(owner, digits_dataset, start_worker):
    ids = [
        jobs.submit_job(actor=actor_of(owner), recipe=training(seed=seed)).pk for seed in range(2)
    ]
    with redis.Redis.from_url(settings.REDIS_URL) as broker:
        broker.flushdb()
    start_worker()
    wait_until(Job.objects.filter(state=JobState.RUNNING).exists, "a job to begin")
    with redis.Redis.from_url(settings.REDIS_URL) as broker:
        broker.flushdb()
    ended = Job.objects.filter(pk__in=ids, state=JobState.SUCCEEDED)
    wait_until(lambda: ended.count() == 2, "both jobs", seconds=240)
    assert Version.objects.filter(job__in=ids).count() == 2


@pytest.mark.slow
def test_a_worker_that_was_paused_cannot_end_a_job_twice(owner, digits_dataset, start_worker):
    """A stopped worker comes back after its job was given away: its writes are refused."""
    job = jobs.submit_job(actor=actor_of(owner), recipe=training(**LONG))
    short = {"MODELYARD_JOB_LEASE_SECONDS": "3"}
    first = start_worker(**short)
    wait_until(lambda: checkpoints_of(job) >= 1, job.pk, seconds=60)
    first.send_signal(signal.SIGSTOP)
    start_worker(**short)
    wait_until(lambda: Attempt.objects.filter(job=job).count() == 2, job.pk, seconds=30)
    first.send_signal(signal.SIGCONT)
    wait_until(lambda: state_of(job) == JobState.SUCCEEDED, job.pk, seconds=120)
    assert Version.objects.filter(job=job).count() == 1
    assert job.attempts.get(fence=1).outcome == "lost"
    assert first.poll() is None
    connection.close()
