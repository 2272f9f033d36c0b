"""Large JSON is read beside the server: as it is read there, while others are answered."""

import asyncio
import json
import math
import os
import signal
import time

import numpy as np
import pytest

from registry.errors import DeadlineExceeded, Invalid, TooLarge
from workers.serving.codec import read_infer
from workers.serving.reader import Reader
from workers.serving.turns import Turns


def body_of(count, **more):
    data = np.random.default_rng(0).integers(0, 10, count).tolist()
    one = {"name": "x", "datatype": "INT64", "shape": [count], "data": data, **more}
    return json.dumps({"inputs": [one], "id": "7", "outputs": [{"name": "y"}]}).encode()


async def read(reader, body, json_bytes=None, *, caller=1, seconds=60):
    until = time.monotonic() + seconds
    asked, _ = await reader.read(body, json_bytes, caller=caller, until=until)
    return asked


def reading(story):
    async def run():
        reader = Reader()
        try:
            return await story(reader)
        finally:
            await reader.close()

    return asyncio.run(run())


def test_it_reads_what_the_server_would_read():
    text = {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["é", ""]}
    raw = {"name": "r", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    wanted = [{"name": "y", "parameters": {"binary_data": True}}]
    asked = {"inputs": [text, raw], "outputs": wanted, "parameters": {"timeout": 5000}}
    head = json.dumps(asked).encode()
    bodies = [(body_of(1000), None), (head + bytes(8), len(head))]

    async def story(reader):
        return [await read(reader, *one) for one in bodies]

    for found, (body, length) in zip(reading(story), bodies, strict=True):
        expected = read_infer(memoryview(body), length)
        for one in expected.inputs:
            one.data = bytes(one.data)
        assert found == expected


def test_it_refuses_as_the_server_would():
    bodies = [
        b"{",
        body_of(3, shape=[4]),
        body_of(3, datatype="FP33"),
        b" " * 9_000_000,
        b'{"inputs":[],"inputs":[]}',
    ]

    async def story(reader):
        found = []
        for body in bodies:
            with pytest.raises((Invalid, TooLarge)) as refused:
                await read(reader, body)
            found.append(refused.value)
        return found

    for found, body in zip(reading(story), bodies, strict=True):
        with pytest.raises((Invalid, TooLarge)) as refused:
            read_infer(memoryview(body), None)
        expected = refused.value
        assert (type(found), found.reason, found.detail) == (
            type(expected),
            expected.reason,
            expected.detail,
        )


def test_others_are_answered_while_a_million_numbers_are_read():
    """In the loop, this one would take all turns for a third of a second."""
    body = body_of(1_500_000)

    async def story(reader):
        await read(reader, body_of(10))
        turns = 0

        async def others():
            nonlocal turns
            while True:
                await asyncio.sleep(0.001)
                turns += 1

        beside = asyncio.create_task(others())
        began = time.process_time()
        await read(reader, body)
        spent = time.process_time() - began
        beside.cancel()
        return turns, spent

    turns, spent = reading(story)
    began = time.process_time()
    read_infer(memoryview(body), None)
    alone = time.process_time() - began
    assert turns > 20
    # Of this process, which waits and copies.
    assert spent < alone


def test_a_reader_that_dies_is_started_again():
    async def story(reader):
        await read(reader, body_of(10))
        os.kill(reader._process.pid, signal.SIGKILL)
        await reader._process.wait()
        return await read(reader, body_of(20))

    assert reading(story).inputs[0].shape == (20,)


def test_who_is_cancelled_leaves_nothing_behind_for_the_next():
    async def story(reader):
        await read(reader, body_of(10))
        task = asyncio.create_task(read(reader, body_of(1_000_000)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await read(reader, body_of(30))

    assert reading(story).inputs[0].shape == (30,)


def test_callers_take_turns_whatever_they_ask_for():
    async def story():
        turns, done = Turns(), []

        async def one(name, until=math.inf):
            async with turns.turn(name, until):
                done.append(name)

        async with turns.turn("a", math.inf):
            tasks = [asyncio.create_task(one(name)) for name in "aaabbc"]
            late = asyncio.create_task(one("d", time.monotonic()))
            gone = asyncio.create_task(one("e"))
            with pytest.raises(DeadlineExceeded):
                await late
            gone.cancel()
        # One whose turn has just come leaves: it goes on to the next.
        tasks.pop(3).cancel()
        await asyncio.gather(*tasks)
        async with turns.turn("f", time.monotonic()):
            return "".join(done)

    assert asyncio.run(story()) == "caba" + "a"
