"""Shadows: copies of live requests, answers held against each other, nobody who waits for it."""

import asyncio
import time

import numpy as np
import orjson
import pytest

from tests.workers.serving import yard as y
from workers.serving.batcher import Answer
from workers.serving.messages import Tensor
from workers.serving.shadow import Scales, agree


async def _compared(plane, deployed):
    await y.until(lambda: plane.shadows.counted(deployed.id))
    await y.until(lambda: plane.shadows.counted(deployed.id)[0]["compared"] > 0)
    return plane.shadows.counted(deployed.id)[0]


@pytest.mark.parametrize(("factor", "agrees"), [(2.0, True), (2.02, True), (3.0, False)])
def test_a_shadow_is_asked_the_same_and_answers_nobody(yard, factor, agrees):
    async def go():
        live = yard.version("a/double", 1, y.linear())
        shadow = yard.version("a/double", 2, y.linear(factor), role="shadow", weight=0)
        yard.route("a/double", live, shadow)
        async with yard.plane() as plane:
            while not plane.shadows.counted(shadow.id):
                response, (answer,) = await y.ask(plane, "a/double", y.floats([[1, 2]]))
                assert (response.version, answer.tolist()) == ("1", [[2, 4]])
                await asyncio.sleep(0)
            found = await _compared(plane, shadow)
            assert (found["version_id"], found["beside_version_id"]) == (
                shadow.version_id,
                live.version_id,
            )
            assert found["agreed"] == (found["compared"] if agrees else 0)
            assert found["shadow_ns"] > 0
            assert (found["timed"], found["time_percent"]) == (found["compared"], 200)
            (said,) = [one for one in plane.status()["models"] if one["role"] == "shadow"]
            assert said["shadow"][0]["version_id"] == shadow.version_id

    asyncio.run(go())


def test_what_says_nothing_of_the_traffic_is_not_compared(yard):
    async def go():
        live = yard.version("a/double", 1, y.linear())
        shadow = yard.version("a/double", 2, y.linear(3.0), role="shadow", weight=0)
        yard.route("a/double", live, shadow)
        async with yard.plane() as plane:
            for version, rows in (("2", [[1, 2]]), ("1", [[1, 2]]), ("", np.zeros((0, 2)))):
                await y.ask(plane, "a/double", y.floats(rows), version=version)
            until = time.monotonic() + 30
            await plane.predict(y.ALICE, "a/double", "1", [{"x": [1.0, 2.0]}], until)
            # Its turn comes after that of any copy.
            await y.ask(plane, "a/double", y.floats([[1, 2]]), version="2")
            assert plane.shadows.counted(shadow.id) == []
            while not plane.shadows.counted(shadow.id):
                await plane.predict(y.ALICE, "a/double", "", [{"x": [1.0, 2.0]}], until)
            assert (await _compared(plane, shadow))["agreed"] == 0

    asyncio.run(go())


def test_a_shadow_that_fails_or_hangs_hurts_nobody(yard):
    async def go():
        live = yard.version("a/gather", 1, y.linear(width=1))
        shadow = yard.version("a/gather", 2, y.looping(), role="shadow", weight=0, deadline_ms=200)
        yard.route("a/gather", live, shadow)
        async with yard.plane() as plane:
            while not plane.shadows.counted(shadow.id):
                _, (answer,) = await y.ask(plane, "a/gather", y.floats([[2000.0]]))
                assert answer.tolist() == [[4000.0]]
                await asyncio.sleep(0)
            began = time.monotonic()
            _, (answer,) = await y.ask(plane, "a/gather", y.floats([[2000.0]]))
            assert answer.tolist() == [[4000.0]]
            assert time.monotonic() - began < 10
            found = await _compared(plane, shadow)
            assert (found["failed"], found["agreed"]) == (found["compared"], 0)

    asyncio.run(go())


@pytest.mark.parametrize("percent", [10, 10_000])
def test_each_request_is_timed_beside_the_live_one(yard, percent):
    async def go():
        live = yard.version("a/double", 1, y.linear())
        options = {"role": "shadow", "weight": 0, "shadow_time_percent": percent}
        shadow = yard.version("a/double", 2, y.linear(), **options)
        yard.route("a/double", live, shadow)
        async with yard.plane() as plane:
            await y.ask(plane, "a/double", y.floats([[1, 2]]), version="2")
            while sum(one["timed"] for one in plane.shadows.counted(shadow.id)) < 20:
                await y.ask(plane, "a/double", y.floats([[1, 2]]))
            (found,) = plane.shadows.counted(shadow.id)
            # Both compute the same: hardly one is ten times as quick, or a hundred times as slow.
            share = found["in_time"] / found["timed"]
            assert share < 0.25 if percent == 10 else share > 0.75

    asyncio.run(go())


def answered(array, datatype="FP32"):
    array = np.asarray(array, {"FP32": np.float32, "FP16": np.float16, "INT64": np.int64}[datatype])
    return Answer(1, 0, 0, [Tensor("y", datatype, array.shape, array.tobytes())])


def said(rows):
    return Answer(1, 0, 0, payload=orjson.dumps(rows))


LONG = np.linspace(-1, 1, 64, dtype=np.float32)[None]
NOTHING = np.full((1, 3), np.nan)
# What is said of a row whose classes came out as no numbers.
LOST = {"label_index": 0, "score": float("nan")}


