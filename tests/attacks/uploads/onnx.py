"""ONNX files that are broken protobuf, claim what they do not have, or reach outside."""

import pickle

from tests.attacks.corpus import held, hostile, kept, refused
from tests.registry.formats import samples
from tests.registry.formats.samples import field
from tests.workers import hostile as payloads

FILE = "model.onnx"


def outside(location, **options):
    """Make a weight that lies in another file."""
    where = field(13, field(1, "location") + field(2, location))
    return samples.onnx_tensor(raw=None, extra=where + field(14, 1), **options)


def with_weights(*tensors, **options):
    return samples.onnx(initializers=list(tensors), **options)


@hostile(FILE, refused("lacks its version"))
def an_empty_file():
    return b""


@hostile(FILE, refused("cut short"))
def a_file_cut_in_half():
    data = samples.onnx()
    return data[: len(data) // 2]


@hostile(FILE, refused("more than 64 dimensions"))
def a_tensor_of_a_million_dimensions():
    return with_weights(samples.onnx_tensor(dims=(), extra=field(1, b"\1" * 4000) * 256))


@hostile(FILE, refused("broken number"))
def a_number_that_never_ends():
    return samples.onnx(extra=b"\x08" + b"\xff" * 64)


@hostile(FILE, refused("cut short"))
def a_field_longer_than_any_disk():
    return samples.onnx(extra=samples.varint(7 << 3 | 2) + samples.varint(1 << 62) + b"x")


@hostile(FILE, refused("cut short"))
def a_length_of_ten_huge_bytes():
    return samples.onnx(extra=samples.varint(14 << 3 | 2) + b"\xff" * 9 + b"\x7f")


@hostile(FILE, refused("broken field"))
def a_field_with_the_number_nought():
    return samples.onnx(extra=b"\x02\x01x")


@hostile(FILE, refused("broken field"))
def a_group_which_nobody_writes_any_more():
    return samples.onnx(extra=b"\x3b" * 1000 + b"\x3c" * 1000)


@hostile(FILE, refused("unknown field 4000 in its model"))
def a_field_that_nobody_knows():
    return samples.onnx(extra=field(4000, b"payload"))


@hostile(FILE, refused("its graph"))
def two_graphs():
    return samples.onnx(extra=field(7, b""))


@hostile(FILE, refused("lacks its version, its operator set or its graph"))
def no_graph_at_all():
    return field(1, 8) + field(8, field(2, 17))


@hostile(FILE, refused("nested too deep"))
def graphs_within_graphs():
    graph = field(2, "inner")
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    return field(1, 8) + field(7, graph) + field(8, field(2, 17))


@hostile(FILE, refused("outside its folder"))
def weights_in_the_folder_above():
    return with_weights(outside("../../etc/passwd"))


@hostile(FILE, refused("outside its folder"))
def weights_at_an_absolute_path():
    return with_weights(outside("/etc/shadow"))


@hostile(FILE, refused("outside its folder"))
def weights_on_another_drive():
    return with_weights(outside("C:\\Windows\\win.ini"))


@hostile(FILE, refused("outside its folder"))
def weights_at_a_path_with_a_nul():
    return with_weights(outside(b"w.data\0/../../etc/passwd"))


@hostile(FILE, refused("outside its folder"))
def weights_at_an_address():
    return with_weights(outside("http://169.254.169.254/latest/meta-data"))


@hostile(FILE, refused("outside its folder"))
def weights_outside_in_an_attribute():
    attribute = field(1, "value") + field(5, outside("../w"))
    return samples.onnx(nodes=[field(4, "Constant") + field(5, attribute)])


@hostile(FILE, refused("outside its folder"))
def weights_outside_in_a_function():
    node = field(4, "Constant") + field(5, field(5, outside("../w")))
    return samples.onnx(extra=field(25, field(7, node)))


@hostile(FILE, refused("outside its folder"))
def weights_outside_in_the_graph_to_train_with():
    return samples.onnx(extra=field(20, field(2, field(5, outside("../w")))))


@hostile(FILE, refused("needs 24 bytes but has 23"))
def a_tensor_with_a_byte_too_few():
    return with_weights(samples.onnx_tensor(raw=bytes(23)))


@hostile(FILE, refused("needs 4398046511104 bytes but has 0"))
def a_tensor_of_terabytes_without_a_byte():
    return with_weights(samples.onnx_tensor(dims=(1 << 20, 1 << 20), raw=None))


@hostile(FILE, refused("needs 4398046511104 bytes but has 8"))
def a_tensor_of_terabytes_with_two_numbers():
    return with_weights(
        samples.onnx_tensor(dims=(1 << 20, 1 << 20), raw=None, extra=field(4, bytes(8)))
    )


@hostile(FILE, refused("elements"))
def weights_elsewhere_beyond_what_64_bits_count():
    return with_weights(outside("w.data", dims=(1 << 62, 1 << 62)))


@hostile(FILE, refused("elements"))
def weights_elsewhere_beyond_what_floats_hold():
    return with_weights(outside("w.data", dims=(1 << 62,) * 64))


@hostile(FILE, refused("no sensible type and shape"))
def a_tensor_of_an_unknown_type():
    return with_weights(samples.onnx_tensor(dtype=99))


@hostile(FILE, refused("no sensible type and shape"))
def a_tensor_of_a_negative_size():
    return with_weights(samples.onnx_tensor(dims=(-1, 6)))


@hostile(FILE, refused("more than 64 dimensions"))
def a_tensor_of_a_hundred_dimensions():
    return with_weights(samples.onnx_tensor(dims=(1,) * 100, raw=bytes(4)))


@hostile(FILE, refused("no sensible IR version"))
def a_version_from_the_far_future():
    return samples.onnx(extra=field(1, 1 << 60))


@hostile(FILE, refused("no sensible version"))
def an_operator_set_nought():
    return samples.onnx(opset=0)


@hostile(FILE, kept("onnx", "com.evil.shell", verdict="safe"))
def an_operator_of_a_domain_of_its_own():
    return samples.onnx(nodes=[field(4, "Exec") + field(7, "com.evil.shell")])


@hostile(FILE, refused("a pickle file inside"))
def a_pickle_by_the_name_of_a_graph(canary):
    return pickle.dumps(payloads.Calls(exec, canary.program))


@hostile(FILE, held("onnx", "A zip archive hides behind"))
def a_program_in_a_zip_archive_behind_a_graph(canary):
    archive = samples.zipped({"__main__.py": canary.program.encode()})
    # Last in the file, as a text that nobody reads.
    return samples.onnx(extra=field(6, archive))
