"""Tensors of the REST protocol, both ways, and bodies that lie."""

import json
import math
import random
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from registry.errors import Invalid, TooLarge
from workers.serving import codec
from workers.serving.codec import (
    MAX_JSON_BYTES,
    NUMPY,
    Asked,
    Unpacking,
    deflate,
    load_json,
    pack_numbers,
    read_infer,
    read_version,
    write_infer,
)
from workers.serving.messages import InferResponse, Tensor, pack_strings, unpack_strings


def arrays():
    kinds = st.sampled_from(sorted(NUMPY))
    shapes = npst.array_shapes(min_dims=1, max_dims=4, max_side=5)
    return st.tuples(kinds, shapes).flatmap(
        lambda one: st.tuples(
            st.just(one[0]),
            npst.arrays(
                NUMPY[one[0]],
                one[1],
                elements=npst.from_dtype(NUMPY[one[0]], allow_nan=False, allow_infinity=False),
            ),
        )
    )


def body_of(*inputs, tail=b"", **more):
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + tail, len(head)


def read(*inputs, **more):
    return read_infer(memoryview(body_of(*inputs, **more)[0]), None)


def one_input(**changes):
    return {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2.5], **changes}


def answer(*outputs):
    return InferResponse("lab/net", "3", "", list(outputs), {"modelyard_version": "3"})


@given(arrays(), st.booleans())
def test_what_json_says_comes_back_the_same_flat_and_nested(one, nested):
    datatype, array = one
    data = array.tolist() if nested else array.ravel().tolist()
    asked = read(one_input(datatype=datatype, shape=list(array.shape), data=data))
    (tensor,) = asked.inputs
    assert np.array_equal(np.frombuffer(tensor.data, NUMPY[datatype]).reshape(tensor.shape), array)
    parts, length = write_infer(answer(tensor), Asked([]))
    assert length is None
    (output,) = json.loads(b"".join(parts))["outputs"]
    assert np.array_equal(np.array(output["data"], NUMPY[datatype]), array.ravel())
    assert output["shape"] == list(array.shape)


@given(
    st.sampled_from([*NUMPY]),
    st.lists(
        st.integers(-(2**70), 2**70)
        | st.floats()
        | st.floats(-70_000, 70_000)
        | st.sampled_from([2**63, 2**64, -(2**63), 65_519.99, 65_520, 3.4028235677973366e38]),
        max_size=6,
    ),
)
def test_few_numbers_are_written_as_many_are(datatype, values):
    if NUMPY[datatype].kind != "f":
        values = [value for value in values if math.isfinite(value)]
        values = [value if datatype != "BOOL" else bool(value) for value in map(int, values)]

    def written(few):
        with mock.patch.object(codec, "_FEW", few):
            try:
                return pack_numbers("x", datatype, values)
            except Invalid as error:
                return error.detail

    assert written(1024) == written(-1)


@given(st.lists(arrays(), min_size=1, max_size=4))
def test_raw_tensors_come_back_the_same(several):
    tensors = [
        Tensor(f"x{at}", datatype, array.shape, array.tobytes())
        for at, (datatype, array) in enumerate(several)
    ]
    parts, length = write_infer(answer(*tensors), Asked([], all_binary=True))
    assert length is not None
    whole = b"".join(bytes(part) for part in parts)
    message = json.loads(whole[:length])
    message["inputs"] = message.pop("outputs")
    head = json.dumps(message).encode()
    asked = read_infer(memoryview(head + whole[length:]), len(head))
    assert [(one.name, bytes(one.data), one.shape) for one in asked.inputs] == [
        (one.name, one.data, one.shape) for one in tensors
    ]


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=8))
def test_texts_come_back_the_same(texts):
    asked = read(one_input(datatype="BYTES", shape=[len(texts)], data=texts))
    data = asked.inputs[0].data
    assert [one.decode() for one in unpack_strings(data, len(texts))] == texts
    parts, _ = write_infer(answer(asked.inputs[0]), Asked([]))
    assert json.loads(b"".join(parts))["outputs"][0]["data"] == texts


