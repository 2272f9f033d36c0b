"""Shadows: a copy of live requests goes to deployments that answer nobody, and is held against.

A copy is sent only while neither the shadow nor the version that answered has anything to do, one
at a time for each shadow, and after the caller has the answer: so nobody waits for it.
"""

import asyncio
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from registry.errors import RegistryError
from workers.serving.batcher import Answer, Work
from workers.serving.fleet import Fleet, Served
from workers.serving.messages import Tensor
from workers.serving.router import Entry, Target

# Vectors agree from here on; other numbers within so much of the live one, and so much of how large
# the answers of that output are: what rounds a model errs by a share of those.
LEAST_COSINE = 0.99
RELATIVE, OF_SCALE = 0.05, 0.01
# How large they are is said by so many rows, the last ones.
_SCALED_ROWS = 256
# From so many numbers in a row on, the row is a vector with a direction.
_LONG = 32
_CALLER = "shadow"
_DEADLINE_SECONDS = 30.0
_FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}

Floats = NDArray[np.floating[Any]]


class Scales:
    """How large the numbers of each output of a live version are.

    It is the largest number of a row, in the middle one of the last rows: neither a row that lies
    near zero nor one that is far out says how large the others are. Rows of zeros say nothing.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, deque[float]] = {}

    def of(self, name: str, sizes: Sequence[float]) -> float:
        """Learn how large some more rows are, and say how large rows are by now."""
        known = self._sizes.setdefault(name, deque(maxlen=_SCALED_ROWS))
        known.extend(size for size in sizes if size > 0)
        return statistics.median(known) if known else 0.0


@dataclass(slots=True)
class Comparison:
    """What a shadow did beside one version: how many requests, how many alike, in what time."""

    compared: int = 0
    agreed: int = 0
    failed: int = 0
    live_ns: int = 0
    shadow_ns: int = 0
    # Requests that both computed in batches of one size, and those of them in time.
    timed: int = 0
    in_time: int = 0
    scales: Scales = field(default_factory=Scales)


class Shadows:
    """Sends the copies of one server, and counts what came of them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # By the deployment, both versions, and the percent of the live time that it may take.
        self._found: dict[tuple[int, int, int, int], Comparison] = {}
        self._flying: dict[int, asyncio.Task[None]] = {}

    def follow(self, entry: Entry, target: Target, work: Work, answer: Answer) -> None:
        """Send a copy of a request that was answered to the shadows of its endpoint.

        One without a single value is not sent: whatever answers it agrees.
        """
        for shadow in entry.shadows if any(map(len, work.parts)) else ():
            if shadow.served is not target.served and self._may_fly(shadow, target):
                self._flying[shadow.deployed.id] = asyncio.get_running_loop().create_task(
                    self._fly(shadow, target, work, answer)
                )

    def _may_fly(self, shadow: Target, target: Target) -> bool:
        served = shadow.served
        if not served.is_ready:
            if served.loading is None and not served.put_away and self._fleet.fits(served):
                now = time.monotonic()
                if now >= served.again_at:
                    self._fleet.wake(served)
            return False
        flight = self._flying.get(shadow.deployed.id)
        if flight is not None and not flight.done():
            return False
        return not served.batcher.pending and not target.served.batcher.pending

    async def _fly(self, shadow: Target, target: Target, work: Work, answer: Answer) -> None:
        found = self._comparison(shadow, target)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        copy = Work(
            work.verb,
            _CALLER,
            time.monotonic() + _DEADLINE_SECONDS,
            future,
            shadow.counters,
            work.tensors,
            work.payload,
            rows=work.rows,
        )
        try:
            self._fleet.submit(shadow.served, copy)
            own = await future
        except RegistryError:
            found.compared += 1
            found.failed += 1
            return
        labels = len(_labels(target.served))
        found.compared += 1
        found.agreed += agree(work.verb, answer, own, labels=labels, scales=found.scales)
        found.live_ns += answer.compute_ns
        found.shadow_ns += own.compute_ns
        if answer.batch_size == own.batch_size and answer.compute_ns > 0:
            # A copy is computed alone: what was joined with others has taken its time with them.
            percent = shadow.deployed.options.shadow_time_percent
            found.timed += 1
            found.in_time += 100 * own.compute_ns <= percent * answer.compute_ns

    def _comparison(self, shadow: Target, target: Target) -> Comparison:
        tried = shadow.deployed
        percent = tried.options.shadow_time_percent
        key = tried.id, tried.version_id, target.deployed.version_id, percent
        return self._found.setdefault(key, Comparison())

    def counted(self, deployment_id: int) -> list[dict[str, int]]:
        """Say what one shadow did beside each version, since this server started."""
        return [
            {
                "version_id": version,
                "beside_version_id": beside,
                "time_percent": percent,
                "compared": one.compared,
                "agreed": one.agreed,
                "failed": one.failed,
                "live_ns": one.live_ns,
                "shadow_ns": one.shadow_ns,
                "timed": one.timed,
                "in_time": one.in_time,
            }
            for (deployment, version, beside, percent), one in self._found.items()
            if deployment == deployment_id
        ]

    def stop(self) -> None:
        for flight in self._flying.values():
            flight.cancel()


def _labels(served: Served) -> Sequence[str]:
    return served.described.labels if served.described else ()


# --- Agreement -----------------------------------------------------------------------------------


