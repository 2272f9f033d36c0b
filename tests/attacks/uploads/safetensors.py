"""Safetensors files whose header lies, is no header, or hides something."""

import json
import struct

from tests.attacks.corpus import held, hostile, refused
from tests.registry.formats import samples

FILE = "model.safetensors"


def header(raw, data=b""):
    """Put a header, as bytes or as what JSON makes of it, before the data."""
    raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(**changes):
    return header({"w": {**tensor(), **changes}}, bytes(4))


@hostile(FILE, refused("shorter than the 8 bytes"))
def nothing_but_half_a_length():
    return b"\x10\0\0\0"


@hostile(FILE, refused("claims 9223372036854775808 bytes"))
def a_header_longer_than_any_disk():
    return struct.pack("<Q", 1 << 63) + b'{"w":{}}'


@hostile(FILE, refused("claims 18446744073709551615 bytes"))
def a_header_length_that_is_minus_one():
    return b"\xff" * 8 + b'{"w":{}}'


@hostile(FILE, refused("claims 16777217 bytes; at most 16777216"))
def a_header_just_too_long():
    return struct.pack("<Q", (16 << 20) + 1) + b"{}"


@hostile(FILE, refused("the file is cut short"))
def a_header_longer_than_the_file():
    return struct.pack("<Q", 500) + b'{"w":{}}'


@hostile(FILE, refused("does not begin with '{'"))
def a_list_for_a_header():
    return header([tensor()])


@hostile(FILE, refused("nested deeper than 8"))
def a_header_a_hundred_thousand_deep():
    return header(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@hostile(FILE, refused("nested deeper than 8"))
def a_metadata_a_hundred_thousand_deep():
    return header(b'{"__metadata__":' * 100_000)


@hostile(FILE, refused("'w' stands twice"))
def one_name_for_two_tensors():
    entry = json.dumps(tensor()).encode()
    return header(b'{"w":' + entry + b',"w":' + entry + b"}", bytes(4))


@hostile(FILE, refused("'dtype' stands twice"))
def one_tensor_with_two_types():
    return header(b'{"w":{"dtype":"F32","dtype":"U8","shape":[1],"data_offsets":[0,4]}}', bytes(4))


@hostile(FILE, refused("'w' stands twice"))
def one_name_written_in_two_ways():
    entry = json.dumps(tensor()).encode()
    return header(b'{"w":' + entry + b',"\\u0077":' + entry + b"}", bytes(4))


@hostile(FILE, refused("overlaps the one before it"))
def two_tensors_that_share_bytes():
    return header(
        {"a": tensor("U8", [4], [0, 4]), "b": tensor("U8", [4], [2, 6])},
        bytes(6),
    )


@hostile(FILE, refused("leaves a gap before it"))
def a_gap_between_two_tensors():
    return header({"a": tensor("U8", [2], [0, 2]), "b": tensor("U8", [2], [4, 6])}, bytes(6))


@hostile(FILE, refused("leaves a gap before it"))
def something_before_the_first_tensor():
    return header({"w": tensor("U8", [2], [2, 4])}, b"MZ\0\0")


@hostile(FILE, refused("has something after them"))
def something_after_the_last_tensor():
    return samples.safetensors(tail=b"#!/bin/sh\nexec touch /tmp/x\n")


@hostile(FILE, refused("has something after them"))
def a_zip_archive_after_the_last_tensor(canary):
    return samples.safetensors(tail=samples.zipped({"__main__.py": canary.program.encode()}))


@hostile(FILE, held("safetensors", "A zip archive hides behind"))
def a_program_in_a_zip_archive_as_the_last_tensor(canary):
    archive = samples.zipped({"__main__.py": canary.program.encode()})
    return samples.safetensors({"w": ("U8", [len(archive)], archive)})


@hostile(FILE, refused("end at byte 24 of 23"))
def a_tensor_cut_short():
    return samples.safetensors()[:-1]


@hostile(FILE, refused("NaN is not a JSON number"))
def a_shape_that_is_no_number():
    return header(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4))


