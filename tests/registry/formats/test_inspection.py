"""What a file is, what it says, and the refusal that names what is wrong with it."""

import bz2
import gzip
import lzma
import struct
import zlib

import pytest

from registry.errors import Invalid
from registry.formats import inspect
from registry.formats.onnx import MAX_LISTED_FILES, read_onnx
from tests.registry.formats import samples


def look(name, data):
    return inspect(name, len(data), lambda start, end: data[start:end])


def refusal(name, data):
    with pytest.raises(Invalid) as error:
        look(name, data)
    assert error.value.reason == "malformed_file"
    return error.value.detail


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.safetensors", "safetensors"),
        ("empty.safetensors", "safetensors"),
        ("model.onnx", "onnx"),
        ("model.gguf", "gguf"),
        ("array.npy", "npy"),
        ("arrays.npz", "npz"),
        ("stored.npz", "npz"),
        ("config.json", "json"),
        ("README.md", "text"),
        ("train.csv", "text"),
        ("data.zip", "zip"),
        ("data.bin", "opaque"),
        ("LICENSE", "text"),
        ("empty.txt", "text"),
    ],
)
def test_honest_files(name, kind):
    facts = look(name, samples.HONEST[name])
    assert (facts.format, facts.executable) == (kind, False)
    assert facts.to_json()["format"] == kind


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("weights.pt", samples.HONEST["weights.pt"], "torch-zip"),
        ("renamed.dat", samples.HONEST["weights.pt"], "torch-zip"),
        ("model.pkl", samples.exploit(), "pickle"),
        ("old.pkl", samples.exploit(0), "pickle"),
        ("unnamed", samples.exploit(0), "pickle"),
        ("unnamed", samples.exploit(1), "pickle"),
        ("plain.pkl", b"(lp0\n.", "pickle"),
        ("model.bin", samples.exploit(2), "pickle"),
        ("a.joblib", gzip.compress(samples.exploit(), mtime=0), "pickle"),
        ("a.joblib", zlib.compress(samples.exploit()), "pickle"),
        ("a.bin", bz2.compress(samples.exploit()), "pickle"),
        ("a.bin", lzma.compress(samples.exploit()), "pickle"),
        ("a.bin", lzma.compress(samples.exploit(), lzma.FORMAT_ALONE), "pickle"),
        (
            "legacy.pt",
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
            "torch-legacy",
        ),
        ("script.pt", samples.zipped({"m/data.pkl": b"", "m/code/a.py": b""}), "torchscript"),
        ("program.pt2", samples.zipped({"m/archive_format": b"pt2", "m/data.pkl": b""}), "pt2"),
        (
            "model.keras",
            samples.zipped({"config.json": b"", "metadata.json": b"", "model.weights.h5": b""}),
            "keras",
        ),
        ("objects.npy", samples.npy("|O", (1,), samples.exploit()), "npy"),
        ("fields.npy", samples.npy([("a", "<f4"), ("b", "|O")], (1,), b""), "npy"),
        ("objects.npz", samples.zipped({"a.npy": samples.npy("|O", (1,), b"x" * 9)}), "npz"),
        ("archive.zip", samples.zipped({"inner/model.pkl": b""}), "zip"),
        ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(8) + b"model_config", "hdf5"),
        ("library.so", b"\x7fELF" + bytes(20), "program"),
    ],
)
def test_files_that_may_run_code_are_seen_as_such(name, data, kind, capsys):
    facts = look(name, data)
    assert (facts.format, facts.executable) == (kind, True)
    assert facts.findings
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("model.safetensors", samples.exploit(), "a pickle file"),
        ("model.safetensors", samples.exploit(0), "a pickle file"),
        ("model.safetensors", samples.HONEST["weights.pt"], "a torch-zip file"),
        ("model.onnx", samples.exploit(), "a pickle file"),
        ("model.onnx", gzip.compress(samples.exploit(), mtime=0), "a pickle file"),
        ("README.md", samples.exploit(), "a pickle file"),
        ("config.json", samples.HONEST["model.safetensors"], "a safetensors file"),
        ("array.npy", samples.HONEST["model.gguf"], "a gguf file"),
        ("model.gguf", samples.HONEST["array.npy"], "a npy file"),
        ("notes.txt", b"\x7fELF" + bytes(20), "a program file"),
        ("model.npz", samples.HONEST["weights.pt"], "a torch-zip file"),
        ("weights.pt", samples.HONEST["model.safetensors"], "a safetensors file"),
    ],
)
def test_a_name_that_denies_its_bytes_is_refused(name, data, kind):
    assert f"is {kind} inside" in refusal(name, data)


