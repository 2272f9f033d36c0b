"""NumPy arrays: objects inside, expressions for headers, sizes that lie."""

import pickle
import struct

from tests.attacks.corpus import held, hostile, refused
from tests.registry.formats import samples
from tests.workers import hostile as payloads

FILE = "array.npy"


def headed(text, data=b""):
    raw = text.encode("latin-1")
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(raw)) + raw + data


def shaped(shape, descr="'<f4'", order="False", data=b""):
    return headed(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}", data)


@hostile(FILE, held("npy", "holds Python objects"))
def an_array_of_objects_that_call(canary):
    return payloads.object_array(payloads.Calls(exec, canary.program))


@hostile(FILE, held("npy", "holds Python objects"))
def a_field_of_objects_among_numbers(canary):
    body = pickle.dumps(payloads.Calls(exec, canary.program))
    return shaped("(1,)", "[('a', '<f4'), ('b', '|O')]", data=body)


@hostile(FILE, held("npy", "holds Python objects"))
def objects_within_a_field_of_a_field():
    return shaped("(1,)", "[('a', [('b', [('c', 'O', (2,))])])]", data=b"x")


@hostile(FILE, refused("no plain Python literal"))
def a_call_for_a_header(canary):
    return headed(f"__import__('os').system({canary.command!r})")


@hostile(FILE, refused("no plain Python literal"))
def a_call_for_a_shape(canary):
    return shaped(f"(open({str(canary.file)!r}, 'w'),)")


@hostile(FILE, refused("no plain Python literal"))
def a_comprehension_for_a_shape():
    return shaped("tuple(x for x in iter(int, 1))")


@hostile(FILE, refused("no plain Python literal"))
def a_header_of_nine_thousand_brackets():
    return headed("(" * 9000)


@hostile(FILE, refused("no plain Python literal"))
def a_power_for_a_size():
    return shaped("(9**9**9,)")


@hostile(FILE, refused("claims 2147483648 bytes"))
def a_header_of_gigabytes():
    return b"\x93NUMPY\x02\0" + struct.pack("<I", 1 << 31)


@hostile(FILE, refused("cut short inside its header"))
def a_header_cut_short():
    return samples.npy()[:30]


@hostile(FILE, refused("unknown version 9"))
def a_version_that_is_not_there_yet():
    return samples.npy(version=9)


@hostile(FILE, refused("must have exactly"))
def a_header_without_a_shape():
    return headed("{'descr': '<f4', 'fortran_order': False}")


@hostile(FILE, refused("no short tuple of sizes"))
def a_negative_shape():
    return shaped("(-1,)")


@hostile(FILE, refused("no short tuple of sizes"))
def a_shape_of_a_hundred_dimensions():
    return shaped("(" + "1," * 100 + ")")


@hostile(FILE, refused("no short tuple of sizes"))
def a_truth_for_a_size():
    return shaped("(True,)")


@hostile(FILE, refused("needs 36893488147419103232 bytes and 4 follow"))
def a_shape_that_wraps_around_in_64_bits():
    return shaped("(4611686018427387904, 2)", data=bytes(4))


@hostile(FILE, refused("needs 24 bytes and 23 follow"))
def an_array_cut_short():
    return samples.npy(raw=bytes(23))


@hostile(FILE, refused("needs 24 bytes and"))
def something_after_the_array(canary):
    return samples.npy() + canary.program.encode()


@hostile(FILE, refused("needs 8 bytes and 4 follow"))
def a_structure_cut_short():
    return shaped("(1,)", "[('a', '<f4'), ('b', '<i4')]", data=bytes(4))


@hostile(FILE, refused("unknown dtype"))
def a_type_that_nobody_knows():
    return samples.npy("<q9x")


@hostile(FILE, refused("unknown dtype"))
def a_number_for_a_type():
    return shaped("(1,)", "7")


@hostile(FILE, refused("fortran_order"))
def an_order_that_is_a_text():
    return shaped("(1,)", order="'no'", data=bytes(4))
