"""Reads the names in a tar file; nothing is unpacked."""

from collections.abc import Iterable

from registry.errors import Invalid, Text
from registry.formats.facts import Facts, ReadRange, malformed, plain
from registry.formats.paths import check_path
from registry.formats.pickles import LOADS_CODE, begins_as_pickle

BLOCK_BYTES = 512
# Each costs a read of the storage, which may be far away.
MAX_ENTRIES = 1000
# An entry has up to three more that only say more about it.
MAX_HEADERS = 4 * MAX_ENTRIES
NEVER_UNPACKED = Text("An archive; it is kept as it is and never unpacked here.")
CODE_ENDINGS = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".so", ".dll", ".class")
# Archives and what is packed like one: nobody here looks into one that lies in another.
ARCHIVE_ENDINGS = (
    *(".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".whl", ".egg", ".jar", ".nemo"),
    *(".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".keras", ".pt2", ".mar"),
)
# Arrays and documents are archives too, and usual among data.
_DATA_ENDINGS = (".npz", ".docx", ".xlsx", ".pptx", ".odt", ".ods", ".odp", ".epub", ".kmz")
_HEAD_BYTES = 4096
_CHECKSUM = slice(148, 156)
_LINKS = frozenset({b"1", b"2"})
_DEVICES = frozenset({b"3", b"4", b"6"})
_FILES = frozenset({b"0", b"\0", b"7"})
# Headers that only say more about the one that follows: long names and the like.
_ABOUT_THE_NEXT = frozenset({b"L", b"K", b"x", b"g"})
# The oldest files of torch.save: each of these entries is a pickle.
_TORCH_ENTRIES = frozenset({"sys_info", "pickle", "storages", "tensors"})


def looks_like_tar(head: bytes, _size: int) -> bool:
    """Tell a tar file by the checksum of its first header: the oldest ones have no magic."""
    block = head[:BLOCK_BYTES]
    if len(block) < BLOCK_BYTES or not block[0]:
        return False
    claimed = _octal(block[_CHECKSUM])
    return claimed is not None and claimed == _sum(block)


def read_tar(size: int, read: ReadRange) -> Facts:
    names: list[str] = []
    findings = [NEVER_UNPACKED]
    risk: Text | None = None
    position = headers = 0
    while position + BLOCK_BYTES <= size:
        if len(names) == MAX_ENTRIES or headers == MAX_HEADERS:
            findings.append(
                Text("Only the first {limit} entries were looked at.", limit=len(names))
            )
            break
        headers += 1
        block = read(position, position + BLOCK_BYTES)
        if not block.strip(b"\0"):
            break
        if _octal(block[_CHECKSUM]) != _sum(block):
            raise malformed(
                "The tar file has a broken header at byte {position}.", position=position
            )
        length = _length(block[124:136])
        if length is None or position + BLOCK_BYTES + length > size:
            raise malformed("The tar file is cut short after byte {position}.", position=position)
        kind = block[156:157]
        if kind not in _ABOUT_THE_NEXT:
            names.append(_name(block))
        if kind in _LINKS and len(findings) < 3:
            findings.append(Text("The archive holds a link, {name!r}.", name=names[-1][:80]))
        if kind in _DEVICES and len(findings) < 3:
            findings.append(Text("The archive holds a device, {name!r}.", name=names[-1][:80]))
        if kind in _FILES and length and not risk:
            start = position + BLOCK_BYTES
            head = read(start, start + min(length, _HEAD_BYTES))
            risk = content_risk(names[-1], head, length)
        position += BLOCK_BYTES + -(-length // BLOCK_BYTES) * BLOCK_BYTES
    return _judge(names, findings, risk)


def name_risk(names: Iterable[str]) -> Text | None:
    """Say why an archive with files of these names may run code, if it may."""
    for name in names:
        lower = name.lower()
        if lower.endswith(CODE_ENDINGS):
            return Text(
                "The archive holds {name}, which can run code as it is loaded.", name=name[:80]
            )
        if lower.endswith(ARCHIVE_ENDINGS):
            return _nested(name)
    return None


def content_risk(name: str, head: bytes, size: int) -> Text | None:
    """Say the same by the first bytes of one of its files."""
    if begins_as_pickle(head, size):
        return Text("The archive holds {name}, which begins as a pickle.", name=name[:80])
    if head.startswith(b"PK\x03\x04") and not name.lower().endswith(_DATA_ENDINGS):
        return _nested(name)
    return None


def _nested(name: str) -> Text:
    return Text(
        "The archive holds another archive, {name}, which is not looked into and may hold what "
        "runs code.",
        name=name[:80],
    )


def _judge(names: list[str], findings: list[Text], risk: Text | None) -> Facts:
    escape = _escape(names)
    if escape:
        findings.append(lands_elsewhere(escape))
    metadata = {"entries_count": len(names)}
    if len(_TORCH_ENTRIES & set(names)) >= 2 and "pickle" in names:
        return Facts(
            format="torch-legacy", executable=True, metadata=metadata, findings=(LOADS_CODE,)
        )
    why = name_risk(names) or risk
    if why is not None:
        findings.append(why)
    return Facts(
        format="tar", executable=why is not None, metadata=metadata, findings=tuple(findings)
    )


def lands_elsewhere(refusal: Invalid) -> Text:
    return Text("An entry would land elsewhere when unpacked: {reason}", reason=refusal)


def _escape(names: list[str]) -> Invalid | None:
    for name in names:
        try:
            check_path(name.removeprefix("./").rstrip("/") or "file")
        except Invalid as refusal:
            return refusal
    return None


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:262] == b"ustar" else b""
    return plain(b"/".join(part for part in (prefix, name) if part))


def _sum(block: bytes) -> int:
    return sum(block) - sum(block[_CHECKSUM]) + 8 * 32


def _octal(field: bytes) -> int | None:
    text = field.strip(b"\0 ")
    return int(text, 8) if text and not text.strip(b"01234567") else None


def _length(field: bytes) -> int | None:
    """Read a length: octal, or binary where the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return _octal(field) if field.strip(b"\0 ") else 0
