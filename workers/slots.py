"""The jobs of one worker process: as many at once as it has slots, claimed by the slots themselves.

A message only wakes the slots; they look into the table now and then anyway, so that a message
that was lost costs a second and no job. A housekeeper says that the worker is alive and puts jobs
whose worker died back into the queue: no broker takes part in that.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections

from registry.services import jobs, workers
from workers import memory, sandbox
from workers.devices import probe_devices, usable_cores
from workers.runner import Place, run_claimed

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_HOUSEKEEPING_SECONDS = 3.0
JOB_QUEUES = ("cpu", "gpu")


class Slots:
    """The threads of a worker that run jobs."""

    def __init__(self, queues: Sequence[str], *, count: int) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stopping = threading.Event()
        self._served = [queue for queue in JOB_QUEUES if queue in queues]
        self._count = count
        self._calls = [threading.Event() for _ in range(count)]
        self._threads: list[threading.Thread] = []
        self._gpus: list[int] = []
        self._gpus_lock = threading.Lock()

    def start(self) -> None:
        keeper = threading.Thread(target=self._keep_house, name="housekeeper", daemon=True)
        self._threads.append(keeper)
        keeper.start()

    def wake(self) -> None:
        for call in self._calls:
            call.set()

    def stop(self) -> None:
        """Ask jobs to write a checkpoint and go back to the queue; safe in a signal handler."""
        self.stopping.set()
        self.wake()

    def join(self, timeout_seconds: float) -> None:
        until = time.monotonic() + timeout_seconds
        for thread in list(self._threads):
            thread.join(max(0.0, until - time.monotonic()))

    # --- One thread that keeps house ----------------------------------------------------------

    def _keep_house(self) -> None:
        limit = memory.job_limit(settings.JOB_MAX_MEMORY_BYTES)
        devices = [{**device, "job_memory_bytes": limit} for device in probe_devices()]
        self._gpus = [device["index"] for device in devices if device["kind"] == "gpu"]
        if not self._gpus and "gpu" in self._served:
            self._served.remove("gpu")
        labels = {"cpu": devices[0]["name"]}
        if self._gpus:
            labels["gpu"] = devices[1]["name"]
        logger.info("Worker %s serves %s", self.name, ", ".join(self._served) or "no jobs")
        for call in self._calls if self._served else ():
            slot = threading.Thread(
                target=self._run_slot, args=(call, labels), name="job-slot", daemon=True
            )
            self._threads.append(slot)
            slot.start()
        while True:
            try:
                workers.register_worker(
                    name=self.name,
                    queues=self._served,
                    devices=devices,
                    sandbox=sandbox.probe().to_json(),
                )
                if jobs.requeue_expired() + jobs.leave_gpu_queue():
                    self.wake()
            except DatabaseError as error:
                logger.warning("The database does not answer: %s", error)
            finally:
                close_old_connections()
            if self.stopping.wait(min(_HOUSEKEEPING_SECONDS, settings.JOB_LEASE_SECONDS / 3)):
                break
        self._leave()

    def _leave(self) -> None:
        try:
            workers.dismiss_worker(name=self.name)
        except DatabaseError as error:
            logger.warning("Worker %s could not say goodbye: %s", self.name, error)
        finally:
            close_old_connections()

    # --- One thread for each job at once --------------------------------------------------------

    def _run_slot(self, call: threading.Event, labels: dict[str, str]) -> None:
        while not self.stopping.is_set():
            call.clear()
            try:
                while not self.stopping.is_set() and self._run_one(labels):
                    pass
            except DatabaseError as error:
                logger.warning("The database does not answer: %s", error)
            except Exception:
                logger.exception("A job slot failed and goes on")
            finally:
                close_old_connections()
            call.wait(_LOOK_SECONDS)

    def _run_one(self, labels: dict[str, str]) -> bool:
        """Claim a job and run it; give whether to look for the next one at once."""
        gpu = self._take_gpu()
        try:
            queues = [queue for queue in self._served if queue != "gpu" or gpu is not None]
            claim = jobs.claim_job(worker=self.name, queues=queues, devices=labels)
            close_old_connections()
            if claim is None:
                return False
            if claim.queue != "gpu":
                self._give_gpu(gpu)
                gpu = None
            place = Place(threads=self._threads_each(), gpu=gpu)
            return run_claimed(claim, place=place, stopping=self.stopping)
        finally:
            self._give_gpu(gpu)

    def _threads_each(self) -> int:
        return settings.JOB_THREADS or max(1, usable_cores() // self._count)

    def _take_gpu(self) -> int | None:
        with self._gpus_lock:
            return self._gpus.pop() if "gpu" in self._served and self._gpus else None

    def _give_gpu(self, gpu: int | None) -> None:
        if gpu is not None:
            with self._gpus_lock:
                self._gpus.append(gpu)
