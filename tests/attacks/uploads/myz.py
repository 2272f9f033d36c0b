"""Coded models whose header lies about what is in them, or claims what no file holds."""

import struct
import zlib

from tests.attacks.corpus import held, hostile, refused
from tests.registry.formats import samples

FILE = "model.myz"
MAGIC = b"\x93MYZ\r\n\x1a\n"
STATE = {"kind": "state", "metadata": {}, "tensors": []}


@hostile(FILE, refused("does not begin as one, or is cut short"))
def nothing_but_a_beginning():
    return MAGIC + b"\1\0\0"


@hostile(FILE, refused("does not begin as one"))
def text_under_its_name():
    return b"This is no coded model, whatever its name says."


@hostile("model.safetensors", refused("a myz file inside"))
def a_coded_file_under_another_name():
    return samples.myz()


@hostile(FILE, refused("unknown version 2"))
def a_later_version():
    return samples.myz_file(STATE, version=2)


@hostile(FILE, refused("at most 33554432 are read"))
def a_header_that_claims_four_gigabytes():
    return MAGIC + struct.pack("<3I", 1, 40, (1 << 32) - 1) + bytes(40)


@hostile(FILE, refused("the file is cut short"))
def a_header_longer_than_the_file():
    return MAGIC + struct.pack("<3I", 1, 4000, 9000) + bytes(40)


@hostile(FILE, refused("no deflated text"))
def a_header_that_is_not_deflated():
    return MAGIC + struct.pack("<3I", 1, 40, 40) + bytes(40)


@hostile(FILE, refused("not as long as it claims"))
def a_header_that_is_a_bomb():
    packed = zlib.compress(b" " * (64 << 20))
    return MAGIC + struct.pack("<3I", 1, len(packed), 100) + packed


@hostile(FILE, refused("not as long as it claims"))
def a_header_cut_short():
    packed = zlib.compress(b"{}" + b" " * 98)[:-6]
    return MAGIC + struct.pack("<3I", 1, len(packed), 100) + packed


@hostile(FILE, refused("nested deeper than 8"))
def a_header_a_hundred_thousand_deep():
    return samples.myz_file(b"[" * 100_000)


@hostile(FILE, refused("must say what it holds"))
def a_list_for_a_header():
    return samples.myz_file([STATE])


@hostile(FILE, refused("must say what it holds"))
def a_kind_that_is_a_list():
    return samples.myz_file({**STATE, "kind": ["state"]})


@hostile(FILE, refused("must say what it holds"))
def a_header_with_something_more():
    return samples.myz_file({**STATE, "code": "import os"})


@hostile(FILE, refused("at most 100000 tensors"))
def more_tensors_than_any_model_has():
    return samples.myz_file({**STATE, "tensors": [0] * 100_001})


@hostile(FILE, refused("has something after them"))
def something_after_the_last_stream():
    return samples.myz(b"abcd#!/bin/sh")


@hostile(FILE, held("myz", "A zip archive hides behind"))
def a_program_in_a_zip_archive_as_a_tensor(canary):
    archive = samples.zipped({"__main__.py": canary.program.encode()})
    size = len(archive)
    return samples.myz(archive, shape=[size], streams={"values": ["raw", size, size]})


@hostile(FILE, refused("the file is cut short"))
def a_stream_cut_short():
    return samples.myz(b"abc")


@hostile(FILE, refused("two tensors of one name"))
def one_name_for_two_tensors():
    one = {"name": "w", "dtype": "U8", "shape": [0], "places": "all", "values": "plain"}
    one |= {"sha256": "0" * 64, "streams": {"values": ["raw", 0, 0]}}
    return samples.myz_file({**STATE, "tensors": [one, one]})


@hostile(FILE, refused("that claims to be 4611686018427387904"))
def a_stream_that_would_unpack_to_four_exabytes():
    return samples.myz(shape=[1 << 62], streams={"values": ["zstd", 1 << 62, 4]})


