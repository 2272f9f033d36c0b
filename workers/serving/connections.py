"""The connections to a port, whatever they speak: how many they are, their clock and their end."""

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

BACKLOG = 2048
SCRATCH_BYTES = 256 * 1024
_SWEEP_SECONDS = 1.0


class Connection(Protocol):
    """What is asked of a connection from outside."""

    def finish(self) -> None:
        """Close after what is under way, or at once."""

    def abort(self) -> None:
        """Close at once."""

    def look_at_clock(self, now: float) -> None:
        """Close what has stood still for too long."""


C = TypeVar("C", bound=Connection)


class Connections(ABC, Generic[C]):
    """A port, and the connections to it."""

    def __init__(self, *, max_connections: int) -> None:
        self.max_connections = max_connections
        self.connections: set[C] = set()
        self.stopping = False
        # Between asking for room and telling what came nothing else runs: one is enough for all.
        self.scratch = bytearray(SCRATCH_BYTES)
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()

    @abstractmethod
    def connect(self) -> asyncio.BaseProtocol:
        """Make what speaks with a client that has come."""

    @property
    def is_full(self) -> bool:
        """Whether the last that has come is one too many."""
        return self.stopping or len(self.connections) > self.max_connections

    async def start(self, host: str, port: int) -> None:
        """Begin to listen.

        Raises:
            OSError: the address is taken, or is none.

        """
        loop = asyncio.get_running_loop()
        self.tick()
        self._server = await loop.create_server(self.connect, host, port, backlog=BACKLOG)
        self._sweeping = loop.create_task(self._sweep())

    async def stop(self, seconds: float) -> None:
        """Take nothing new, finish what is being answered, and close.

        Raises:
            TimeoutError: some of it took longer; it was cut off.

        """
        self.stopping = True
        if self._server is not None:
            self._server.close()
        for one in [*self.connections]:
            one.finish()
        try:
            if self.connections:
                self._empty.clear()  # those before them may have left it set
                async with asyncio.timeout(seconds):
                    await self._empty.wait()
        finally:
            for one in [*self.connections]:
                one.abort()
            if self._sweeping is not None:
                self._sweeping.cancel()

    def lost(self, connection: C) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def tick(self) -> None:
        """Do what is due every second."""

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            self.tick()
            now = time.monotonic()
            for one in [*self.connections]:
                one.look_at_clock(now)