def test_each_output_has_the_form_that_was_asked_for():
    asked = read(
        one_input(),
        outputs=[
            {"name": "a", "parameters": {"binary_data": True}},
            {"name": "b", "parameters": {"binary_data": False}},
            {"name": "c"},
        ],
        parameters={"binary_data_output": True, "mine": 3},
        id="7",
    )
    assert (asked.outputs, asked.id, asked.parameters) == (["a", "b", "c"], "7", {"mine": 3})
    value = np.array([1.5], "<f4").tobytes()
    parts, length = write_infer(
        answer(*(Tensor(name, "FP32", (1,), value) for name in "abc")), asked
    )
    assert length == len(parts[0])
    assert ["data" in one for one in json.loads(parts[0])["outputs"]] == [False, True, False]
    assert parts[1:] == [value, value]


def test_what_is_not_finite_leaves_json_as_null():
    values = np.array([1, math.nan, math.inf], "<f4").tobytes()
    parts, _ = write_infer(answer(Tensor("y", "FP32", (3,), values)), Asked([]))
    assert json.loads(parts[0])["outputs"][0]["data"] == [1, None, None]


def test_an_output_without_a_form_in_json_says_so():
    for tensor in (
        Tensor("y", "BF16", (1,), b"\0\0"),
        Tensor("y", "BYTES", (1,), pack_strings([b"\xff"])),
    ):
        with pytest.raises(Invalid, match="ask for binary data"):
            write_infer(answer(tensor), Asked([]))
        parts, _ = write_infer(answer(tensor), Asked([], all_binary=True))
        assert parts[1] == tensor.data


BAD = {
    "no object": [],
    "no inputs": {},
    "inputs that are no list": {"inputs": {"name": "x"}},
    "no input": {"inputs": []},
    "an input that is no object": {"inputs": [3]},
    "no name": {"inputs": [{"datatype": "FP32", "shape": [1], "data": [1]}]},
    "an empty name": {"inputs": [one_input(name="")]},
    "a long name": {"inputs": [one_input(name="x" * 2000)]},
    "a name of control characters": {"inputs": [one_input(name="a\nb")]},
    "one name twice": {"inputs": [one_input(), one_input()]},
    "an unknown datatype": {"inputs": [one_input(datatype="FP31")]},
    "a datatype that is no text": {"inputs": [one_input(datatype=3)]},
    "no shape": {"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]},
    "a shape of floats": {"inputs": [one_input(shape=[2.0])]},
    "a shape of truths": {"inputs": [one_input(shape=[True, 2])]},
    "a negative shape": {"inputs": [one_input(shape=[-1])]},
    "two negative axes": {"inputs": [one_input(shape=[-1, -2])]},
    "a shape of 10^9": {"inputs": [one_input(shape=[10**9])]},
    "a shape of 10^27": {"inputs": [one_input(shape=[10**9] * 3)]},
    "a rank of 1000": {"inputs": [one_input(shape=[1] * 1000)]},
    "too few values": {"inputs": [one_input(shape=[3])]},
    "too many values": {"inputs": [one_input(shape=[1])]},
    "text for numbers": {"inputs": [one_input(data=["1", "2"])]},
    "text among numbers": {"inputs": [one_input(data=[1, "2"])]},
    "null among numbers": {"inputs": [one_input(data=[1, None])]},
    "truth among numbers": {"inputs": [one_input(data=[1, True])]},
    "an object among numbers": {"inputs": [one_input(data=[1, {}])]},
    "data that is no list": {"inputs": [one_input(data="abc")]},
    "uneven nesting": {"inputs": [one_input(data=[[1], [2, 3]])]},
    "nesting beside values": {"inputs": [one_input(data=[[1], 2])]},
    "nesting behind values": {"inputs": [one_input(data=[1, [2]])]},
    "nesting unlike the shape": {"inputs": [one_input(data=[[1, 2]])]},
    "a fraction as INT32": {"inputs": [one_input(datatype="INT32", data=[1, 2.5])]},
    "300 as INT8": {"inputs": [one_input(datatype="INT8", data=[1, 300])]},
    "-1 as UINT8": {"inputs": [one_input(datatype="UINT8", data=[1, -1])]},
    "2^64 as UINT64": {"inputs": [one_input(datatype="UINT64", data=[1, 2**64])]},
    "1e300 as FP32": {"inputs": [one_input(data=[1, 1e300])]},
    "1e5 as FP16": {"inputs": [one_input(datatype="FP16", data=[1, 1e5])]},
    "numbers as BOOL": {"inputs": [one_input(datatype="BOOL", data=[0, 1])]},
    "numbers as BYTES": {"inputs": [one_input(datatype="BYTES", data=[0, 1])]},
    "BF16 in JSON": {"inputs": [one_input(datatype="BF16")]},
    "raw data that is not there": {"inputs": [one_input(parameters={"binary_data_size": 8})]},
    "no data": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}]},
    "nested parameters": {"inputs": [one_input()], "parameters": {"a": {"b": 1}}},
    "parameters of null": {"inputs": [one_input()], "parameters": {"a": None}},
    "a thousand parameters": {
        "inputs": [one_input()],
        "parameters": {str(at): at for at in range(1000)},
    },
    "an id that is no text": {"inputs": [one_input()], "id": 3},
    "a timeout that is no number": {"inputs": [one_input()], "parameters": {"timeout": -1}},
    "shared memory": {"inputs": [one_input(parameters={"shared_memory_region": "r"})]},
    "classes": {
        "inputs": [one_input()],
        "outputs": [{"name": "y", "parameters": {"classification": 3}}],
    },
    "an output twice": {"inputs": [one_input()], "outputs": [{"name": "y"}, {"name": "y"}]},
    "an output that is no object": {"inputs": [one_input()], "outputs": ["y"]},
    "100,000 inputs": {"inputs": [one_input(name=f"x{at}") for at in range(100_000)]},
    "100,000 outputs": {
        "inputs": [one_input()],
        "outputs": [{"name": f"y{at}"} for at in range(100_000)],
    },
}


