"""What every protocol of the data plane becomes and is made of: tensors, requests, answers."""

import math
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import Invalid, TooLarge

if TYPE_CHECKING:
    # What reads requests beside the server knows no tables.
    from registry.models import Actor

Data = bytes | bytearray | memoryview

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
}
"""The datatypes of the Open Inference Protocol whose elements have one size; BYTES has none."""

BYTES = "BYTES"
MAX_RANK = 16
MAX_TENSORS = 256
MAX_NAME_CHARACTERS = 256
# Elements of BYTES tensors together: each takes a step of Python, and all others wait meanwhile.
MAX_STRINGS = 256 * 1024
_LENGTH = struct.Struct("<I")


@dataclass(slots=True)
class Tensor:
    """Named numbers, little-endian and row by row; BYTES elements have their length before them.

    `data` may look into the body of a request: whoever keeps a tensor keeps that alive.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Data


@dataclass(slots=True)
class InferRequest:
    """One call of a model, whatever protocol it came in."""

    model: str
    inputs: list[Tensor]
    actor: "Actor"
    # On the clock of time.monotonic.
    deadline: float
    # A number, `@` and an alias, or nothing: then the endpoint's traffic decides.
    version: str = ""
    id: str = ""
    # Names of the wanted outputs; none is all.
    outputs: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    # How long others were read before it; a model's deadline is so much shorter.
    waited_seconds: float = 0.0


@dataclass(slots=True)
class InferResponse:
    """What a model answered; `parameters` says which version did, and at what cost."""

    model: str
    version: str
    id: str
    outputs: list[Tensor]
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model takes or gives under a name; -1 in a shape is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What the protocol tells of a model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


@dataclass(slots=True)
class Predicted:
    """Answers to rows of named fields: a JSON value a row, through the version's own labels."""

    model: str
    version: str
    rows: list[Any]
    parameters: dict[str, Any]


@dataclass(slots=True)
class Embedded:
    """Unit vectors of texts, one a row, and how many tokens they were read from."""

    model: str
    version: str
    vectors: NDArray[np.float32]
    tokens: int
    parameters: dict[str, Any]


