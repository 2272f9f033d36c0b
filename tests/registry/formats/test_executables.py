"""Every way to wrap code that runs when a file is loaded, and the honest files that look alike."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import pickletools
import random
import struct
import tarfile
import zipfile
import zlib

import pytest

from registry.errors import Invalid
from registry.formats import SAFE_FORMATS, inspect, tars
from registry.formats.opcodes import walk_pickle
from tests.registry.formats import samples


def look(name, data):
    return inspect(name, len(data), lambda start, end: data[start:end])


def walk(data):
    return walk_pickle(len(data), lambda start, end: data[start:end])


def tarred(entries, *, form=tarfile.USTAR_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def lz4_frame(data, *, stored=False):
    """Write a frame of one block: stored, or literals alone, which is valid LZ4 too."""
    header = b"\x04\x22\x4d\x18" + b"\x40\x40\xc0"
    if stored:
        return header + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4)
    count = len(data)
    block = bytes([min(count, 15) << 4])
    if count >= 15:
        block += b"\xff" * ((count - 15) // 255) + bytes([(count - 15) % 255])
    block += data
    return header + struct.pack("<I", len(block)) + block + bytes(4)


def after_padding(length, payload):
    """Put a text before the call, so that the first window shows nothing."""
    return b"X" + struct.pack("<I", length) + b"a" * length + b"0" + payload


GLOBAL_CALL = b"cos\nsystem\n(S'true'\ntR."
RUNS = {
    "no mark, no end": ("unnamed", GLOBAL_CALL[:-1], "pickle"),
    "garbage after the call": ("weights.bin", GLOBAL_CALL[:-1] + b"\xff\xff", "pickle"),
    "something popped first": ("weights.bin", b"N0" + GLOBAL_CALL, "pickle"),
    "protocol 0 by its mark": ("weights.bin", b"\x80\0" + GLOBAL_CALL, "pickle"),
    "an instance": ("weights.bin", b"(S'true'\nios\nsystem\n.", "pickle"),
    "an object": ("weights.bin", b"(cos\nsystem\nS'true'\no.", "pickle"),
    "a new object": ("weights.bin", b"cos\nsystem\n)\x81.", "pickle"),
    "a state": ("weights.bin", b"ccollections\nOrderedDict\n)R}b.", "pickle"),
    "hexadecimal numbers": ("weights.bin", b"I0x10\n0" + GLOBAL_CALL, "pickle"),
    "a name put together": ("weights.bin", b"\x8c\x02os\x8c\x06system\x93(S'true'\ntR.", "pickle"),
    "an extension": ("weights.bin", b"\x82\x01(S'true'\ntR.", "pickle"),
    "behind a long text": ("weights.bin", after_padding(300_000, GLOBAL_CALL), "pickle"),
    "behind many steps": ("weights.bin", b"N0" * 30_000 + GLOBAL_CALL, "pickle"),
    "inside a pickle": ("x.pkl", pickle.dumps(samples.exploit(2)), "pickle"),
    "gzip": ("a.gz", gzip.compress(GLOBAL_CALL), "pickle"),
    "gzip of gzip": ("a.gz", gzip.compress(gzip.compress(samples.exploit())), "pickle"),
    "bz2 of xz": ("a.bz2", bz2.compress(lzma.compress(samples.exploit())), "pickle"),
    "compressed beyond count": (
        "a.gz",
        gzip.compress(gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"x"))))),
        "compressed",
    ),
    "gzip, behind a long text": (
        "a.gz",
        gzip.compress(after_padding(300_000, GLOBAL_CALL)),
        "pickle",
    ),
    "zlib of a small window": (
        "a.z",
        zlib.compress(samples.exploit(), wbits=9),
        "pickle",
    ),
    "lz4": ("a.lz4", lz4_frame(samples.exploit()), "pickle"),
    "lz4, stored": ("a.lz4", lz4_frame(samples.exploit(0), stored=True), "pickle"),
    "zstd": ("model.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "compressed"),
    "zstd by a pickle's name": ("model.pkl.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "compressed"),
    "rar": ("model.rar", b"Rar!\x1a\x07\x01\0", "compressed"),
    "old joblib": ("m.joblib", b"ZF0x1a               " + zlib.compress(b"x"), "joblib"),
    "torch in a tar": (
        "old.pt",
        tarred(dict.fromkeys(("sys_info", "pickle", "storages", "tensors"), b"x")),
        "torch-legacy",
    ),
    "a tar of pickles": ("a.tar", tarred({"a/model.pkl": b"x"}), "tar"),
    "a tar without magic": (
        "old",
        tarred({"pickle": b"", "storages": b""}).replace(b"ustar\x0000", bytes(8)),
        None,
    ),
    "torch for phones": ("m.ptl", samples.zipped({"m/bytecode.pkl": b""}), "torchscript"),
    "torch for phones, flat": ("m.ff", b"\x18\0\0\0PTMF" + bytes(30), "torchscript"),
    "keras": (
        "m.keras",
        samples.zipped({"config.json": b"", "metadata.json": b"", "model.weights.json": b""}),
        "keras",
    ),
    "a large HDF5": ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(3 << 20) + b"model_config", "hdf5"),
    "elf": ("run", b"\x7fELF" + bytes(20), "program"),
    "windows": ("run.exe", b"MZ\x90\0" + bytes(20), "program"),
    "mac": ("run", b"\xcf\xfa\xed\xfe" + bytes(20), "program"),
    "mac, 32 bits": ("run", b"\xfe\xed\xfa\xce" + bytes(20), "program"),
    "java": ("Run.class", b"\xca\xfe\xba\xbe\0\0\0\x34" + bytes(20), "program"),
    "web assembly": ("run.wasm", b"\0asm\x01\0\0\0", "program"),
    "a library of objects": ("lib.a", b"!<arch>\n\0\xff" + bytes(20), "program"),
    "compiled python": ("m.pyc", b"\xa7\r\r\n" + bytes(12) + b"\xe3" + bytes(9), "program"),
    "a script": ("run.sh", b"#!/bin/sh\nrm -rf /\n", "program"),
    "a script without a name": ("run", b"#!/usr/bin/env python3\nimport os\n", "program"),
    "a zip behind noise": (
        "m.dat",
        b"\x01\x02\x03" * 40 + samples.zipped({"m/data.pkl": b"", "m/version": b"3"}),
        "opaque",
    ),
}


PROGRAM = {"m/data.pkl": b"", "m/code/a.py": b"", "m/constants.pkl": b"", "m/version": b"3"}


def behind(head, entries=PROGRAM, *, tail=b""):
    """Write an archive behind other bytes, with offsets that count from the file's beginning."""
    out = io.BytesIO(head)
    with zipfile.ZipFile(out, "a") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue() + tail


