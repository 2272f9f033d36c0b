"""The models of one server: loaded once each, kept within its memory, asleep when nobody calls."""

import asyncio
import logging
import math
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from registry.errors import NotLoaded, RegistryError, Unavailable
from registry.routes import Deployed
from workers.device_memory import DeviceMemory
from workers.devices import onnx_may_use_gpu
from workers.serving.batcher import Batcher, Work
from workers.serving.pace import Pace
from workers.serving.process import Described, ModelProcess, Reply
from workers.serving.shelf import Laid, Shelf

# A caller waits so long for a model that is on its way; beyond that it is told when to come again.
PATIENCE_SECONDS = 5.0
# What is there so soon is waited for, rather than loading a smaller one beside it.
_SOON_SECONDS = 1.0
# What nobody routes to stays for so long after its last request.
_UNROUTED_SECONDS = 30.0
_TICK_SECONDS = 1.0
_WEIGH_SECONDS = 15.0
_AT_ONCE = 2
# Models that are busy may have an idle moment after so long, and then make room.
_NO_ROOM_SECONDS = 1
_LAYERS = 4
_LONGEST_PAUSE_SECONDS = 60.0
# A process that lived so long was well: the next one is started at once.
_WELL_SECONDS = 30.0
# Of versions called by their number, so many that sleep are remembered.
_MAX_KNOWN = 512
# What a process holds beside the weights, and what it does of a device before any of them.
_PROCESS_BYTES = 64 * 1024 * 1024
_CONTEXT_BYTES = 512 * 1024 * 1024
# A process that was killed gives its part of a device back within so long.
_LEAVING_SECONDS = 5.0
# Of a device's memory models hold so much; the rest is for others, and for what none foresaw.
_DEVICE_SHARE = 0.9

logger = logging.getLogger(__name__)

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of the machine's memory, and of that of the device which models compute on."""

    machine: int = 0
    device: int = 0

    def __add__(self, other: "Held") -> "Held":
        return Held(self.machine + other.machine, self.device + other.device)

    def has_some_of(self, missing: "Held") -> bool:
        """Say whether there would be more of what is missing without this."""
        return bool((self.machine and missing.machine) or (self.device and missing.device))


_NOTHING = Held()


class State(StrEnum):
    ASLEEP = "asleep"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Served:
    """One version with its options: its queue, and its process while there is one."""

    def __init__(
        self, key: Key, deployed: Deployed, name: str, *, arena_bytes: int, pace: Pace
    ) -> None:
        options = deployed.options
        self.key, self.deployed, self.name = key, deployed, name
        self.version = str(deployed.number)
        self.state = State.ASLEEP
        # Whether somebody asked for it to be away.
        self.put_away = False
        self.process: ModelProcess | None = None
        self.laid: Laid | None = None
        self.loading: asyncio.Task[None] | None = None
        self.loading_since = 0.0
        self.loaded_at = 0.0
        self.expected_seconds = 0.0
        self.held = _NOTHING
        # What it held of the device when it was last measured there.
        self.known_device_bytes: int | None = None
        self.failure: RegistryError | None = None
        self.failures = 0
        self.again_at = 0.0
        self.deadline_seconds = options.deadline_ms / 1000
        self.batcher = Batcher(
            batch_size=options.max_batch_size,
            queue_size=options.queue_size,
            deadline_seconds=self.deadline_seconds,
            arena_bytes=arena_bytes,
            pace=pace,
        )

    @property
    def described(self) -> Described | None:
        return self.batcher.described

    @property
    def memory_bytes(self) -> int:
        return self.held.machine

    @property
    def is_ready(self) -> bool:
        return self.state is State.READY

    @property
    def reason(self) -> str:
        """Say why it does not answer, for people."""
        if self.put_away:
            return "unloaded"
        if self.failure is not None and self.state is State.FAILED:
            return self.failure.detail
        return "" if self.is_ready else self.state.value