@hostile(FILE, refused("not a JSON number"))
def an_infinite_shape():
    return header(b'{"w":{"dtype":"F32","shape":[-Infinity],"data_offsets":[0,4]}}', bytes(4))


@hostile(FILE, refused("too large"))
def an_exponent_beyond_numbers():
    return header(b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', bytes(4))


@hostile(FILE, refused("not valid JSON"))
def a_number_of_a_hundred_thousand_digits():
    return header(b'{"w":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,4]}}')


@hostile(FILE, refused("no short list of sizes"))
def a_negative_shape():
    return one(shape=[-1])


@hostile(FILE, refused("no short list of sizes"))
def two_negative_sizes_whose_product_fits():
    return one(shape=[-1, -1])


@hostile(FILE, refused("no short list of sizes"))
def half_an_element():
    return one(shape=[0.5, 2])


@hostile(FILE, refused("no short list of sizes"))
def a_truth_for_a_size():
    return one(shape=[True])


@hostile(FILE, refused("no short list of sizes"))
def a_text_for_a_shape():
    return one(shape="11")


@hostile(FILE, refused("no short list of sizes"))
def a_size_beyond_64_bits():
    return one(shape=[1 << 64])


@hostile(FILE, refused("but its data_offsets span 4"))
def a_shape_that_wraps_around_in_64_bits():
    return one(shape=[1 << 62, 4, 1])


@hostile(FILE, refused("but its data_offsets span 4"))
def a_shape_beyond_what_floats_hold():
    return one(shape=[1 << 62] * 64)


@hostile(FILE, refused("no short list of sizes"))
def a_shape_of_a_thousand_dimensions():
    return one(shape=[1] * 1000)


@hostile(FILE, refused("unknown dtype 'O'"))
def a_type_that_holds_objects():
    return one(dtype="O")


@hostile(FILE, refused("unknown dtype"))
def a_list_for_a_type():
    return one(dtype=["F32"])


@hostile(FILE, refused("needs 8 bytes but its data_offsets span 4"))
def a_type_wider_than_its_bytes():
    return one(dtype="F64")


@hostile(FILE, refused("needs 0.5 bytes"))
def half_a_byte():
    return header({"w": tensor("F4", [1], [0, 1])}, bytes(1))


@hostile(FILE, refused("span -4"))
def offsets_that_run_backwards():
    return one(data_offsets=[4, 0])


@hostile(FILE, refused("has something after them"))
def offsets_beyond_the_file():
    return header({"w": tensor("U8", [1 << 40], [0, 1 << 40])}, bytes(4))


@hostile(FILE, refused("not two byte positions"))
def three_offsets():
    return one(data_offsets=[0, 2, 4])


@hostile(FILE, refused("must have exactly"))
def a_field_that_nobody_knows():
    return one(loader="os.system")


@hostile(FILE, refused("must have exactly"))
def a_tensor_that_is_a_text():
    return header({"w": "F32"})


@hostile(FILE, refused("not UTF-8"))
def a_name_that_is_no_text():
    return header(b'{"\xff\xfe":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))


@hostile(FILE, refused("not UTF-8"))
def a_slash_in_two_bytes():
    return header(b'{"a\xc0\xafb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))


@hostile(FILE, refused("U+0000"))
def a_name_with_a_nul():
    return header(b'{"w\\u0000":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))


@hostile(FILE, refused("half a character"))
def a_name_with_half_a_character():
    return header(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))


@hostile(FILE, refused("must map text to text"))
def a_metadata_of_numbers():
    return samples.safetensors(metadata={"format": 1})


@hostile(FILE, refused("must map text to text"))
def a_metadata_that_is_a_list():
    return header({"__metadata__": ["pt"], "w": tensor()}, bytes(4))


@hostile(FILE, refused("not valid JSON"))
def words_after_the_header():
    return header(json.dumps({"w": tensor()}).encode() + b" and more", bytes(4))


@hostile(FILE, refused("does not begin with '{'"))
def a_byte_order_mark_before_the_header():
    return header(b"\xef\xbb\xbf" + json.dumps({"w": tensor()}).encode(), bytes(4))
