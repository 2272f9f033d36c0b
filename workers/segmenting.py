"""The thread of a worker that has what files share stored once, without haste."""

import logging
import threading
import time

from django.db import Error as DatabaseError
from django.db import close_old_connections

from registry.errors import RegistryError
from registry.services.savings import recount_savings
from registry.services.segments import segment_blobs
from workers.cutting import cut

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 300.0
# The disk has others to serve. Each byte is gone through three times, and once written.
_BYTES_A_SECOND = 128 << 20


class _Stopping(Exception):  # noqa: N818 - no error
    """The worker ends; what was begun is begun anew the next time."""


class Segmenter:
    """Looks now and then for blobs whose time has come."""

    def __init__(self, *, bytes_a_second: float = _BYTES_A_SECOND) -> None:
        self._stopping = threading.Event()
        self._rate = bytes_a_second
        self._free_at = 0.0
        self._thread = threading.Thread(target=self._run, name="segmenter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def join(self, timeout_seconds: float) -> None:
        self._thread.join(timeout_seconds)

    def run_once(self) -> int:
        count = segment_blobs(cut=cut, went_on=self._go_on)
        if count:
            recount_savings()
        return count

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                # What was put together may have others looked at again.
                while self.run_once():
                    pass
            except _Stopping:
                return
            except DatabaseError as error:
                logger.warning("The database does not answer: %s", error)
            except (RegistryError, OSError) as error:
                logger.warning("What files share cannot be stored once now: %s", error)
            except Exception:
                logger.exception("A file could not be put together of pieces; it stays whole")
            finally:
                close_old_connections()
            self._stopping.wait(_LOOK_SECONDS)

    def _go_on(self, count: int) -> None:
        """Keep to the rate; end where the worker ends."""
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + count / self._rate
        if self._stopping.wait(max(0.0, self._free_at - now)):
            raise _Stopping
