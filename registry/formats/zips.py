"""Reads the directory of a zip file and tells what kind of file it is; nothing is unpacked."""

import stat
import struct
import zlib
from typing import NamedTuple

from registry.errors import Invalid, Text
from registry.formats.facts import Facts, ReadRange, Tensor, Tensors, malformed, plain
from registry.formats.npy import read_npy
from registry.formats.paths import check_path
from registry.formats.pickles import LOADS_CODE
from registry.formats.tars import NEVER_UNPACKED, content_risk, lands_elsewhere, name_risk

MAX_DIRECTORY_BYTES = 16 * 1024 * 1024
MAX_ENTRIES = 100_000
MAX_ARRAYS = 2000
MAX_ENDS = 16
# Each costs a read of the storage, which may be far away.
MAX_LOOKED_INTO = 100
# An archive that grows beyond both is pointed out.
BOMB_BYTES = 100 * 1024 * 1024
BOMB_FACTOR = 100
_PYTHON = Text("The archive is a Python program; it is kept but never run.")
_PROGRAM = Text("A TorchScript file is a program; it is kept but never loaded.")
_EXPORTED = Text("An exported program (.pt2) carries pickles; it is kept but never loaded.")
_KERAS = Text("A Keras file can carry Python code; it is kept but never loaded.")

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_END_MAGIC, _ENTRY_MAGIC, _LOCATOR_MAGIC = b"PK\x05\x06", b"PK\x01\x02", b"PK\x06\x07"
# How far from the end of a file an archive may end for an opener to find it: a comment's length,
# and the block or so that some look further (torch's reads 4 KiB at a time).
_TAIL_BYTES = 72 * 1024


class Entry(NamedTuple):
    """A file as the directory describes it."""

    name: str
    flags: int
    method: int
    compressed_bytes: int
    size_bytes: int
    offset: int
    # Where it ends at the earliest: its local header may be longer than is known from here.
    end: int
    unix_mode: int

    @property
    def is_encrypted(self) -> bool:
        return bool(self.flags & 1)


def read_zip(size: int, read: ReadRange) -> Facts:
    entries = list_entries(size, read)
    names = [entry.name for entry in entries]
    metadata = {"entries_count": len(entries)}
    findings = (*_name_findings(names), *_entry_findings(entries, size))
    kind, why = _kind(names)
    if kind == "npz":
        return _read_npz(entries, size, read, findings)
    if kind == "zip" and not why:
        why = _look_inside(entries, size, read)
    if why or kind == "zip":
        findings = (why, *findings) if why else (*findings, NEVER_UNPACKED)
    return Facts(format=kind, metadata=metadata, executable=bool(why), findings=findings)


def find_hidden_zip(size: int, read: ReadRange) -> tuple[int, int] | None:
    """Give where an archive begins and ends that an opener finds, whatever else is in the file.

    Openers look for its last record backwards from the end of the file, and most let anything
    follow it.

    Raises:
        Invalid: there are more such records than anybody means to have there.

    """
    tail_start = max(0, size - _TAIL_BYTES)
    tail = read(tail_start, size)
    at = len(tail)
    for _ in range(MAX_ENDS):
        # A record that is cut short is passed over.
        at = tail.rfind(_END_MAGIC, 0, max(0, min(at, len(tail) - _END.size) + len(_END_MAGIC)))
        if at < 0:
            return None
        count: int
        *_, count, length, offset, comment_bytes = _END.unpack_from(tail, at)
        end = tail_start + at
        closes = at + _END.size + comment_bytes == len(tail)
        if (count or length) and (closes or _leads_somewhere(end, length, offset, read)):
            return _beginning(end, length, offset, read), end + _END.size
        at -= len(_END_MAGIC)
    raise malformed("The file has more than {limit} ends of zip archives.", limit=MAX_ENDS)


def _leads_somewhere(end: int, length: int, offset: int, read: ReadRange) -> bool:
    """Tell the end of an archive from bytes that look like one: a directory, where one looks."""
    return (
        _has_locator(end, read)
        or _starts(_ENTRY_MAGIC, offset, end, read)
        or _starts(_ENTRY_MAGIC, end - length, end, read)
    )


def _beginning(end: int, length: int, offset: int, read: ReadRange) -> int:
    """Give what the offsets count from; 0, where that could be more than one place.

    The directory lies right before its end. Some openers count from what that makes the beginning,
    others always from that of the file.
    """
    beginning = end - length - offset
    if beginning < 0 or _has_locator(end, read) or _starts(_ENTRY_MAGIC, offset, end, read):
        return 0
    return beginning


def _has_locator(end: int, read: ReadRange) -> bool:
    return _starts(_LOCATOR_MAGIC, end - _END64_LOCATOR.size, end, read)


def _starts(magic: bytes, at: int, end: int, read: ReadRange) -> bool:
    return 0 <= at <= end - len(magic) and read(at, at + len(magic)) == magic