def test_text_may_begin_like_a_magic_number():
    for text in (
        b"GGUF is a format.",
        b"MZ,intensity\n1,2\n",
        b"PAR1 of many",
        b"xylophone\n",
        b".",
    ):
        assert look("notes.txt", text).format == "text"
    assert look("cats.txt", b"cats are nice\nand soft\n.").executable is False
    assert look("wide.txt", ("a" * 65_535 + "€" * 9).encode()).format == "text"


def test_safetensors_facts():
    data = samples.safetensors(
        {
            "embed": ("BF16", [4, 2], bytes(16)),
            "scale": ("F32", [], bytes(4)),
            "none": ("I64", [0, 7], b""),
        },
        metadata={"format": "pt"},
    )
    facts = look("a/model.safetensors", data).to_json()
    assert facts["parameters_count"] == 9
    assert facts["metadata"] == {"format": "pt"}
    assert facts["tensors"]["dtypes"] == {"BF16": 8, "F32": 1, "I64": 0}
    assert facts["tensors"]["items"][0] == {"name": "embed", "dtype": "BF16", "shape": [4, 2]}


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def lying(**tensors):
    import json  # noqa: PLC0415

    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "shorter than the 8 bytes"),
        (struct.pack("<Q", 2**63), "claims 9223372036854775808 bytes"),
        (struct.pack("<Q", 500) + b"{}", "is cut short"),
        (struct.pack("<Q", 4) + b"[{}]", "does not begin with '{'"),
        (samples.safetensors()[:-1], "end at byte 24 of 23"),
        (samples.safetensors(tail=b"x"), "end at byte 24 of 25"),
        (samples.safetensors(header=b'{"a": 1, "a": 2}'), "stands twice"),
        (samples.safetensors(header=b'{"a":' * 9 + b"1" + b"}" * 9), "nested deeper"),
        (samples.safetensors(header=b'{"a": NaN}'), "NaN is not a JSON number"),
        (samples.safetensors(header=b'{"a\\u0000": 1}'), "U+0000"),
        (samples.safetensors(header=b'{"\\ud800": 1}'), "half a character"),
        (samples.safetensors(header=b'{"a": \xff}'), "not UTF-8"),
        (samples.safetensors(header=b'{"a": 1'), "not valid JSON"),
        (samples.safetensors(header=b'{"a": 1' + b"0" * 5000 + b"}"), "not valid JSON"),
        (lying(__metadata__={"a": 1}, w=entry()), "must map text to text"),
        (lying(w={"dtype": "F32"}), "must have exactly"),
        (lying(w=entry("F99")), "unknown dtype 'F99'"),
        (lying(w=entry(["F32"])), "unknown dtype"),
        (lying(w=entry(shape=[-1])), "no short list of sizes"),
        (lying(w=entry(shape=[True])), "no short list of sizes"),
        (lying(w=entry(shape=[1.0])), "no short list of sizes"),
        (lying(w=entry(offsets=[0])), "not two byte positions"),
        (lying(w=entry(shape=[2])), "needs 8 bytes but its data_offsets span 4"),
        (lying(w=entry(shape=[2**62, 2**62])), "bytes but its data_offsets span 4"),
        (lying(w=entry("F4", [1], [0, 1])), "needs 0.5 bytes"),
        (lying(w=entry("U8", [2], [2, 4])), "leaves a gap"),
        (lying(a=entry("U8", [3], [0, 3]), b=entry("U8", [2], [2, 4])), "overlaps"),
    ],
)
def test_a_lying_safetensors_header_is_named(data, reason):
    assert reason in refusal("model.safetensors", data)


