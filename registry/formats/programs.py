"""Recognises programs: what a machine, an interpreter or a runtime would run as it is."""

from registry.errors import Text
from registry.formats.facts import Facts

_RUNS = Text("A program or library; it is kept but never run.")
_COMPILED = Text("Compiled Python; it is kept but never imported.")

SCRIPT = Facts(
    format="program",
    executable=True,
    findings=(Text("A script that names the program to run it; it is kept but never run."),),
)
PYTHON = Facts(
    format="python",
    findings=(Text("Python source: to be read by people; it is never imported or run here."),),
)

_PROGRAMS: tuple[tuple[int, bytes, str, Text], ...] = (
    (0, b"\x7fELF", "program", _RUNS),
    (0, b"MZ", "program", _RUNS),
    (0, b"\xfe\xed\xfa\xce", "program", _RUNS),
    (0, b"\xfe\xed\xfa\xcf", "program", _RUNS),
    (0, b"\xce\xfa\xed\xfe", "program", _RUNS),
    (0, b"\xcf\xfa\xed\xfe", "program", _RUNS),
    # Mach-O for several machines, and Java classes.
    (0, b"\xca\xfe\xba\xbe", "program", _RUNS),
    (0, b"\xca\xfe\xba\xbf", "program", _RUNS),
    (0, b"\0asm", "program", _RUNS),
    (0, b"BC\xc0\xde", "program", _RUNS),
    (0, b"dex\n", "program", _RUNS),
    (0, b"!<arch>\n", "program", _RUNS),
    (0, b"L\0\0\0\x01\x14\x02\0", "program", Text("A shortcut that starts a program; it is kept.")),
    (
        0,
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "program",
        Text("An office file or installer; it is kept."),
    ),
    (4, b"PTMF", "torchscript", Text("A TorchScript program; it is kept but never loaded.")),
    (4, b"ET12", "program", Text("An ExecuTorch program; it is kept but never run.")),
)


def recognise_program(head: bytes) -> Facts | None:
    """Tell a program by its first bytes."""
    for offset, magic, name, why in _PROGRAMS:
        if head[offset : offset + len(magic)] == magic:
            return Facts(format=name, executable=True, findings=(why,))
    if head[2:4] == b"\r\n" and len(head) > 16 and head[16:17] == b"\xe3":
        return Facts(format="program", executable=True, findings=(_COMPILED,))
    return None
