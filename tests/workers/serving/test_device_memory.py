"""Models within the memory of their device: what one holds there counts like the machine's."""

import asyncio
import ctypes
import shutil
import subprocess

import psutil
import pytest

from registry.errors import NotLoaded
from tests.workers.serving import yard as y
from workers.device_memory import NvidiaMemory, memory_of_gpu
from workers.serving import fleet, process

MIB = 1 << 20
GIB = 1 << 30


class Device:
    """A device as its driver tells of it: each process of a model takes what the test says."""

    def __init__(self, *, each, names_processes=True):
        self.total_bytes = 4 * GIB
        self.each, self.names_processes = each, names_processes

    def _models(self):
        """Give the processes of models that live."""
        return {one.pid for one in psutil.Process().children()}

    def free_bytes(self):
        return self.total_bytes - self.each * len(self._models())

    def held_bytes(self, processes):
        if not self.names_processes:
            return None
        return self.each * len(self._models() & processes)


@pytest.fixture
def on_gpu(monkeypatch):
    """Have models say that they compute on a GPU, which is all that a machine without one lacks."""
    read = process.read_described
    said = {"runtime": "onnxruntime/cuda"}
    monkeypatch.setattr(process, "read_described", lambda found: read({**found, **said}))
    monkeypatch.setattr(fleet, "onnx_may_use_gpu", lambda: True)


@pytest.mark.parametrize("names_processes", [True, False])
@pytest.mark.parametrize(("each", "stay"), [(GIB, 3), (2 * GIB, 1)])
def test_the_model_called_longest_ago_makes_room_on_the_device(
    yard, on_gpu, names_processes, each, stay
):
    names = ["a/one", "a/two", "a/three"]
    for name in names:
        yard.route(name, yard.version(name, 1, y.linear(), idle_seconds=600))

    async def go():
        device = Device(each=each, names_processes=names_processes)
        async with yard.plane(gpu=0, device=device) as plane:
            for name in names:
                await y.ask(plane, name, y.floats([[1]]))
            loaded = [one for one in plane.fleet.all if one.is_ready]
            assert [one.name for one in loaded] == names[-stay:]
            assert all(one.held.device == each for one in loaded)
            status = plane.status()
            assert status["device_bytes"] == each * stay
            assert 3 * GIB < status["device_limit_bytes"] < 4 * GIB
            # That of the machine is not what is short.
            assert status["memory_bytes"] < status["memory_limit_bytes"] / 4

    asyncio.run(go())


def test_a_model_waits_for_room_on_the_device_while_others_are_busy(yard, on_gpu):
    yard.route("a/busy", yard.version("a/busy", 1, y.counting(), deadline_ms=300_000))
    yard.route("a/other", yard.version("a/other", 1, y.linear(), idle_seconds=600))

    async def go():
        async with yard.plane(gpu=0, device=Device(each=3 * GIB + GIB // 2)) as plane:
            await y.ask(plane, "a/busy", y.numbers([1]))
            busy = asyncio.create_task(y.ask(plane, "a/busy", y.numbers([10**8]), seconds=300))
            await y.until(lambda: any(one.batcher.pending for one in plane.fleet.all))
            with pytest.raises(NotLoaded) as refused:
                await y.ask(plane, "a/other", y.floats([[1]]))
            assert refused.value.reason == "no_memory"
            busy.cancel()

    asyncio.run(go())


def test_what_computes_on_the_cpu_beside_a_device_holds_nothing_of_it(yard):
    yard.route("a/m", yard.version("a/m", 1, y.linear()))

    async def go():
        device = Device(each=GIB, names_processes=False)
        async with yard.plane(gpu=0, device=device) as plane:
            await y.ask(plane, "a/m", y.floats([[1]]))
            assert plane.status()["device_bytes"] == 0

    asyncio.run(go())


class Filled(Device):
    """A device that those processes fill which lived when it was filled."""

    def __init__(self):
        super().__init__(each=4 * GIB - 100 * MIB)
        self.filled_by = set()

    def fill(self):
        self.filled_by = super()._models()

    def _models(self):
        return self.filled_by


def test_a_full_device_is_no_matter_to_what_computes_on_the_cpu(yard, monkeypatch):
    monkeypatch.setattr(fleet, "_WEIGH_SECONDS", 0.0)
    yard.route("a/busy", yard.version("a/busy", 1, y.counting(), deadline_ms=300_000))
    for name in ("a/one", "a/two"):
        yard.route(name, yard.version(name, 1, y.linear(), idle_seconds=600))

    async def go():
        device = Filled()
        async with yard.plane(gpu=0, device=device) as plane:
            served = {one.name: one for one in plane.fleet.all}
            await y.ask(plane, "a/busy", y.numbers([1]))
            device.fill()
            await y.ask(plane, "a/one", y.floats([[1]]))
            busy = asyncio.create_task(y.ask(plane, "a/busy", y.numbers([10**8]), seconds=300))
            await y.until(lambda: served["a/busy"].batcher.pending)
            await y.until(lambda: plane.status()["device_bytes"] == device.each)
            assert served["a/one"].is_ready
            for name in ("a/two", "a/one"):
                assert plane.fleet.fits(served[name])
                plane.fleet.put_to_sleep(served[name])
                _, (answer,) = await y.ask(plane, name, y.floats([[1]]))
                assert answer.tolist() == [[2]]
            busy.cancel()

    asyncio.run(go())


DRIVER = """
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } process;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)0x7fffffff0123;
    return index == 1 ? 0 : 2;
}
int nvmlDeviceGetMemoryInfo(void *device, memory *found) {
    if (device != (void *)0x7fffffff0123) return 2;
    found->total = 80ULL << 30; found->free = 60ULL << 30; found->used = 20ULL << 30;
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process *found) {
    unsigned room = *count;
    *count = 100;
    if (room < 100) return 7;
    for (unsigned at = 0; at < 100; at++) {
        found[at].pid = 1000 + at;
        found[at].used = at == 99 ? ~0ULL : at * (5ULL << 30);
    }
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_driver_is_asked_as_its_interface_has_it(tmp_path):
    """Against a library with the same functions; no GPU was at hand."""
    source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    device = NvidiaMemory(1, library=str(library))
    assert (device.total_bytes, device.free_bytes()) == (80 * GIB, 60 * GIB)
    assert device.held_bytes({1001, 1003, 7}) == 20 * GIB
    # Of others, and of what the driver does not say, nothing is known.
    assert device.held_bytes({7}) is None
    assert device.held_bytes({1001, 1099}) is None
    with pytest.raises(OSError, match="nvmlDeviceGetHandleByIndex"):
        NvidiaMemory(0, library=str(library))


def test_without_a_driver_nothing_is_counted(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert memory_of_gpu(0) is None
