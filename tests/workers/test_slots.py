"""The slots of a worker: who gets a GPU, who is told, what they do when nobody sends a message."""

import threading

import pytest
from django.db import connections

from registry.models import Job, JobState, Worker
from registry.services import jobs, workers
from tests.factories import actor_of
from tests.local.waiting import wait_until
from tests.workers.tiny import training
from workers import slots as slots_module
from workers.slots import Slots

CPU = {"kind": "cpu", "name": "a processor", "threads": 8}
GPU = {"kind": "gpu", "index": 0, "name": "an accelerator", "memory_bytes": 1 << 37}


class Runs:
    """Stands in for running jobs: notes each one's place, and holds it until it may end."""

    def __init__(self):
        self.places = {}
        self.may_end = threading.Event()

    def __call__(self, claim, *, place, stopping):
        self.places[claim.job_id] = (claim.queue, place.gpu)
        while not stopping.is_set() and not self.may_end.wait(0.02):
            pass
        jobs.fail_job(claim, code="done", detail="Done.")
        connections.close_all()
        return True


@pytest.fixture
def start_slots(owner, monkeypatch):
    started = []

    def start(devices, *, queues=("default", "cpu", "gpu"), count=2):
        runs = Runs()
        monkeypatch.setattr(slots_module, "probe_devices", lambda: devices)
        monkeypatch.setattr(slots_module, "run_claimed", runs)
        slots = Slots(queues, count=count)
        started.append(slots)
        slots.start()
        return slots, runs

    yield start
    for slots in started:
        slots.stop()
        slots.join(10)


def test_each_gpu_has_one_job_at_a_time(owner, digits_dataset, start_slots):
    workers.register_worker(name="elsewhere", queues=["gpu"], devices=[GPU])
    first, second = (
        jobs.submit_job(actor=actor_of(owner), recipe=training() | {"device": "gpu"})
        for _ in range(2)
    )
    other = jobs.submit_job(actor=actor_of(owner), recipe=training() | {"device": "cpu"})
    slots, runs = start_slots([CPU, GPU])
    wait_until(lambda: len(runs.places) == 2, "the slots")
    assert runs.places == {first.pk: ("gpu", 0), other.pk: ("cpu", None)}
    assert Job.objects.get(pk=second.pk).state == JobState.QUEUED
    assert Job.objects.get(pk=first.pk).attempts.get().device == "an accelerator"
    runs.may_end.set()
    slots.wake()
    wait_until(lambda: runs.places.get(second.pk) == ("gpu", 0), "the slots")


def test_a_worker_says_what_it_offers_and_goodbye(start_slots):
    slots, _ = start_slots([CPU])
    wait_until(Worker.objects.exists, "the slots")
    worker = Worker.objects.get()
    (device,) = worker.devices
    limit = device.pop("job_memory_bytes")
    assert (worker.name, worker.queues, device) == (slots.name, ["cpu"], CPU)
    assert 0 < limit < 2**50
    assert not workers.gpu_offered()
    slots.stop()
    slots.join(10)
    assert not Worker.objects.exists()


def test_a_worker_with_a_gpu_is_offered_work_for_it(start_slots):
    start_slots([CPU, GPU])
    wait_until(workers.gpu_offered, "the slots")


def test_a_job_without_a_message_is_found(owner, digits_dataset, start_slots):
    _, runs = start_slots([CPU], count=1)
    wait_until(Worker.objects.exists, "the slots")
    job = jobs.submit_job(actor=actor_of(owner), recipe=training())
    wait_until(lambda: job.pk in runs.places, "the slots")


def test_a_worker_for_short_tasks_takes_no_jobs(owner, digits_dataset, start_slots):
    slots, runs = start_slots([CPU], queues=["default"])
    wait_until(Worker.objects.exists, "the slots")
    jobs.submit_job(actor=actor_of(owner), recipe=training())
    slots.wake()
    slots.stop()
    slots.join(10)
    assert runs.places == {}


def test_a_slot_outlives_what_goes_wrong_in_it(owner, digits_dataset, start_slots, monkeypatch):
    slots, runs = start_slots([CPU], count=1)
    claim_job = jobs.claim_job
    faults = iter([RuntimeError("odd"), OSError("odder")])

    def stumble(**details):
        if fault := next(faults, None):
            raise fault
        return claim_job(**details)

    monkeypatch.setattr(jobs, "claim_job", stumble)
    job = jobs.submit_job(actor=actor_of(owner), recipe=training())
    wait_until(lambda: (slots.wake(), job.pk in runs.places)[1], "the slots")
