"""Builds small files of every format by hand, the honest ones that the tests then damage."""

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib


def safetensors(tensors=None, *, metadata=None, header=None, tail=b""):
    tensors = {"w": ("F32", [2, 3], bytes(24))} if tensors is None else tensors
    entries, data = {}, b""
    if metadata is not None:
        entries["__metadata__"] = metadata
    for name, (dtype, shape, raw) in tensors.items():
        span = [len(data), len(data) + len(raw)]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
        data += raw
    raw_header = json.dumps(entries).encode() if header is None else header
    return struct.pack("<Q", len(raw_header)) + raw_header + data + tail


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode()
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx_tensor(name="w", dtype=1, dims=(2, 3), raw=bytes(24), extra=b""):
    dims = b"".join(field(1, size) for size in dims)
    raw = b"" if raw is None else field(9, raw)
    return dims + field(2, dtype) + field(8, name) + raw + extra


def onnx_port(name, dtype, *dims):
    shape = b"".join(
        field(1, field(2, size) if isinstance(size, str) else field(1, size)) for size in dims
    )
    return field(1, name) + field(2, field(1, field(1, dtype) + field(2, shape)))


def onnx(*, initializers=None, nodes=(), opset=17, extra=b""):
    initializers = [onnx_tensor()] if initializers is None else initializers
    nodes = nodes or [field(4, "Add")]
    graph = b"".join(field(1, node) for node in nodes)
    graph += field(2, "main")
    graph += b"".join(field(5, tensor) for tensor in initializers)
    graph += field(11, onnx_port("x", 1, "batch", 3)) + field(12, onnx_port("y", 7, -1, 2))
    return (
        field(1, 8)
        + field(2, "by hand")
        + field(7, graph)
        + field(8, field(1, "") + field(2, opset))
        + field(14, field(1, "author") + field(2, "somebody"))
        + extra
    )


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(*, tensors=(("w", (32, 2), 8),), keys=None, version=3, cut=0):
    keys = (
        {
            "general.architecture": (8, text("llama")),
            "general.alignment": (4, struct.pack("<I", 32)),
            "tokens": (9, struct.pack("<IQ", 8, 2) + text("a") + text("b")),
            "scores": (9, struct.pack("<IQ", 6, 3) + bytes(12)),
            "eps": (6, struct.pack("<f", 1e-5)),
        }
        if keys is None
        else keys
    )
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for key, (kind, raw) in keys.items():
        out += text(key) + struct.pack("<I", kind) + raw
    for number, (name, shape, kind) in enumerate(tensors):
        out += text(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", size) for size in shape)
        out += struct.pack("<IQ", kind, number * 96)
    out += bytes(-len(out) % 32) + bytes(96 * len(tensors))
    return out[: len(out) - cut]


def myz_file(header, body=b"", *, version=1):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    packed = zlib.compress(raw)
    prefix = struct.pack("<3I", version, len(packed), len(raw))
    return b"\x93MYZ\r\n\x1a\n" + prefix + packed + body


def _myz_tensor(**changes):
    return {
        "name": "w",
        "dtype": "U8",
        "shape": [4],
        "places": "all",
        "values": "plain",
        "sha256": "0" * 64,
        "streams": {"values": ["raw", 4, 4]},
        **changes,
    }


def _myz_state(**changes):
    return {"kind": "state", "metadata": {"format": "pt"}, "tensors": [_myz_tensor(**changes)]}


def _myz_graph(*, at=2, **changes):
    return {
        "kind": "graph",
        "metadata": {},
        "graph": ["raw", 4, 4],
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", -1, 3]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": []}],
        "tensors": [
            _myz_tensor(at=at, **changes),
            {"name": "small", "dtype": "F32", "shape": [2]},
        ],
    }


def myz(body=b"abcd", **changes):
    """Code one tensor of four bytes, unless something else is said of it."""
    return myz_file(_myz_state(**changes), body)


def myz_graph(body=b"onnxabcd", **changes):
    """Code a graph of four bytes, with the four bytes of a tensor in its midst."""
    return myz_file(_myz_graph(**changes), body)


_SPARSE = {
    "shape": [40],
    "places": "gaps",
    "count": 2,
    "values": "codebook",
    "streams": {
        "gaps": ["raw", 2, 2],
        "codebook": ["raw", 1, 1],
        "values": ["huffman", 2, 1],
    },
}
MYZ_HEADERS = [
    (_myz_state(), b"abcd"),
    (_myz_graph(), b"onnxabcd"),
    (_myz_state(**_SPARSE), b"abcd"),
]


def npy(descr="<f4", shape=(2, 3), raw=bytes(24), version=1):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    width = 2 if version == 1 else 4
    prefix = b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(width, "little")
    return prefix + header + raw


def zipped(entries, *, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


class Exploit:
    def __reduce__(self):
        return print, ("this must never be printed",)


def exploit(protocol=4):
    return pickle.dumps(Exploit(), protocol)


HONEST = {
    "model.safetensors": safetensors(),
    "empty.safetensors": safetensors({}),
    "model.onnx": onnx(),
    "model.myz": myz(),
    "graph.myz": myz_graph(),
    "model.gguf": gguf(),
    "array.npy": npy(),
    "arrays.npz": zipped({"a.npy": npy(), "b.npy": npy("|u1", (4,), bytes(4))}),
    "stored.npz": zipped({"a.npy": npy()}, method=zipfile.ZIP_STORED),
    "config.json": b'{"architecture": {"name": "digits_cnn"}}',
    "README.md": b"---\nlicense: mit\n---\n# A model\n",
    "train.csv": b"text,label\nhello,1\n",
    "data.zip": zipped({"a/one.txt": b"x"}),
    "weights.pt": zipped({"archive/data.pkl": exploit(2), "archive/version": b"3"}),
    "model.pkl": exploit(),
    "compressed.joblib": gzip.compress(exploit(), mtime=0),
    "data.bin": bytes(range(256)),
    "LICENSE": b"Apache",
    "empty.txt": b"",
}
