"""The couriers of one worker process: threads that call webhooks, one delivery at a time each."""

import logging
import threading
import time

from django.db import Error as DatabaseError
from django.db import close_old_connections

from registry import fetch
from registry.errors import RegistryError
from registry.services import webhooks

logger = logging.getLogger(__name__)

_THREADS = 4
# A message wakes the couriers; retries come due without one.
_LOOK_SECONDS = 5.0


class Couriers:
    """Threads that look for deliveries whenever they are woken, and now and then by themselves."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._calls = [threading.Event() for _ in range(_THREADS)]
        self._threads = [
            threading.Thread(target=self._serve, args=(call,), name="courier", daemon=True)
            for call in self._calls
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        for call in self._calls:
            call.set()

    def stop(self) -> None:
        """Ask the couriers to end after the call that they are making; safe in a signal handler."""
        self._stopping.set()
        self.wake()

    def join(self, timeout_seconds: float) -> None:
        until = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _serve(self, call: threading.Event) -> None:
        while not self._stopping.is_set():
            try:
                while not self._stopping.is_set() and deliver_one():
                    pass
            except DatabaseError as error:
                logger.warning("Couriers cannot reach the database: %s", error)
            except Exception:
                # Nothing that one delivery holds may end the thread that serves all others.
                logger.exception("A courier goes on after an error.")
            finally:
                close_old_connections()
            call.wait(_LOOK_SECONDS)
            call.clear()


def deliver_one() -> bool:
    """Make one call that is due; give False when there was none."""
    errand = webhooks.claim_delivery()
    if errand is None:
        return False
    try:
        answer = fetch.post(errand.url, errand.body, errand.headers)
    except RegistryError as error:
        webhooks.end_delivery(errand, problem=error.detail)
    except Exception:
        broken = fetch.Unreachable("The call could not be made; the worker's log says why.")
        webhooks.end_delivery(errand, problem=broken.detail)
        raise
    else:
        webhooks.end_delivery(errand, status=answer.status, duration_ms=answer.duration_ms)
    return True
