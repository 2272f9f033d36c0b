"""The data plane: every call of every protocol, answered by the version that its route leads to.

Nothing on the way of a request asks the database: routes and tokens are tables (`tables`), and a
version that nobody has deployed is looked up once and remembered for a moment.
"""

import asyncio
import logging
import os
import socket
import time
import uuid
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from django.conf import settings
from django.db import DatabaseError, connections
from numpy.typing import NDArray

from registry import queue
from registry.errors import (
    DeadlineExceeded,
    Denied,
    Invalid,
    NotFound,
    RegistryError,
    Unauthenticated,
    Unavailable,
)
from registry.models import ROLE_RANK, Actor, Role
from registry.routes import Deployed, Route, find_deployed
from registry.storage import Storage, default_storage
from workers.device_memory import DeviceMemory, memory_of_gpu
from workers.devices import gpu_of_server, name_of_gpu
from workers.memory import machine_bytes
from workers.ml.environment import class_of_cpu
from workers.serving.batcher import Answer, Work
from workers.serving.fleet import Fleet, Served, State
from workers.serving.messages import (
    Counters,
    Embedded,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Predicted,
    Tensor,
    TensorSpec,
    Timed,
    add_up,
)
from workers.serving.process import Described
from workers.serving.router import Entry, Target
from workers.serving.shadow import Shadows
from workers.serving.shelf import Shelf
from workers.serving.tables import Tables, Visitors, secret_of
from workers.serving.turns import turn_of

EXTENSIONS = (
    *("binary_tensor_data", "model_configuration"),
    *("model_repository", "statistics"),
)
MAX_ROWS = 4096
# An answer of the database on a version or alias that is not deployed counts for so long.
_REMEMBERED_SECONDS = 2.0
_MAX_REMEMBERED = 256
_RETRY_SECONDS = 5.0
# Where no deployment says how long a call may take.
_PATIENCE_SECONDS = 30.0
_REPORT_SECONDS = 2.0
_REPORT_LASTS_SECONDS = 8.0
_MAX_COUNTED = 4096
# What a deployment answers for that has passed the checks of its inputs.
_FAULTS = frozenset({"crashed", "load_failed", "out_of_memory", "queue_full", "run_failed"})
_STATES = {State.READY: "READY", State.LOADING: "LOADING"}
_TYPES = {"BYTES": "TYPE_STRING"}
# What of a ModelConfig is as it is when nobody says anything: Triton writes that too.
_CONFIG_DEFAULTS: Mapping[str, Any] = {
    **{key: [] for key in ("batch_input", "batch_output", "model_warmup")},
    **{key: {} for key in ("cc_model_filenames", "metric_tags", "parameters")},
    "optimization": {
        "priority": "PRIORITY_DEFAULT",
        "input_pinned_memory": {"enable": False},
        "output_pinned_memory": {"enable": False},
        "gather_kernel_buffer_threshold": 0,
        "eager_batching": False,
    },
}
_INPUT_DEFAULTS: Mapping[str, Any] = {
    "format": "FORMAT_NONE",
    "is_shape_tensor": False,
    "allow_ragged_batch": False,
    "optional": False,
    "is_non_linear_format_io": False,
}
_OUTPUT_DEFAULTS: Mapping[str, Any] = {
    "label_filename": "",
    "is_shape_tensor": False,
    "is_non_linear_format_io": False,
}
_GROUP_DEFAULTS: Mapping[str, Any] = {
    "gpus": [],
    "secondary_devices": [],
    "profile": [],
    "passive": False,
    "host_policy": "",
}
_BATCHING_DEFAULTS: Mapping[str, Any] = {
    "preferred_batch_size": [],
    "max_queue_delay_microseconds": 0,
    "preserve_ordering": False,
    "priority_levels": 0,
    "default_priority_level": 0,
    "priority_queue_policy": {},
}

# Endpoint, deployment and number of the version.
Place = tuple[int, int, int]

logger = logging.getLogger(__name__)


