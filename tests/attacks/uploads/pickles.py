"""Code that would run as a file is loaded, in every wrapping that loaders open."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zlib

import torch

from tests.attacks.corpus import held, hostile, kept, refused
from tests.registry.formats import samples
from tests.registry.formats.samples import zipped
from tests.workers import hostile as payloads

NAMED = "builtins.exec"
ANY_CODE = "can run any code"


def call(canary):
    return payloads.Calls(exec, canary.program)


def pickled(canary, protocol=4):
    return pickle.dumps(call(canary), protocol)


def checkpoint(canary):
    return {"w": torch.zeros(2), "x": call(canary)}


def lz4(data):
    """Write a frame of one stored block."""
    header = b"\x04\x22\x4d\x18\x40\x40\xc0"
    return header + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4)


def tarred(entries, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.USTAR_FORMAT) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


# --- Bare ----------------------------------------------------------------------------------------


@hostile("model.pkl", held("pickle", ANY_CODE, "__builtin__.exec"))
def protocol_0(canary):
    return pickled(canary, 0)


@hostile("model.pkl", held("pickle", ANY_CODE, "__builtin__.exec"))
def protocol_1(canary):
    return pickled(canary, 1)


@hostile("model.pickle", held("pickle", ANY_CODE, "__builtin__.exec"))
def protocol_2(canary):
    return pickled(canary, 2)


@hostile("model.pkl", held("pickle", ANY_CODE, NAMED))
def protocol_3(canary):
    return pickled(canary, 3)


@hostile("model", held("pickle", ANY_CODE, NAMED))
def protocol_4_without_an_ending(canary):
    return pickled(canary, 4)


@hostile("model.ckpt", held("pickle", ANY_CODE, NAMED))
def protocol_5(canary):
    return pickled(canary, 5)


@hostile("weights.bin", held("pickle", ANY_CODE, "posix.system"))
def a_call_without_a_mark_or_an_end(canary):
    return b"cposix\nsystem\n(V" + canary.command.encode() + b"\ntR"


@hostile("weights.bin", held("pickle", ANY_CODE))
def an_instance_instead_of_a_call(canary):
    return b"(V" + canary.command.encode() + b"\niposix\nsystem\n."


@hostile("weights.bin", held("pickle", ANY_CODE))
def a_name_put_together(canary):
    name = b"\x8c\x05posix\x8c\x06system\x93"
    return name + b"(V" + canary.command.encode() + b"\ntR."


@hostile("weights.bin", held("pickle", ANY_CODE))
def a_call_behind_a_long_text(canary):
    return b"X" + struct.pack("<I", 300_000) + b"a" * 300_000 + b"0" + pickled(canary, 0)


@hostile("weights.bin", held("pickle", ANY_CODE))
def a_call_behind_thirty_thousand_steps(canary):
    return b"N0" * 30_000 + pickled(canary, 0)


@hostile("weights.bin", held("pickle", ANY_CODE))
def a_number_from_the_table_of_extensions():
    return b"\x82\x01(S'true'\ntR."


@hostile("model.pkl", held("pickle", ANY_CODE))
def a_text_by_the_name_of_a_pickle():
    return b"nothing to see here\n"


@hostile("model.pkl", held("pickle", ANY_CODE, "builtins.bytes"))
def a_pickle_that_unpickles_another(canary):
    return pickle.dumps(payloads.Calls(bytes, pickled(canary)))


@hostile("model.pkl", held("pickle", ANY_CODE))
def a_pickle_that_doubles_itself():
    """Memory, not code: sixty doublings of a tuple."""
    return b"\x80\x02)" + b"q\0h\0h\0\x86" * 60 + b"."


# --- Torch ---------------------------------------------------------------------------------------


@hostile("weights.pt", held("torch-zip", ANY_CODE, "__builtin__.exec"))
def in_the_zip_of_torch(canary):
    return payloads.torch_zip(checkpoint(canary))


@hostile("weights.ckpt", held("torch-zip", ANY_CODE))
def in_the_zip_of_torch_by_the_name_of_a_checkpoint(canary):
    return payloads.torch_zip(checkpoint(canary))


@hostile("pytorch_model.bin", held("torch-zip", ANY_CODE))
def in_the_zip_of_torch_by_the_name_of_the_hub(canary):
    return payloads.torch_zip(checkpoint(canary))


@hostile("weights.pth", held("torch-legacy", ANY_CODE, "__builtin__.exec"))
def in_the_older_file_of_torch(canary):
    return payloads.torch_legacy(checkpoint(canary))


@hostile("weights.pt", held("torch-legacy", ANY_CODE))
def in_the_oldest_file_of_torch(canary):
    return payloads.torch_tar(call(canary))


@hostile("weights.pt", held("torch-zip", ANY_CODE, "__builtin__.eval"))
def a_tensor_hook_that_evaluates(canary):
    state = {"w": payloads.Calls(eval, f"open({str(canary.file)!r}, 'w')")}
    return payloads.torch_zip(state)


@hostile("weights.pt", held("torch-zip", ANY_CODE, reason="claims 34359738368 bytes"))
def a_tensor_that_unfolds_to_gigabytes():
    return payloads.torch_zip({"w": torch.as_strided(torch.zeros(4), (1 << 33,), (0,))})


@hostile("script.pt", held("torchscript", "TorchScript"))
def a_torchscript_program_that_writes(canary):
    try:
        return payloads.torchscript(payloads.Writer(str(canary.file)))
    finally:
        # Making it runs it once, here, where that is no harm.
        canary.file.unlink(missing_ok=True)


@hostile("script.ptl", held("torchscript", "TorchScript"))
def a_torchscript_program_for_phones():
    return zipped({"m/bytecode.pkl": b"", "m/data.pkl": b""})


@hostile("program.pt2", held("pt2", "carries pickles"))
def an_exported_program_with_a_pickle(canary):
    inputs = payloads.torch_zip(checkpoint(canary))
    return zipped(
        {
            "p/archive_format": b"pt2",
            "p/archive_version": b"0",
            "p/models/model.json": b"{}",
            "p/data/sample_inputs/model.pt": inputs,
            "p/data/weights/model.pt": inputs,
        }
    )


@hostile("program.pt2", held("pt2", "carries pickles"))
def an_exported_program_of_the_first_kind(canary):
    return zipped(
        {
            "serialized_exported_program.json": b"{}",
            "serialized_state_dict.pt": payloads.torch_zip(checkpoint(canary)),
            "version": b"8.1",
        }
    )


# --- Compressed ----------------------------------------------------------------------------------


@hostile("model.joblib", held("pickle", ANY_CODE))
def joblib_with_zlib(canary):
    return zlib.compress(pickled(canary))


@hostile("model.joblib", held("pickle", ANY_CODE))
def joblib_with_gzip(canary):
    return gzip.compress(pickled(canary), mtime=0)


@hostile("model.joblib", held("pickle", ANY_CODE))
def joblib_with_bz2(canary):
    return bz2.compress(pickled(canary))


@hostile("model.joblib", held("pickle", ANY_CODE))
def joblib_with_xz(canary):
    return lzma.compress(pickled(canary))


@hostile("model.joblib", held("pickle", ANY_CODE))
def joblib_with_lzma(canary):
    return lzma.compress(pickled(canary), lzma.FORMAT_ALONE)


@hostile("model.joblib", held("pickle", ANY_CODE))
def joblib_with_lz4(canary):
    return lz4(pickled(canary))


@hostile("model.joblib", held("joblib", ANY_CODE))
def joblib_of_long_ago(canary):
    return b"ZF0x1a" + b" " * 15 + zlib.compress(pickled(canary))


@hostile("model.gz", held("pickle", ANY_CODE))
def compressed_three_times(canary):
    return gzip.compress(bz2.compress(lzma.compress(pickled(canary))), mtime=0)


@hostile("model.gz", held("compressed", "more than 4 times over"))
def compressed_forty_times(canary):
    data = pickled(canary)
    for _ in range(40):
        data = gzip.compress(data, mtime=0)
    return data


@hostile("weights.gz", held("pickle", ANY_CODE))
def compressed_behind_a_long_text(canary):
    data = b"X" + struct.pack("<I", 300_000) + b"a" * 300_000 + b"0" + pickled(canary, 0)
    return gzip.compress(data, mtime=0)


@hostile("model.zst", held("compressed", "counts as one"))
def compressed_in_a_way_that_is_not_looked_into():
    return b"\x28\xb5\x2f\xfd" + bytes(40)


@hostile("model.7z", held("compressed", "counts as one"))
def in_an_archive_that_is_not_looked_into():
    return b"7z\xbc\xaf\x27\x1c" + bytes(40)


# --- In archives ---------------------------------------------------------------------------------


@hostile("arrays.npz", held("npz", "holds Python objects"))
def in_an_array_of_an_archive(canary):
    return payloads.object_arrays(call(canary))


@hostile("bundle.zip", held("zip", "which can run code"))
def in_a_zip_by_its_own_name(canary):
    return zipped({"inner/model.pkl": pickled(canary)})


@hostile("bundle.zip", held("zip", "begins as a pickle"))
def in_a_zip_by_another_name(canary):
    return zipped({"README.md": b"# Fine", "inner/notes.txt": pickled(canary)})


@hostile("bundle.zip", held("zip", "holds another archive"))
def in_a_zip_within_a_zip(canary):
    return zipped({"inner.zip": zipped({"model.pkl": pickled(canary)})})


@hostile("bundle.zip", held("zip", "holds another archive"))
def in_a_zip_within_a_zip_by_another_name(canary):
    return zipped({"photo.jpeg": zipped({"model.pkl": pickled(canary)})})


@hostile("bundle.tar", held("tar", "which can run code"))
def in_a_tar(canary):
    return tarred({"a/model.pkl": pickled(canary)})


@hostile("bundle.tar", held("tar", "begins as a pickle"))
def in_a_tar_by_another_name(canary):
    return tarred({"a/notes.txt": pickled(canary)})


@hostile("bundle.tar", held("tar", "holds another archive"))
def in_a_zip_within_a_tar(canary):
    return tarred({"inner.zip": zipped({"model.pkl": pickled(canary)})})


@hostile("bundle.tar.gz", kept("compressed", "not checked beyond its beginning"))
def in_a_compressed_tar(canary):
    return gzip.compress(tarred({"a/model.pkl": pickled(canary)}), mtime=0)


# --- Keras and others ----------------------------------------------------------------------------

LAMBDA = {
    "class_name": "Functional",
    "config": {"layers": [{"class_name": "Lambda", "config": {"function": ["4wEAAA==", None]}}]},
}


@hostile("model.keras", held("keras", "Python code"))
def a_keras_file_with_a_lambda():
    return zipped(
        {
            "metadata.json": b'{"keras_version": "3.3.3"}',
            "config.json": json.dumps(LAMBDA).encode(),
            "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        }
    )


@hostile("model.h5", held("hdf5", "Keras model can carry Python code"))
def an_hdf5_file_with_a_lambda():
    return b"\x89HDF\r\n\x1a\n" + bytes(2000) + b"model_config\0" + json.dumps(LAMBDA).encode()


@hostile("weights.bin", held("hdf5", "Keras model can carry Python code"))
def an_hdf5_file_behind_a_block_of_the_user():
    body = b"\x89HDF\r\n\x1a\n" + bytes(2000) + b"model_config\0"
    return b"\x01" + bytes(511) + body


@hostile("model.json", kept("json", "Lambda", verdict="safe"))
def a_description_with_a_lambda():
    return json.dumps(LAMBDA).encode()


@hostile("saved_model.pb", kept("saved-model", "read and write files"))
def a_graph_of_tensorflow():
    return b"\x08\x01\x12" + bytes(40)


@hostile("run", held("program", "never run"))
def a_program_for_linux():
    return b"\x7fELF\x02\x01\x01" + bytes(57)


@hostile("run.exe", held("program", "never run"))
def a_program_for_windows():
    return b"MZ\x90\0" + bytes(60)


@hostile("libweights.so", held("program", "never run"))
def a_library_for_linux():
    return b"\x7fELF\x02\x01\x01" + bytes(57)


@hostile("modeling.pyc", held("program", "never imported"))
def compiled_python():
    return b"\xa7\r\r\n" + bytes(12) + b"\xe3" + bytes(30)


@hostile("setup", held("program", "script"))
def a_script(canary):
    return b"#!/bin/sh\n" + canary.command.encode() + b"\n"


@hostile("modeling_evil.py", kept("python", "never imported or run"))
def the_source_of_a_model(canary):
    return canary.program.encode()


# --- By the name of something else ---------------------------------------------------------------


@hostile("model.safetensors", refused("a pickle file inside"))
def by_the_name_of_safetensors(canary):
    return pickled(canary)


@hostile("model.safetensors", refused("a torch-zip file inside"))
def a_checkpoint_by_the_name_of_safetensors(canary):
    return payloads.torch_zip(checkpoint(canary))


@hostile("model.gguf", refused("a pickle file inside"))
def by_the_name_of_gguf(canary):
    return pickled(canary)


@hostile("array.npy", refused("a pickle file inside"))
def by_the_name_of_an_array(canary):
    return pickled(canary)


@hostile("arrays.npz", refused("a torch-zip file inside"))
def a_checkpoint_by_the_name_of_arrays(canary):
    return payloads.torch_zip(checkpoint(canary))


@hostile("README.md", refused("a pickle file inside"))
def by_the_name_of_the_card(canary):
    return pickled(canary)


@hostile("README.md", refused("a pickle file inside"))
def by_the_name_of_the_card_in_letters(canary):
    return pickled(canary, 0)


@hostile("config.json", refused("a pickle file inside"))
def by_the_name_of_the_config(canary):
    return pickled(canary)


@hostile("train.csv", refused("a pickle file inside"))
def by_the_name_of_a_table(canary):
    return gzip.compress(pickled(canary), mtime=0)


@hostile("notes.txt", refused("a program file inside"))
def a_program_by_the_name_of_a_text():
    return b"\x7fELF\x02\x01\x01" + bytes(57)


@hostile("model.onnx", refused("a torch-zip file inside"))
def a_checkpoint_by_the_name_of_onnx(canary):
    return payloads.torch_zip(checkpoint(canary))


@hostile("model.keras", refused("a pickle file inside"))
def by_the_name_of_keras(canary):
    return pickled(canary)


@hostile("weights.pt", refused("a safetensors file inside"))
def safetensors_by_the_name_of_a_checkpoint():
    return samples.safetensors()


@hostile("rows.parquet", refused("a pickle file inside"))
def by_the_name_of_parquet(canary):
    return pickled(canary)


@hostile("rows.parquet", refused("cut short"))
def parquet_that_is_only_a_beginning():
    return b"PAR1" + b"\x15\xff" * 100


@hostile("rows.parquet", refused("longer than"))
def parquet_with_a_footer_longer_than_itself():
    return b"PAR1" + bytes(100) + struct.pack("<I", 1 << 31) + b"PAR1"