def test_onnx_facts():
    facts = look("model.onnx", samples.onnx()).to_json()
    assert facts["parameters_count"] == 6
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]
    assert facts["outputs"] == [{"name": "y", "dtype": "int64", "shape": [-1, 2]}]
    assert facts["metadata"]["opset"] == 17
    assert facts["metadata"]["producer_name"] == "by hand"
    assert facts["metadata"]["metadata.author"] == "somebody"


def test_onnx_weights_elsewhere_and_strange_operators_are_findings():
    outside = samples.onnx_tensor(
        raw=None,
        extra=samples.field(13, samples.field(1, "location") + samples.field(2, "w.data"))
        + samples.field(14, 1),
    )
    facts = look(
        "m.onnx", samples.onnx(initializers=[outside], nodes=[samples.field(7, "my.domain")])
    )
    assert facts.parameters_count == 6
    assert "w.data" in facts.findings[0].detail
    assert facts.metadata["external"] == {"count": 1, "paths": ["w.data"]}
    assert "my.domain" in facts.findings[1].detail


def test_of_very_many_files_beside_a_graph_the_first_are_listed():
    weights = [outside(f"{number}.data") for number in range(MAX_LISTED_FILES + 1)]
    said = look("m.onnx", samples.onnx(initializers=weights)).metadata["external"]
    assert said["count"] == MAX_LISTED_FILES + 1
    assert len(said["paths"]) == MAX_LISTED_FILES


def nested_graphs(depth):
    graph = samples.field(2, "inner")
    for _ in range(depth):
        graph = samples.field(1, samples.field(5, samples.field(6, graph)))
    return graph


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "lacks its version"),
        (b"hello world, this is no model", "ONNX file"),
        (samples.onnx()[:-3], "cut short"),
        (samples.onnx() + b"\0", "broken field"),
        (samples.onnx(opset=0), "no sensible version"),
        (samples.onnx(extra=samples.field(1, 0)), "no sensible IR version"),
        (samples.onnx(extra=samples.field(99, b"x")), "unknown field 99"),
        (samples.onnx(extra=samples.field(7, b"")), "its graph"),
        (samples.onnx(extra=b"\xff" * 11), "broken number"),
        (samples.onnx(extra=b"\x0b"), "broken field"),
        (samples.onnx(extra=samples.field(2, 7)), "is no text"),
        (samples.onnx(initializers=[samples.onnx_tensor(raw=bytes(23))]), "needs 24 bytes"),
        (samples.onnx(initializers=[samples.onnx_tensor(dtype=99)]), "no sensible type"),
        (samples.onnx(initializers=[samples.onnx_tensor(dims=(-1,))]), "no sensible type"),
        (samples.onnx(nodes=[nested_graphs(12)[2:]]), "nested too deep"),
        (
            samples.onnx(
                initializers=[
                    samples.onnx_tensor(
                        raw=None,
                        extra=samples.field(
                            13, samples.field(1, "location") + samples.field(2, "../../etc/passwd")
                        ),
                    )
                ]
            ),
            "outside its folder",
        ),
    ],
)
def test_a_lying_onnx_file_is_named(data, reason):
    assert reason in refusal("model.onnx", data)


def outside(location="/etc/passwd", dims=(2, 3)):
    where = samples.field(1, "location") + samples.field(2, location)
    extra = samples.field(13, where) + samples.field(14, 1)
    return samples.onnx_tensor(raw=None, dims=dims, extra=extra)


def sparse_weights():
    return samples.field(15, samples.field(1, outside()))