def list_entries(size: int, read: ReadRange) -> list[Entry]:
    count, directory_bytes, offset, end = _find_directory(size, read)
    if count > MAX_ENTRIES or directory_bytes > MAX_DIRECTORY_BYTES:
        raise malformed(
            "The zip file claims {count} entries; at most {limit} are read.",
            count=count,
            limit=MAX_ENTRIES,
        )
    if offset + directory_bytes > size:
        raise malformed("The zip directory lies beyond the file; the file is cut short.")
    if offset + directory_bytes != end:
        # Some readers go by the offset, others by what lies right before the end.
        raise malformed("The zip directory does not lie right before its end.")
    raw = read(offset, offset + directory_bytes)
    entries: list[Entry] = []
    position = 0
    while position < len(raw) and len(entries) < count:
        entry, position = _read_entry(raw, position)
        if entry.offset + entry.compressed_bytes > size:
            raise malformed("The zip entry {name!r} lies beyond the file.", name=entry.name[:80])
        entries.append(entry)
    if len(entries) != count or position != len(raw):
        # Some readers believe the number and others the length.
        raise malformed(
            "The zip directory has {found} entries, not {count} as it claims.",
            found=len(entries),
            count=count,
        )
    _check_apart(entries, offset)
    return entries


def _check_apart(entries: list[Entry], directory_at: int) -> None:
    """Require that no two entries share bytes, as those of a bomb do."""
    reached = 0
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset < reached:
            raise malformed(
                "The zip entry {name!r} overlaps the one before it.", name=entry.name[:80]
            )
        reached = entry.end
        if reached > directory_at:
            raise malformed("The zip entry {name!r} overlaps the directory.", name=entry.name[:80])


def _find_directory(size: int, read: ReadRange) -> tuple[int, int, int, int]:
    """Give how many entries there are, how long their directory is, where it begins and ends."""
    tail_start = max(0, size - 65_535 - _END.size)
    tail = read(tail_start, size)
    at = tail.rfind(_END_MAGIC)
    if at < 0 or at + _END.size > len(tail):
        raise malformed("The zip file has no directory at its end; the file is cut short.")
    _, disk, first_disk, _, count, length, offset, _ = _END.unpack_from(tail, at)
    # Where there is a larger record beside this one it counts, whatever stands here.
    if _has_locator(tail_start + at, read):
        found = _find_directory64(tail_start + at, size, read)
        _require_agreement((count, length, offset), found[:3])
        return found
    if 0xFFFF in {count, disk} or 0xFFFF_FFFF in {length, offset}:
        raise malformed("The zip64 directory is missing.")
    if disk or first_disk:
        raise malformed("The zip file is spread over several files.")
    return count, length, offset, tail_start + at


def _require_agreement(small: tuple[int, int, int], large: tuple[int, int, int]) -> None:
    """Refuse two ends for two readers: the small one says the same, or that it cannot."""
    largest = (0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)
    if any(
        says not in {most, meant} for says, most, meant in zip(small, largest, large, strict=True)
    ):
        raise malformed("The zip file has two ends, and they do not agree.")


def _find_directory64(end_at: int, size: int, read: ReadRange) -> tuple[int, int, int, int]:
    locator_at = end_at - _END64_LOCATOR.size
    _, _, at, _ = _END64_LOCATOR.unpack(read(locator_at, end_at))
    if at + _END64.size > size:
        raise malformed("The zip64 directory is missing.")
    fields = _END64.unpack(read(at, at + _END64.size))
    if fields[0] != b"PK\x06\x06" or at + _END64.size != locator_at:
        raise malformed("The zip64 directory is broken.")
    return fields[7], fields[8], fields[9], at


def _read_entry(raw: bytes, position: int) -> tuple[Entry, int]:
    if position + _ENTRY.size > len(raw):
        raise malformed("The zip directory is cut short.")
    fields = _ENTRY.unpack_from(raw, position)
    if fields[0] != _ENTRY_MAGIC:
        raise malformed("The zip directory is broken.")
    method, compressed, size = fields[4], fields[8], fields[9]
    name_bytes, extra_bytes, comment_bytes, offset = fields[10], fields[11], fields[12], fields[16]
    position += _ENTRY.size
    name = raw[position : position + name_bytes]
    extra = raw[position + name_bytes : position + name_bytes + extra_bytes]
    if 0xFFFF_FFFF in {compressed, size, offset}:
        size, compressed, offset = _zip64(extra, size, compressed, offset)
    following = position + name_bytes + extra_bytes + comment_bytes
    entry = Entry(
        name=plain(name)[:500],
        flags=fields[3],
        method=method,
        compressed_bytes=compressed,
        size_bytes=size,
        offset=offset,
        end=offset + _LOCAL.size + name_bytes + compressed,
        unix_mode=fields[15] >> 16,
    )
    return entry, following


def _zip64(extra: bytes, *values: int) -> list[int]:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        position += 4
        if kind == 1:
            numbers = extra[position : position + length]
            result = []
            for value in values:
                if value != 0xFFFF_FFFF:
                    result.append(value)
                elif len(numbers) >= 8:
                    result.append(int.from_bytes(numbers[:8], "little"))
                    numbers = numbers[8:]
                else:
                    break
            if len(result) == len(values):
                return result
        position += length
    raise malformed("A zip64 entry lacks its sizes.")