class DataPlane:
    """Answers calls. Made and used in one event loop; `start` before the first call."""

    def __init__(
        self,
        *,
        root: Path | None = None,
        storage: Storage | None = None,
        memory_bytes: int | None = None,
        arena_bytes: int | None = None,
        gpu: int | None = None,
        device: DeviceMemory | None = None,
    ) -> None:
        shelf = Shelf(root or Path(settings.HOME_DIR) / "serving", storage or default_storage())
        budget = memory_bytes or settings.SERVING_MEMORY_BYTES or machine_bytes() // 2
        self.gpu = gpu = gpu_of_server(settings.SERVING_GPU) if gpu is None else gpu
        # What tunings found on such a machine holds for what this one serves.
        self.device_class = class_of_cpu() if gpu is None else name_of_gpu(gpu)
        self.fleet = Fleet(
            shelf,
            memory_bytes=budget,
            arena_bytes=arena_bytes or settings.SERVING_MAX_BYTES,
            gpu=gpu,
            device=device or (None if gpu is None else memory_of_gpu(gpu)),
        )
        self.shadows = Shadows(self.fleet)
        self.replica = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._loop = asyncio.get_running_loop()
        self._entries: dict[str, Entry] = {}
        self._changing: dict[str, asyncio.Task[None]] = {}
        self._remembered: dict[tuple[int, str], tuple[float, Deployed | None]] = {}
        # Read by the thread of the tables, and so replaced as a whole.
        self._answering: frozenset[int] = frozenset()
        self._tables = Tables(
            self._take_routes, answering=lambda: self._answering, device_class=self.device_class
        )
        self._visitors = Visitors()
        self._counted: dict[Place, Counters] = {}
        self._stopping = False
        self._started_at = time.time()
        self._applied = asyncio.Event()
        self._reporter: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to read routes, and to load what is deployed."""
        self._tables.start()
        self._reporter = self._loop.create_task(self._report())

    def refuse_new(self) -> None:
        """Say that this server is on its way out; what comes all the same is still answered."""
        self._stopping = True

    async def stop(self, *, grace_seconds: float = 20.0) -> None:
        """Finish what is there, then end all models."""
        self.refuse_new()
        self._tables.stop()
        self.shadows.stop()
        for task in [*self._changing.values(), self._reporter]:
            if task is not None:
                task.cancel()
        await self.fleet.close(grace_seconds=grace_seconds)

    # --- routes -----------------------------------------------------------------------------------

    def _take_routes(self, routes: tuple[Route, ...], withdrawn: frozenset[int]) -> None:
        """Take over what the thread has read; called from there."""
        try:
            self._loop.call_soon_threadsafe(self.apply, routes, withdrawn)
        except RuntimeError:
            logger.info("Routes came after the end.")

    def apply(self, routes: Sequence[Route], withdrawn: Collection[int] = frozenset()) -> None:
        """Let requests go by new routes; a version that is not warm yet is waited for first.

        Meanwhile the one before answers, unless it is of another model or was withdrawn.
        """
        if self._stopping:
            return
        entries = {}
        for route in routes:
            name = route.name.lower()
            known = self._entries.get(name)
            before = _still_allowed(known, route, withdrawn)
            answers = any(one.served.is_ready for one in before)
            if known is not None and known.route == route:
                if before != known.active:
                    known.activate(before if answers else known.with_traffic)
                entries[name] = known
                continue
            entry = Entry(route, self._targets_of(route))
            entries[name] = entry
            if answers and not all(one.served.is_ready for one in entry.with_traffic):
                entry.activate(before)
                self._change_over(name, entry)
        self._entries = entries
        self._remembered = {}
        targets = self._all_targets()
        self.fleet.keep({one.served.key for one in targets})
        siblings = (one.sibling for one in targets)
        self._answering = frozenset(
            one.deployed.version_id for one in (*targets, *siblings) if one is not None
        )
        self._preload()
        self._applied.set()

    def _make_target(self, route: Route, deployed: Deployed) -> Target:
        place = (route.endpoint_id, deployed.id, deployed.number)
        counters = self._counted.get(place)
        if counters is None:
            self._forget_counted()
            counters = self._counted[place] = Counters(route.name, str(deployed.number))
        return Target(deployed, self.fleet.find(deployed, route.name), counters)

    def _forget_counted(self) -> None:
        """Forget what was counted longest ago, where there is much of it."""
        if len(self._counted) >= _MAX_COUNTED:
            ordered = sorted(self._counted, key=lambda place: self._counted[place].last_at)
            for place in ordered[: _MAX_COUNTED // 2]:
                del self._counted[place]

    def _targets_of(self, route: Route) -> list[Target]:
        targets = [self._make_target(route, one) for one in route.deployments]
        numbered = {one.deployed.number: one for one in targets}
        for one in targets:
            sibling = one.deployed.sibling
            if sibling is not None:
                # Where it is deployed itself, it is not loaded twice.
                own = numbered.get(sibling.number)
                one.sibling = own or self._make_target(route, sibling)
        return targets

    def _preload(self) -> None:
        """Load what has traffic and never sleeps, as far as it fits."""
        for entry in self._entries.values():
            for one in entry.with_traffic:
                served = one.served
                if (
                    served.state is State.ASLEEP
                    and not served.put_away
                    and not served.deployed.options.idle_seconds
                    and served.loading is None
                    and self.fleet.fits(served)
                ):
                    self.fleet.wake(served)

    def _change_over(self, name: str, entry: Entry) -> None:
        before = self._changing.pop(name, None)
        if before is not None:
            before.cancel()
        self._changing[name] = self._loop.create_task(self._warm_and_switch(name, entry))

    async def _warm_and_switch(self, name: str, entry: Entry) -> None:
        """Load the new deployments of an endpoint while the old ones answer; then change over.

        The others do not wait for one that cannot be loaded, which is tried again beside them.
        """
        # What failed before may take a minute to fail again.
        failed = [one for one in entry.with_traffic if one.served.failure is not None]
        trying = [one for one in entry.with_traffic if one.served.failure is None]
        while self._entries.get(name) is entry:
            for one in trying:
                try:
                    await self.fleet.load(one.served)
                except Unavailable as error:
                    logger.warning("%s goes on without it: %s", entry.route.name, error.detail)
                    failed.append(one)
            if self._entries.get(name) is entry:
                self._switch(entry)
            if not failed:
                break
            await asyncio.sleep(_RETRY_SECONDS)
            trying, failed = failed, []
        if self._changing.get(name) is asyncio.current_task():
            del self._changing[name]

    def _switch(self, entry: Entry) -> None:
        """Let what is new answer, as far as it is ready: for the rest, what answered before."""
        before = {one.deployed.id: one for one in entry.active}
        targets = []
        for one in entry.with_traffic:
            old = before.get(one.deployed.id)
            if not one.served.is_ready and old is not None:
                weighed = replace(old.deployed, weight=one.deployed.weight)
                targets.append(replace(old, deployed=weighed))
            else:
                targets.append(one)
        if any(one.served.is_ready for one in targets):
            entry.activate(targets)
            self.fleet.keep({one.served.key for one in self._all_targets()})

    def _all_targets(self) -> list[Target]:
        return [one for entry in self._entries.values() for one in (*entry.targets, *entry.active)]

    def _entry(self, actor: Actor, model: str) -> Entry:
        entry = self._entries.get(model.lower())
        if entry is None or not entry.route.may_be_called_by(actor):
            raise NotFound(
                "There is no model {model} that you may call.",
                code="model_not_found",
                model=model[:300],
            )
        return entry

    async def _target(self, actor: Actor, model: str, version: str) -> Target:
        entry = self._entry(actor, model)
        if version:
            return entry.named(version) or await self._on_demand(entry, version)
        chosen = self._choose(entry, actor)
        if chosen is None:
            raise NotFound(
                "No version of {model} takes traffic; name one, or deploy one.",
                code="no_traffic",
                model=entry.route.name,
            )
        return chosen

    def _choose(self, entry: Entry, actor: Actor) -> Target | None:
        """Choose who answers: a deployment that takes traffic, or its sibling meanwhile."""
        chosen = entry.pick(str(_caller_of(actor)))
        if chosen is None or chosen.sibling is None or chosen.served.is_ready:
            return chosen
        sooner = self.fleet.comes_sooner(chosen.sibling.served, than=chosen.served)
        return chosen.sibling if sooner else chosen

    async def _on_demand(self, entry: Entry, version: str) -> Target:
        """Find a version of the endpoint's model that is asked for by name."""
        key = (entry.route.endpoint_id, version)
        now = time.monotonic()
        known = self._remembered.get(key)
        if known is None or now - known[0] > _REMEMBERED_SECONDS:
            found = await asyncio.to_thread(_find, entry.route, version, self.device_class)
            if len(self._remembered) >= _MAX_REMEMBERED:
                self._remembered.clear()
            known = self._remembered[key] = (now, found)
        deployed = known[1]
        if deployed is None:
            raise NotFound(
                "{model} has no version {version} that can be served.",
                code="version_not_found",
                model=entry.route.name,
                version=version[:100],
            )
        if (listed := entry.named(str(deployed.number))) is not None:
            return listed
        return self._make_target(entry.route, deployed)

    # --- who calls --------------------------------------------------------------------------------

    async def identify(self, authorization: str | None, address: str | None = None) -> Actor:
        """Find out who calls; the database is asked for a token once, when it first comes.

        Who shows none is known by their address.
        """
        secret = secret_of(authorization)
        if secret is None:
            return self._visitors.at(address)
        actor = self._tables.actor_of(secret)
        if actor is None:
            actor = await asyncio.to_thread(self._tables.look_up, secret)
        return actor

    # --- calls ------------------------------------------------------------------------------------

    def patience(self, actor: Actor, model: str) -> float:
        """Say for how many seconds a call of a model may wait before that has it.

        Raises:
            NotFound: there is no such model for the caller.

        """
        entry = self._entry(actor, model)
        targets = (*entry.active, *entry.targets)
        return max((one.served.deadline_seconds for one in targets), default=_PATIENCE_SECONDS)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Compute tensors, which the codec has checked."""
        entry = self._entry(request.actor, request.model)
        if request.version:
            target = await self._target(request.actor, request.model, request.version)
        else:
            chosen = self._choose(entry, request.actor)
            target = chosen or await self._target(request.actor, request.model, "")
        served = target.served
        future: asyncio.Future[Answer] = self._loop.create_future()
        deadline = request.deadline
        if request.waited_seconds and served.is_ready:
            left = served.deadline_seconds - request.waited_seconds
            deadline = min(deadline, time.monotonic() + left)
        turn = turn_of(request.actor)
        work = Work("run", turn, deadline, future, target.counters, request.inputs)
        answer = await self._compute(entry, target, work, named=bool(request.version))
        outputs = answer.outputs
        if request.outputs:
            outputs = _only(outputs, request.outputs)
        return InferResponse(
            entry.route.name,
            served.version,
            request.id,
            outputs,
            _parameters(target, answer),
        )

    async def predict(
        self,
        actor: Actor,
        model: str,
        version: str,
        rows: list[dict[str, Any]],
        deadline: float,
    ) -> Predicted:
        """Compute rows of named fields through the version's own preprocessing and labels."""
        _check_count(len(rows))
        target, answer = await self._ask("rows", actor, model, version, rows, deadline)
        return Predicted(
            target.served.name,
            target.served.version,
            orjson.loads(answer.payload),
            _parameters(target, answer),
        )

    async def embed(
        self,
        actor: Actor,
        model: str,
        version: str,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        dimensions: int | None,
        deadline: float,
    ) -> Embedded:
        """Compute unit vectors of texts or of token ids; shorter ones where that is asked for."""
        _check_count(len(inputs))
        target, answer = await self._ask("texts", actor, model, version, list(inputs), deadline)
        assert answer.vectors is not None
        return Embedded(
            target.served.name,
            target.served.version,
            _shortened(answer.vectors, dimensions),
            answer.tokens,
            _parameters(target, answer),
        )

    async def _ask(
        self, verb: str, actor: Actor, model: str, version: str, rows: list[Any], deadline: float
    ) -> tuple[Target, Answer]:
        entry = self._entry(actor, model)
        target = await self._target(actor, model, version)
        try:
            payload = orjson.dumps(rows)
        except TypeError as error:
            raise Invalid(
                "The rows hold a value that cannot be passed on: {problem}",
                code="bad_input",
                problem=error,
            ) from error
        future: asyncio.Future[Answer] = self._loop.create_future()
        work = Work(
            verb,
            turn_of(actor),
            deadline,
            future,
            target.counters,
            payload=payload,
            rows=len(rows),
        )
        return target, await self._compute(entry, target, work, named=bool(version))

    async def _compute(self, entry: Entry, target: Target, work: Work, *, named: bool) -> Answer:
        """Have a request answered; canaries and shadows go by what the traffic brought alone."""
        if named:
            self.fleet.submit(target.served, work)
            return await work.future
        began_ns = time.monotonic_ns()
        trial = target.counters.trial
        try:
            self.fleet.submit(target.served, work)
            answer = await work.future
        except RegistryError as error:
            seconds = (time.monotonic_ns() - began_ns) / 1e9
            trial.failed += _is_fault(error, seconds, target.served.deadline_seconds)
            raise
        trial.add(time.monotonic_ns() - began_ns)
        self.shadows.follow(entry, target, work, answer)
        return answer

    # --- what there is ----------------------------------------------------------------------------

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return self._applied.is_set() and not self._stopping

    async def wait_until_ready(self) -> None:
        """Wait for the first reading of the routes."""
        await self._applied.wait()

    async def model_ready(self, actor: Actor, model: str, version: str) -> bool:
        """Say whether a call would be answered; one that sleeps is woken by it."""
        served = (await self._target(actor, model, version)).served
        return served.is_ready or (
            served.state is State.ASLEEP
            and not served.put_away
            and (served.described is not None or served.deployed.options.idle_seconds > 0)
        )

    def server_metadata(self) -> dict[str, Any]:
        return {
            "name": "modelyard",
            "version": settings.VERSION,
            "extensions": list(EXTENSIONS),
        }

    async def model_metadata(self, actor: Actor, model: str, version: str) -> ModelMetadata:
        entry = self._entry(actor, model)
        target = await self._target(actor, model, version)
        described = await self._described(target.served)
        numbers = {one.served.version for one in entry.targets} | {target.served.version}
        return ModelMetadata(
            entry.route.name,
            sorted(numbers, key=int),
            described.platform,
            list(described.inputs),
            list(described.outputs),
        )

    async def model_config(self, actor: Actor, model: str, version: str) -> dict[str, Any]:
        """Describe a model in the words of the ModelConfig message."""
        served = (await self._target(actor, model, version)).served
        described = await self._described(served)
        options = served.deployed.options
        batched = described.batchable
        return {
            "name": served.name,
            "platform": described.platform,
            "backend": described.runtime.partition("/")[0],
            "runtime": "",
            "version_policy": {"specific": {"versions": [int(served.version)]}},
            "max_batch_size": options.max_batch_size if batched else 0,
            "input": [
                {**_config_of(one, batched=batched), **_INPUT_DEFAULTS} for one in described.inputs
            ],
            "output": [
                {**_config_of(one, batched=batched), **_OUTPUT_DEFAULTS}
                for one in described.outputs
            ],
            "instance_group": [
                {**_GROUP_DEFAULTS, "name": served.name, "count": 1, **self._device_of(described)}
            ],
            "default_model_filename": "model.onnx",
            **_CONFIG_DEFAULTS,
            "parameters": {"intra_op_thread_count": {"string_value": str(options.threads)}},
            **({"dynamic_batching": {**_BATCHING_DEFAULTS}} if batched else {}),
        }

    def _device_of(self, described: Described) -> dict[str, Any]:
        """Say where a model computes: on the server's GPU only if its own process says so."""
        if described.is_on_gpu and self.gpu is not None:
            return {"kind": "KIND_GPU", "gpus": [self.gpu]}
        return {"kind": "KIND_CPU"}

    async def _described(self, served: Served) -> Described:
        if served.described is None:
            if served.put_away:
                raise Unavailable("The model was unloaded.", code="unloaded")
            await self.fleet.load(served)
        assert served.described is not None
        return served.described

    async def statistics(
        self, actor: Actor, model: str | None, version: str
    ) -> list[dict[str, Any]]:
        """Give what versions have done, in the shape of the statistics extension."""
        if model is not None and version:
            target = await self._target(actor, model, version)
            entry = self._entry(actor, model)
            same = [one for one in entry.targets if one.served.version == target.served.version]
            return [statistics_of(add_up([_counted_at(one) for one in same or [target]]))]
        entries = [self._entry(actor, model)] if model is not None else self._visible_entries(actor)
        return [statistics_of(one) for one in _counted_by(entries)]

    def counters(self, actor: Actor | None = None) -> list[Counters]:
        """Give the same numbers as they are counted, with what waits now; of all, for nobody."""
        entries = [*self._entries.values()] if actor is None else self._visible_entries(actor)
        return _counted_by(entries)

    async def index(self, actor: Actor, *, ready_only: bool) -> list[dict[str, Any]]:
        listed = []
        found = {
            (entry.route.name, one.served.version): one.served
            for entry in self._visible_entries(actor)
            for one in (*entry.active, *entry.targets)
        }
        for (name, _), served in found.items():
            state = _STATES.get(served.state, "UNAVAILABLE")
            if state == "READY" or not ready_only:
                listed.append(
                    {
                        "name": name,
                        "version": served.version,
                        "state": state,
                        "reason": served.reason,
                    }
                )
        return listed

    async def load(self, actor: Actor, model: str) -> None:
        """Load every version of an endpoint that has traffic, and wait until it is warm."""
        entry = self._managed(actor, model)
        for one in entry.with_traffic:
            await self.fleet.load(one.served)

    async def unload(self, actor: Actor, model: str) -> None:
        """Take the versions of an endpoint out of memory, until somebody loads them again."""
        entry = self._managed(actor, model)
        changing = self._changing.pop(model.lower(), None)
        if changing is not None:
            changing.cancel()
        for one in (*entry.targets, *entry.active):
            self.fleet.put_to_sleep(one.served, away=True)
        entry.activate(entry.with_traffic)

    def _managed(self, actor: Actor, model: str) -> Entry:
        """Find an endpoint that the caller may load and unload: those who may deploy there."""
        entry = self._entry(actor, model)
        route = entry.route
        roles = (actor.roles.get(route.namespace_id), actor.grants.get(route.repository_id))
        held = max((ROLE_RANK[role] for role in roles if role), default=-1)
        if actor.is_anonymous:
            raise Unauthenticated("This needs a token; create one under Tokens.")
        if "write" not in actor.scopes or not (
            actor.is_admin or held >= ROLE_RANK[Role.MAINTAINER]
        ):
            raise Denied(
                "To load and unload {model} takes the role maintainer and the scope write.",
                model=route.name,
            )
        return entry

    def _visible_entries(self, actor: Actor) -> list[Entry]:
        return [one for one in self._entries.values() if one.route.may_be_called_by(actor)]

    # --- what this server says of itself ----------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Describe this replica for the control plane."""
        return {
            "id": self.replica,
            "host": socket.gethostname(),
            "address": own_address(),
            "process": os.getpid(),
            "rest_port": settings.INFER_PORT,
            "grpc_port": settings.GRPC_PORT,
            "started_at": self._started_at,
            "memory_bytes": self.fleet.held_bytes,
            "memory_limit_bytes": self.fleet.memory_bytes,
            "device_bytes": self.fleet.held.device,
            "device_limit_bytes": self.fleet.device_bytes,
            "models": [
                {**_status_of(entry, one), "shadow": self.shadows.counted(one.deployed.id)}
                for entry in self._entries.values()
                for one in entry.targets
            ],
        }

    async def _report(self) -> None:
        while True:
            await asyncio.to_thread(
                queue.report_replica, self.replica, self.status(), _REPORT_LASTS_SECONDS
            )
            await asyncio.sleep(_REPORT_SECONDS)