def in_a_tensor(entries=PROGRAM):
    raw = samples.zipped(entries)
    return samples.safetensors({"w": ("U8", [len(raw)], raw)})


def without_count(data):
    """Claim no entries, but leave the directory's length: some readers go by that alone."""
    return data[:-14] + bytes(4) + data[-10:]


END = b"PK\x05\x06"
POLYGLOTS = {
    "something unknown": ("m.dat", behind(b"\x01\0")),
    "numbers, its offsets from where it begins": (
        "m.dat",
        b"\x01\0" * 99 + samples.zipped(PROGRAM),
    ),
    "safetensors, as a tensor": ("model.safetensors", in_a_tensor()),
    "onnx, in its metadata": (
        "model.onnx",
        samples.onnx(
            extra=samples.field(
                14, samples.field(1, "a") + samples.field(2, samples.zipped(PROGRAM))
            )
        ),
    ),
    "gzip": ("rows.csv.gz", behind(gzip.compress(b"a,b\n" * 99))),
    "hdf5": ("m.h5", behind(b"\x89HDF\r\n\x1a\n" + bytes(99))),
    "tar": ("a.tar", behind(tarred({"a.txt": b"x"}))),
    "text, far behind its beginning": ("notes.md", behind(b"words " * 12_000)),
    "json, far behind its beginning": ("big.json", behind(b"[" + b"1," * (3 << 20))),
    "python": ("modeling.py", behind(b"# words\n" * 9000)),
    "with more behind it": ("m.dat", behind(b"\x01\0", tail=b"x" * 40)),
    "with much more behind it": ("m.dat", behind(b"\x01\0", tail=b"x" * 69_000)),
    "with half an end behind it": ("m.dat", behind(b"\x01\0", tail=END)),
    "with an end of nothing behind it": ("m.dat", behind(b"\x01\0", tail=END + bytes(18))),
    "with false ends behind it": ("m.dat", behind(b"\x01\0", tail=(END + b"\x09" * 19) * 9)),
    "with very many ends behind it": ("m.dat", b"\x01\0" + (END + b"\x09" * 19) * 99),
    "with very many ends of nothing behind it": (
        "m.dat",
        behind(b"\x01\0", tail=(END + bytes(18)) * 99),
    ),
    "without a number of entries": ("m.dat", without_count(behind(b"\x01\0"))),
    "an archive of pickles": ("m.dat", behind(b"\x01\0", {"a/model.pkl": b""})),
}


