"""Archives that lie about what they hold, that grow without end, or that reach elsewhere."""

import io
import stat
import struct
import tarfile
import zipfile
import zlib

from tests.attacks.corpus import held, hostile, kept, refused
from tests.registry.formats.samples import npy, zipped
from tests.workers import hostile as payloads

NOTHING_BUT_LIES = b"PK\x03\x04" + bytes(26)


def end(count, length, offset, comment=b""):
    return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, length, offset, len(comment))


def locator(at):
    return struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)


def end64(count, length, offset):
    return struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, offset)


def entry(name, *, offset=0, size=0, compressed=0, flags=0, method=0, extra=b"", attributes=0):
    """Write a line of the directory."""
    head = struct.pack("<4s6H3L", b"PK\1\2", 0x314, 20, flags, method, 0, 0, 0, compressed, size)
    rest = struct.pack("<5H2L", len(name), len(extra), 0, 0, 0, attributes, offset)
    return head + rest + name + extra


def local(name, data, *, method=0, size=None, flags=0):
    head = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 20, flags, method, 0, 0, 0, len(data), size or 0, 0, 0
    )
    return head[:26] + struct.pack("<HH", len(name), 0) + name + data


def archive(files, directory):
    """Put what the directory says behind what is really there."""
    return files + directory + end(directory.count(b"PK\1\2"), len(directory), len(files))


@hostile("data.zip", refused("no directory at its end"))
def a_beginning_without_an_end():
    return NOTHING_BUT_LIES + b"x" * 1000


@hostile("data.zip", refused("the file is cut short"))
def an_archive_cut_short():
    return zipped({"a.txt": b"x" * 1000})[:-10]


@hostile("data.zip", refused("lies beyond the file"))
def a_directory_beyond_the_file():
    return NOTHING_BUT_LIES + end(1, 46, 1 << 30)


@hostile("data.zip", refused("not 65000 as it claims"))
def more_entries_than_the_directory_has():
    return NOTHING_BUT_LIES + entry(b"a") + end(65_000, 47, 30)


@hostile("data.zip", refused("at most 100000 are read"))
def zip64_with_countless_entries():
    record = end64((1 << 64) - 1, 1 << 60, 0)
    # It claims more than is ever read, so where it lies does not matter.
    return NOTHING_BUT_LIES + record + locator(30) + end(0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)


@hostile("data.zip", refused("zip64 directory is missing"))
def zip64_that_points_beyond_the_file():
    return NOTHING_BUT_LIES + locator(1 << 62) + end(0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)


@hostile("data.zip", refused("zip64 directory is broken"))
def zip64_that_points_at_something_else():
    return b"PK\3\4" + bytes(56) + locator(4) + end(0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)


@hostile("data.zip", refused("zip64 directory is missing"))
def zip64_that_is_not_there():
    return NOTHING_BUT_LIES + end(0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF)


@hostile("weights.pt", refused("two ends, and they do not agree"))
def zip64_for_torch_and_zip_for_us():
    """Python follows the end of zip64 wherever there is one."""
    shown, taken = local(b"a.txt", b"x"), local(b"m/data.pkl", b"x")
    rows = entry(b"m/data.pkl", compressed=1, offset=len(shown))
    body = shown + taken + entry(b"a.txt", compressed=1)
    record = end64(1, len(rows), len(body))
    return body + rows + record + locator(len(body) + len(rows)) + end(1, 51, len(shown + taken))


@hostile("data.zip", refused("zip64 entry lacks its sizes"))
def an_entry_of_zip64_without_its_sizes():
    return archive(local(b"a", b"x"), entry(b"a", size=0xFFFF_FFFF, compressed=0xFFFF_FFFF))


@hostile("data.zip", refused("'a' lies beyond the file"))
def an_entry_of_zip64_of_exabytes():
    extra = struct.pack("<HHQQ", 1, 16, 1 << 62, 1 << 62)
    row = entry(b"a", size=0xFFFF_FFFF, compressed=0xFFFF_FFFF, extra=extra)
    return archive(local(b"a", b"x"), row)


@hostile("data.zip", refused("'a' lies beyond the file"))
def an_entry_longer_than_the_file():
    return archive(local(b"a", b"x"), entry(b"a", compressed=1 << 30))