def _still_allowed(known: Entry | None, route: Route, withdrawn: Collection[int]) -> list[Target]:
    """Give what answers at an endpoint and may go on with it until its new versions are loaded.

    A name alone may have passed to another endpoint, or that to another model.
    """
    if known is None or (known.route.endpoint_id, known.route.repository_id) != (
        route.endpoint_id,
        route.repository_id,
    ):
        return []
    if not withdrawn:
        return known.active
    return [
        replace(one, sibling=None)
        if one.sibling is not None and one.sibling.deployed.version_id in withdrawn
        else one
        for one in known.active
        if one.deployed.version_id not in withdrawn
    ]


def _counted_by(entries: Sequence[Entry]) -> list[Counters]:
    """Give what each version of each endpoint has done, which several deployments may have."""
    found: dict[tuple[str, str], dict[int, Counters]] = {}
    for entry in entries:
        for one in (*entry.active, *entry.targets):
            same = found.setdefault((entry.route.name, one.served.version), {})
            same[id(one.counters)] = _counted_at(one)
    return [add_up([*same.values()]) for same in found.values()]


def _counted_at(target: Target) -> Counters:
    target.counters.pending = target.served.batcher.pending
    target.counters.memory_bytes = target.served.memory_bytes
    return target.counters


def statistics_of(counters: Counters) -> dict[str, Any]:
    """Say a version's numbers in the shape of the statistics extension."""

    def timed(one: Timed) -> dict[str, int]:
        return {"count": one.count, "ns": one.ns}

    nothing = {"count": 0, "ns": 0}
    return {
        "name": counters.model,
        "version": counters.version,
        "last_inference": int(counters.last_at * 1000),
        "inference_count": counters.inferences,
        "execution_count": counters.executions,
        "inference_stats": {
            "success": timed(counters.success),
            "fail": timed(counters.fail),
            "queue": timed(counters.queue),
            "compute_input": timed(counters.compute_input),
            "compute_infer": timed(counters.compute_infer),
            "compute_output": timed(counters.compute_output),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": nothing,
                "compute_infer": timed(one),
                "compute_output": nothing,
            }
            for size, one in sorted(counters.batches.items())
        ],
        "memory_usage": [{"type": "CPU", "id": 0, "byte_size": counters.memory_bytes}],
    }


