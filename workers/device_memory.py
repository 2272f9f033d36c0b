"""The memory of a GPU: how much there is, and which processes hold it.

The driver is asked (NVML), which takes nothing of the device: this process never computes there.
"""

import ctypes
import logging
from collections.abc import Collection
from typing import Protocol

logger = logging.getLogger(__name__)

_LIBRARY = "libnvidia-ml.so.1"
_TOO_SMALL = 7
_UNKNOWN = 2**64 - 1
_MAX_PROCESSES = 4096


class DeviceMemory(Protocol):
    """What a device says of its memory."""

    @property
    def total_bytes(self) -> int: ...

    def free_bytes(self) -> int: ...

    def held_bytes(self, processes: Collection[int]) -> int | None:
        """Add up what processes hold there; None where the device does not say it of them."""
        ...


class DriverFailed(OSError):  # noqa: N818 - it is what happened
    """The driver is not there, or does not answer what it is asked."""


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class NvidiaMemory:
    """The memory of one GPU of NVIDIA's, by its number in the order of the PCI bus."""

    def __init__(self, index: int, *, library: str = _LIBRARY) -> None:
        """Ask the driver for the device.

        Raises:
            OSError: there is no driver, or no such device.

        """
        self._nvml = ctypes.CDLL(library)
        self._device = ctypes.c_void_p()
        self._ask("nvmlInit_v2")
        self._ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(self._device))
        self.total_bytes = self._memory().total

    def free_bytes(self) -> int:
        return int(self._memory().free)

    def held_bytes(self, processes: Collection[int]) -> int | None:
        # In a container it may name processes by numbers that nobody here knows.
        found = [one.used for one in self._processes() if one.pid in processes]
        return None if not found or _UNKNOWN in found else sum(found)

    def _memory(self) -> _Memory:
        memory = _Memory()
        self._ask("nvmlDeviceGetMemoryInfo", self._device, ctypes.byref(memory))
        return memory

    def _processes(self) -> list[_Process]:
        room = 64
        while room <= _MAX_PROCESSES:
            found, count = (_Process * room)(), ctypes.c_uint(room)
            call = getattr(self._nvml, "nvmlDeviceGetComputeRunningProcesses_v3", None)
            status = call(self._device, ctypes.byref(count), found) if call else 1
            if status != _TOO_SMALL:
                return [] if status else list(found[: count.value])
            room *= 4
        return []

    def _ask(self, name: str, *arguments: object) -> None:
        question = getattr(self._nvml, name, None)
        if question is None:
            raise DriverFailed(f"{name}: the driver knows nothing of it")
        if status := question(*arguments):
            raise DriverFailed(f"{name}: {status}")


def memory_of_gpu(index: int) -> DeviceMemory | None:
    """Find the memory of a GPU; None where nothing says what it holds."""
    try:
        return NvidiaMemory(index)
    except OSError as error:
        logger.warning("What GPU %d holds is not counted: %s", index, error)
        return None
