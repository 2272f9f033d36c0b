"""Walks through a pickle as its machine would, doing none of it: what it names and calls.

The walk keeps what a real unpickler keeps (stack, marks, memo), but only of texts, which may become
names; everything else on the stack is a blank. A step that a real one would stumble over ends it.
"""

import pickletools
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from registry.errors import Invalid
from registry.formats.cursor import Cursor
from registry.formats.facts import ReadRange

MAX_STEPS = 20_000
MAX_READ_BYTES = 2 * 1024 * 1024
MAX_GLOBALS = 200
MAX_LINE_BYTES = 4096
_MAX_TEXT_BYTES = 400
_MAX_DEPTH = 100_000
# Four letters of a text, read as a length, are more than this.
_SENSIBLE_BYTES = 1 << 27
_PROTOCOLS = range(6)

# As lenient as the machine itself, or a name could slip by; a sentence is no name.
_NAME = re.compile(r"[^\s\x00-\x1f]{1,300} [^\s\x00-\x1f]{1,300}")
_WHOLE = re.compile(rb"[ \t]*[+-]?[0-9A-Fa-fxXoO_]+L?[ \t\r]*")
_FLOAT = re.compile(
    rb"[ \t]*[+-]?(?:[0-9._]+(?:[eE][+-]?[0-9]+)?|inf(?:inity)?|nan)[ \t\r]*", re.IGNORECASE
)


class _Blank:
    """A value that is no text."""


class _Mark:
    """Where a run of values began."""


class _Global(str):
    """A name that was imported."""

    __slots__ = ()


_Value = _Blank | _Mark | str
_BLANK: Final = _Blank()
_MARK: Final = _Mark()


class _Stumble(Exception):  # noqa: N818 - an end, not an error
    """A real unpickler goes no further than this."""


@dataclass
class Walked:
    """What a walk saw.

    `whole`: it came to its end; `cut`: it was still going at its bounds; `ran_out`: the bytes
    ended.
    """

    imports: list[str] = field(default_factory=list)
    calls_count: int = 0
    steps_count: int = 0
    whole: bool = False
    cut: bool = False
    ran_out: bool = False
    position: int = 0


def walk_pickle(size: int, read: ReadRange, *, start: int = 0) -> Walked:
    """Follow the opcodes from `start`, as far as they make sense and the bounds allow."""
    machine = _Machine(size, read, start)
    walked = machine.walked
    try:
        with suppress(_Stumble):
            while not walked.whole and not walked.cut:
                machine.step()
                walked.steps_count += 1
                walked.cut = walked.steps_count >= MAX_STEPS
    except Invalid:
        walked.cut = machine.cursor.exhausted
        walked.ran_out = not walked.cut and machine.wanted < _SENSIBLE_BYTES
    walked.position = machine.cursor.position
    return walked


class _Machine:
    """The stack machine of `pickle`, with blanks for values."""

    def __init__(self, size: int, read: ReadRange, start: int) -> None:
        self.cursor = Cursor(read, size, what="pickle", budget=MAX_READ_BYTES)
        self.cursor.position = start
        self.walked = Walked()
        self.stack: list[_Value] = []
        self.memo: dict[int, _Value] = {}
        self.extensions: list[str] = []
        # How many bytes the present opcode claims for itself.
        self.wanted = 0

    def step(self) -> None:
        opcode = _OPCODES.get(self.cursor.take(1))
        if opcode is None:
            raise _Stumble
        argument = self._argument(opcode)
        act = _ACTIONS.get(opcode.name)
        if act is not None:
            act(self, argument)
        else:
            self._move(opcode)
        if len(self.stack) > _MAX_DEPTH:
            raise _Stumble

    # --- Arguments ---------------------------------------------------------------------------

    def _argument(self, opcode: pickletools.OpcodeInfo) -> bytes:
        if opcode.arg is None:
            return b""
        count = opcode.arg.n
        if count >= 0:
            return self.cursor.take(count)
        if count == pickletools.UP_TO_NEWLINE:
            line = self._line()
            return line + b"\n" + self._line() if opcode.name in {"GLOBAL", "INST"} else line
        width = {
            pickletools.TAKEN_FROM_ARGUMENT1: 1,
            pickletools.TAKEN_FROM_ARGUMENT4: 4,
            pickletools.TAKEN_FROM_ARGUMENT4U: 4,
            pickletools.TAKEN_FROM_ARGUMENT8U: 8,
        }[count]
        self.wanted = length = int.from_bytes(self.cursor.take(width), "little")
        kept = self.cursor.take(min(length, _MAX_TEXT_BYTES))
        self.cursor.skip(length - len(kept))
        return kept

    def _line(self) -> bytes:
        start = self.cursor.position
        window = self.cursor.take(min(MAX_LINE_BYTES, self.cursor.size - start))
        length = window.find(b"\n")
        if length < 0:
            raise _Stumble
        self.cursor.position = start + length + 1
        return window[:length]

    # --- The stack ---------------------------------------------------------------------------

    def pop(self) -> _Value:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Stumble
        return self.stack.pop()

    def pop_to_mark(self) -> list[_Value]:
        for position in range(len(self.stack) - 1, -1, -1):
            if self.stack[position] is _MARK:
                taken = self.stack[position + 1 :]
                del self.stack[position:]
                return taken
        raise _Stumble

    def top(self) -> _Value:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Stumble
        return self.stack[-1]

    def _move(self, opcode: pickletools.OpcodeInfo) -> None:
        """Take and give as many values as the opcode says it does."""
        before = opcode.stack_before
        if pickletools.markobject in before:
            self.pop_to_mark()
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self.pop()
        self.stack.extend(_BLANK for _ in opcode.stack_after)

    # --- What matters ------------------------------------------------------------------------

    def name(self, text: str) -> None:
        """Import a name, `module name`."""
        if not _NAME.fullmatch(text):
            raise _Stumble
        name = text.replace(" ", ".")
        self._import(name)
        self.stack.append(_Global(name))

    def extension(self, number: int) -> None:
        """Take what somebody registered under a number; it is an import once it is called.

        In noise every eightieth byte is such an opcode, so by itself it says nothing.
        """
        name = f"copyreg.extension_{number}"
        self.extensions.append(name)
        self.stack.append(_Global(name))

    def call(self) -> None:
        self.walked.calls_count += 1
        for name in self.extensions:
            self._import(name)
        self.stack.append(_BLANK)

    def _import(self, name: str) -> None:
        if name not in self.walked.imports and len(self.walked.imports) < MAX_GLOBALS:
            self.walked.imports.append(name)

    def recall(self, key: int) -> None:
        if key not in self.memo:
            raise _Stumble
        self.stack.append(self.memo[key])


