"""Archives of data: kept as they are, and nothing in them held against them."""

import gzip
import io
import stat
import tarfile
import zipfile

from tests.attacks.corpus import good
from tests.registry.formats.samples import npy

TEXT, PICTURE = b"text,label\nhello,1\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(range(256))
KEPT = {"verdict": "opaque", "finds": "never unpacked"}


def zipped(entries, *, method=zipfile.ZIP_DEFLATED, comment=b"", **options):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method, **options) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
        archive.comment = comment
    return out.getvalue()


CONTENT = {
    "one table": {"train.csv": TEXT},
    "pictures in folders": {f"train/{n % 3}/{n}.png": PICTURE for n in range(50)},
    "names beyond ASCII": {"数据/训练.csv": TEXT, "naïve.txt": b"x"},
    "an empty file": {"empty.txt": b""},
    "folders of their own": {"a/": b"", "a/b/": b"", "a/b/c.txt": b"x"},
    "arrays": {"a.npz": zipped({"w.npy": npy()}), "b.csv": TEXT},
    "documents": {"report.docx": zipped({"word/document.xml": b"<a/>"}), "a.txt": b"x"},
    "compressed tables": {"a.csv.gz": gzip.compress(TEXT), "b.csv.gz": gzip.compress(TEXT)},
    "noise": {"weights.dat": bytes(range(256)) * 20},
    "a readme": {"README.md": b"# Data\n\nSome words.\n", "LICENSE": b"MIT"},
    "five thousand files": {f"{number:04}.txt": b"x" for number in range(5000)},
    "words that begin like opcodes": {"cats.txt": b"cats are nice\nand soft\n.", "X.txt": b"Xylo"},
}


def of_content(name, entries):
    @good("zip", "data.zip", called=f"{name}, deflated", **KEPT)
    def deflated():
        return zipped(entries)

    @good("zip", "data.zip", called=f"{name}, stored", **KEPT)
    def stored():
        return zipped(entries, method=zipfile.ZIP_STORED)

    @good("tar", "data.tar", called=name, **KEPT)
    def tarred():
        return written(entries)


def written(entries, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.size = len(data)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


for one in CONTENT.items():
    of_content(*one)


@good("zip", "data.zip", **KEPT)
def nothing():
    return zipped({})


@good("zip", "data.zip", **KEPT)
def a_comment():
    return zipped({"a.txt": b"x"}, comment="说明".encode() * 100)


@good("zip", "data.zip", **KEPT)
def the_larger_records():
    """Write as into a pipe: sizes behind the data, and room for large ones."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w") as archive,
        archive.open("a.txt", "w", force_zip64=True) as entry,
    ):
        entry.write(b"x" * 1000)
    return out.getvalue()


@good("zip", "data.zip", **KEPT)
def a_program_for_people_to_read():
    info = zipfile.ZipInfo("run.sh")
    info.external_attr = (stat.S_IFREG | 0o755) << 16
    return zipped({info: b"echo hello\n", "source.py": b"print(1)\n"})


@good("tar", "data.tar", **KEPT)
def names_of_gnu():
    return written({"a/" * 20 + "b" * 90 + ".txt": b"x"}, tarfile.GNU_FORMAT)


@good("tar", "data.tar", **KEPT)
def names_of_posix():
    return written({"a/" * 20 + "b" * 90 + ".txt": b"x"}, tarfile.USTAR_FORMAT)


@good("tar", "data.tar", **KEPT)
def names_beyond_what_a_header_holds():
    return written({"数" * 60 + ".txt": b"x"})
