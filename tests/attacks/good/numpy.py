"""Arrays, and archives of arrays, as NumPy writes them."""

import io

import ml_dtypes
import numpy as np

from tests.attacks.corpus import good


def saved(array, **options):
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), allow_pickle=False, **options)
    return out.getvalue()


def of_type(descr):
    @good("npy", "array.npy", called=f"type {descr}", tensors={"": [descr, [2, 3]]})
    def make():
        return saved(np.zeros((2, 3), descr))


for one in (
    *("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"),
    *("<c8", "<c16", ">f4", ">i8", "<U5", "|S7", "|V3", "<M8[ns]", "<m8[s]", ">U2"),
):
    of_type(one)


@good("npy", "array.npy", tensors={"": ["<f8", []]})
def a_scalar():
    return saved(2.5)


@good("npy", "array.npy", tensors={"": ["<f4", [0, 5]]})
def an_empty_array():
    return saved(np.zeros((0, 5), np.float32))


@good("npy", "array.npy", tensors={"": ["<f4", [3, 4]]})
def in_the_order_of_fortran():
    return saved(np.asfortranarray(np.zeros((3, 4), np.float32)))


@good("npy", "array.npy", tensors={"": ["<i8", [1] * 32]})
def an_array_of_32_dimensions():
    return saved(np.zeros([1] * 32, np.int64))


@good("npy", "array.npy", tensors={"": ["|V2", [4]]})
def brain_floats():
    return saved(np.zeros(4, ml_dtypes.bfloat16).view("V2"))


@good("npy", "array.npy", tensors={"": ["structured", [3]]})
def fields():
    return saved(np.zeros(3, [("a", "<f4"), ("b", "<i8"), ("O", "|S2")]))


@good("npy", "array.npy", tensors={"": ["structured", [2]]})
def fields_within_fields():
    inner = [("x", "<f4", (2, 3)), ("y", [("z", ">i2"), ("t", "<U4")])]
    return saved(np.zeros(2, [("a", inner, 2), ("b", "?")]))


@good("npy", "array.npy", tensors={"": ["structured", [2]]})
def fields_that_are_aligned():
    return saved(np.zeros(2, np.dtype([("a", "u1"), ("b", "<f8")], align=True)))


@good("npy", "array.npy", tensors={"": ["structured", [2]]})
def fields_with_titles():
    return saved(np.zeros(2, [(("A long title", "a"), "<f4"), ("b", "<i4")]))


@good("npy", "array.npy", tensors={"": ["structured", [1]]})
def fields_in_another_script():
    return saved(np.zeros(1, [("温度", "<f4")]), version=(3, 0))


@good("npy", "array.npy", tensors={"": ["<f4", [2]]})
def a_header_of_version_2():
    return saved(np.zeros(2, np.float32), version=(2, 0))


# --- Archives ------------------------------------------------------------------------------------


def archived(*args, pack=np.savez, **arrays):
    out = io.BytesIO()
    pack(out, *args, **arrays)
    return out.getvalue()


def of_types(name, dtype, pack):
    @good("npz", "arrays.npz", called=name, tensors={"w": [np.dtype(dtype).str, [4]]})
    def make():
        return archived(pack=pack, w=np.zeros(4, dtype))


for kind in ("f4", "f8", "i8", "u1", ">i4", "c8", "U3", "?"):
    of_types(f"stored {kind}", kind, np.savez)
    of_types(f"compressed {kind}", kind, np.savez_compressed)


@good("npz", "arrays.npz", tensors={"arr_0": ["<f8", [2]], "arr_1": ["<f8", [3]]})
def arrays_without_names():
    return archived(np.zeros(2), np.zeros(3))


@good("npz", "arrays.npz", tensors={"层/权重": ["<f8", [2]]})
def names_with_folders():
    return archived(**{"层/权重": np.zeros(2)})


@good("npz", "arrays.npz", tensors={"format": ["|S3", []], "data": ["<f8", [2]]})
def a_sparse_matrix_of_scipy():
    parts = {"indices": np.zeros(2, np.int32), "indptr": np.zeros(3, np.int32)}
    return archived(format=np.array(b"csr"), shape=np.array([2, 2]), data=np.zeros(2), **parts)


@good("npz", "arrays.npz", tensors={"empty": ["<f8", [0]], "one": ["<f8", []]})
def empty_and_single():
    return archived(empty=np.zeros(0), one=np.array(1.0))


@good("npz", "arrays.npz")
def a_large_array_that_packs_well():
    return archived(pack=np.savez_compressed, w=np.zeros((1000, 1000), np.float32))


@good("npz", "arrays.npz")
def five_hundred_arrays():
    return archived(**{f"w{number}": np.zeros(1) for number in range(500)})
