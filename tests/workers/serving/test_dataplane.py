"""Calls of real models in their processes: right answers, in bounds, whatever happens beside."""

import asyncio
import json
import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict

from registry.errors import (
    DeadlineExceeded,
    Invalid,
    NotFound,
    NotLoaded,
    RateLimited,
    RegistryError,
    TooLarge,
    Unavailable,
)
from tests.workers.serving import yard as y
from workers.serving.fleet import State
from workers.serving.messages import MAX_STRINGS, Tensor, pack_strings, unpack_strings
from workers.serving.protos.model_config_pb2 import ModelConfig
from workers.serving.turns import UNKNOWN_TURNS, turn_of


def _served(plane, name):
    return next(one for one in plane.fleet.all if one.name == name and one.is_ready)


def test_a_model_answers_and_says_how(yard):
    async def go():
        deployed = yard.version("a/double", 3, y.linear())
        yard.route("a/double", deployed)
        async with yard.plane() as plane:
            response, (answer,) = await y.ask(plane, "a/double", y.floats([[1, 2], [3, 4]]))
            assert answer.tolist() == [[2, 4], [6, 8]]
            assert (response.model, response.version) == ("a/double", "3")
            said = response.parameters
            assert said["modelyard_version"] == "3"
            assert said["modelyard_weights_digest"] == deployed.weights_sha256
            assert said["modelyard_runtime"] == "onnxruntime/cpu"
            assert said["modelyard_batch_size"] == 2
            assert said["modelyard_compute_us"] > 0
            metadata = await plane.model_metadata(y.ALICE, "a/double", "")
            assert metadata.versions == ["3"]
            assert [one.shape for one in metadata.inputs] == [(-1, -1)]
            config = await plane.model_config(y.ALICE, "a/double", "")
            assert config["max_batch_size"] == 32
            (taken,) = config["input"]
            assert (taken["name"], taken["data_type"], taken["dims"]) == ("x", "TYPE_FP32", [-1])
            # It is a whole ModelConfig, and says all that Triton's does.
            message = ParseDict(config, ModelConfig())
            assert message.dynamic_batching.max_queue_delay_microseconds == 0
            assert taken["format"] == "FORMAT_NONE"
            assert config["dynamic_batching"]["preferred_batch_size"] == []
            assert config["instance_group"][0]["gpus"] == []
            assert {"model_warmup", "metric_tags", "parameters", "optimization"} < set(config)

    asyncio.run(go())


