"""Decides by the bytes what a file is, and lets the reader of that format check it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath

from registry.errors import Invalid, Text
from registry.formats import gguf, hdf5, myz, npy, parquet, programs
from registry.formats.bounded_json import parse_json
from registry.formats.facts import Facts, ReadRange, malformed
from registry.formats.gguf import read_gguf
from registry.formats.hdf5 import find_hdf5, read_hdf5
from registry.formats.myz import read_myz
from registry.formats.npy import read_npy
from registry.formats.onnx import read_onnx
from registry.formats.parquet import read_parquet
from registry.formats.pickles import LOADS_CODE, PEEK_BYTES, recognise_pickle
from registry.formats.remote_code import asks_for_code, find_remote_code, mentions_remote_code
from registry.formats.safetensors import read_safetensors
from registry.formats.tars import looks_like_tar, read_tar
from registry.formats.zips import find_hidden_zip, read_zip

# Goes up when a reader learns to see more, so that old blobs are looked at again.
GENERATION = 7
INSPECTOR = f"headers-{GENERATION}"
MAX_JSON_BYTES = 4 * 1024 * 1024
# What a reader here understands to the end, and what it cannot harm: numbers and plain text.
SAFE_FORMATS = frozenset(
    {"safetensors", "onnx", "myz", "gguf", "npy", "npz", "parquet", "json", "text"}
)

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
_TEXT = frozenset({"text", "opaque", "python"})
# What may stand behind a name; endings that are not here promise nothing.
_ENDINGS: dict[str, frozenset[str]] = {
    "safetensors": frozenset({"safetensors"}),
    "onnx": frozenset({"onnx"}),
    "myz": frozenset({"myz"}),
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
_ALWAYS_PICKLES = frozenset({"pkl", "pickle", "joblib", "dill"})
_SAVED_MODEL = Text(
    "A TensorFlow graph, whose operations can read and write files; it is never loaded."
)


def inspect(name: str, size_bytes: int, read: ReadRange) -> Facts:
    """Read the header of a file; raise Invalid when it is malformed or not what its name says."""
    ending = _ending(name)
    head = read(0, min(size_bytes, PEEK_BYTES))
    if size_bytes <= PEEK_BYTES:
        # The storage may be far away; all of it is here already.
        read = lambda start, end: head[start:end]  # noqa: E731
    facts = _by_bytes(name, head, size_bytes, read)
    if ending in _ALWAYS_PICKLES and facts.format in {"opaque", "text", "compressed"}:
        facts = Facts(format="pickle", executable=True, findings=(LOADS_CODE,))
    _check_extension(name, facts.format)
    if facts.executable or facts.format in _ZIPPED:
        return facts
    return _with_archive_behind(facts, size_bytes, read)


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


def _by_bytes(name: str, head: bytes, size: int, read: ReadRange) -> Facts:
    for is_it, reader in _READERS:
        if is_it(head, size):
            return reader(size, read)
    known = recognise_pickle(head, size, read, name=name) or _by_magic(name, head, size)
    if known is not None:
        return known
    # These have no magic of their own: the name asks for the check.
    ending = _ending(name)
    if ending in _ASKED_FOR:
        return _ASKED_FOR[ending](size, read)
    if not _is_text(head, size) and (start := find_hdf5(size, read)):
        return read_hdf5(size - start, lambda first, last: read(start + first, start + last))
    return _unknown(name, head, size)


def _by_magic(name: str, head: bytes, size: int) -> Facts | None:
    if head.startswith(b"#!"):
        return programs.PYTHON if _ending(name) == "py" else programs.SCRIPT
    if _is_text(head, size):
        return None
    return programs.recognise_program(head)


def _unknown(name: str, head: bytes, size: int) -> Facts:
    if _is_text(head, size):
        if _ending(name) in {"py", "pyw"}:
            return programs.PYTHON
        return Facts(format="text", findings=find_remote_code(head))
    if PurePosixPath(name).name == "saved_model.pb" or head.startswith(b"\x08\x01\x12"):
        return Facts(format="saved-model", findings=(_SAVED_MODEL,))
    return Facts(format="opaque")


def _with_archive_behind(facts: Facts, size: int, read: ReadRange) -> Facts:
    """Look at the end too: what opens zip files finds them from there, whatever stands before."""
    try:
        found = find_hidden_zip(size, read)
        if found is None:
            return facts
        base, limit = found
        hidden = read_zip(limit - base, lambda start, end: read(base + start, base + end))
    except Invalid as refusal:
        template = refusal.template
        hidden = Facts(format="zip", executable=True, findings=(Text(template, **refusal.values),))
    findings = tuple(
        Text("A zip archive hides behind other content. {finding}", finding=finding)
        for finding in hidden.findings
    )
    return replace(facts, executable=hidden.executable, findings=(*facts.findings, *findings))


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
        return Facts(
            format="json",
            findings=(
                Text("Too large to be checked as a whole."),
                *mentions_remote_code(size, read),
            ),
        )
    raw = read(0, size)
    value = parse_json(raw.removeprefix(b"\xef\xbb\xbf"), what=Text("The JSON file"))
    keys = sorted(key[:80] for key in value)[:100] if isinstance(value, dict) else []
    return Facts(
        format="json", metadata={"keys": keys} if keys else {}, findings=asks_for_code(value)
    )


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
    if kind == "python":
        return Text("Python source")
    return Text("plain text") if kind == "text" else Text("a {format} file", format=kind)


_READERS: tuple[tuple[Callable[[bytes, int], bool], Callable[[int, ReadRange], Facts]], ...] = (
    (lambda head, _: head.startswith(gguf.MAGIC) and b"\0" in head[4:8], read_gguf),
    (lambda head, _: head.startswith(myz.MAGIC), read_myz),
    (lambda head, _: head.startswith(npy.MAGIC), read_npy),
    (lambda head, _: head.startswith((b"PK\x03\x04", b"PK\x05\x06")), read_zip),
    (lambda head, _: head.startswith(hdf5.MAGIC), read_hdf5),
    (lambda head, size: head.startswith(parquet.MAGIC) and not _is_text(head, size), read_parquet),
    (_looks_like_safetensors, read_safetensors),
    (looks_like_tar, read_tar),
)
_ASKED_FOR: dict[str, Callable[[int, ReadRange], Facts]] = {
    "safetensors": read_safetensors,
    "onnx": read_onnx,
    "myz": read_myz,
    "gguf": read_gguf,
    "json": _read_json,
}