def _kind(names: list[str]) -> tuple[str, Text | None]:
    """Name the kind of archive, and why it may run code if it may."""
    found: tuple[str, Text | None]
    ends = {name.partition("/")[2] for name in names}
    ends.update(names)
    if "constants.pkl" in ends or any(end.startswith("code/") for end in ends):
        found = "torchscript", _PROGRAM
    elif not ends.isdisjoint({"archive_format", "serialized_exported_program.json"}):
        found = "pt2", _EXPORTED
    elif "bytecode.pkl" in ends:
        found = "torchscript", _PROGRAM
    elif "data.pkl" in ends:
        found = "torch-zip", LOADS_CODE
    elif {"config.json", "metadata.json"} <= set(names) and any(
        name.startswith("model.weights.") for name in names
    ):
        found = "keras", _KERAS
    elif names and all(name.endswith(".npy") for name in names):
        found = "npz", None
    elif why := name_risk(names):
        found = "zip", why
    elif "__main__.py" in names:
        found = "zip", _PYTHON
    else:
        found = "zip", None
    return found


def _name_findings(names: list[str]) -> tuple[Text, ...]:
    findings = []
    if len(set(names)) < len(names):
        findings.append(Text("The archive has two entries of one name."))
    for name in names:
        try:
            check_path(name.rstrip("/") or "/")
        except Invalid as refusal:
            findings.append(lands_elsewhere(refusal))
            break
    return tuple(findings)


def _entry_findings(entries: list[Entry], size: int) -> tuple[Text, ...]:
    findings = []
    if link := next((entry.name for entry in entries if stat.S_ISLNK(entry.unix_mode)), None):
        findings.append(Text("The archive holds a link, {name!r}.", name=link[:80]))
    total = sum(entry.size_bytes for entry in entries)
    if total > BOMB_BYTES and total > BOMB_FACTOR * size:
        findings.append(
            Text(
                "Unpacked the archive would have {total} bytes, {factor} times its size.",
                total=total,
                factor=total // size,
            )
        )
    return tuple(findings)


def _look_inside(entries: list[Entry], size: int, read: ReadRange) -> Text | None:
    """Say why an archive may run code though no name in it says so; the first entries are read."""
    if locked := next((entry for entry in entries if entry.is_encrypted), None):
        return Text(
            "The archive holds {name}, which is encrypted, and so may be anything.",
            name=locked.name[:80],
        )
    for entry in entries[:MAX_LOOKED_INTO]:
        if entry.method not in {0, zlib.DEFLATED}:
            return Text(
                "The archive holds {name}, which is compressed in a way that is not looked into, "
                "and so may be anything.",
                name=entry.name[:80],
            )
        if why := content_risk(entry.name, _entry_head(entry, size, read), entry.size_bytes):
            return why
    return None


def _read_npz(
    entries: list[Entry], size: int, read: ReadRange, findings: tuple[Text, ...]
) -> Facts:
    tensors: list[Tensor] = []
    executable = False
    for entry in entries[:MAX_ARRAYS]:
        if entry.is_encrypted:
            raise malformed("The array {name!r} of the file is encrypted.", name=entry.name[:80])
        head = _entry_head(entry, size, read)
        facts = read_npy(
            entry.size_bytes,
            lambda start, end, head=head: head[start:end],  # type: ignore[misc]
            name=entry.name.removesuffix(".npy"),
        )
        executable = executable or facts.executable
        tensors.extend(facts.tensors.items if facts.tensors else ())
        findings = (*findings, *(text for text in facts.findings if text not in findings))
    if len(entries) > MAX_ARRAYS:
        executable = True
        findings = (
            *findings,
            Text("Only the first {limit} arrays were checked.", limit=MAX_ARRAYS),
        )
    return Facts(
        format="npz",
        tensors=Tensors.of(tensors),
        metadata={"entries_count": len(entries)},
        executable=executable,
        findings=findings,
    )


def _entry_head(entry: Entry, size: int, read: ReadRange, limit: int = 12_000) -> bytes:
    """Give the first bytes of an entry, inflated when it is deflated."""
    local = read(entry.offset, min(size, entry.offset + _LOCAL.size))
    if len(local) < _LOCAL.size or not local.startswith(b"PK\x03\x04"):
        raise malformed(
            "The zip entry {name!r} is not where the directory says.", name=entry.name[:80]
        )
    fields = _LOCAL.unpack(local)
    start = entry.offset + _LOCAL.size + fields[9] + fields[10]
    raw = read(min(start, size), min(size, start + min(entry.compressed_bytes, limit)))
    if entry.method == 0:
        return raw
    if entry.method != zlib.DEFLATED:
        raise malformed(
            "The zip entry {name!r} is compressed in an unknown way.", name=entry.name[:80]
        )
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, limit)
    except zlib.error:
        raise malformed("The zip entry {name!r} is broken.", name=entry.name[:80]) from None