def _protocol(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001 - as all
    if argument[0] not in _PROTOCOLS:
        raise _Stumble


def _stop(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
    machine.pop()
    machine.walked.whole = True


def _mark(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
    machine.stack.append(_MARK)


def _pop(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
    if not machine.stack:
        raise _Stumble
    machine.stack.pop()


def _duplicate(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
    machine.stack.append(machine.top())


def _text(machine: _Machine, argument: bytes) -> None:
    machine.stack.append(argument.decode("utf-8", "replace"))


def _quoted(machine: _Machine, argument: bytes) -> None:
    line = argument.strip()
    if len(line) < 2 or line[:1] not in {b"'", b'"'} or line[-1:] != line[:1]:
        raise _Stumble
    machine.stack.append(line[1:-1].decode("utf-8", "replace"))


def _whole_number(machine: _Machine, argument: bytes) -> None:
    if not _WHOLE.fullmatch(argument):
        raise _Stumble
    machine.stack.append(_BLANK)


def _float_number(machine: _Machine, argument: bytes) -> None:
    if not _FLOAT.fullmatch(argument):
        raise _Stumble
    machine.stack.append(_BLANK)


def _global(machine: _Machine, argument: bytes) -> None:
    module, _, name = argument.decode("utf-8", "replace").partition("\n")
    machine.name(f"{module} {name}")


def _stack_global(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
    name, module = machine.pop(), machine.pop()
    texts = [text if type(text) is str and text else "unknown" for text in (module, name)]
    machine.name(" ".join(re.sub(r"[^\w.<>-]", "_", text)[:300] for text in texts))


def _extension(machine: _Machine, argument: bytes) -> None:
    machine.extension(int.from_bytes(argument, "little"))


def _instance(machine: _Machine, argument: bytes) -> None:
    machine.pop_to_mark()
    _global(machine, argument)
    machine.pop()
    machine.call()


def _object(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
    if not machine.pop_to_mark():
        raise _Stumble
    machine.call()


def _calling(count: int) -> Callable[[_Machine, bytes], None]:
    """Make the action that takes a callable and `count` values, and calls it."""

    def act(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
        for _ in range(count):
            machine.pop()
        called = machine.pop()
        # Something that was neither imported nor computed cannot be called.
        if type(called) is str:
            raise _Stumble
        machine.call()

    return act


def _line_key(argument: bytes) -> int:
    if not _WHOLE.fullmatch(argument):
        raise _Stumble
    try:
        return int(argument.strip().removesuffix(b"L"))
    except ValueError:
        raise _Stumble from None


def _key(argument: bytes) -> int:
    return int.from_bytes(argument, "little")


def _get(read: Callable[[bytes], int]) -> Callable[[_Machine, bytes], None]:
    return lambda machine, argument: machine.recall(read(argument))


def _put(read: Callable[[bytes], int]) -> Callable[[_Machine, bytes], None]:
    def act(machine: _Machine, argument: bytes) -> None:
        machine.memo[read(argument)] = machine.top()

    return act


def _memoize(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
    machine.memo[len(machine.memo)] = machine.top()


def _persistent(machine: _Machine, argument: bytes) -> None:  # noqa: ARG001
    machine.stack.append(_BLANK)


_OPCODES: Mapping[bytes, pickletools.OpcodeInfo] = {
    opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes
}
_ACTIONS: Mapping[str, Callable[[_Machine, bytes], None]] = {
    "PROTO": _protocol,
    "STOP": _stop,
    "MARK": _mark,
    "POP": _pop,
    "DUP": _duplicate,
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"), _text),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _text),
    "STRING": _quoted,
    **dict.fromkeys(("INT", "LONG"), _whole_number),
    "FLOAT": _float_number,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _extension),
    "INST": _instance,
    "OBJ": _object,
    "REDUCE": _calling(1),
    "NEWOBJ": _calling(1),
    "NEWOBJ_EX": _calling(2),
    "BUILD": _calling(1),
    "GET": _get(_line_key),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get(_key)),
    "PUT": _put(_line_key),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put(_key)),
    "MEMOIZE": _memoize,
    "PERSID": _persistent,
}