def test_what_a_caller_may_not_see_answers_like_what_does_not_exist(yard):
    async def go():
        yard.route("a/double", yard.version("a/double", 1, y.linear()))
        yard.route("a/open", yard.version("a/open", 1, y.linear()), visibility="public")
        async with yard.plane() as plane:
            said = []
            for name in ("a/double", "a/nothing"):
                with pytest.raises(NotFound) as refused:
                    await y.ask(plane, name, y.floats([[1]]), actor=y.BOB)
                said.append(refused.value.detail.replace(name, "X"))
            assert said[0] == said[1]
            assert [one["name"] for one in await plane.index(y.BOB, ready_only=False)] == ["a/open"]
            _, (answer,) = await y.ask(plane, "a/open", y.floats([[1]]), actor=y.BOB)
            assert answer.tolist() == [[2]]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([y.numbers([[1]])], "takes FP32"),
        ([y.floats([1, 2])], "takes FP32"),
        ([y.floats([[1]], name="z")], "none of them"),
        ([y.floats([[1]]), y.floats([[1]], name="z")], "none of them"),
        ([], "missing"),
        ([Tensor("x", "FP32", (1, 4), b"\0" * 12)], "takes FP32"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(yard, tensors, said):
    async def go():
        yard.route("a/double", yard.version("a/double", 1, y.linear()))
        async with yard.plane() as plane:
            await y.ask(plane, "a/double", y.floats([[1]]))
            with pytest.raises(Invalid, match=said):
                await y.ask(plane, "a/double", *tensors)

    asyncio.run(go())


def test_many_callers_at_once_each_get_their_own_answer(yard):
    """960 requests of mixed sizes over two models: no answer is another one's."""

    async def go():
        yard.route("a/two", yard.version("a/two", 1, y.linear(2.0)))
        yard.route("a/three", yard.version("a/three", 1, y.linear(3.0)))
        async with yard.plane() as plane:

            async def one(at):
                drawn = np.random.default_rng(at)
                rows, width = int(drawn.integers(1, 9)), int(drawn.integers(1, 40))
                x = drawn.standard_normal((rows, width)).astype(np.float32)
                name, factor = (("a/two", 2), ("a/three", 3))[at % 2]
                _, (answer,) = await y.ask(plane, name, y.floats(x))
                assert np.array_equal(answer, x * np.float32(factor)), at

            await asyncio.gather(*map(one, range(320)))
            sizes = set()
            for start in range(320, 960, 160):
                await asyncio.gather(*map(one, range(start, start + 160)))
            for counted in plane.counters():
                sizes |= set(counted.batches)
                assert counted.success.count == 480
            assert max(sizes) > 8, "requests were never joined"

    asyncio.run(go())


def test_requests_that_wait_are_computed_together(yard):
    async def go():
        yard.route("a/mlp", yard.version("a/mlp", 1, y.mlp(), max_batch_size=16))
        async with yard.plane() as plane:
            x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
            await y.ask(plane, "a/mlp", y.floats(x[:1]))
            answers = await asyncio.gather(
                *(y.ask(plane, "a/mlp", y.floats(x[at : at + 1])) for at in range(40))
            )
            alone = [(await y.ask(plane, "a/mlp", y.floats(x[at : at + 1])))[1] for at in range(40)]
            sizes = {one.parameters["modelyard_batch_size"] for one, _ in answers}
            assert sizes <= {16, 8}
            for (_, (beside,)), (single,) in zip(answers, alone, strict=True):
                assert np.allclose(beside, single, rtol=1e-4, atol=1e-4)

    asyncio.run(go())


def test_rows_that_change_each_other_are_never_joined(yard):
    async def go():
        yard.route("a/sum", yard.version("a/sum", 1, y.normalising()))
        async with yard.plane() as plane:
            await y.ask(plane, "a/sum", y.floats([[1, 1]]))
            answers = await asyncio.gather(
                *(y.ask(plane, "a/sum", y.floats([[at, at]])) for at in range(1, 30))
            )
            assert all(answer.tolist() == [[0.5, 0.5]] for _, (answer,) in answers)

    asyncio.run(go())


def test_texts_go_through_as_they_are(yard):
    async def go():
        yard.route("a/echo", yard.version("a/echo", 1, y.shouting()))
        async with yard.plane() as plane:

            async def one(words):
                data = pack_strings([word.encode() for word in words])
                response, _ = await y_ask_strings(plane, data, len(words))
                (found,) = response.outputs
                assert [word.decode() for word in unpack_strings(found.data, len(words))] == words

            await asyncio.gather(*(one([f"Grüße {at}", "你好" * at]) for at in range(20)))

    asyncio.run(go())


def test_texts_that_a_process_changes_after_it_answered_do_no_harm(yard):
    """It shares the memory, and may write into it whenever it likes."""

    async def go():
        yard.route("a/echo", yard.version("a/echo", 1, y.shouting(), deadline_ms=300_000))
        async with yard.plane() as plane:
            await y_ask_strings(plane, pack_strings([b"a"]), 1)
            process = _served(plane, "a/echo").process
            answered = process._on_reply

            def changed(reply):
                process.taken.memory[:64] = b"\xff" * 64
                answered(reply)

            process._on_reply = changed
            async with asyncio.timeout(60):
                found = await asyncio.gather(
                    *(y_ask_strings(plane, pack_strings([b"a", b"b"]), 2) for _ in range(4))
                )
            assert max(one.parameters["modelyard_batch_size"] for one, _ in found) > 2
            for response, _ in found:
                assert unpack_strings(response.outputs[0].data, 2) == [b"a", b"b"]

    asyncio.run(go())


def test_an_answer_that_cannot_be_read_fails_its_callers_and_ends_the_process(yard):
    async def go():
        yard.route("a/double", yard.version("a/double", 1, y.linear(), deadline_ms=300_000))
        async with yard.plane() as plane:
            await y.ask(plane, "a/double", y.floats([[1]]))
            served = _served(plane, "a/double")
            process = served.process
            answered = process._on_reply

            def changed(reply):
                reply.outputs[0] = None
                answered(reply)

            process._on_reply = changed
            async with asyncio.timeout(60):
                found = await asyncio.gather(
                    *(y.ask(plane, "a/double", y.floats([[1]]), seconds=300) for _ in range(2)),
                    return_exceptions=True,
                )
                assert {one.reason for one in found} == {"crashed"}
                _, (answer,) = await y.ask(plane, "a/double", y.floats([[1]]), seconds=300)
            assert answer.tolist() == [[2]]
            assert served.process is not process

    asyncio.run(go())


def test_an_answer_of_too_many_texts_is_refused(yard):
    async def go():
        yard.route("a/names", yard.version("a/names", 1, y.naming()))
        async with yard.plane() as plane:
            request = y.InferRequest("a/names", [y.numbers([1, 0])], y.ALICE, time.monotonic() + 30)
            (found,) = (await plane.infer(request)).outputs
            assert unpack_strings(found.data, 2) == [b"one", b""]
            process = _served(plane, "a/names").process
            with pytest.raises(Invalid, match="elements together"):
                await y.ask(plane, "a/names", y.numbers([0] * (MAX_STRINGS + 1)))
            assert _served(plane, "a/names").process is process

    asyncio.run(go())


async def y_ask_strings(plane, data, count):
    request = y.InferRequest(
        "a/echo", [Tensor("x", "BYTES", (count,), data)], y.ALICE, time.monotonic() + 30
    )
    return await plane.infer(request), None


def test_one_bad_row_in_a_batch_fails_alone(yard):
    async def go():
        yard.route("a/table", yard.version("a/table", 1, y.gather()))
        async with yard.plane() as plane:
            await y.ask(plane, "a/table", y.numbers([1]))
            asked = [3, 4, 99, 5, 6]
            answers = await asyncio.gather(
                *(y.ask(plane, "a/table", y.numbers([at])) for at in asked),
                return_exceptions=True,
            )
            for at, found in zip(asked, answers, strict=True):
                if at == 99:
                    assert isinstance(found, Invalid)
                    assert found.reason == "run_failed"
                else:
                    assert found[1][0].tolist() == [at]

    asyncio.run(go())


def test_a_model_that_never_returns_is_killed_and_its_neighbour_goes_on(yard):
    async def go():
        yard.route("a/loop", yard.version("a/loop", 1, y.looping(), deadline_ms=400))
        yard.route("a/double", yard.version("a/double", 1, y.linear()))
        async with yard.plane() as plane:
            await y.ask(plane, "a/loop", y.floats([[1]]))
            await y.ask(plane, "a/double", y.floats([[1]]))
            process = _served(plane, "a/loop").process
            answered = 0

            async def neighbour():
                nonlocal answered
                while not process.ended:
                    _, (answer,) = await y.ask(plane, "a/double", y.floats([[answered]]))
                    assert answer.tolist() == [[2 * answered]]
                    answered += 1

            beside = asyncio.create_task(neighbour())
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await y.ask(plane, "a/loop", y.floats([[5000]]))
            took = time.monotonic() - began
            await y.until(lambda: process.ended)
            await beside
            assert 0.39 < took < 0.65, took
            assert answered > 20
            _, (again,) = await y.ask(plane, "a/loop", y.floats([[2]]), seconds=20)
            assert again.tolist() == [[2]]

    asyncio.run(go())


def test_an_impatient_caller_does_not_end_a_model_for_the_others(yard):
    async def go():
        yard.route("a/double", yard.version("a/double", 1, y.linear()))
        async with yard.plane() as plane:
            await y.ask(plane, "a/double", y.floats([[1]]))
            process = _served(plane, "a/double").process
            for _ in range(20):
                with pytest.raises(DeadlineExceeded):
                    await y.ask(plane, "a/double", y.floats([[1]]), seconds=-1)
            assert (await y.ask(plane, "a/double", y.floats([[1]])))[1][0].tolist() == [[2]]
            assert _served(plane, "a/double").process is process

    asyncio.run(go())


def test_a_process_that_is_killed_under_load_comes_back(yard):
    async def go():
        yard.route("a/mlp", yard.version("a/mlp", 1, y.mlp()))
        yard.route("a/double", yard.version("a/double", 1, y.linear()))
        async with yard.plane() as plane:
            one = y.floats(np.ones((1, 16)))
            (expected,) = (await y.ask(plane, "a/mlp", one))[1]
            await y.ask(plane, "a/double", y.floats([[1]]))
            stop = asyncio.Event()
            refused = []

            async def caller(name, tensor, right):
                while not stop.is_set():
                    try:
                        _, (answer,) = await y.ask(plane, name, tensor)
                    except RegistryError as error:
                        refused.append((name, error))
                    else:
                        assert np.allclose(answer, right)

            callers = [asyncio.create_task(caller("a/mlp", one, expected)) for _ in range(8)]
            callers.append(asyncio.create_task(caller("a/double", y.floats([[1]]), [[2]])))
            counted = next(one for one in plane.counters() if one.model == "a/mlp")
            for _ in range(2):
                before = _served(plane, "a/mlp").process
                os.kill(before.pid, signal.SIGKILL)
                await y.until(lambda gone=before: gone.ended)
                count = counted.success.count
                await y.until(lambda past=count: counted.success.count > past + 50)
            stop.set()
            await asyncio.gather(*callers)
            assert not refused, "what ran as the process died is tried once more"

    asyncio.run(go())


def test_an_alias_moves_under_load_without_one_failed_request(yard):
    async def go():
        old, new = (yard.version("a/m", at, y.linear(float(at))) for at in (1, 2))
        yard.route("a/m", old)
        async with yard.plane() as plane:
            await y.ask(plane, "a/m", y.floats([[1]]))
            stop = asyncio.Event()
            seen = []

            async def caller():
                while not stop.is_set():
                    response, (answer,) = await y.ask(plane, "a/m", y.floats([[1]]))
                    assert answer.tolist() == [[float(response.version)]]
                    seen.append(response.version)

            callers = [asyncio.create_task(caller()) for _ in range(16)]
            await y.until(lambda: len(seen) > 100)
            for there, back in ((new, "2"), (old, "1"), (new, "2")):
                yard.route("a/m", there)
                plane.apply([*yard.routes.values()])
                await y.until(lambda to=back: seen[-1] == to)
            stop.set()
            await asyncio.gather(*callers)
            assert set(seen) == {"1", "2"}
            assert plane.counters()[0].fail.count == 0

    asyncio.run(go())


BROKEN = b"\x08\x07nothing of a model"


def test_a_deployment_that_cannot_be_loaded_holds_up_no_other(yard):
    async def go():
        live = yard.version("a/m", 1, y.linear(1.0))
        moved = replace(yard.version("a/m", 2, y.linear(2.0)), id=live.id, weight=99)
        lost = replace(yard.version("a/m", 3, BROKEN), id=live.id, weight=90)
        broken = yard.version("a/m", 9, BROKEN, role="canary", weight=1)
        canary = yard.version("a/m", 4, y.linear(4.0), role="canary", weight=10)
        yard.route("a/m", live)
        async with yard.plane() as plane:
            seen = []

            async def ask():
                response, (answer,) = await y.ask(plane, "a/m", y.floats([[1]]))
                assert answer.tolist() == [[float(response.version)]]
                seen.append(response.version)

            async def answers(version):
                """Ask until a version answers, and then for long enough to meet all that do."""
                plane.apply([*yard.routes.values()])
                async with asyncio.timeout(30):
                    while seen[-1] != version:
                        await ask()
                del seen[:]
                for _ in range(100):
                    await ask()
                return set(seen)

            await ask()
            yard.route("a/m", replace(live, weight=99), broken)
            assert await answers("1") == {"1"}
            yard.route("a/m", moved, broken)
            assert await answers("2") == {"2"}
            # Nor does what is new take the part of what was lost: that stays what it was.
            yard.route("a/m", lost, canary)
            assert await answers("4") == {"2", "4"}
            assert seen.count("2") > seen.count("4")
            yard.route("a/m", replace(lost, weight=100))
            async with asyncio.timeout(30):
                # Both answer until the route has changed.
                while await answers("2") != {"2"}:
                    pass

    asyncio.run(go())


def test_an_endpoint_of_the_same_name_answers_with_nothing_of_the_one_before(yard):
    async def go():
        yard.route("a/m", yard.version("b/private", 1, y.linear(7.0)))
        other = yard.version("a/public", 1, BROKEN)
        async with yard.plane() as plane:
            await y.ask(plane, "a/m", y.floats([[1]]))
            before = yard.routes["a/m"]
            for change in ({"endpoint_id": 8}, {"repository_id": 8}):
                plane.apply([before])
                await y.ask(plane, "a/m", y.floats([[1]]))
                after = replace(before, visibility="public", deployments=(other,), **change)
                plane.apply([after])
                with pytest.raises(Unavailable):
                    await y.ask(plane, "a/m", y.floats([[1]]), actor=y.BOB)

    asyncio.run(go())


def test_a_version_that_was_withdrawn_does_not_answer_until_another_can(yard):
    async def go():
        bad = yard.version("a/m", 1, y.linear(1.0), weight=50)
        broken = yard.version("a/m", 2, BROKEN, weight=50)
        moved = replace(broken, id=bad.id)
        yard.route("a/m", bad, broken)
        before = yard.routes["a/m"]
        withdrawn = {bad.version_id}
        async with yard.plane() as plane:
            for after in (replace(before, deployments=(one,)) for one in (broken, moved)):
                # What is left out of the routes for another reason answers until then.
                for told in ([(after, ()), (after, withdrawn)], [(after, withdrawn)]):
                    plane.apply([before])
                    await y.until(lambda: any(one.is_ready for one in plane.fleet.all))
                    for route, which in told:
                        plane.apply([route], which)
                        if not which:
                            response, _ = await y.ask(plane, "a/m", y.floats([[1]]))
                            assert response.version == "1"
                    with pytest.raises(Unavailable):
                        await y.ask(plane, "a/m", y.floats([[1]]))

    asyncio.run(go())


def test_a_sibling_that_was_withdrawn_does_not_answer_meanwhile(yard):
    async def go():
        variant = yard.version("a/m", 3, y.linear(3.0), weight=0)
        live = yard.version("a/m", 1, y.linear(1.0), weight=50)
        plain = yard.version("a/m", 2, y.linear(2.0), weight=50, idle_seconds=600)
        yard.route("a/m", live, replace(plain, sibling=replace(variant, id=0)))
        broken = yard.version("a/m", 4, BROKEN, weight=50)
        async with yard.plane() as plane:
            plane.fleet.shelf.record_seconds(plain, 61.5)
            await y.until(lambda: any(one.is_ready for one in plane.fleet.all))
            route = yard.routes["a/m"]
            plane.apply([replace(route, deployments=(live, broken))], {variant.version_id})
            (entry,) = plane._entries.values()
            assert all(one.sibling is None for one in entry.active)
            assert {one.served.version for one in entry.active} == {"1", "2"}

    asyncio.run(go())


def test_what_could_not_be_loaded_answers_once_it_can(yard, monkeypatch):
    monkeypatch.setattr("workers.serving.dataplane._RETRY_SECONDS", 0.01)

    async def go():
        live = yard.version("a/m", 1, y.linear(1.0), weight=50)
        canary = yard.version("a/m", 2, y.linear(2.0), role="canary", weight=50)
        (file,) = canary.files
        yard.route("a/m", replace(live, weight=100))
        async with yard.plane() as plane:
            await y.ask(plane, "a/m", y.floats([[1]]))
            yard.storage.delete(file.sha256)
            yard.route("a/m", live, canary)
            plane.apply([*yard.routes.values()])
            await y.until(lambda: any(one.state is State.FAILED for one in plane.fleet.all))
            yard.storage.put([y.linear(2.0)])
            seen = set()
            async with asyncio.timeout(30):
                while seen != {"1", "2"}:
                    seen.add((await y.ask(plane, "a/m", y.floats([[1]])))[0].version)

    asyncio.run(go())


def test_too_many_waiting_requests_are_told_when_to_come_again(yard):
    async def go():
        yard.route("a/double", yard.version("a/double", 1, y.linear(), queue_size=4))
        async with yard.plane() as plane:
            await y.ask(plane, "a/double", y.floats([[1]]))
            answers = await asyncio.gather(
                *(y.ask(plane, "a/double", y.floats([[at]])) for at in range(12)),
                return_exceptions=True,
            )
            refused = [one for one in answers if isinstance(one, RateLimited)]
            assert len(refused) == 8
            assert refused[0].retry_after >= 1

    asyncio.run(go())


def test_a_full_queue_has_room_for_who_has_little_in_it(yard):
    async def go():
        yard.route(
            "a/m",
            yard.version("a/m", 1, y.linear(), queue_size=8, max_batch_size=1),
            visibility="public",
        )
        async with yard.plane() as plane:
            await y.ask(plane, "a/m", y.floats([[1]]))
            greedy = [asyncio.create_task(y.ask(plane, "a/m", y.floats([[at]]))) for at in range(8)]
            await asyncio.sleep(0)
            for _ in range(2):
                _, (answer,) = await y.ask(plane, "a/m", y.floats([[3]]), actor=y.BOB)
                assert answer.tolist() == [[6]]
            answers = await asyncio.gather(*greedy, return_exceptions=True)
            assert [type(one) for one in answers[:6]] == [tuple] * 6
            assert isinstance(answers[7], RateLimited)

    asyncio.run(go())


def test_a_caller_that_leaves_is_not_computed_for(yard):
    async def go():
        yard.route("a/double", yard.version("a/double", 1, y.linear()))
        async with yard.plane() as plane:
            await y.ask(plane, "a/double", y.floats([[1]]))
            before = plane.counters()[0].inferences
            tasks = [
                asyncio.create_task(y.ask(plane, "a/double", y.floats([[at]]))) for at in range(9)
            ]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await y.ask(plane, "a/double", y.floats([[1]]))
            assert plane.counters()[0].inferences == before + 1

    asyncio.run(go())


def test_a_deadline_is_shorter_by_what_a_request_waited_to_be_read(yard):
    async def go():
        yard.route("a/m", yard.version("a/m", 1, y.linear(), deadline_ms=300_000))
        async with yard.plane() as plane:
            assert plane.patience(y.ALICE, "a/m") == 300
            with pytest.raises(NotFound):
                plane.patience(y.BOB, "a/m")
            request = y.InferRequest("a/m", [y.floats([[1]])], y.ALICE, math.inf)
            request.waited_seconds = 301.0
            # While it is loaded, nobody's time runs out.
            await plane.infer(request)
            with pytest.raises(DeadlineExceeded):
                await plane.infer(request)
            request.waited_seconds = 0.1
            await plane.infer(request)

    asyncio.run(go())


def test_one_caller_with_many_requests_does_not_hold_up_another(yard):
    async def go():
        yard.route("a/m", yard.version("a/m", 1, y.linear(), max_batch_size=1), visibility="public")
        async with yard.plane() as plane:
            await y.ask(plane, "a/m", y.floats([[1]]))
            done = []

            async def one(actor, name):
                await y.ask(plane, "a/m", y.floats([[1]]), actor=actor)
                done.append(name)

            greedy = [asyncio.create_task(one(y.ALICE, "alice")) for _ in range(100)]
            await asyncio.sleep(0)
            await asyncio.gather(*(one(y.BOB, "bob") for _ in range(3)))
            assert done.count("alice") < 10
            await asyncio.gather(*greedy)

    asyncio.run(go())


def test_callers_without_a_token_have_turns_by_their_address(yard):
    """One address floods a model; another one is answered among its requests, not after them."""
    version = yard.version("a/count", 1, y.counting(), max_batch_size=1)
    yard.route("a/count", version, visibility="public")

    async def story():
        async with yard.plane() as plane:
            turns = {}
            for number in range(200):
                actor = await plane.identify(None, f"198.51.100.{number}")
                turns.setdefault(turn_of(actor), actor)
            # However many addresses somebody has, they have no more turns than these.
            assert 32 < len(turns) <= UNKNOWN_TURNS
            busy, other, *_ = turns.values()
            near = [await plane.identify(None, f"2001:db8::{one}") for one in (1, 2)]
            assert turn_of(near[0]) == turn_of(near[1])
            await y.ask(plane, "a/count", y.numbers([1]), actor=busy)
            done = []

            async def call(actor):
                await y.ask(plane, "a/count", y.numbers([2000]), actor=actor)
                done.append(actor)

            flood = [asyncio.create_task(call(busy)) for _ in range(60)]
            await asyncio.sleep(0)
            await call(other)
            assert done.index(other) < 10
            await asyncio.gather(*flood)

    asyncio.run(story())


def test_two_deployments_of_one_version_are_counted_apart(yard):
    """They share a process: a canary's evidence must not be that of the live one."""
    live = yard.version("a/double", 1, y.linear(2.0), weight=100)
    canary = replace(live, id=live.id + 1000, role="canary", weight=0)
    yard.route("a/double", live)
    yard.route("a/other", canary, replace(canary, id=live.id + 2000, weight=100))

    async def story():
        async with yard.plane() as plane:
            for _ in range(3):
                await y.ask(plane, "a/double", y.floats([[1.0]]))
            await y.ask(plane, "a/other", y.floats([[1.0]]))
            with pytest.raises(RegistryError):
                await y.ask(plane, "a/other", y.numbers([1]))
            said = {one["deployment_id"]: one for one in plane.status()["models"]}
            assert said[live.id]["success_count"] == 3
            assert said[live.id + 2000]["success_count"] == 1
            assert said[live.id + 1000]["success_count"] == 0
            # What the protocol tells is of a version at an endpoint, under the endpoint's name.
            told = {one["name"]: one for one in await plane.statistics(y.ALICE, None, "")}
            counts = {
                name: one["inference_stats"]["success"]["count"] for name, one in told.items()
            }
            assert counts == {"a/double": 3, "a/other": 1}
            plane.apply([*yard.routes.values()])
            assert {one["success_count"] for one in plane.status()["models"]} == {3, 1, 0}
            listed = await plane.index(y.ALICE, ready_only=True)
            assert sorted(one["name"] for one in listed) == ["a/double", "a/other"]
            alone = await plane.statistics(y.ALICE, "a/other", "1")
            assert [one["inference_stats"]["success"]["count"] for one in alone] == [1]

    asyncio.run(story())


def _trial(plane, deployed):
    """Give how many requests count for a deployment, and how many against it."""
    said = {one["deployment_id"]: one["trial"] for one in plane.status()["models"]}
    return said[deployed.id]["answered"], said[deployed.id]["failed"]


def test_a_canary_is_tried_by_the_traffic_alone(yard):
    """Whoever names a version, sends bad input or has no patience decides nothing."""

    async def go():
        canary = yard.version("a/table", 1, y.gather(), role="canary", queue_size=4)
        yard.route("a/table", canary)
        async with yard.plane() as plane:

            async def refused(kind, tensor, **how):
                with pytest.raises(kind):
                    await y.ask(plane, "a/table", tensor, **how)

            await y.ask(plane, "a/table", y.numbers([1]))
            assert _trial(plane, canary) == (1, 0)
            before = plane.status()["models"][0]["trial"]
            assert before["squares"] == pytest.approx((before["ns"] / 1000) ** 2, abs=1)
            await y.ask(plane, "a/table", y.numbers([1]), version="1")
            await refused(Invalid, y.numbers([99]), version="1")
            await refused(Invalid, y.floats([1.0]))
            await refused(DeadlineExceeded, y.numbers([1]), seconds=-1)
            until = time.monotonic() + 30
            with pytest.raises(Invalid):
                await plane.predict(y.ALICE, "a/table", "", [{"z": 1}], until)
            assert _trial(plane, canary) == (1, 0)
            await plane.predict(y.ALICE, "a/table", "", [{"x": 1}], until)
            assert _trial(plane, canary) == (2, 0)
            # What was taken and fails all the same is its own fault.
            await refused(Invalid, y.numbers([99]))
            assert _trial(plane, canary) == (2, 1)
            asked = [y.ask(plane, "a/table", y.numbers([1])) for _ in range(12)]
            said = await asyncio.gather(*asked, return_exceptions=True)
            assert sum(isinstance(one, RateLimited) for one in said) == 8
            assert _trial(plane, canary) == (6, 9)
            # People see all of it.
            (told,) = plane.status()["models"]
            assert told["success_count"] == 7

    asyncio.run(go())


@pytest.mark.parametrize(
    ("model", "error"),
    [(y.looping(), DeadlineExceeded), (BROKEN, Unavailable)],
    ids=["hangs", "broken"],
)
def test_what_hangs_or_cannot_be_loaded_counts_against_a_canary(yard, model, error):
    async def go():
        canary = yard.version("a/loop", 1, model, role="canary", deadline_ms=200)
        yard.route("a/loop", canary)
        async with yard.plane() as plane:
            if model != BROKEN:
                await y.ask(plane, "a/loop", y.floats([[1]]))
            for version, count in (("1", 0), ("", 1)):
                with pytest.raises(error):
                    await y.ask(plane, "a/loop", y.floats([[5000]]), version=version)
                assert _trial(plane, canary)[1] == count

    asyncio.run(go())


def test_a_model_that_nobody_calls_falls_asleep_and_is_woken(yard):
    async def go():
        yard.route("a/m", yard.version("a/m", 1, y.linear(), idle_seconds=1))
        async with yard.plane() as plane:
            assert await plane.model_ready(y.ALICE, "a/m", "")
            await y.ask(plane, "a/m", y.floats([[1]]))
            (served,) = plane.fleet.all
            await y.until(lambda: served.state is State.ASLEEP)
            assert plane.fleet.held_bytes == 0
            assert (await y.ask(plane, "a/m", y.floats([[1]])))[1][0].tolist() == [[2]]

    asyncio.run(go())


def test_what_is_too_large_is_refused_while_a_model_sleeps_and_nobody_waits_for_it(yard):
    async def go():
        deployed = yard.version("a/double", 1, y.linear(), deadline_ms=300_000)
        yard.route("a/double", deployed)
        async with yard.plane(arena_bytes=1 << 20) as plane:
            await y.ask(plane, "a/double", y.floats([[1]]))
            plane.fleet.put_to_sleep(_served(plane, "a/double"))
            large = asyncio.create_task(y.ask(plane, "a/double", y.floats([[1] * (1 << 19)])))
            async with asyncio.timeout(60):
                _, (answer,) = await y.ask(plane, "a/double", y.floats([[2]]), seconds=300)
                assert answer.tolist() == [[4]]
                with pytest.raises(TooLarge):
                    await large

    asyncio.run(go())


def test_requests_are_not_joined_beyond_what_a_process_takes(yard):
    async def go():
        yard.route("a/double", yard.version("a/double", 1, y.linear(), deadline_ms=300_000))
        async with yard.plane(arena_bytes=1 << 16) as plane:
            await y.ask(plane, "a/double", y.floats([[1]]))
            large = y.floats([[1] * (1 << 13)])
            async with asyncio.timeout(60):
                found = await asyncio.gather(
                    *(y.ask(plane, "a/double", large, seconds=300) for _ in range(4))
                )
            assert all(answer.sum() == 1 << 14 for _, (answer,) in found)

    asyncio.run(go())


def test_who_calls_a_model_that_takes_long_to_load_is_told_how_long(yard):
    async def go():
        deployed = yard.version("a/m", 1, y.linear(), idle_seconds=1)
        yard.route("a/m", deployed)
        async with yard.plane() as plane:
            plane.fleet.shelf.record_seconds(deployed, 61.5)
            with pytest.raises(NotLoaded) as refused:
                await y.ask(plane, "a/m", y.floats([[1]]))
            assert 60 < refused.value.retry_after <= 62
            await plane.load(y.ALICE, "a/m")
            assert (await y.ask(plane, "a/m", y.floats([[1]])))[1][0].tolist() == [[2]]
            assert plane.fleet.shelf.expected_seconds(deployed) < 30

    asyncio.run(go())


def test_a_smaller_variant_answers_while_the_version_is_loaded(yard):
    async def go():
        variant = yard.version("a/m", 2, y.linear(3.0), weight=0)
        plain = yard.version("a/m", 1, y.linear(), idle_seconds=600)
        deployed = replace(plain, sibling=variant)
        yard.route("a/m", deployed)
        async with yard.plane() as plane:
            plane.fleet.shelf.record_seconds(deployed, 61.5)
            response, (answer,) = await y.ask(plane, "a/m", y.floats([[1]]))
            assert (response.version, answer.tolist()) == ("2", [[3]])
            assert response.parameters["modelyard_version"] == "2"
            assert response.parameters["modelyard_weights_digest"] == variant.weights_sha256
            await plane.load(y.ALICE, "a/m")
            response, (answer,) = await y.ask(plane, "a/m", y.floats([[1]]))
            assert (response.version, answer.tolist()) == ("1", [[2]])

    asyncio.run(go())


def test_whoever_asks_for_a_version_gets_no_sibling(yard):
    async def go():
        variant = yard.version("a/m", 2, y.linear(3.0), weight=0)
        plain = yard.version("a/m", 1, y.linear(), idle_seconds=600)
        for sibling, version in ((variant, "1"), (None, "")):
            yard.route("a/m", replace(plain, sibling=sibling))
            async with yard.plane() as plane:
                plane.fleet.shelf.record_seconds(plain, 61.5)
                with pytest.raises(NotLoaded):
                    await y.ask(plane, "a/m", y.floats([[1]]), version=version)

    asyncio.run(go())


def test_a_variant_that_is_deployed_itself_is_not_loaded_twice(yard):
    async def go():
        variant = yard.version("a/m", 2, y.linear(3.0), weight=0, idle_seconds=700)
        plain = yard.version("a/m", 1, y.linear(), idle_seconds=600)
        yard.route("a/m", replace(plain, sibling=replace(variant, id=0)), variant)
        async with yard.plane() as plane:
            plane.fleet.shelf.record_seconds(plain, 61.5)
            response, _ = await y.ask(plane, "a/m", y.floats([[1]]))
            assert response.version == "2"
            assert len(plane.fleet.all) == 2

    asyncio.run(go())


def test_the_model_called_longest_ago_makes_room(yard):
    async def go():
        for name in ("a/one", "a/two"):
            yard.route(name, yard.version(name, 1, y.linear()))
        async with yard.plane(memory_bytes=80 << 20) as plane:
            await y.ask(plane, "a/one", y.floats([[1]]))
            await y.ask(plane, "a/two", y.floats([[1]]))
            loaded = {one.name for one in plane.fleet.all if one.is_ready}
            assert loaded == {"a/two"}
            assert (await y.ask(plane, "a/one", y.floats([[1]])))[1][0].tolist() == [[2]]

    asyncio.run(go())


async def _in_the_end(plane, name):
    while True:
        with suppress(NotLoaded):
            return (await y.ask(plane, name, y.floats([[1]])))[1][0].tolist()


def test_a_model_waits_for_room_while_the_others_are_busy(yard):
    async def go():
        yard.route("a/busy", yard.version("a/busy", 1, y.counting(), deadline_ms=300_000))
        yard.route("a/other", yard.version("a/other", 1, y.linear(), idle_seconds=600))
        async with yard.plane(memory_bytes=80 << 20) as plane:
            await y.ask(plane, "a/busy", y.numbers([1]))
            busy = asyncio.create_task(y.ask(plane, "a/busy", y.numbers([10**8]), seconds=300))
            await y.until(lambda: _served(plane, "a/busy").batcher.pending)
            with pytest.raises(NotLoaded) as refused:
                await y.ask(plane, "a/other", y.floats([[1]]))
            assert (refused.value.reason, refused.value.retry_after) == ("no_memory", 1)
            assert {one.name for one in plane.fleet.all if one.process} == {"a/busy"}
            busy.cancel()
            _served(plane, "a/busy").process.kill()
            async with asyncio.timeout(60):
                assert await _in_the_end(plane, "a/other") == [[2]]

    asyncio.run(go())


def test_who_waits_for_what_found_no_room_is_told_so(yard):
    async def go():
        other = yard.version("a/other", 1, y.linear(), idle_seconds=600)
        yard.route("a/busy", yard.version("a/busy", 1, y.counting(), deadline_ms=300_000))
        yard.route("a/other", other)
        async with yard.plane(memory_bytes=80 << 20) as plane:
            plane.fleet.shelf.record_seconds(other, 61.5)
            served = next(one for one in plane.fleet.all if one.name == "a/other")
            await y.ask(plane, "a/busy", y.numbers([1]))
            busy = asyncio.create_task(y.ask(plane, "a/busy", y.numbers([10**8]), seconds=300))
            await y.until(lambda: _served(plane, "a/busy").batcher.pending)
            for code in ("not_loaded", "no_memory"):
                with pytest.raises(NotLoaded) as refused:
                    await y.ask(plane, "a/other", y.floats([[1]]))
                assert refused.value.reason == code
                await y.until(lambda: served.failure is not None)
            busy.cancel()
            _served(plane, "a/busy").process.kill()
            async with asyncio.timeout(60):
                while not served.is_ready:
                    with suppress(NotLoaded):
                        await plane.fleet.load(served)
            assert served.failure is None

    asyncio.run(go())


def test_a_file_that_is_no_model_is_refused_at_once_the_next_time(yard):
    async def go():
        yard.route("a/bad", yard.version("a/bad", 1, b"\x08\x07nothing of a model"))
        async with yard.plane() as plane:
            with pytest.raises(Unavailable, match="cannot be loaded"):
                await y.ask(plane, "a/bad", y.floats([[1]]))
            began = time.monotonic()
            with pytest.raises(Unavailable, match="cannot be loaded"):
                await y.ask(plane, "a/bad", y.floats([[1]]))
            assert time.monotonic() - began < 0.05
            assert not await plane.model_ready(y.ALICE, "a/bad", "")

    asyncio.run(go())


def test_what_failed_is_said_to_have_failed_until_it_is_tried_again(yard):
    async def go():
        yard.route("a/bad", yard.version("a/bad", 1, BROKEN))
        async with yard.plane() as plane:
            (served,) = plane.fleet.all
            with pytest.raises(Unavailable):
                await plane.fleet.load(served)
            trying = asyncio.create_task(plane.fleet.load(served))
            await y.until(lambda: served.loading is not None)
            (said,) = plane.status()["models"]
            assert (said["state"], said["reason"]) == ("failed", served.failure.detail)
            with pytest.raises(Unavailable, match="cannot be loaded"):
                await y.ask(plane, "a/bad", y.floats([[1]]))
            await y.until(lambda: served.state is State.LOADING)
            with pytest.raises(Unavailable):
                await trying
            assert served.state is State.FAILED

    asyncio.run(go())


def test_traffic_goes_by_weight_and_to_who_was_named(yard):
    async def go():
        yard.route(
            "a/m",
            yard.version("a/m", 1, y.linear(1.0), weight=80),
            yard.version("a/m", 2, y.linear(2.0), weight=20, role="canary"),
            yard.version("a/m", 3, y.linear(3.0), weight=0),
            yard.version("a/m", 4, y.linear(4.0), weight=0, role="shadow"),
        )
        async with yard.plane() as plane:
            for version in "1234":
                response, (answer,) = await y.ask(plane, "a/m", y.floats([[1]]), version=version)
                assert (response.version, answer.tolist()) == (version, [[float(version)]])
            drawn = [(await y.ask(plane, "a/m", y.floats([[1]])))[0].version for _ in range(300)]
            assert set(drawn) == {"1", "2"}
            assert 25 < drawn.count("2") < 110

    asyncio.run(go())


def test_a_sticky_endpoint_sends_a_caller_to_one_deployment(yard):
    async def go():
        yard.route(
            "a/m",
            yard.version("a/m", 1, y.linear(1.0), weight=50),
            yard.version("a/m", 2, y.linear(2.0), weight=50),
            sticky=True,
        )
        async with yard.plane() as plane:
            for version in "12":
                await y.ask(plane, "a/m", y.floats([[1]]), version=version)
            drawn = {(await y.ask(plane, "a/m", y.floats([[1]])))[0].version for _ in range(40)}
            assert len(drawn) == 1

    asyncio.run(go())


def test_named_fields_go_through_labels_and_shapes(yard):
    async def go():
        config = {"labels": ["no", "maybe", "yes", "sure"]}
        files = {"model.onnx": y.mlp(), "config.json": config}
        yard.route("a/m", yard.version("a/m", 1, files))
        async with yard.plane() as plane:
            rows = [{"x": [float(at)] * 16} for at in range(3)]
            until = time.monotonic() + 30
            said = await plane.predict(y.ALICE, "a/m", "", rows, until)
            _, (logits,) = await y.ask(plane, "a/m", y.floats([row["x"] for row in rows]))
            for row, numbers in zip(said.rows, logits, strict=True):
                assert row["label"] == config["labels"][int(numbers.argmax())]
                assert abs(sum(row["scores"].values()) - 1) < 1e-5
            with pytest.raises(Invalid, match="lacks the field 'x'"):
                await plane.predict(y.ALICE, "a/m", "", [{"z": 1}], until)
            with pytest.raises(Invalid, match="shape"):
                await plane.predict(y.ALICE, "a/m", "", [{"x": [1.0, 2.0]}], until)
            process = _served(plane, "a/m").process
            for odd in ([1], 1, None, {"x": {"deep": [10**40]}}, {"x": [[], [1.0]]}):
                with pytest.raises(Invalid):
                    await plane.predict(y.ALICE, "a/m", "", [odd], until)
            assert _served(plane, "a/m").process is process

    asyncio.run(go())


def test_what_is_unloaded_while_it_is_loaded_stays_away(yard):
    async def go():
        deployed = yard.version("a/m", 1, y.linear(), deadline_ms=300_000)
        yard.route("a/m", deployed)
        async with yard.plane() as plane:
            (served,) = plane.fleet.all
            waiting = asyncio.create_task(y.ask(plane, "a/m", y.floats([[1]]), seconds=300))
            loading = asyncio.create_task(plane.load(y.ALICE, "a/m"))
            await y.until(lambda: served.batcher.pending)
            await plane.unload(y.ALICE, "a/m")
            for one in (waiting, loading):
                with pytest.raises(Unavailable) as refused:
                    await one
                assert refused.value.reason == "unloaded"
            await y.until(lambda: served.loading is None)
            (listed,) = await plane.index(y.ALICE, ready_only=False)
            assert (listed["state"], listed["reason"]) == ("UNAVAILABLE", "unloaded")
            assert plane.fleet.held_bytes == 0
            assert served.process is None
            with pytest.raises(Unavailable, match="unloaded"):
                await y.ask(plane, "a/m", y.floats([[1]]))
            # Whoever loads it again while it is on its way out has it.
            await plane.load(y.ALICE, "a/m")
            plane.fleet.put_to_sleep(served)
            again = plane.fleet.wake(served)
            await plane.unload(y.ALICE, "a/m")
            await plane.load(y.ALICE, "a/m")
            assert again.done()
            assert (await y.ask(plane, "a/m", y.floats([[1]])))[1][0].tolist() == [[2]]

    asyncio.run(go())


def test_what_is_unloaded_while_a_version_changes_answers_no_more(yard):
    async def go():
        old = yard.version("a/m", 1, y.linear(1.0))
        new = replace(yard.version("a/m", 2, y.linear(2.0)), id=old.id)
        yard.route("a/m", old)
        async with yard.plane() as plane:
            await y.ask(plane, "a/m", y.floats([[1]]))
            yard.route("a/m", new)
            plane.apply([*yard.routes.values()])
            await plane.unload(y.ALICE, "a/m")
            with pytest.raises(Unavailable, match="unloaded"):
                await y.ask(plane, "a/m", y.floats([[1]]))
            await plane.load(y.ALICE, "a/m")
            assert (await y.ask(plane, "a/m", y.floats([[1]])))[0].version == "2"

    asyncio.run(go())


def test_loading_and_unloading_is_for_those_who_deploy(yard):
    async def go():
        yard.route("a/m", yard.version("a/m", 1, y.linear()), visibility="public")
        async with yard.plane() as plane:
            await plane.load(y.ALICE, "a/m")
            assert await plane.model_ready(y.BOB, "a/m", "")
            with pytest.raises(RegistryError, match="maintainer"):
                await plane.unload(y.BOB, "a/m")
            await plane.unload(y.ALICE, "a/m")
            assert not await plane.model_ready(y.BOB, "a/m", "")
            with pytest.raises(Unavailable, match="unloaded"):
                await y.ask(plane, "a/m", y.floats([[1]]))
            await plane.load(y.ALICE, "a/m")
            assert (await y.ask(plane, "a/m", y.floats([[1]])))[1][0].tolist() == [[2]]
            (counted,) = await plane.statistics(y.ALICE, "a/m", "")
            assert counted["inference_stats"]["success"]["count"] == 1
            json.dumps(counted)

    asyncio.run(go())