@pytest.mark.parametrize(
    ("verb", "live", "shadow", "labels", "expected"),
    [
        ("run", answered([[1, 5, 2]]), answered([[0, 9, 8]]), 3, True),
        ("run", answered([[1, 5, 2]]), answered([[6, 5, 2]]), 3, False),
        ("run", answered([[1, 5, 2]]), answered([[0, 9, 8]]), 0, False),
        ("run", answered([1.0]), answered([1.04]), 0, True),
        ("run", answered([[1.0]]), answered([[1.0]], "FP16"), 0, True),
        ("run", answered([[1.0]]), answered([[1.0, 2.0]]), 0, False),
        ("run", answered([np.nan]), answered([np.nan]), 0, True),
        ("run", answered([[np.nan]]), answered([[np.nan]], "FP16"), 0, True),
        ("run", answered([1.0]), answered([np.nan]), 0, False),
        ("run", answered(NOTHING), answered(NOTHING), 3, True),
        ("run", answered([[5, 1, 2]]), answered(NOTHING), 3, False),
        ("run", answered(NOTHING), answered([[1, 5, 2]]), 3, False),
        ("run", answered([1], "INT64"), answered([2], "INT64"), 0, False),
        ("run", answered(LONG), answered(LONG * 3), 0, True),
        ("run", answered(LONG), answered(-LONG), 0, False),
        ("run", answered(LONG), answered(LONG * 0), 0, False),
        ("run", answered(LONG * 0), answered(LONG * 0), 0, True),
        ("run", answered([*LONG, *LONG * 0]), answered([*LONG * 2, *LONG * 0]), 0, True),
        ("run", answered(LONG * np.nan), answered(LONG * np.nan), 0, True),
        ("run", answered(LONG), answered(LONG * np.nan), 0, False),
        # Nothing beside small numbers is nothing, but beside large ones it is noise.
        ("run", answered([[0.004]]), answered([[0.0]]), 0, False),
        ("run", answered([[0.009]]), answered([[-0.0009]]), 0, False),
        ("run", answered([[0.004, 1.0]]), answered([[0.0, 1.0]]), 0, True),
        ("run", answered([[0.004, 0.1]]), answered([[0.0, 0.1]]), 0, False),
        ("run", answered([[1e-9]]), answered([[1.02e-9]]), 0, True),
        ("run", answered([[np.nan, 2.0]]), answered([[np.nan, 2.05]]), 0, True),
        ("run", answered(np.zeros((0, 3))), answered(np.zeros((0, 3))), 0, True),
        ("run", answered(2.0), answered(2.05), 0, True),
        ("rows", said([{"y": 0.004}]), said([{"y": 0.0}]), 0, False),
        ("rows", said([{"y": [0.004, 1.0]}]), said([{"y": [0.0, 1.0]}]), 0, True),
        ("rows", said([{"y": {"a": 1.0}}]), said([{"y": {"a": 1.01}}]), 0, True),
        ("rows", said([{"y": {"a": 1.0}}]), said([{"y": {"b": 1.0}}]), 0, False),
        ("rows", said([{"y": 40}]), said([{"y": 41}]), 0, False),
        ("rows", said([{"y": 1.0}]), said([{"y": 1.0}, {"y": 1.0}]), 0, False),
        ("rows", said([{"label_index": 0, "score": 0.9}]), said([LOST]), 0, False),
        ("rows", said([LOST]), said([LOST]), 0, True),
        ("rows", said([{"label_index": 1, "score": 0.9}]), said([{"label_index": 1}]), 0, True),
        ("rows", said([{"label_index": 1}]), said([{"label_index": 2}]), 0, False),
        ("rows", said([{"y": [1.0, 2.0]}]), said([{"y": [1.01, 2.0]}]), 0, True),
        ("rows", said([{"y": "a"}]), said([{"y": "b"}]), 0, False),
        ("rows", said([{"y": 1}]), said([{"z": 1}]), 0, False),
        ("rows", said([{"e": LONG[0].tolist()}]), said([{"e": (2 * LONG[0]).tolist()}]), 0, True),
        ("texts", Answer(1, 0, 0, vectors=LONG), Answer(1, 0, 0, vectors=LONG * 2), 0, True),
        ("texts", Answer(1, 0, 0, vectors=LONG), Answer(1, 0, 0, vectors=-LONG), 0, False),
        ("texts", Answer(1, 0, 0, vectors=LONG * 0), Answer(1, 0, 0, vectors=LONG * 0), 0, True),
    ],
)
def test_answers_agree(verb, live, shadow, labels, expected):
    assert agree(verb, live, shadow, labels=labels) is expected


@pytest.mark.parametrize("verb", ["run", "rows"])
def test_how_large_answers_are_is_learned_from_those_before(verb):
    scales = Scales()

    def alike(live, shadow):
        def form(y):
            return answered([[y]]) if verb == "run" else said([{"y": y}])

        return agree(verb, form(live), form(shadow), labels=0, scales=scales)

    # Of answers about 0.004, one of zero is none of them.
    for live in (0.003, 0.004, 0.005, 0.004):
        assert not alike(live, 0.0)
        assert alike(live, live * 1.04)
    # Where they are about 3, what lies near zero is as rough as the others.
    for live in (2.0, 3.0, 4.0) * 10:
        assert alike(live, live + 0.1)
    assert alike(0.004, 0.0)
    assert alike(0.0, 0.02)
    assert not alike(0.0, 0.05)
    # One that is far out makes the others no rougher.
    alike(1e6, 1e6)
    assert not alike(0.0, 0.05)