@pytest.mark.parametrize("name", POLYGLOTS)
def test_an_archive_behind_any_format_counts(name):
    path, data = POLYGLOTS[name]
    facts = look(path, data)
    assert facts.executable
    assert any("hides behind" in finding.detail for finding in facts.findings)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("m.dat", behind(b"\x01\0", {"a.txt": b"x"})),
        ("m.dat", b"\x01\0" + END + bytes(18)),
        ("m.dat", b"\x01\0" + END + b"\x09" * 60),
        ("shard.tar", tarred({f"{n}.npz": samples.HONEST["arrays.npz"] for n in range(40)})),
        ("model.safetensors", in_a_tensor({"a.txt": b"x"})),
    ],
)
def test_an_archive_that_holds_nothing_that_runs_holds_nothing_back(path, data):
    assert not look(path, data).executable


def test_a_zip_file_has_one_directory_that_every_opener_finds():
    """One in front, read by some, and another right before the end, read by others."""
    outer = samples.zipped({"a.npy": samples.npy()})
    inner = samples.zipped({"b.npy": samples.npy("|O", (1,), samples.exploit())})
    at, locator = len(outer) - 22, b"PK\x06\x07" + struct.pack("<LQL", 0, len(outer) - 22, 1)
    larger = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 1, 1, 46, 9)
    for data in (
        outer + inner,
        outer[:-6] + struct.pack("<L", 0) + outer[-2:],
        outer[:at] + larger + locator + outer[at:],
        outer[:at] + locator + outer[at:],
    ):
        with pytest.raises(Invalid):
            look("arrays.npz", data)


def test_the_larger_record_of_an_archive_counts_where_there_is_one():
    """As torch writes it: beside a small record that says the same."""
    data = samples.zipped({"a.npy": samples.npy()})
    at = len(data) - 22
    length, offset = struct.unpack("<LL", data[-10:-2])
    larger = b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 1, 1, length, offset)
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, at, 1)
    assert look("arrays.npz", data[:at] + larger + locator + data[at:]).format == "npz"


@pytest.mark.parametrize("name", RUNS)
def test_what_runs_code_is_seen(name):
    path, data, kind = RUNS[name]
    if kind is None:
        data = without_magic(data)
        kind = "torch-legacy"
    facts = look(path, data)
    assert (facts.format, facts.executable) == (kind, True)
    assert facts.findings


def without_magic(data):
    """Write the checksums again after the magic was taken out."""
    fixed = bytearray(data)
    for start in range(0, len(fixed), 512):
        block = fixed[start : start + 512]
        if block.strip(b"\0"):
            block[148:156] = b" " * 8
            fixed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(fixed)