def _status_of(entry: Entry, one: Target) -> dict[str, Any]:
    served = one.served
    counters = one.counters
    return {
        "deployment_id": one.deployed.id,
        "endpoint": entry.route.name,
        "version": one.deployed.number,
        "role": one.deployed.role,
        "state": served.state.value,
        "reason": served.reason,
        "takes_traffic": any(one.served is active.served for active in entry.active),
        "runtime": served.described.runtime if served.described else "",
        "threads": served.deployed.options.threads,
        "max_batch_size": served.deployed.options.max_batch_size,
        "memory_bytes": served.memory_bytes,
        "pending": served.batcher.pending,
        "success_count": counters.success.count,
        "success_ns": counters.success.ns,
        "fail_count": counters.fail.count,
        "trial": {
            "answered": counters.trial.answered,
            "ns": counters.trial.ns,
            "squares": int(counters.trial.squares),
            "failed": counters.trial.failed,
        },
        "queue_ns": counters.queue.ns,
        "compute_ns": counters.compute_infer.ns,
        "execution_count": counters.executions,
        "inference_count": counters.inferences,
    }


def own_address() -> str:
    """Say where a front reaches this process."""
    anywhere = settings.BIND in {"", "0.0.0.0", "::"}  # noqa: S104 - it is only compared
    return settings.SERVING_ADDRESS or (socket.gethostname() if anywhere else settings.BIND)


