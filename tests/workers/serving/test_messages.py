"""Tensors of a request: what fits is let through, what lies is refused before it costs anything."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Invalid, TooLarge
from workers.serving.messages import (
    MAX_STRINGS,
    MAX_TENSORS,
    Tensor,
    check_tensor,
    check_tensors,
    pack_strings,
    unpack_strings,
)


def test_a_tensor_whose_bytes_are_its_shape_is_let_through() -> None:
    check_tensor(Tensor("x", "FP32", (2, 3), np.ones((2, 3), np.float32).tobytes()))
    check_tensor(Tensor("x", "INT64", (), struct.pack("<q", 7)))
    check_tensor(Tensor("x", "FP64", (0, 5), b""))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (Tensor("x", "FP32", (2, 3), b"\0" * 23), "takes 24 bytes; 23 came"),
        (Tensor("x", "FP32", (10**9, 10**9), b""), "came"),
        (Tensor("x", "FP32", (-1, 3), b""), "negative"),
        (Tensor("x", "FP31", (1,), b"\0" * 4), "unknown datatype"),
        (Tensor("x", "FP32", (1,) * 17, b"\0" * 4), "17 axes"),
        (Tensor("", "FP32", (1,), b"\0" * 4), "name"),
        (Tensor("a\nb", "FP32", (1,), b"\0" * 4), "name"),
        (Tensor("x", "BYTES", (1,), struct.pack("<I", 5) + b"abc"), "add up"),
        (Tensor("x", "BYTES", (10**9,), struct.pack("<I", 3) + b"abc"), "add up"),
        (Tensor("x", "BYTES", (1,), struct.pack("<I", 0xFFFFFFFF)), "add up"),
        (Tensor("x", "BYTES", (1,), struct.pack("<I", 2) + b"abc"), "add up"),
    ],
)
def test_a_tensor_that_lies_is_refused(tensor: Tensor, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        check_tensor(tensor)


def test_a_request_has_tensors_of_different_names_and_not_too_many() -> None:
    one = Tensor("x", "BOOL", (1,), b"\1")
    with pytest.raises(Invalid, match="same name"):
        check_tensors([one, one])
    with pytest.raises(Invalid, match="100000 came"):
        check_tensors([Tensor(f"x{at}", "BOOL", (1,), b"\1") for at in range(100_000)])
    check_tensors([Tensor(f"x{at}", "BOOL", (1,), b"\1") for at in range(MAX_TENSORS)])


def test_a_request_has_not_too_many_strings_in_one_tensor_or_in_all() -> None:
    """Each costs the server a step in which it does nothing else."""
    half = Tensor("x", "BYTES", (MAX_STRINGS // 2,), bytes(2 * MAX_STRINGS))
    check_tensors([half, replace(half, name="y")])
    with pytest.raises(TooLarge, match="'z'"):
        check_tensors([half, replace(half, name="y"), Tensor("z", "BYTES", (1,), bytes(4))])
    with pytest.raises(TooLarge, match="'x'"):
        check_tensor(Tensor("x", "BYTES", (MAX_STRINGS + 1,), bytes(4 * MAX_STRINGS + 4)))


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_strings_come_back_as_they_were_packed(values: list[bytes]) -> None:
    packed = pack_strings(values)
    check_tensor(Tensor("x", "BYTES", (len(values),), packed))
    assert unpack_strings(memoryview(packed), len(values)) == values


@given(st.binary(max_size=60), st.integers(0, 8))
def test_strings_that_pass_the_check_can_be_read(data: bytes, count: int) -> None:
    try:
        check_tensor(Tensor("x", "BYTES", (count,), data))
    except Invalid:
        return
    assert pack_strings(unpack_strings(data, count)) == data