HARMLESS = {
    "words, one a line": ("words.txt", b"cat\ndog\nemu\nfox\n" * 200, "text"),
    "sentences": ("notes", b"cats are nice\nand soft\n(or so)\ntR.\n", "text"),
    "capital letters": ("notes", b"I like cats\nNobody likes Rats.\n", "text"),
    "a table in gzip": ("t.csv.gz", gzip.compress(b"text,label\nhello,1\n" * 9000), "compressed"),
    "a table in gzip that begins with X": (
        "t.gz",
        gzip.compress(b"Xylo,1\n" * 90_000),
        "compressed",
    ),
    "rows in zstd": ("t.jsonl.zst", b"\x28\xb5\x2f\xfd" + bytes(20), "compressed"),
    "a tar of texts": ("a.tar", tarred({"a/one.txt": b"x", "b/" + "n" * 90: b"y"}), "tar"),
    "a tar with long names": (
        "a.tar",
        tarred({"d/" * 60 + "one.txt": b"x"}, form=tarfile.GNU_FORMAT),
        "tar",
    ),
    "an HDF5 of numbers": ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(3 << 20), "hdf5"),
    "python": ("modeling.py", b"import torch\n", "python"),
    "python with its program": ("train.py", b"#!/usr/bin/env python\nimport torch\n", "python"),
    "a graph of TensorFlow": ("saved_model.pb", b"\x08\x01\x12\x05hello\xff", "saved-model"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_runs_nothing_is_no_pickle(name):
    path, data, kind = HARMLESS[name]
    facts = look(path, data)
    assert (facts.format, facts.executable) == (kind, False)
    if kind not in SAFE_FORMATS:
        assert facts.findings


@pytest.mark.parametrize(
    ("name", "data", "sign"),
    [
        ("config.json", b'{"auto_map": {"AutoModel": "modeling.Mine"}}', "auto_map"),
        ("tokenizer_config.json", b'{"a": {"auto_map": ["x", null]}}', "auto_map"),
        ("big.json", b'{"a": "' + b"x" * (5 << 20) + b'", "auto_map": 1}', "auto_map"),
        ("model.json", b'{"class_name": "Lambda"}', "Lambda"),
        ("conf.yaml", b"a: !!python/object/apply:os.system ['id']\n", "Python objects"),
        ("object.json", b'{"py/reduce": []}', "jsonpickle"),
    ],
)
def test_texts_that_ask_for_code_say_so(name, data, sign):
    facts = look(name, data)
    assert any(sign in finding.detail for finding in facts.findings)
    assert not facts.executable


def test_archives_say_that_they_are_never_unpacked():
    for data in (samples.zipped({"a.txt": b"x"}), tarred({"a.txt": b"x"})):
        assert "never unpacked" in look("a", data).findings[0].detail
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w") as archive:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("../../b"))
    findings = " ".join(map(str, look("a.tar", linked.getvalue()).findings))
    assert "holds a link" in findings
    assert "would land elsewhere" in findings


def test_headers_of_a_tar_are_counted_whatever_they_are():
    about = tarfile.TarInfo("x")
    about.type = tarfile.XHDTYPE
    data, reads = about.tobuf() * 20_000, []

    def read_and_count(start, end):
        reads.append(end - start)
        return data[start:end]

    facts = tars.read_tar(len(data), read_and_count)
    assert "Only the first 0 entries" in " ".join(map(str, facts.findings))
    assert len(reads) == tars.MAX_HEADERS
    # Long names take headers of their own, and cost no entry.
    names = ["d/" * 60 + f"{number}.txt" for number in range(tars.MAX_ENTRIES)]
    whole = look("a.tar", tarred(dict.fromkeys(names, b""), form=tarfile.GNU_FORMAT))
    assert whole.metadata["entries_count"] == tars.MAX_ENTRIES


@pytest.mark.parametrize("protocol", range(6))
def test_the_walk_names_what_a_pickle_imports(protocol):
    data = pickle.dumps([samples.Exploit(), {1: 2.5, "a": (b"x", None, True)}, 2**70], protocol)
    walked = walk(data)
    assert walked.whole
    assert walked.imports[0] in {"__builtin__.print", "builtins.print"}
    assert walked.calls_count >= 1
    assert walked.position == len(data)


def test_the_walk_agrees_with_the_machine_on_honest_pickles():
    chooser = random.Random(7)
    values = [chooser.choice([None, 1, -5, "text", b"bytes", 1.5, [], {}]) for _ in range(50)]
    for protocol in range(6):
        data = pickle.dumps(
            [values, tuple(values), {str(i): v for i, v in enumerate(values)}], protocol
        )
        walked = walk(data)
        assert walked.whole
        assert walked.steps_count == sum(1 for _ in pickletools.genops(data))


def test_the_walk_is_bounded():
    for data in (b"N" * 200_000, b"(" * 200_000, b"V" + b"x" * 9000, b"X" + b"\xff" * 90):
        walked = walk(data)
        assert walked.steps_count <= 20_000
        assert not walked.imports


def test_a_hidden_archive_that_cannot_be_read_may_be_anything():
    data = b"\x01\x02" * 50 + b"PK\x05\x06" + bytes(4) + b"\x09\0\x09\0" + bytes(10)
    assert look("m.dat", data).executable
    assert json.dumps(look("m.dat", data).to_json())


def test_noise_is_hardly_ever_taken_for_a_program():
    """Weights without a format of their own are noise; they must not be held because of a byte."""
    noise = random.Random(7)
    held = sum(look("weights.bin", noise.randbytes(300)).executable for _ in range(4000))
    assert held < 20
