"""Large JSON is read beside the server: as it is read there, while others are answered."""

import asyncio
import json
import os
import signal
import time

import numpy as np
import pytest

from registry.errors import Invalid, TooLarge
from workers.serving.codec import read_infer
from workers.serving.reader import Reader


def body_of(count, **more):
    data = np.random.default_rng(0).integers(0, 10, count).tolist()
    one = {"name": "x", "datatype": "INT64", "shape": [count], "data": data, **more}
    return json.dumps({"inputs": [one], "id": "7", "outputs": [{"name": "y"}]}).encode()


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
        return [await reader.read(*one) for one in bodies]

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
                await reader.read(body, None)
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
        await reader.read(body_of(10), None)
        turns = 0

        async def others():
            nonlocal turns
            while True:
                await asyncio.sleep(0.001)
                turns += 1

        beside = asyncio.create_task(others())
        began = time.process_time()
        await reader.read(body, None)
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
        await reader.read(body_of(10), None)
        os.kill(reader._process.pid, signal.SIGKILL)
        await reader._process.wait()
        return await reader.read(body_of(20), None)

    assert reading(story).inputs[0].shape == (20,)


def test_who_is_cancelled_leaves_nothing_behind_for_the_next():
    async def story(reader):
        await reader.read(body_of(10), None)
        task = asyncio.create_task(reader.read(body_of(1_000_000), None))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await reader.read(body_of(30), None)

    assert reading(story).inputs[0].shape == (30,)