@hostile("data.zip", refused("overlaps"))
def a_bomb_whose_entries_share_their_bytes():
    """Fifield's: one kernel of deflated noughts that every entry counts as its own."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = packer.compress(bytes(1 << 20)) + packer.flush()
    body = local(b"a", kernel, method=8, size=1 << 20)
    rows = b"".join(
        entry(b"%d" % number, method=8, compressed=len(kernel), size=1 << 20)
        for number in range(1000)
    )
    return archive(body, rows)


@hostile("data.zip", refused("overlaps"))
def an_entry_that_lies_within_another():
    inner = local(b"b", b"hidden")
    return archive(
        local(b"a", inner),
        entry(b"a", compressed=len(inner), size=len(inner))
        + entry(b"b", offset=31, compressed=6, size=6),
    )


@hostile("data.zip", refused("overlaps"))
def an_entry_that_runs_into_the_directory():
    return archive(local(b"a", b"x"), entry(b"a", compressed=40, size=40))


@hostile("data.zip", kept("zip", "times its size"))
def a_bomb_of_noughts():
    return zipped({"a": bytes(101 << 20)})


@hostile("arrays.npz", kept("npz", "times its size", verdict="safe"))
def a_bomb_that_is_an_array():
    return zipped({"a.npy": npy("|u1", (101 << 20,), bytes(101 << 20))})


@hostile("arrays.npz", refused("needs 1099511627776 bytes"))
def an_array_of_terabytes_in_a_few_bytes():
    return zipped({"a.npy": npy("|u1", (1 << 40,), b"")})


@hostile("arrays.npz", held("npz", "holds Python objects"))
def an_array_of_objects_among_arrays(canary):
    call = payloads.object_array(payloads.Calls(exec, canary.program))
    return zipped({"a.npy": npy(), "b.npy": call})


@hostile("data.zip", kept("zip", "would land elsewhere"))
def an_entry_above_the_folder():
    return zipped({"../../etc/cron.d/x": b"* * * * * root true\n"})


@hostile("data.zip", kept("zip", "would land elsewhere"))
def an_entry_at_an_absolute_path():
    return zipped({"/etc/ld.so.preload": b"x"})


@hostile("data.zip", kept("zip", "would land elsewhere"))
def an_entry_on_another_drive():
    return archive(local(b"C:\\x", b"x"), entry(b"C:\\x", compressed=1, size=1))


@hostile("data.zip", kept("zip", "holds a link"))
def an_entry_that_is_a_link():
    info = zipfile.ZipInfo("innocent.txt")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr(info, "/etc/passwd")
    return out.getvalue()


@hostile("data.zip", kept("zip", "two entries of one name"))
def one_name_for_two_entries():
    body = local(b"a", b"good") + local(b"a", b"evil")
    second = entry(b"a", compressed=4, size=4, offset=len(local(b"a", b"good")))
    return archive(body, entry(b"a", compressed=4, size=4) + second)


@hostile("data.zip", held("zip", "encrypted"))
def an_entry_behind_a_password():
    return archive(local(b"a", b"x", flags=1), entry(b"a", compressed=1, size=1, flags=1))


@hostile("arrays.npz", refused("encrypted"))
def an_array_behind_a_password():
    data = npy()
    row = entry(b"a.npy", compressed=len(data), size=len(data), flags=1)
    return archive(local(b"a.npy", data, flags=1), row)


@hostile("data.zip", refused("does not lie right before its end"))
def a_second_end_in_the_comment():
    """Whoever looks for the last end finds the harmless archive, others the one before it."""
    harmless = zipped({"a.txt": b"x"})
    evil = zipped({"m/data.pkl": b"x", "m/version": b"3"})
    hidden = bytearray(harmless + evil)
    hidden[-2:] = struct.pack("<H", len(end(0, 0, 0)))
    return bytes(hidden) + end(0, 0, 0)[:20] + struct.pack("<H", 1)


@hostile("data.zip", refused("does not lie right before its end"))
def two_directories_for_two_readers():
    # The end names the first directory; most readers take the one right before the end.
    evil = local(b"m/data.pkl", b"x")
    shown, taken = entry(b"a.txt/////", compressed=1, size=1), entry(b"m/data.pkl", compressed=1)
    assert len(shown) == len(taken)
    return evil + shown + taken + end(1, len(shown), len(evil))


@hostile("weights.pt", refused("zip64 directory is broken"))
def arrays_for_us_and_weights_for_torch(canary):
    """Behind a harmless beginning stands a whole checkpoint that calls."""
    checkpoint = payloads.torch_zip({"w": payloads.Calls(exec, canary.program)})
    return zipped({"a.txt": b"x"}) + checkpoint


@hostile("data.zip", kept("zip", "never unpacked"))
def a_comment_full_of_nothing():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("a.txt", b"x")
        made.comment = b"\0" * 65_535
    return out.getvalue()


@hostile("picture.dat", held("opaque", "A zip archive hides behind"))
def a_picture_that_is_a_checkpoint(canary):
    checkpoint = payloads.torch_zip({"w": payloads.Calls(exec, canary.program)})
    return b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0" + bytes(40) + checkpoint


@hostile("picture.dat", held("opaque", "A zip archive hides behind"))
def a_picture_that_is_a_checkpoint_with_a_tail(canary):
    checkpoint = payloads.torch_zip({"w": payloads.Calls(exec, canary.program)})
    return b"GIF89a" + bytes(40) + checkpoint + b"\0" * 100


@hostile("program.zip", held("zip", "Python program"))
def an_archive_that_python_runs(canary):
    return zipped({"__main__.py": canary.program.encode()})


@hostile("old.tar", kept("tar", "holds a link"))
def a_tar_with_a_link_and_a_file_behind_it():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        link = tarfile.TarInfo("here")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        made.addfile(link)
        passed = tarfile.TarInfo("here/passwd")
        passed.size = 1
        made.addfile(passed, io.BytesIO(b"x"))
    return out.getvalue()


@hostile("old.tar", kept("tar", "would land elsewhere"))
def a_tar_that_reaches_above_its_folder():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        made.addfile(tarfile.TarInfo("../../root/.ssh/authorized_keys"))
    return out.getvalue()


@hostile("old.tar", kept("tar", "Only the first 0 entries"))
def a_tar_of_headers_about_headers():
    return _header_about_the_next() * 10_000


def _header_about_the_next():
    about = tarfile.TarInfo("x")
    about.type = tarfile.XHDTYPE
    return about.tobuf()


@hostile("old.tar", kept("tar", "holds a device"))
def a_tar_with_a_device():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        device = tarfile.TarInfo("sda")
        device.type, device.devmajor = tarfile.BLKTYPE, 8
        made.addfile(device)
    return out.getvalue()


@hostile("old.tar", refused("cut short after byte 0"))
def a_tar_of_exabytes():
    block = bytearray(tarfile.TarInfo("a").tobuf())
    block[124:136] = b"\x80" + b"\x7f" * 11
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


@hostile("data.csv.gz", kept("compressed", "not checked beyond its beginning"))
def a_bomb_of_gzip():
    return b"".join(_squeezed(32 << 20))


def _squeezed(length):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b"0" * (1 << 20)
    for _ in range(length >> 20):
        yield packer.compress(block)
    yield packer.flush()
