"""What waits for one model: bounded, in fair turns, joined into batches, dropped when too late.

There is no window in which a request waits for others to come: as soon as the model is free it gets
all that waits and fits. Under load batches grow by themselves, and alone nobody waits.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import (
    DeadlineExceeded,
    Invalid,
    RateLimited,
    RegistryError,
    TooLarge,
    Unavailable,
)
from workers.serving.messages import (
    BYTES,
    ITEM_BYTES,
    Counters,
    Data,
    Tensor,
    TensorSpec,
    Timed,
    end_of_strings,
)
from workers.serving.pace import Pace
from workers.serving.process import ALIGNMENT, Described, ModelProcess, Placed, Reply

SWEEP_SECONDS = 0.02
# So much beyond the usual a model is given, where the callers were more impatient than that.
_PATIENCE = 10
# A batch of larger requests gains nothing over one after the other.
_BATCH_BYTES = 1024 * 1024
# Shared memory that was used beyond this is given back when nobody asks any more.
_KEPT_BYTES = 4 * 1024 * 1024
_FORGET_SECONDS = 5.0
_ALONE = ("alone",)

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Work:
    """One request on its way through a model."""

    verb: str
    caller: Hashable
    deadline: float
    future: "asyncio.Future[Answer]"
    # Of the deployment that it was sent to.
    counters: Counters
    # Of `run`: the tensors as they came. Of the others: one JSON text, and its number of rows.
    tensors: Sequence[Tensor] = ()
    payload: Data = b""
    # What is known once the model is: the inputs in its order, and what may be joined with what.
    parts: list[Data] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    rows: int = 1
    size: int = 0
    signature: Hashable = None
    queued_ns: int = 0
    tries: int = 0


@dataclass(slots=True)
class Answer:
    """What a model gave for one request, and at what cost."""

    batch_size: int
    queue_ns: int
    compute_ns: int
    outputs: list[Tensor] = field(default_factory=list)
    payload: bytes = b""
    vectors: NDArray[np.float32] | None = None
    tokens: int = 0


class Batcher:
    """The queue in front of one model, and the batch that it is working on."""

    def __init__(
        self,
        *,
        batch_size: int,
        queue_size: int,
        deadline_seconds: float,
        arena_bytes: int,
        pace: Pace,
    ) -> None:
        self.batch_size = batch_size
        self.queue_size = queue_size
        self.deadline_seconds = deadline_seconds
        # What a process takes at once, whether there is one now or not.
        self.arena_bytes = arena_bytes
        self._pace = pace
        self._joined_bytes = min(_BATCH_BYTES, arena_bytes)
        self.described: Described | None = None
        self.last_used = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._process: ModelProcess | None = None
        self._queues: dict[Hashable, deque[Work]] = {}
        self._turns: deque[Hashable] = deque()
        # What failed beside others, or was there when a process died, goes by itself.
        self._alone: deque[Work] = deque()
        self._waiting = 0
        self._running: list[Work] = []
        self._began_ns = 0
        self._kill_at = 0.0
        self._usual_ns = 0
        self._pump_planned = False
        self._sweep: asyncio.TimerHandle | None = None
        self._given_bytes = 0

    # --- coming in --------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return self._waiting + len(self._running)

    def submit(self, work: Work) -> None:
        """Let a request wait for its turn.

        Raises:
            Invalid: the model does not take it; RateLimited: too many wait.

        """
        if self._waiting >= self.queue_size:
            self._drop_done()
            if self._waiting >= self.queue_size:
                self._give_way(work.caller)
        if self.described is not None:
            self._bind(work, self.described)
        work.queued_ns = time.monotonic_ns()
        self.last_used = now = time.monotonic()
        if self._process is not None:
            work.deadline = min(work.deadline, now + self.deadline_seconds)
        queue = self._queues.get(work.caller)
        if queue is None:
            queue = self._queues[work.caller] = deque()
            self._turns.append(work.caller)
        queue.append(work)
        self._waiting += 1
        self._plan_pump()
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._look_around)

    def _give_way(self, caller: Hashable) -> None:
        """Make room in a full queue: who has most in it loses what came last.

        Raises:
            RateLimited: nobody has more in it than `caller`.

        """
        full = RateLimited(
            "{count} requests wait for this model, more than it takes; try again in "
            "{retry_after} s.",
            code="queue_full",
            count=self._waiting,
            retry_after=1,
        )
        longest = max(self._queues.values(), key=len, default=deque[Work]())
        if len(longest) <= len(self._queues.get(caller, ())) + 1:
            raise full
        self._waiting -= 1
        self._fail(longest.pop(), full)

    def _bind(self, work: Work, described: Described) -> None:
        """Bring the inputs of a request into the model's order, and see that it takes them."""
        if work.verb == "run":
            _bind_tensors(work, described)
        else:
            work.parts, work.size = [work.payload], len(work.payload)
            work.signature = (work.verb,) if described.batchable else _ALONE
        if work.size > self.arena_bytes:
            raise self._too_large(work.size)

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(
            "The inputs take {size} bytes; the limit is {limit}.",
            size=size,
            limit=self.arena_bytes,
        )

    # --- the model --------------------------------------------------------------------------------

    def attach(self, process: ModelProcess, described: Described) -> None:
        """Give the queue a process to be worked on by."""
        self._process, self.described = process, described
        self._usual_ns = described.usual_ns
        latest = time.monotonic() + self.deadline_seconds
        for work in self._all_waiting():
            work.deadline = min(work.deadline, latest)
        self._plan_pump()

    def detach(self) -> None:
        """Take the process away, because it has ended: what ran in it is tried once more, alone."""
        self._process = None
        self._pace.forget(self)
        running, self._running = self._running, []
        for work in running:
            work.tries += 1
            if work.tries > 1:
                self._fail(work, _crashed())
            elif not work.future.done():
                self._alone.append(work)
                self._waiting += 1

    def fail_all(self, error: RegistryError) -> None:
        """Refuse all that waits."""
        waiting = self._all_waiting()
        self._alone.clear()
        self._queues.clear()
        self._turns.clear()
        self._waiting = 0
        for work in waiting:
            self._fail(work, error)

    def _all_waiting(self) -> list[Work]:
        return [*self._alone, *(work for queue in self._queues.values() for work in queue)]

    # --- batches ----------------------------------------------------------------------------------

    def _plan_pump(self) -> None:
        """Look for work after the callbacks that are due now: they may bring more of it."""
        if not self._pump_planned and not self._running and self._process is not None:
            self._pump_planned = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_planned = False
        process = self._process
        if self._running or process is None or not self._waiting:
            return
        batch = self._take()
        if not batch:
            return
        self._began_ns = time.monotonic_ns()
        try:
            arguments = self._put(batch, process)
        except ValueError:
            # Never let in so far; but were it, all others would wait for who got nothing.
            self._refuse(batch, self._too_large(sum(work.size for work in batch)))
            self._plan_pump()
            return
        self._running = batch
        now = time.monotonic()
        usual = self._usual_ns / 1e9
        least = now + (usual * _PATIENCE if usual else self.deadline_seconds)
        self._kill_at = max(least, *(work.deadline for work in batch))
        alone = len(batch) == 1 and not self._waiting
        awake_ns = self._pace.begin(self, self._began_ns, is_alone=alone)
        process.send(batch[0].verb, arguments, awake_ns=awake_ns)
        if awake_ns:
            process.hear_awake(self._pace.patience_ns)

    def _put(self, batch: list[Work], process: ModelProcess) -> list[Any]:
        """Write what a batch gives into the memory that is shared; give what is where.

        Raises:
            ValueError: it is more than there is room for.

        """
        first = batch[0]
        arguments: list[Any] = []
        end = 0
        for at in range(len(first.parts)):
            begin = -(-end // ALIGNMENT) * ALIGNMENT
            if first.verb != "run":
                for work in batch:
                    end = process.put(begin, work.parts)
                    arguments.append((begin, end - begin))
                    begin = end
                break
            end = process.put(begin, [work.parts[at] for work in batch])
            shape = first.shapes[at]
            if len(batch) > 1:
                shape = (sum(work.rows for work in batch), *shape[1:])
            arguments.append((begin, end - begin, shape))
        self._given_bytes = max(self._given_bytes, end)
        return arguments

    def _take(self) -> list[Work]:
        """Take the next batch, callers in turn; what is too late, or gone, is dropped."""
        now = time.monotonic()
        while self._alone:
            work = self._alone.popleft()
            self._waiting -= 1
            if self._is_wanted(work, now) and self._is_bound(work):
                return [work]
        batch: list[Work] = []
        rows = size = 0
        passed: list[Hashable] = []
        while self._turns and rows < self.batch_size:
            caller = self._turns.popleft()
            queue = self._queues[caller]
            work = queue[0]
            fits = not batch or (
                work.signature == batch[0].signature
                and work.signature is not _ALONE
                and rows + work.rows <= self.batch_size
                and size + work.size <= self._joined_bytes
            )
            if not fits and self._is_wanted(work, now):
                passed.append(caller)
                continue
            queue.popleft()
            self._waiting -= 1
            if queue:
                self._turns.append(caller)
            else:
                del self._queues[caller]
            if self._is_wanted(work, now) and self._is_bound(work):
                if batch and work.signature != batch[0].signature:
                    self._alone.append(work)  # it was not known before what it is
                    self._waiting += 1
                    continue
                batch.append(work)
                rows += work.rows
                size += work.size
                if work.signature is _ALONE:
                    break
        self._turns.extendleft(reversed(passed))
        return batch

    def _is_wanted(self, work: Work, now: float) -> bool:
        if work.future.done():
            return False
        if work.deadline <= now:
            self._expire(work)
            return False
        return True

    def _is_bound(self, work: Work) -> bool:
        """Bind a request that came before anything was known of the model."""
        if work.signature is not None:
            return True
        assert self.described is not None
        try:
            self._bind(work, self.described)
        except RegistryError as error:
            self._fail(work, error)
            return False
        return True

    # --- going out --------------------------------------------------------------------------------

    def answered(self, reply: Reply) -> None:
        """Hand out what came back for the running batch."""
        batch, self._running = self._running, []
        self._pace.end(
            self, time.monotonic_ns(), run_ns=sum(reply.times), others_wait=self._waiting > 0
        )
        process = self._process
        assert process is not None
        if reply.refusal is not None:
            self._refuse(batch, reply.refusal)
        else:
            try:
                self._hand_out(batch, reply, process)
            except Exception:
                logger.exception("An answer of a model's process could not be read")
                for work in batch:
                    self._fail(work, _crashed())
                process.kill()
                return
        self._pump()

    def _refuse(self, batch: list[Work], refusal: RegistryError) -> None:
        if len(batch) > 1:
            # One of them is bad: each goes by itself, so that it fails alone.
            self._alone.extend(batch)
            self._waiting += len(batch)
            return
        for work in batch:
            self._fail(work, refusal)

    def _hand_out(self, batch: list[Work], reply: Reply, process: ModelProcess) -> None:
        done_ns = time.monotonic_ns()
        input_ns, infer_ns, output_ns = reply.times
        self._usual_ns = max(infer_ns, self._usual_ns * 99 // 100)
        rows = sum(work.rows for work in batch)
        answers = [Answer(rows, self._began_ns - work.queued_ns, infer_ns) for work in batch]
        try:
            self._fill(batch, answers, reply, process.taken.memory)
        except (Invalid, ValueError, IndexError):
            # Its own process of ours would not answer another number of rows than it was given.
            refusal = Invalid("The model gave another number of rows.", code="run_failed")
            self._refuse(batch, refusal)
            return
        last: Counters | None = None
        for work, answer in zip(batch, answers, strict=True):
            counted = work.counters
            if counted is not last:
                # A batch that several deployments share counts for each of them.
                last = counted
                counted.executions += 1
                counted.last_at = time.time()
                counted.batches.setdefault(rows, Timed()).add(infer_ns)
            counted.inferences += work.rows
            took_ns = done_ns - work.queued_ns
            counted.success.add(took_ns)
            counted.queue.add(answer.queue_ns)
            counted.compute_input.add(input_ns)
            counted.compute_infer.add(infer_ns)
            counted.compute_output.add(output_ns)
            if not work.future.done():
                work.future.set_result(answer)

    def _fill(
        self, batch: list[Work], answers: list[Answer], reply: Reply, taken: memoryview
    ) -> None:
        """Copy each request's part out of the shared memory, which the next batch will use."""
        verb = batch[0].verb
        if verb == "rows":
            for answer, one in zip(answers, reply.outputs, strict=True):
                answer.payload = bytes(taken[one.start : one.start + one.size])
        elif verb == "texts":
            (placed,) = reply.outputs
            data = bytes(taken[placed.start : placed.start + placed.size])
            vectors = np.frombuffer(data, np.float32).reshape(placed.shape)
            at = 0
            for work, answer, tokens in zip(batch, answers, reply.counts, strict=True):
                answer.vectors, answer.tokens = vectors[at : at + work.rows], tokens
                at += work.rows
            if at != len(vectors):
                raise ValueError(at)
        else:
            assert self.described is not None
            for spec, placed in zip(self.described.outputs, reply.outputs, strict=True):
                _split(spec, placed, batch, answers, taken)

    def _fail(self, work: Work, error: RegistryError) -> None:
        if not work.future.done():
            work.counters.fail.add(time.monotonic_ns() - work.queued_ns)
            work.future.set_exception(error)

    def _expire(self, work: Work) -> None:
        self._fail(
            work,
            DeadlineExceeded("The model did not answer before the deadline of the request."),
        )

    # --- the clock --------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Tell requests that are too late so, and end a process that does not come back."""
        self._sweep = None
        now = time.monotonic()
        for work in self._running:
            if work.deadline <= now:
                self._expire(work)
        if self._running and now >= self._kill_at and self._process is not None:
            # Nobody waits for it any more: what runs is not tried again.
            for work in self._running:
                self._expire(work)
            self._process.kill()
        self._drop_done(now)
        if self.pending:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._look_around)
        elif self._given_bytes > _KEPT_BYTES:
            self._sweep = self._loop.call_later(_FORGET_SECONDS, self._forget)

    def _drop_done(self, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        for caller in [*self._queues]:
            queue = self._queues[caller]
            if any(work.future.done() or work.deadline <= now for work in queue):
                kept = deque(work for work in queue if self._is_wanted(work, now))
                self._waiting -= len(queue) - len(kept)
                if kept:
                    self._queues[caller] = kept
                else:
                    del self._queues[caller]
                    with suppress(ValueError):
                        self._turns.remove(caller)
        kept = deque(work for work in self._alone if self._is_wanted(work, now))
        self._waiting -= len(self._alone) - len(kept)
        self._alone = kept

    def _forget(self) -> None:
        """Give back shared memory that large requests left behind."""
        self._sweep = None
        if self.pending:
            self._sweep = self._loop.call_later(SWEEP_SECONDS, self._look_around)
        elif self._process is not None:
            self._given_bytes = 0
            self._process.given.forget()
            self._process.taken.forget()


def _crashed() -> Unavailable:
    return Unavailable(
        "The model's process ended while it computed this; try again.", code="crashed"
    )


def _bind_tensors(work: Work, described: Described) -> None:
    specs = described.inputs
    given = work.tensors
    if len(given) != len(specs) or any(
        one.name != spec.name for one, spec in zip(given, specs, strict=True)
    ):
        given = _in_order({one.name: one for one in given}, specs)
    parts: list[Data] = []
    shapes = []
    size = 0
    for one, spec in zip(given, specs, strict=True):
        shape = one.shape
        if not _fits(one, spec):
            raise Invalid(
                "Input {name!r} is {datatype} {shape}; the model takes {expected} {axes}.",
                code="wrong_input",
                name=one.name,
                datatype=one.datatype,
                shape=list(shape),
                expected=spec.datatype,
                axes=list(spec.shape),
            )
        parts.append(one.data)
        shapes.append(shape)
        size += len(one.data) + ALIGNMENT
    work.parts, work.shapes, work.size = parts, shapes, size
    counts = {shape[0] for shape in shapes} if described.batchable else set()
    if len(counts) == 1:
        (work.rows,) = counts
        work.signature = tuple(shape[1:] for shape in shapes) if work.rows else _ALONE
    else:
        work.signature = _ALONE


def _in_order(given: Mapping[str, Tensor], specs: Sequence[TensorSpec]) -> list[Tensor]:
    names = [spec.name for spec in specs]
    wrong = [name for name in (*given, *names) if name not in given or name not in names]
    if wrong:
        raise Invalid(
            "The model takes {expected}; input {name!r} is {problem}.",
            code="wrong_input",
            expected=", ".join(names),
            name=wrong[0],
            problem="missing" if wrong[0] in names else "none of them",
        )
    return [given[name] for name in names]


def _fits(one: Tensor, spec: TensorSpec) -> bool:
    """Say whether the model takes a tensor. Its size is looked at again: a lie would read on."""
    shape = one.shape
    if one.datatype != spec.datatype or len(shape) != len(spec.shape):
        return False
    if one.datatype != BYTES and len(one.data) != math.prod(shape) * ITEM_BYTES[one.datatype]:
        return False
    return all(wanted in (-1, size) for size, wanted in zip(shape, spec.shape, strict=True))


def _split(
    spec: TensorSpec,
    placed: Placed,
    batch: list[Work],
    answers: list[Answer],
    taken: memoryview,
) -> None:
    start, size, shape = placed.start, placed.size, placed.shape
    if len(batch) == 1:
        data = placed.data if spec.datatype == BYTES else bytes(taken[start : start + size])
        answers[0].outputs.append(Tensor(spec.name, spec.datatype, shape, data))
        return
    count = sum(work.rows for work in batch)
    if not shape or shape[0] != count:
        raise ValueError(shape)
    if spec.datatype == BYTES:
        _split_strings(spec, placed, batch, answers)
        return
    step = size // count
    inner = shape[1:]
    for work, answer in zip(batch, answers, strict=True):
        end = start + step * work.rows
        answer.outputs.append(
            Tensor(spec.name, spec.datatype, (work.rows, *inner), bytes(taken[start:end]))
        )
        start = end


def _split_strings(
    spec: TensorSpec, placed: Placed, batch: list[Work], answers: list[Answer]
) -> None:
    inner = placed.shape[1:]
    each = math.prod(inner)
    start = 0
    for work, answer in zip(batch, answers, strict=True):
        end = end_of_strings(placed.data, start, work.rows * each)
        answer.outputs.append(Tensor(spec.name, BYTES, (work.rows, *inner), placed.data[start:end]))
        start = end
