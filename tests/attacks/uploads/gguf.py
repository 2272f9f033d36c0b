"""GGUF files with counts, lengths and offsets that lie."""

import pickle
import struct

from tests.attacks.corpus import held, hostile, kept, refused
from tests.registry.formats import samples
from tests.registry.formats.samples import gguf, text
from tests.workers import hostile as payloads

FILE = "model.gguf"


def keyed(kind, raw):
    return gguf(keys={"a.key": (kind, raw)})


@hostile(FILE, refused("ends too early"))
def a_magic_number_and_no_more():
    return b"GGUF\x03\0\0\0"


@hostile(FILE, refused("unknown version 1"))
def a_version_of_long_ago():
    return gguf(version=1)


@hostile(FILE, refused("unknown version 50331648"))
def a_version_in_the_other_byte_order():
    return b"GGUF" + struct.pack(">IQQ", 3, 1, 0) + bytes(64)


@hostile(FILE, refused("claims 18446744073709551615 tensors"))
def more_tensors_than_atoms():
    return b"GGUF" + struct.pack("<IQQ", 3, (1 << 64) - 1, 0)


@hostile(FILE, refused("claims 0 tensors and 1152921504606846976 keys"))
def more_keys_than_atoms():
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60)


@hostile(FILE, refused("ends too early"))
def tensors_that_are_not_there():
    return b"GGUF" + struct.pack("<IQQ", 3, 100_000, 0) + bytes(64)


@hostile(FILE, refused("claims 9223372036854775808 bytes"))
def a_key_longer_than_any_disk():
    return b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63) + bytes(64)


@hostile(FILE, refused("claims 4294967295 bytes"))
def a_text_of_gigabytes():
    return keyed(8, struct.pack("<Q", (1 << 32) - 1) + b"short")


@hostile(FILE, refused("alignment is out of bounds"))
def an_alignment_of_nought():
    return gguf(keys={"general.alignment": (4, struct.pack("<I", 0))})


@hostile(FILE, refused("alignment is out of bounds"))
def an_alignment_of_gigabytes():
    return gguf(keys={"general.alignment": (4, struct.pack("<I", 1 << 31))})


@hostile(FILE, refused("alignment is out of bounds"))
def an_alignment_that_is_a_text():
    return gguf(keys={"general.alignment": (8, text("32"))})


@hostile(FILE, refused("alignment is out of bounds"))
def an_alignment_that_is_a_truth():
    return gguf(keys={"general.alignment": (7, b"\x01")})


@hostile(FILE, refused("stands twice"))
def one_key_with_two_values():
    raw = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
    return raw + (text("general.alignment") + struct.pack("<II", 4, 32)) * 2


@hostile(FILE, refused("unknown value type 77"))
def a_value_of_an_unknown_type():
    return keyed(77, b"")


@hostile(FILE, refused("unknown value type 77"))
def an_array_of_an_unknown_type():
    return keyed(9, struct.pack("<IQ", 77, 1))


@hostile(FILE, refused("nested too deep"))
def arrays_within_arrays():
    return keyed(9, struct.pack("<IQ", 9, 1) * 1000)


@hostile(FILE, refused("claims 1125899906842624 items"))
def an_array_of_more_texts_than_bytes():
    return keyed(9, struct.pack("<IQ", 8, 1 << 50))


@hostile(FILE, refused("ends too early"))
def an_array_of_more_numbers_than_bytes():
    return keyed(9, struct.pack("<IQ", 12, 1 << 61))


@hostile(FILE, refused("unknown type 99"))
def a_tensor_of_an_unknown_type():
    return gguf(tensors=[("w", (32,), 99)])


@hostile(FILE, refused("no multiple of 32"))
def a_row_that_ends_within_a_block():
    return gguf(tensors=[("w", (31, 2), 8)])


@hostile(FILE, refused("claims 4294967295 dimensions"))
def a_tensor_of_countless_dimensions():
    raw = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    return raw + text("w") + struct.pack("<I", (1 << 32) - 1) + bytes(64)


@hostile(FILE, refused("beyond the file"))
def a_shape_that_wraps_around_in_64_bits():
    return gguf(tensors=[("w", (1 << 62, 4, 4), 0)])


@hostile(FILE, refused("beyond the file"))
def a_tensor_cut_short():
    return gguf(cut=40)


@hostile(FILE, refused("overlaps the one before it"))
def two_tensors_that_share_bytes():
    return gguf(tensors=[("a", (32, 3), 8), ("b", (32, 2), 8)])


@hostile(FILE, refused("leaves a gap before it"))
def a_gap_between_two_tensors():
    return gguf(tensors=[("a", (32,), 8), ("b", (32, 2), 8)])


@hostile(FILE, refused("'w' stands twice"))
def one_name_for_two_tensors():
    return gguf(tensors=[("w", (32, 2), 8), ("w", (32, 2), 8)])


@hostile(FILE, refused("has something after"))
def something_after_the_last_tensor(canary):
    return gguf() + b"#!/bin/sh\n" + canary.command.encode() + bytes(64)


@hostile(FILE, kept("gguf", "sandboxed Jinja", verdict="safe"))
def a_chat_template_that_is_a_program():
    program = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    return gguf(keys={"tokenizer.chat_template": (8, text(program))})


@hostile(FILE, refused("has something after"))
def a_zip_archive_after_the_last_tensor(canary):
    return gguf() + samples.zipped({"__main__.py": canary.program.encode() * 20})


@hostile("weights.bin", held("pickle", "can run any code"))
def a_pickle_that_begins_like_a_text_of_the_format(canary):
    # V takes a line as a text: "GGUF" itself is a pickle's BINGET, and stumbles.
    return b"VGGUF\n0" + pickle.dumps(payloads.Calls(exec, canary.program), 0)