def in_a_node(attribute):
    return samples.field(4, "Constant") + samples.field(5, samples.field(1, "value") + attribute)


@pytest.mark.parametrize(
    "data",
    [
        samples.onnx(nodes=[in_a_node(samples.field(5, outside()))]),
        samples.onnx(nodes=[in_a_node(samples.field(22, samples.field(1, outside())))]),
        samples.onnx(nodes=[in_a_node(samples.field(23, samples.field(2, outside())))]),
        samples.onnx(nodes=[samples.field(5, samples.field(6, sparse_weights()))]),
        samples.onnx(
            extra=samples.field(25, samples.field(7, in_a_node(samples.field(5, outside()))))
        ),
        samples.onnx(extra=samples.field(20, samples.field(2, samples.field(5, outside())))),
    ],
)
def test_onnx_weights_outside_the_folder_are_found_wherever_they_hide(data):
    assert "outside its folder" in refusal("model.onnx", data)


@pytest.mark.parametrize(
    "location", ["/".join(["a" * 200] * 5) + "/.." * 9 + "/etc/passwd", b"a/\xff", "a\0b", ""]
)
def test_onnx_weights_may_lie_only_where_a_file_can_be(location):
    data = samples.onnx(initializers=[outside(location)])
    assert "outside its folder" in refusal("model.onnx", data)


def test_dimensions_of_onnx_weights_are_counted_as_they_come():
    endless = samples.onnx_tensor(dims=(), extra=samples.field(1, b"\1" * 4000) * 1000)
    data, read = samples.onnx(initializers=[endless]), []

    def read_and_note(start, end):
        read.append(end - start)
        return data[start:end]

    with pytest.raises(Invalid, match="more than 64 dimensions"):
        read_onnx(len(data), read_and_note)
    assert sum(read) < len(data) / 10
    assert "more than 64" in refusal("m.onnx", samples.onnx(initializers=[flat(65)]))
    assert look("m.onnx", samples.onnx(initializers=[flat(64)])).format == "onnx"


def flat(dimensions):
    """Write a weight of one element, whose dimensions come one a field."""
    return samples.onnx_tensor(dims=(1,) * dimensions, raw=bytes(4))


def test_onnx_weights_elsewhere_cannot_claim_more_than_a_number_holds():
    huge = samples.onnx(initializers=[outside("w.data", dims=(1 << 40, 1 << 40))])
    assert "elements" in refusal("model.onnx", huge)


# A step for the reader each, and hardly a byte.
EMPTY_TEXTS = struct.pack("<IQ", 8, 800_000) + bytes(8 * 800_000)