class Fleet:
    """Loads, keeps and ends the processes of models."""

    def __init__(
        self,
        shelf: Shelf,
        *,
        memory_bytes: int,
        arena_bytes: int,
        gpu: int | None = None,
        device: DeviceMemory | None = None,
    ) -> None:
        self.memory_bytes = memory_bytes
        self._device = device
        self.device_bytes = int(device.total_bytes * _DEVICE_SHARE) if device is not None else 0
        self._arena_bytes = arena_bytes
        self._pace = Pace()
        self._gpu = gpu
        self.shelf = shelf
        self._known: dict[Key, Served] = {}
        self._routed: frozenset[Key] = frozenset()
        # Of what a device alone knows, what one takes while it is loaded is seen beside no other.
        self._gate = asyncio.Semaphore(_AT_ONCE if device is None else 1)
        # Exports may wait in them for minutes; tokens are looked up in other threads.
        self._layers = ThreadPoolExecutor(_LAYERS, thread_name_prefix="shelf")
        self._closing = False
        self._processes: set[ModelProcess] = set()
        self._clock = asyncio.get_running_loop().create_task(self._tick())

    def find(self, deployed: Deployed, name: str) -> Served:
        """Give the one record of a version with its options."""
        key = (deployed.version_id, deployed.options.model_dump_json())
        served = self._known.get(key)
        if served is None:
            served = Served(key, deployed, name, arena_bytes=self._arena_bytes, pace=self._pace)
            self._known[key] = served
        return served

    @property
    def all(self) -> list[Served]:
        return [*self._known.values()]

    @property
    def held_bytes(self) -> int:
        return self.held.machine

    @property
    def held(self) -> Held:
        return sum((served.held for served in self._known.values()), _NOTHING)

    def _claimed(self, *, beside: Served) -> Held:
        """Add up what the others hold, or are going to."""
        claimed = _NOTHING
        for served in self._known.values():
            if served is not beside and (served.held.machine or served.loading is not None):
                claimed += self._held_or_expected(served)
        return claimed

    def _held_or_expected(self, served: Served) -> Held:
        return served.held if served.held.machine else self._expected(served)

    def _expected(self, served: Served) -> Held:
        """Tell what a version is going to hold, before it can be measured."""
        weights = _weights(served)
        device = served.known_device_bytes
        if device is None:
            device = 0 if self._stays_on_cpu(served) else 2 * weights + _CONTEXT_BYTES
        return Held(2 * weights + _PROCESS_BYTES, device if self._device is not None else 0)

    def _stays_on_cpu(self, served: Served) -> bool:
        """Say whether it is known before a version is loaded that it computes on no device."""
        laid = served.laid
        if laid is not None and laid.package is not None:
            return True
        is_graph = (
            laid.onnx is not None if laid is not None else self.shelf.has_graph(served.deployed)
        )
        return is_graph and not onnx_may_use_gpu()

    def _missing(self, taken: Held, needed: Held) -> Held:
        """Tell how much is missing for what is needed beside what is taken.

        What a model needs nothing of is never missing for it, however full that is.
        """
        together = taken + needed
        on_device = self._device is not None and needed.device > 0
        return Held(
            max(0, together.machine - self.memory_bytes) if needed.machine else 0,
            max(0, together.device - self.device_bytes) if on_device else 0,
        )

    def keep(self, keys: Collection[Key]) -> None:
        """Say which versions requests may be sent to; the others leave when they are idle."""
        self._routed = frozenset(keys)

    # --- requests ---------------------------------------------------------------------------------

    def submit(self, served: Served, work: Work) -> None:
        """Let a request wait for a version, waking that where it sleeps.

        The version's own deadline counts from when it is loaded.

        Raises:
            NotLoaded: it takes longer than a caller waits; Unavailable: it cannot be loaded.

        """
        if not served.is_ready:
            self._check_comes(served)
        served.batcher.submit(work)

    def _check_comes(self, served: Served) -> None:
        if self._closing:
            raise Unavailable("The server is stopping; try again.", code="stopping")
        if served.put_away:
            raise Unavailable(
                "{model} version {version} is unloaded; load it first.",
                code="unloaded",
                model=served.name,
                version=served.version,
            )
        now = time.monotonic()
        if served.state is State.FAILED and now < served.again_at:
            raise self._failed(served)
        self.wake(served)
        left = served.expected_seconds - (now - served.loading_since)
        if left > PATIENCE_SECONDS:
            # It found no room the last time: who passes calls on may find some elsewhere.
            if isinstance(served.failure, NotLoaded):
                raise served.failure
            raise NotLoaded(
                "{model} version {version} is being loaded; try again in {retry_after} s.",
                model=served.name,
                version=served.version,
                retry_after=math.ceil(left),
            )

    def comes_sooner(self, sibling: Served, *, than: Served) -> bool:
        """Wake a version, and say whether a smaller one is going to answer before it."""
        if than.put_away or sibling.put_away or self._closing:
            return False
        now = time.monotonic()
        left = math.inf
        if than.state is not State.FAILED or now >= than.again_at:
            self.wake(than)
            left = than.expected_seconds - (now - than.loading_since)
        if sibling.is_ready:
            return True
        if sibling.state is State.FAILED and now < sibling.again_at:
            return False
        # One that would only be loaded in passing is not worth another that has to go.
        if left < _SOON_SECONDS or not self.fits(sibling):
            return False
        return sibling.loading is not None or self.shelf.expected_seconds(sibling.deployed) < left

    def _failed(self, served: Served) -> Unavailable:
        if isinstance(served.failure, NotLoaded):
            return served.failure
        return Unavailable(
            "{model} version {version} cannot be loaded: {problem}",
            code="load_failed",
            model=served.name,
            version=served.version,
            problem=served.failure or "",
        )

    # --- loading ----------------------------------------------------------------------------------

    def wake(self, served: Served) -> "asyncio.Task[None]":
        """Load a version; whoever asks meanwhile waits for the same."""
        served.put_away = False
        # Until it is tried again, what failed stays so for all who look.
        if served.state is not State.FAILED or time.monotonic() >= served.again_at:
            served.state = State.LOADING
        if served.loading is None:
            served.loading_since = time.monotonic()
            served.expected_seconds = self.shelf.expected_seconds(served.deployed)
            served.loading = asyncio.get_running_loop().create_task(self._load(served))
        return served.loading

    async def load(self, served: Served) -> None:
        """Load a version and wait until it is warm.

        Raises:
            Unavailable: it cannot be loaded.

        """
        if served.is_ready:
            return
        await asyncio.shield(self.wake(served))
        if served.put_away:
            raise _unloaded()
        if not served.is_ready:
            raise self._failed(served)

    def fits(self, served: Served) -> bool:
        """Say whether a version could be loaded without another one having to go."""
        missing = self._missing(self._claimed(beside=served), self._expected(served))
        return missing == _NOTHING

    async def _load(self, served: Served) -> None:
        try:
            await self._wait_to_try_again(served)
            if served.laid is None:
                served.laid = await asyncio.get_running_loop().run_in_executor(
                    self._layers, self.shelf.lay_out, served.deployed
                )
            async with self._gate:
                began = time.monotonic()
                self._check_wanted(served)
                self._find_room(served)
                free = await self._free_on_device()
                process = await self._open(served, served.laid)
                served.held = await asyncio.to_thread(self._measure, served, process, free)
                served.known_device_bytes = served.held.device
            seconds = time.monotonic() - began
            self.shelf.record_seconds(served.deployed, seconds)
        except NotLoaded as error:
            self._wait_for_room(served, error)
        except (RegistryError, TimeoutError, OSError) as error:
            self._give_up(served, error)
        except Exception as error:
            logger.exception("Loading %s failed", served.name)
            self._give_up(served, error)
        else:
            served.loading = None
            if served.put_away:
                self.put_to_sleep(served, away=True)
                return
            if process.ended:
                self._ended(served, process)
                return
            served.state, served.failure = State.READY, None
            served.loaded_at = time.monotonic()
            assert process.described is not None
            served.batcher.attach(process, process.described)
            logger.info(
                "%s version %s is loaded: %s, %d MiB, %.2f s",
                *(served.name, served.version, process.described.runtime),
                *(served.memory_bytes >> 20, seconds),
            )
            self._make_room(served.held, beside=served)

    async def _wait_to_try_again(self, served: Served) -> None:
        pause = served.again_at - time.monotonic()
        if pause <= 0:
            return
        await asyncio.sleep(pause)
        served.loading_since = time.monotonic()
        if not served.put_away:
            served.state = State.LOADING

    async def _open(self, served: Served, laid: Laid) -> ModelProcess:
        """Start the process; a model that hangs on made-up rows is started without them."""
        options = served.deployed.options
        for warm in (True, False):
            process = self._new_process(served, laid)
            served.process = process
            with suppress(TimeoutError):
                await process.open(
                    model=laid.model,
                    onnx=laid.onnx,
                    package=laid.package,
                    threads=options.threads,
                    batch_size=options.max_batch_size,
                    warm=warm,
                    warm_seconds=max(1.0, min(10.0, served.deadline_seconds)),
                )
                return process
        raise Unavailable("The model takes too long to load.", code="load_timeout")

    def _new_process(self, served: Served, laid: Laid) -> ModelProcess:
        def on_reply(reply: Reply) -> None:
            served.batcher.answered(reply)

        def on_end() -> None:
            self._ended(served, process)

        process = ModelProcess(
            folder=laid.folder,
            arena_bytes=self._arena_bytes,
            gpu=self._gpu,
            on_reply=on_reply,
            on_end=on_end,
        )
        self._processes.add(process)
        return process

    def _give_up(self, served: Served, error: Exception) -> None:
        served.loading = None
        if served.put_away:
            self.put_to_sleep(served, away=True)
            return
        served.state = State.FAILED
        if isinstance(error, RegistryError):
            served.failure = error
        else:
            served.failure = Unavailable(
                "The server could not start it ({problem}).",
                code="load_failed",
                problem=type(error).__name__,
            )
        served.failures += 1
        served.again_at = time.monotonic() + min(2.0**served.failures, _LONGEST_PAUSE_SECONDS)
        words = ""
        if served.process is not None:
            served.process.kill()
            words, served.process = served.process.last_words, None
        logger.warning(
            "%s version %s cannot be loaded: %s %s",
            *(served.name, served.version, served.failure.detail, words),
        )
        served.batcher.fail_all(self._failed(served))

    def _wait_for_room(self, served: Served, error: NotLoaded) -> None:
        """Leave a version asleep that did nothing wrong; who asks again waits that long."""
        served.loading = None
        served.state, served.failure = State.ASLEEP, error
        served.again_at = time.monotonic() + error.retry_after
        logger.info("%s", error.detail)
        served.batcher.fail_all(error)

    def _ended(self, served: Served, process: ModelProcess) -> None:
        """Take note that a process has ended; where it is needed, another one is started."""
        if served.process is not process or served.loading is not None:
            return
        served.process = None
        served.held = _NOTHING
        served.state = State.ASLEEP
        served.batcher.detach()
        if self._closing or served.put_away:
            return
        lived = time.monotonic() - served.loaded_at
        served.failures = 0 if lived > _WELL_SECONDS else served.failures + 1
        # The first time it is started again at once; then it may be its own fault.
        pause = min(0.1 * 2.0**served.failures, _LONGEST_PAUSE_SECONDS)
        served.again_at = time.monotonic() + (pause if served.failures > 1 else 0.0)
        logger.warning(
            "The process of %s version %s ended. %s",
            *(served.name, served.version, process.last_words),
        )
        if served.batcher.pending or served.key in self._routed:
            self.wake(served)

    # --- leaving ----------------------------------------------------------------------------------

    def put_to_sleep(self, served: Served, *, away: bool = False) -> None:
        """End the process of a version; the next request wakes it, but when it is put away."""
        served.put_away = away
        # What is being loaded ends once it is, unless somebody wants it again by then.
        if served.loading is None:
            process, served.process = served.process, None
            served.held = _NOTHING
            served.batcher.detach()
            if process is not None:
                process.kill()
        if away or served.loading is None:
            served.state = State.ASLEEP
        if away:
            served.batcher.fail_all(_unloaded())

    def _find_room(self, served: Served) -> None:
        """Make room for a version beside those that cannot sleep now.

        Raises:
            NotLoaded: they leave too little.

        """
        self._check_room(served)
        if isinstance(served.failure, NotLoaded):
            served.failure = None
        self._make_room(self._expected(served), beside=served)

    def _make_room(self, needed: Held, *, beside: Served) -> None:
        """Let those sleep that were not called for longest, until the rest fits."""
        idle = sorted(
            (
                served
                for served in self._known.values()
                if served is not beside and self._is_idle(served)
            ),
            key=lambda served: served.batcher.last_used,
        )
        for served in idle:
            missing = self._missing(self._claimed(beside=beside), needed)
            if missing == _NOTHING:
                return
            if not served.held.has_some_of(missing):
                continue
            logger.info("%s version %s makes room.", served.name, served.version)
            self.put_to_sleep(served)

    def _is_idle(self, served: Served) -> bool:
        return served.is_ready and not served.batcher.pending

    def _check_wanted(self, served: Served) -> None:
        """Pass unless a version was put away while it waited to be loaded.

        Raises:
            Unavailable: it was.

        """
        if served.put_away:
            raise _unloaded()

    def _check_room(self, served: Served) -> None:
        """Pass when a version fits beside those that cannot sleep now; one alone always does.

        Raises:
            NotLoaded: they leave too little.

        """
        taken = sum(
            (
                self._held_or_expected(one)
                for one in self._known.values()
                if one.process is not None and one is not served and not self._is_idle(one)
            ),
            _NOTHING,
        )
        if taken.has_some_of(self._missing(taken, self._expected(served))):
            raise NotLoaded(
                "There is no memory for {model} version {version} beside models that are busy; "
                "try again in {retry_after} s.",
                code="no_memory",
                model=served.name,
                version=served.version,
                retry_after=_NO_ROOM_SECONDS,
            )

    async def _tick(self) -> None:
        weighed_at = 0.0
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._processes = {one for one in self._processes if not one.is_gone}
            if time.monotonic() - weighed_at > _WEIGH_SECONDS:
                weighed_at = time.monotonic()
                await self._weigh()
            for served in self.all:
                self._look_after(served, time.monotonic())

    async def _weigh(self) -> None:
        """Measure again what models hold, which grows with what they are asked."""
        for served in self.all:
            process = served.process
            if served.is_ready and process is not None:
                held = await asyncio.to_thread(self._measure, served, process)
                if served.process is process and served.is_ready:
                    served.held = held
                    served.known_device_bytes = held.device
                    self._make_room(held, beside=served)

    async def _free_on_device(self) -> int:
        """Measure what is free there, once those have gone that were told to."""
        if self._device is None:
            return 0
        kept = {served.process for served in self._known.values()}
        leaving = [one.wait_until_gone() for one in self._processes if one not in kept]
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVING_SECONDS):
                await asyncio.gather(*leaving)
        return await asyncio.to_thread(self._device.free_bytes)

    def _measure(
        self, served: Served, process: ModelProcess, free_before: int | None = None
    ) -> Held:
        """Measure what a model holds; of a device that does not say whose, what it took of it."""
        machine = process.held_bytes()
        if self._device is None:
            return Held(machine)
        device = process.device_bytes(self._device)
        if device is None and process.described is not None and process.described.is_on_gpu:
            if free_before is None:
                device = served.held.device
            else:
                # Somebody else may have given some back meanwhile.
                device = max(free_before - self._device.free_bytes(), _weights(served))
        return Held(machine, device or 0)

    def _look_after(self, served: Served, now: float) -> None:
        if served.batcher.pending or served.loading is not None:
            return
        routed = served.key in self._routed
        limit = served.deployed.options.idle_seconds if routed else _UNROUTED_SECONDS
        if served.is_ready and limit and now - served.batcher.last_used > limit:
            self.put_to_sleep(served)
        if not routed and served.state in {State.ASLEEP, State.FAILED}:
            self._clear(served)
            if len(self._known) > _MAX_KNOWN:
                del self._known[served.key]

    def _clear(self, served: Served) -> None:
        laid, served.laid = served.laid, None
        if laid is not None:
            asyncio.get_running_loop().run_in_executor(None, self.shelf.clear, laid.folder)

    async def close(self, *, grace_seconds: float) -> None:
        """Finish what waits, then end every process."""
        self._closing = True
        self._clock.cancel()
        until = time.monotonic() + grace_seconds
        while time.monotonic() < until:
            if not any(served.batcher.pending for served in self.all):
                break
            await asyncio.sleep(0.02)
        self.shelf.stop()
        self._layers.shutdown(wait=False, cancel_futures=True)
        for served in self.all:
            if served.loading is not None:
                served.loading.cancel()
                with suppress(asyncio.CancelledError):
                    await served.loading
                served.loading = None
            self.put_to_sleep(served, away=True)
        for process in self._processes:
            process.kill()
            await process.wait_until_gone()


def _unloaded() -> Unavailable:
    return Unavailable("The model was unloaded.", code="unloaded")


def _weights(served: Served) -> int:
    return sum(file.size_bytes for file in served.deployed.files)
