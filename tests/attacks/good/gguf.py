"""GGUF files, written as its description has them."""

import struct

from tests.attacks.corpus import good
from tests.registry.formats.samples import text

FILE = "model.gguf"
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
# Number and bytes of a block, elements in it: as ggml has them.
TYPES = {
    "F32": (0, 4, 1),
    "F16": (1, 2, 1),
    "Q4_0": (2, 18, 32),
    "Q4_1": (3, 20, 32),
    "Q5_0": (6, 22, 32),
    "Q5_1": (7, 24, 32),
    "Q8_0": (8, 34, 32),
    "Q2_K": (10, 84, 256),
    "Q3_K": (11, 110, 256),
    "Q4_K": (12, 144, 256),
    "Q5_K": (13, 176, 256),
    "Q6_K": (14, 210, 256),
    "IQ4_NL": (20, 18, 32),
    "IQ4_XS": (23, 136, 256),
    "I8": (24, 1, 1),
    "I32": (26, 4, 1),
    "F64": (28, 8, 1),
    "BF16": (30, 2, 1),
    "MXFP4": (39, 17, 32),
    "NVFP4": (40, 36, 64),
    "Q1_0": (41, 18, 128),
}


def written(tensors, keys=(), *, alignment=32, version=3, filled=True):
    keys = [("general.architecture", STRING, text("llama")), *keys]
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    for key, kind, raw in keys:
        head += text(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, dtype, shape in tensors:
        number, block_bytes, block = TYPES[dtype]
        count = 1
        for size in shape:
            count *= size
        data += bytes(-len(data) % alignment)
        head += text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", number, len(data))
        data += bytes(count // block * block_bytes)
    if filled:
        data += bytes(-len(data) % alignment)
    return head + bytes(-len(head) % alignment) + data


def of_type(name):
    shape = [256, 2]

    @good("gguf", FILE, called=name, parameters=512, tensors={"w": [name, shape]})
    def make():
        return written([("w", name, shape)])


for one in TYPES:
    of_type(one)


@good("gguf", FILE, parameters=0, tensors={})
def words_alone():
    tokens = struct.pack("<IQ", STRING, 3) + text("<s>") + text("你") + text("")
    scores = struct.pack("<IQ", FLOAT32, 3) + bytes(12)
    return written(
        [],
        [("tokenizer.ggml.tokens", ARRAY, tokens), ("tokenizer.ggml.scores", ARRAY, scores)],
        filled=False,
    )


@good(
    "gguf", FILE, metadata={"a.u8": 7, "a.i64": -5, "a.f64": 0.5, "a.bool": True, "a.u64": 1 << 63}
)
def a_value_of_every_type():
    values = {
        "a.u8": (0, struct.pack("<B", 7)),
        "a.i8": (1, struct.pack("<b", -7)),
        "a.u16": (2, struct.pack("<H", 7)),
        "a.i16": (3, struct.pack("<h", -7)),
        "a.u32": (UINT32, struct.pack("<I", 7)),
        "a.i32": (INT32, struct.pack("<i", -7)),
        "a.f32": (FLOAT32, struct.pack("<f", float("nan"))),
        "a.bool": (BOOL, b"\x01"),
        "a.text": (STRING, text("文字")),
        "a.u64": (10, struct.pack("<Q", 1 << 63)),
        "a.i64": (11, struct.pack("<q", -5)),
        "a.f64": (12, struct.pack("<d", 0.5)),
    }
    return written([], [(key, kind, raw) for key, (kind, raw) in values.items()])


@good("gguf", FILE, metadata={"a.lists": "2 values"})
def lists_of_lists():
    inner = struct.pack("<IQ", STRING, 1) + text("x")
    return written([], [("a.lists", ARRAY, struct.pack("<IQ", ARRAY, 2) + inner * 2)])


@good("gguf", FILE, parameters=36)
def an_alignment_of_64():
    keys = [("general.alignment", UINT32, struct.pack("<I", 64))]
    tensors = [("a", "F32", [3]), ("b", "F16", [33])]
    return written(tensors, keys, alignment=64)


@good("gguf", FILE, parameters=33)
def an_end_that_is_not_filled_up():
    return written([("a", "F16", [33])], filled=False)


@good("gguf", FILE, parameters=4, metadata={"gguf.version": 2})
def version_2():
    return written([("a", "F32", [4])], version=2)


@good("gguf", FILE, parameters=1, tensors={"scale": ["F32", []]})
def a_scalar():
    return written([("scale", "F32", [])])


@good("gguf", FILE, parameters=8, tensors={"empty": ["F32", [0]], "w": ["F32", [8]]})
def an_empty_tensor():
    return written([("empty", "F32", [0]), ("w", "F32", [8])])


@good("gguf", FILE, parameters=2 * 256 + 2 * 32 + 3)
def layers_of_several_types():
    tensors = [("q", "Q4_K", [256, 2]), ("k", "Q8_0", [32, 2]), ("norm", "F32", [3])]
    return written(tensors)


@good("gguf", FILE, parameters=1000)
def a_thousand_tensors():
    return written([(f"blk.{number}.w", "I8", [1]) for number in range(1000)])


@good("gguf", FILE, finds="chat template")
def a_chat_template():
    return written([], [("tokenizer.chat_template", STRING, text("{{ messages }}"))])


@good("gguf", "weights.bin", parameters=4)
def by_a_name_that_promises_nothing():
    return written([("a", "F32", [4])])
