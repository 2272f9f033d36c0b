"""Decides by the bytes what a file is, and lets the reader of that format check it."""

from collections.abc import Callable

from registry.errors import Text
from registry.formats import gguf, npy
from registry.formats.bounded_json import parse_json
from registry.formats.facts import Facts, ReadRange, malformed
from registry.formats.gguf import read_gguf
from registry.formats.npy import read_npy
from registry.formats.onnx import read_onnx
from registry.formats.pickles import LOADS_CODE, PEEK_BYTES, recognise_pickle
from registry.formats.safetensors import read_safetensors
from registry.formats.zips import read_zip

# Goes up when a reader learns to see more, so that old blobs are looked at again.
INSPECTOR = "headers-2"
MAX_JSON_BYTES = 4 * 1024 * 1024

_PICKLED = frozenset(
    {
        "pickle",
        "torch-legacy",
        "torch-zip",
        "torchscript",
        "pt2",
        "joblib",
        "zip",
        "tar",
        "compressed",
    }
)
_ZIPPED = frozenset({"zip", "npz", "torch-zip", "torchscript", "pt2", "keras"})
_TEXT = frozenset({"text", "opaque"})
# What may stand behind a name; endings that are not here promise nothing.
_ENDINGS: dict[str, frozenset[str]] = {
    "safetensors": frozenset({"safetensors"}),
    "onnx": frozenset({"onnx"}),
    "gguf": frozenset({"gguf"}),
    "npy": frozenset({"npy"}),
    "npz": frozenset({"npz"}),
    "keras": frozenset({"keras"}),
    "pt2": frozenset({"pt2", "torchscript"}),
    "zip": _ZIPPED,
    "json": frozenset({"json"}),
    "h5": frozenset({"hdf5"}),
    "hdf5": frozenset({"hdf5"}),
    "parquet": frozenset({"parquet"}),
    **dict.fromkeys(("pt", "pth", "pkl", "pickle", "joblib", "ckpt", "bin", "model"), _PICKLED),
    **dict.fromkeys(
        ("txt", "md", "csv", "tsv", "jsonl", "yaml", "yml", "py", "toml", "html", "xml"), _TEXT
    ),
}
_MAY_HOLD_ANYTHING = frozenset({"ckpt", "bin", "model"})
_ALWAYS_PICKLES = frozenset({"pkl", "pickle", "joblib"})
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PAR1", "parquet", ""),
    (257, b"ustar", "tar", ""),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5", "An HDF5 file can carry Keras code; it is never loaded."),
    (0, b"\x7fELF", "program", "A program or library; it is kept but never run."),
    (0, b"MZ", "program", "A program or library; it is kept but never run."),
    (0, b"\xcf\xfa\xed\xfe", "program", "A program or library; it is kept but never run."),
)


def inspect(name: str, size_bytes: int, read: ReadRange) -> Facts:
    """Read the header of a file; raise Invalid when it is malformed or not what its name says."""
    ending = _ending(name)
    head = read(0, min(size_bytes, PEEK_BYTES))
    facts = _by_bytes(ending, head, size_bytes, read)
    if ending in _ALWAYS_PICKLES and facts.format in {"opaque", "text", "compressed"}:
        facts = Facts(format="pickle", executable=True, findings=(LOADS_CODE,))
    _check_extension(name, facts.format)
    return facts


def _check_extension(name: str, kind: str) -> None:
    """Refuse a name whose ending promises another format than `kind`."""
    ending = _ending(name)
    allowed = _ENDINGS.get(ending)
    if allowed is None or ending in _MAY_HOLD_ANYTHING or kind in allowed:
        return
    if kind in {"opaque", "text"} and ending in {"pt", "pth"}:
        return
    raise malformed(
        "{name!r} is {found} inside, which its ending .{ending} denies; "
        "rename it, or upload the file that was meant.",
        name=name[-200:],
        found=_described(kind),
        ending=ending,
    )


def _by_bytes(ending: str, head: bytes, size: int, read: ReadRange) -> Facts:
    for is_it, reader in _READERS:
        if is_it(head, size):
            return reader(size, read)
    known = recognise_pickle(head) or _by_magic(head, size)
    if known is not None:
        return known
    # These have no magic of their own: the name asks for the check.
    if ending in _ASKED_FOR:
        return _ASKED_FOR[ending](size, read)
    return Facts(format="text" if _is_text(head, size) else "opaque")


def _by_magic(head: bytes, size: int) -> Facts | None:
    if _is_text(head, size):
        return None
    for offset, magic, name, why in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return Facts(format=name, executable=bool(why), findings=(why,) if why else ())
    return None


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    return (
        len(head) > 10
        and head[8:10] in {b'{"', b"{}", b"{ ", b"{\n"}
        and 2 <= int.from_bytes(head[:8], "little") <= size - 8
    )


def _read_json(size: int, read: ReadRange) -> Facts:
    if size > MAX_JSON_BYTES:
        head = read(0, 64).lstrip(b" \t\r\n\xef\xbb\xbf")
        if not head.startswith((b"{", b"[")):
            raise malformed("The JSON file does not begin with '{{' or '['.")
        return Facts(format="json", findings=("Too large to be checked as a whole.",))
    value = parse_json(read(0, size).removeprefix(b"\xef\xbb\xbf"), what=Text("The JSON file"))
    keys = sorted(key[:80] for key in value)[:100] if isinstance(value, dict) else []
    return Facts(format="json", metadata={"keys": keys} if keys else {})


def _is_text(head: bytes, size: int) -> bool:
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # The window may end inside a character.
        return len(head) < size and error.start >= len(head) - 3 and error.end == len(head)
    return True


def _ending(name: str) -> str:
    last = name.rpartition("/")[2]
    return last.rpartition(".")[2].lower() if "." in last else ""


def _described(kind: str) -> Text:
    if kind == "opaque":
        return Text("of no known format")
    return Text("plain text") if kind == "text" else Text("a {format} file", format=kind)


_READERS: tuple[tuple[Callable[[bytes, int], bool], Callable[[int, ReadRange], Facts]], ...] = (
    (lambda head, _: head.startswith(gguf.MAGIC) and b"\0" in head[4:8], read_gguf),
    (lambda head, _: head.startswith(npy.MAGIC), read_npy),
    (lambda head, _: head.startswith((b"PK\x03\x04", b"PK\x05\x06")), read_zip),
    (_looks_like_safetensors, read_safetensors),
)
_ASKED_FOR: dict[str, Callable[[int, ReadRange], Facts]] = {
    "safetensors": read_safetensors,
    "onnx": read_onnx,
    "gguf": read_gguf,
    "json": _read_json,
}