def refused(body, length=None):
    """Give the refusal; it took no time and no room to speak of."""
    view = memoryview(body)
    started = time.process_time()
    with pytest.raises((Invalid, TooLarge)):
        _ = read_infer(view, length).timeout_seconds
    took = time.process_time() - started
    tracemalloc.start()
    try:
        with pytest.raises((Invalid, TooLarge)) as caught:
            _ = read_infer(view, length).timeout_seconds
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.detail
    assert took < 0.05
    assert peak < 20 * len(body) + 1_000_000
    return caught.value


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_refused(name):
    refused(json.dumps(BAD[name]).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [NaN]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [Infinity]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1e999]}]}',
        b'{"inputs": [{"name": "x", "name": "y", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        b'{"id": "a", "inputs": [], "id": "b"}',
        b'{"id": ":", "inputs": [], "\\u003a": 1, "id": "b"}',
        b"[" * 1_000_000,
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b'{"inputs": [' + b"[]," * 300_000 + b"[]]}",
        b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "data": ["'
        + b"a" * 1_000_000
        + b'", 3]}]}',
    ],
    ids=range(15),
)
def test_a_body_that_is_no_good_json_is_refused(body):
    refused(body)


def test_long_texts_among_short_ones_take_no_room_of_their_product():
    texts = ["a" * 1_000_000, *["b"] * 50_000]
    tracemalloc.start()
    try:
        read(one_input(datatype="BYTES", shape=[len(texts)], data=texts))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_brackets_in_texts_are_no_lists():
    text = "{[" * 250_000
    asked = read(one_input(datatype="BYTES", shape=[1], data=[text]))
    assert unpack_strings(asked.inputs[0].data, 1) == [text.encode()]


def test_json_has_a_size():
    with pytest.raises(TooLarge):
        load_json(b" " * (MAX_JSON_BYTES + 1))


def raw_input(**changes):
    return {
        "name": "x",
        "datatype": "FP32",
        "shape": [2],
        "parameters": {"binary_data_size": 8},
        **changes,
    }