def test_gguf_facts():
    facts = look("m.gguf", samples.gguf()).to_json()
    assert facts["parameters_count"] == 64
    assert facts["tensors"]["items"] == [{"name": "w", "dtype": "Q8_0", "shape": [32, 2]}]
    assert facts["metadata"]["general.architecture"] == "llama"
    assert facts["metadata"]["tokens"] == "2 values"
    template = {"tokenizer.chat_template": (8, samples.text("{{ x }}"))}
    assert "chat template" in look("m.gguf", samples.gguf(keys=template)).findings[0].detail


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (samples.gguf(version=1), "unknown version 1"),
        (samples.gguf(cut=40), "beyond the file"),
        (samples.gguf()[:60], "ends too early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1152921504606846976 tensors"),
        (samples.gguf(keys={"a": (77, b"")}), "unknown value type 77"),
        (samples.gguf(keys={"a": (9, struct.pack("<IQ", 8, 2**50))}), "claims 1125899906842624"),
        (samples.gguf(keys={"a": (9, struct.pack("<IQ", 6, 2**50))}), "ends too early"),
        (samples.gguf(keys={"a": (9, struct.pack("<IQ", 9, 1) * 9)}), "nested too deep"),
        (
            samples.gguf(keys={"general.alignment": (4, struct.pack("<I", 0))}),
            "alignment is out of bounds",
        ),
        (samples.gguf(tensors=[("w", (31, 2), 8)]), "no multiple of 32"),
        (samples.gguf(tensors=[("w", (32,), 99)]), "unknown type 99"),
        (samples.gguf(tensors=[("w", (1,) * 9, 0)]), "claims 9 dimensions"),
        (samples.gguf(tensors=[("a", (32, 3), 8), ("b", (32, 2), 8)]), "overlaps"),
        (samples.gguf(tensors=[("w", (2**62,), 0)]), "beyond the file"),
        (samples.gguf(keys=dict.fromkeys("ab", (9, EMPTY_TEXTS))), "too many values"),
    ],
)
def test_a_lying_gguf_file_is_named(data, reason):
    assert reason in refusal("m.gguf", data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (samples.npy(version=9), "unknown version 9"),
        (samples.npy(raw=bytes(23)), "needs 24 bytes and 23 follow"),
        (samples.npy(shape=(-1,)), "no short tuple"),
        (samples.npy(shape=[1]), "no short tuple"),
        (samples.npy("<q9x"), "unknown dtype"),
        (samples.npy()[:30], "cut short"),
        (b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31), "claims 2147483648 bytes"),
        (b"\x93NUMPY\x01\0" + struct.pack("<H", 5) + b"print", "no plain Python literal"),
        (b"\x93NUMPY\x01\0" + struct.pack("<H", 9000) + b"(" * 9000, "no plain Python literal"),
        (b"\x93NUMPY\x01\0" + struct.pack("<H", 2) + b"{}", "must have exactly"),
    ],
)
def test_a_lying_npy_file_is_named(data, reason):
    assert reason in refusal("a.npy", data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (samples.HONEST["data.zip"][:-4], "no directory"),
        (b"PK\x03\x04" + bytes(100), "no directory"),
        (samples.HONEST["data.zip"].replace(b"PK\x01\x02", b"PK\x01\x03"), "directory is broken"),
        (samples.HONEST["data.zip"][:-10] + b"\xff\xff\xff\x7f" * 2 + bytes(2), "claims"),
    ],
)
def test_a_lying_zip_file_is_named(data, reason):
    assert reason in refusal("data.zip", data)


def test_npz_is_checked_array_by_array():
    facts = look("a.npz", samples.HONEST["arrays.npz"]).to_json()
    assert [item["name"] for item in facts["tensors"]["items"]] == ["a", "b"]
    assert "needs 24 bytes" in refusal("a.npz", samples.zipped({"a.npy": samples.npy(raw=b"")}))


def test_zip_entries_that_would_escape_are_a_finding():
    facts = look("data.zip", samples.zipped({"../../etc/cron.d/x": b""}))
    assert "would land elsewhere" in facts.findings[0].detail


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "nested deeper than 64"),
        (b'"' + b'\\"' * 50_000, "not valid JSON"),
        (b'{"a": 1, "a": 1}', "stands twice"),
        (b'{"a": Infinity}', "not a JSON number"),
        (b'{"a": -1e999}', "too large"),
        (b" " * (4 << 20) + b"x", "does not begin with"),
    ],
)
def test_broken_json_is_named(data, reason):
    assert reason in refusal("config.json", data)


def test_large_json_is_looked_at_only_where_it_begins():
    assert look("tokenizer.json", b'{"a": "' + b"x" * (4 << 20) + b'"}').findings


def test_facts_fit_in_the_database_whatever_the_names():
    data = samples.onnx(initializers=[samples.onnx_tensor(name="a\0b" * 400)])
    name = look("m.onnx", data).to_json()["tensors"]["items"][0]["name"]
    assert "\0" not in name
    assert len(name) <= 500


def test_known_bytes_under_a_new_name_are_checked_again():
    data = samples.safetensors()
    assert look("copy.safetensors", data).format == "safetensors"
    assert look("weights.bin", data).format == "safetensors"
    with pytest.raises(Invalid, match="denies"):
        look("copy.csv", data)