@dataclass(slots=True)
class Timed:
    """How often something happened, and how long it took together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns


@dataclass(slots=True)
class Trial:
    """How a deployment did with what the traffic of its endpoint brought: canaries go by that.

    Who names a version chooses what it is asked, so those calls are no part of it.
    """

    answered: int = 0
    ns: int = 0
    # The times in microseconds, squared: how far they spread.
    squares: float = 0.0
    failed: int = 0

    def add(self, ns: int) -> None:
        self.answered += 1
        self.ns += ns
        self.squares += (ns / 1000) ** 2


@dataclass(slots=True)
class Counters:
    """What one deployment has done since the server started; times of all requests added up."""

    model: str
    version: str
    success: Timed = field(default_factory=Timed)
    fail: Timed = field(default_factory=Timed)
    queue: Timed = field(default_factory=Timed)
    compute_input: Timed = field(default_factory=Timed)
    compute_infer: Timed = field(default_factory=Timed)
    compute_output: Timed = field(default_factory=Timed)
    inferences: int = 0
    executions: int = 0
    # Requests that wait or run now.
    pending: int = 0
    trial: Trial = field(default_factory=Trial)
    # On the clock of time.time.
    last_at: float = 0.0
    memory_bytes: int = 0
    # Batch size to executions of that size.
    batches: dict[int, Timed] = field(default_factory=dict)


def add_up(counted: Sequence[Counters]) -> Counters:
    """Make one of what was counted of one version in several places."""
    if len(counted) == 1:
        return counted[0]
    total = Counters(counted[0].model, counted[0].version)
    for one in counted:
        for name in _TIMES:
            timed: Timed = getattr(one, name)
            getattr(total, name).add(timed.ns, timed.count)
        for size, timed in one.batches.items():
            total.batches.setdefault(size, Timed()).add(timed.ns, timed.count)
        total.inferences += one.inferences
        total.executions += one.executions
        total.last_at = max(total.last_at, one.last_at)
    # One process computes for all of them.
    total.pending = max(one.pending for one in counted)
    total.memory_bytes = max(one.memory_bytes for one in counted)
    return total


_TIMES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


def check_tensor(tensor: Tensor, *, strings: int = MAX_STRINGS) -> None:
    """Hold a tensor's name, type, shape and bytes against each other; nothing is allocated.

    Raises:
        Invalid: they do not fit; TooLarge: it has more than so many strings.

    """
    name, shape = tensor.name, tensor.shape
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise Invalid(
            "A tensor's name has 1 to {limit} printable characters.",
            code="bad_tensor",
            limit=MAX_NAME_CHARACTERS,
        )
    if len(shape) > MAX_RANK:
        raise Invalid(
            "Tensor {name!r} has {count} axes; {limit} are allowed.",
            code="bad_tensor",
            name=name,
            count=len(shape),
            limit=MAX_RANK,
        )
    if any(size < 0 for size in shape):
        raise Invalid("Tensor {name!r} has an axis of negative size.", code="bad_tensor", name=name)
    count = math.prod(shape)
    if tensor.datatype == BYTES:
        check_strings(name, count, tensor.data, left=strings)
        return
    size = ITEM_BYTES.get(tensor.datatype)
    if size is None:
        raise Invalid(
            "Tensor {name!r} has the unknown datatype {datatype!r}; known are {known}.",
            code="bad_tensor",
            name=name,
            datatype=tensor.datatype[:40],
            known=", ".join([*ITEM_BYTES, BYTES]),
        )
    if len(tensor.data) != count * size:
        raise Invalid(
            "Tensor {name!r} of {datatype} {shape} takes {expected} bytes; {found} came.",
            code="bad_tensor",
            name=name,
            datatype=tensor.datatype,
            shape=list(shape),
            expected=count * size,
            found=len(tensor.data),
        )


def check_string_count(name: str, count: int, left: int) -> None:
    """Pass when a BYTES tensor may have so many elements, of those that are left.

    Raises:
        TooLarge: it may not.

    """
    if count > left:
        raise TooLarge(
            "BYTES tensors have {limit} elements together at most; with {name!r} there are more.",
            code="too_many_strings",
            limit=MAX_STRINGS,
            name=name,
        )


def check_strings(name: str, count: int, data: Data, *, left: int) -> None:
    """See that the lengths before the elements of a BYTES tensor lead exactly to its end.

    Raises:
        Invalid: they do not; TooLarge: it has more elements than are left.

    """
    # Each element takes four bytes at least, so a count that lies costs nothing.
    if count * _LENGTH.size <= len(data):
        check_string_count(name, count, left)
        with suppress(struct.error):
            if end_of_strings(data, 0, count) == len(data):
                return
    raise Invalid(
        "The lengths in tensor {name!r} do not add up to {count} elements in {found} bytes.",
        code="bad_tensor",
        name=name,
        count=count,
        found=len(data),
    )


def end_of_strings(data: Data, place: int, count: int) -> int:
    """Give where so many elements of a BYTES tensor end that begin at `place`."""
    head, length_at = _LENGTH.size, _LENGTH.unpack_from
    for _ in range(count):
        place += head + length_at(data, place)[0]
    return place


def check_tensors(tensors: Sequence[Tensor]) -> None:
    """Check each tensor of a request, and that no two have one name.

    Raises:
        Invalid: one does not fit; TooLarge: they have too many strings.

    """
    if len(tensors) > MAX_TENSORS:
        raise Invalid(
            "A request has {limit} tensors at most; {count} came.",
            code="bad_tensor",
            limit=MAX_TENSORS,
            count=len(tensors),
        )
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise Invalid("Two tensors of the request have the same name.", code="bad_tensor")
    strings = MAX_STRINGS
    for tensor in tensors:
        check_tensor(tensor, strings=strings)
        if tensor.datatype == BYTES:
            strings -= math.prod(tensor.shape)


def pack_strings(values: Sequence[bytes]) -> bytes:
    """Write byte strings as the elements of a BYTES tensor."""
    return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))


def unpack_strings(data: Data, count: int) -> list[bytes]:
    """Read the elements of a BYTES tensor that has been checked."""
    found, place = [], 0
    for _ in range(count):
        size = _LENGTH.unpack_from(data, place)[0]
        place += _LENGTH.size
        found.append(bytes(data[place : place + size]))
        place += size
    return found