@pytest.mark.parametrize(
    ("one", "tail", "shift"),
    [
        (raw_input(), b"\0" * 7, 0),
        (raw_input(), b"\0" * 9, 0),
        (raw_input(), b"\0" * 8, -1),
        (raw_input(), b"\0" * 8, 1),
        (raw_input(), b"\0" * 8, 10**9),
        (raw_input(shape=[3]), b"\0" * 8, 0),
        (raw_input(parameters={"binary_data_size": -8}), b"\0" * 8, 0),
        (raw_input(parameters={"binary_data_size": "8"}), b"\0" * 8, 0),
        (raw_input(parameters={"binary_data_size": True}), b"\0" * 8, 0),
        (raw_input(parameters={"binary_data_size": 10**30}), b"\0" * 8, 0),
        (raw_input(data=[1, 2]), b"\0" * 8, 0),
        (raw_input(datatype="BYTES"), struct.pack("<II", 0, 1), 0),
        (raw_input(datatype="BYTES"), struct.pack("<II", 2**32 - 1, 0), 0),
        (raw_input(datatype="BYTES", shape=[10**9]), struct.pack("<II", 0, 0), 0),
        (raw_input(datatype="BYTES", shape=[1]), struct.pack("<II", 0, 0), 0),
        (raw_input(shape=[10**9, 10**9]), b"\0" * 8, 0),
    ],
)
def test_raw_bytes_that_lie_are_refused(one, tail, shift):
    body, length = body_of(one, tail=tail)
    refused(body, length + shift)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(body, length):
    for said in (None, length):
        with suppress(Invalid, TooLarge):
            read_infer(memoryview(body), said)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(":\\u{a"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(':"a'), inner),
        max_leaves=20,
    )
)
@example([-(10**18) - 1, {"": None}])
@example([-(2**63), -(2**63) - 1, 2**63, 2**64 - 1, 2**64, {"": None}])
def test_good_json_is_never_taken_for_bad(value):
    text = json.dumps(value)
    assert load_json(text.encode()) == json.loads(text, parse_int=_machine)


def _machine(digits):
    value = int(digits)
    return value if -(2**63) <= value < 2**64 else float(value)


def unpacked(body, limit):
    """Put the pieces together, as they are made."""
    unpacking = Unpacking(body, limit)
    return b"".join(iter(unpacking.next, b""))


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate"]))
def test_what_was_packed_is_unpacked(body, coding):
    assert unpacked(deflate([body], coding), len(body)) == body


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_large_bodies_come_in_pieces(coding):
    body = random.Random(1).randbytes(3_000_000) + bytes(20_000_000)
    packed = deflate([body], coding)
    unpacking = Unpacking(packed, len(body))
    pieces = list(iter(unpacking.next, b""))
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) <= 1024 * 1024
    for cut in (packed[:-1], packed[:100_000], packed + b"x"):
        with pytest.raises((TooLarge, Invalid)):
            unpacked(cut, len(body))
    with pytest.raises((TooLarge, Invalid)):
        unpacked(packed, len(body) - 1)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_bomb_is_stopped_at_the_limit(coding):
    bomb = deflate([bytes(100_000_000)], coding)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            unpacked(bomb, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_gzip_bomb_that_lies_about_its_size_is_stopped_there():
    bomb = deflate([bytes(100_000_000)], "gzip")[:-4] + struct.pack("<I", 1000)
    tracemalloc.start()
    try:
        with pytest.raises(Invalid):
            unpacked(bomb, 1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"plain",
        b"\x1f\x8b",
        b"\x1f\x8b\0\0\0\0",
        zlib.compress(b"abc")[:-2],
        zlib.compress(b"abc") + b"more",
    ],
)
def test_a_broken_compression_is_refused(body):
    with pytest.raises(Invalid):
        unpacked(body, 1000)


def test_versions_are_numbers_or_aliases():
    assert [read_version(one) for one in ("", "12", "production", "@production")] == [
        "",
        "12",
        "@production",
        "@production",
    ]
