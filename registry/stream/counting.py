"""Counts downloads in memory and writes them in batches, off the path of the bytes."""

import asyncio
import logging
import threading
from collections import Counter

from django.db import Error

from registry.services.transfers import record_downloads
from registry.stream.threads import in_database

FLUSH_SECONDS = 3.0

logger = logging.getLogger(__name__)


class DownloadCounter:
    """Downloads by repository and version that are not in the database yet."""

    def __init__(self) -> None:
        self._waiting: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()

    def add(self, repository_id: int, version_id: int) -> None:
        with self._lock:
            self._waiting[repository_id, version_id] += 1

    def flush(self) -> None:
        """Write what waits; what cannot be written now waits on."""
        with self._lock:
            batch, self._waiting = self._waiting, Counter()
        if not batch:
            return
        try:
            record_downloads(batch)
        except Error:
            logger.warning("Download counts wait: the database does not take them now.")
            with self._lock:
                self._waiting += batch

    async def run(self) -> None:
        """Flush every few seconds until cancelled, and once more then."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                await in_database(self.flush)
        finally:
            await in_database(self.flush)


downloads = DownloadCounter()