def _find(route: Route, version: str, device_class: str) -> Deployed | None:
    try:
        return find_deployed(route, version, device_class)
    except DatabaseError as error:
        raise Unavailable(
            "The database cannot be reached to find this version; try again.",
            code="database_unavailable",
        ) from error
    finally:
        connections.close_all()


def _caller_of(actor: Actor) -> Hashable:
    return actor.user_id or actor.ip


def _is_fault(error: RegistryError, seconds: float, limit: float) -> bool:
    """Say whether a failure is the deployment's own: not what was sent, or too little patience."""
    if isinstance(error, DeadlineExceeded):
        return seconds >= limit
    return error.reason in _FAULTS


def _parameters(target: Target, answer: Answer) -> dict[str, Any]:
    described = target.served.described
    return {
        "modelyard_version": target.served.version,
        "modelyard_weights_digest": target.deployed.weights_sha256,
        "modelyard_runtime": described.runtime if described else "",
        "modelyard_batch_size": answer.batch_size,
        "modelyard_queue_us": answer.queue_ns // 1000,
        "modelyard_compute_us": answer.compute_ns // 1000,
    }


def _only(outputs: Sequence[Tensor], wanted: Sequence[str]) -> list[Tensor]:
    named: Mapping[str, Tensor] = {one.name: one for one in outputs}
    for name in wanted:
        if name not in named:
            raise Invalid(
                "The model has no output {name!r}; it has {known}.",
                code="unknown_output",
                name=name[:256],
                known=", ".join(named),
            )
    return [named[name] for name in wanted]


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_ROWS:
        raise Invalid(
            "A request has 1 to {limit} rows; {count} came.",
            code="bad_input",
            limit=MAX_ROWS,
            count=count,
        )


def _shortened(
    vectors_BD: NDArray[np.float32],  # noqa: N803 - as in workers/ml
    dimensions: int | None,
) -> NDArray[np.float32]:
    if dimensions is None or dimensions == vectors_BD.shape[1]:
        return vectors_BD
    if not 1 <= dimensions <= vectors_BD.shape[1]:
        raise Invalid(
            "The model's vectors have {size} dimensions; ask for 1 to {size}.",
            code="bad_input",
            size=vectors_BD.shape[1],
        )
    cut_BD = vectors_BD[:, :dimensions]  # noqa: N806 - see above
    length_B1 = np.linalg.norm(cut_BD, axis=1, keepdims=True)  # noqa: N806 - see above
    shorter: NDArray[np.float32] = (cut_BD / np.maximum(length_B1, 1e-12)).astype(np.float32)
    return shorter


def _config_of(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": _TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"),
        "dims": list(spec.shape[1:] if batched else spec.shape),
    }