@hostile(FILE, refused("far more than its code can stand for"))
def a_tensor_of_nothing_but_zeros_that_fills_a_disk():
    streams = {"gaps": ["raw", 0, 0], "values": ["raw", 0, 0]}
    return samples.myz(b"", shape=[1 << 40], places="gaps", count=0, streams=streams)


@hostile(FILE, refused("far more than it can"))
def ten_thousand_tensors_out_of_nothing():
    streams = {"gaps": ["raw", 0, 0], "values": ["raw", 0, 0]}
    one = {"dtype": "U8", "shape": [60_000], "places": "gaps", "count": 0, "values": "plain"}
    one |= {"sha256": "0" * 64, "streams": streams}
    named = [{"name": str(number), **one} for number in range(10_000)]
    return samples.myz_file({**STATE, "tensors": named})


@hostile(FILE, refused("cannot have 4 bytes of values"))
def a_shape_that_wraps_around_in_64_bits():
    return samples.myz(shape=[1 << 62, 4, 1])


@hostile(FILE, refused("no short list of sizes"))
def a_negative_size():
    return samples.myz(shape=[-4])


@hostile(FILE, refused("no short list of sizes"))
def a_truth_for_a_size():
    return samples.myz(shape=[4, True])


@hostile(FILE, refused("a coder and two lengths"))
def a_negative_length():
    return samples.myz(streams={"values": ["raw", 4, -4]})


@hostile(FILE, refused("a coder and two lengths"))
def a_coder_that_nobody_knows():
    return samples.myz(streams={"values": ["pickle", 4, 4]})


@hostile(FILE, refused("coded in an unknown way"))
def a_stream_too_many():
    return samples.myz(streams={"values": ["raw", 4, 4], "code": ["raw", 0, 0]})


@hostile(FILE, refused("coded in an unknown way"))
def a_codebook_that_is_missing():
    return samples.myz(values="codebook")


@hostile(FILE, refused("cannot have 257 bytes of codebook"))
def a_codebook_of_more_than_a_byte_can_name():
    streams = {"codebook": ["raw", 257, 257], "values": ["raw", 4, 4]}
    return samples.myz(bytes(261), values="codebook", streams=streams)


@hostile(FILE, refused("cannot have 0 bytes of codebook"))
def a_codebook_of_nothing():
    streams = {"codebook": ["raw", 0, 0], "values": ["raw", 4, 4]}
    return samples.myz(values="codebook", streams=streams)


@hostile(FILE, refused("more values than places"))
def more_values_than_places():
    streams = {"mask": ["raw", 1, 1], "values": ["raw", 5, 5]}
    return samples.myz(bytes(6), places="bitmask", count=5, streams=streams)


@hostile(FILE, refused("has no sha256"))
def a_digest_that_is_none():
    return samples.myz(sha256="0" * 63)


@hostile(FILE, refused("unknown dtype"))
def a_type_that_nobody_knows():
    return samples.myz(dtype="OBJECT")


@hostile(FILE, refused("coded in an unknown way"))
def whole_numbers_with_a_scale():
    streams = {"scales": ["raw", 4, 4], "values": ["raw", 4, 4]}
    return samples.myz(bytes(8), values="scaled8", streams=streams)


@hostile(FILE, refused("lies beyond its graph"))
def a_tensor_beyond_its_graph():
    return samples.myz_graph(at=5)


@hostile(FILE, refused("too large for its graph"))
def a_tensor_that_a_small_graph_cannot_hold():
    graph = {"kind": "graph", "metadata": {}, "graph": ["raw", 4, 4], "inputs": [], "outputs": []}
    claimed = {"name": "w", "dtype": "F32", "shape": [1 << 40]}
    return samples.myz_file({**graph, "tensors": [claimed]}, b"onnx")


@hostile(FILE, refused("without name, dtype and shape"))
def an_input_that_is_a_number():
    graph = {"kind": "graph", "metadata": {}, "graph": ["raw", 4, 4], "tensors": []}
    return samples.myz_file({**graph, "inputs": [7], "outputs": []}, b"onnx")