def agree(
    verb: str, live: Answer, shadow: Answer, *, labels: int, scales: Scales | None = None
) -> bool:
    """Say whether two answers to one request come to the same.

    Classes by the best one, vectors by their direction, other numbers within a tolerance that goes
    by the live answers: this one, and those before, which `scales` remembers.
    """
    scales = scales or Scales()
    if verb == "rows":
        return _rows_agree(orjson.loads(live.payload), orjson.loads(shadow.payload), scales)
    if live.vectors is not None and shadow.vectors is not None:
        return _vectors_agree(live.vectors, shadow.vectors)
    others = {one.name: one for one in shadow.outputs}
    # Each teaches its scale, also where another one has disagreed already.
    found = [
        one.name in others and _tensors_agree(one, others[one.name], labels=labels, scales=scales)
        for one in live.outputs
    ]
    return all(found)


def _tensors_agree(live: Tensor, shadow: Tensor, *, labels: int, scales: Scales) -> bool:
    if live.shape != shadow.shape:
        return False
    same = live.datatype == shadow.datatype and bytes(live.data) == bytes(shadow.data)
    if live.datatype not in _FLOATS or shadow.datatype not in _FLOATS:
        return same
    ours, theirs = _read(live), _read(shadow)
    if labels > 1 and live.shape[1:] == (labels,):
        return same or (_are_numbers(ours, theirs) and _best_agree(ours, theirs))
    if ours.ndim > 1 and math.prod(live.shape[1:]) >= _LONG:
        return same or (_are_numbers(ours, theirs) and _vectors_agree(ours, theirs))
    sizes = _sizes(ours)
    tolerated = OF_SCALE * np.maximum(sizes, scales.of(live.name, sizes.tolist()))
    return same or (_are_numbers(ours, theirs) and _numbers_agree(ours, theirs, tolerated))


def _are_numbers(live: Floats, shadow: Floats) -> bool:
    """Say whether a shadow gives numbers wherever the live version does."""
    # The best class of nothing but NaN would be the first.
    return not (np.isfinite(live) & ~np.isfinite(shadow)).any()


def _best_agree(live: Floats, shadow: Floats) -> bool:
    return bool((live.argmax(1) == shadow.argmax(1)).all())


def _numbers_agree(live: Floats, shadow: Floats, tolerated: NDArray[np.float64]) -> bool:
    ours, theirs = (_by_row(one) for one in (live, shadow))
    near = np.isclose(theirs, ours, rtol=RELATIVE, atol=tolerated[:, None], equal_nan=True)
    return bool(near.all())


def _by_row(numbers: Floats) -> NDArray[np.float64]:
    rows = len(numbers) if numbers.ndim else 1
    return numbers.astype(np.float64).reshape(rows, numbers.size // max(rows, 1))


def _sizes(numbers: Floats) -> NDArray[np.float64]:
    """Give the largest number of each row, whatever its sign; what is none does not count."""
    rows = np.abs(_by_row(numbers))
    return np.asarray(np.where(np.isfinite(rows), rows, 0.0).max(1, initial=0.0))


def _read(tensor: Tensor) -> Floats:
    return np.frombuffer(tensor.data, _FLOATS[tensor.datatype]).reshape(tensor.shape)


def _vectors_agree(live: Floats, shadow: Floats) -> bool:
    if live.shape != shadow.shape:
        return False
    if np.array_equal(live, shadow, equal_nan=True):
        return True
    ours = live.reshape(len(live), -1).astype(np.float64)
    theirs = shadow.reshape(len(shadow), -1).astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1)
    product = lengths[0] * lengths[1]
    cosines = (ours * theirs).sum(1) / np.maximum(product, np.finfo(np.float64).tiny)
    # What has no direction agrees with what has none either.
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    return bool((both_zero | (cosines >= LEAST_COSINE)).all())


def _rows_agree(live: Sequence[Any], shadow: Sequence[Any], scales: Scales) -> bool:
    """Compare what is said of rows of fields."""
    if len(live) != len(shadow):
        return False
    found = [_row_agrees(*pair, scales) for pair in zip(live, shadow, strict=True)]
    return all(found)


def _row_agrees(live: Any, shadow: Any, scales: Scales) -> bool:
    if not isinstance(live, dict) or not isinstance(shadow, dict):
        return _values_agree(live, shadow, _tolerated("", live, scales))
    if "label_index" in live:
        # A score that is no number is written as null.
        lost = shadow.get("score", 0.0) is None and live.get("score") is not None
        return bool(live["label_index"] == shadow.get("label_index")) and not lost
    tolerated = {name: _tolerated(name, value, scales) for name, value in live.items()}
    return live.keys() == shadow.keys() and all(
        _values_agree(live[name], shadow[name], tolerated[name]) for name in live
    )


def _tolerated(name: str, value: Any, scales: Scales) -> float:
    size = max((abs(number) for number in _numbers_in(value)), default=0.0)
    return OF_SCALE * max(size, scales.of(name, [size]))


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers_in(one)


def _values_agree(live: Any, shadow: Any, tolerated: float) -> bool:
    if isinstance(live, dict) and isinstance(shadow, dict):
        return live.keys() == shadow.keys() and all(
            _values_agree(live[name], shadow[name], tolerated) for name in live
        )
    if isinstance(live, list) and isinstance(shadow, list):
        if len(live) >= _LONG and all(isinstance(one, float) for one in (*live, *shadow)):
            return _vectors_agree(np.array([live]), np.array([shadow]))
        return len(live) == len(shadow) and all(
            _values_agree(*pair, tolerated) for pair in zip(live, shadow, strict=True)
        )
    if isinstance(live, float) and isinstance(shadow, float):
        return abs(live - shadow) <= tolerated + RELATIVE * abs(live)
    # Whole numbers name something, as in tensors: the next one names another.
    return bool(live == shadow)
