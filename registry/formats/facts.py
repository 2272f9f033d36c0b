"""What the header of a file says about it, as plain data, bounded in size."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from registry.errors import Invalid, Text

MAX_LISTED_TENSORS = 2000
MAX_TEXT = 1000
MAX_METADATA = 100

ReadRange = Callable[[int, int], bytes]


class Tensor(NamedTuple):
    """A named array in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements_count(self) -> int:
        return math.prod(self.shape)


class Port(NamedTuple):
    """A declared input or output; a dimension that is not fixed is -1 or has a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """All tensors counted, the first ones listed."""

    count: int
    elements_count: int
    dtypes: Mapping[str, int]
    items: Sequence[Tensor]

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> "Tensors":
        listed = list(tensors)
        dtypes: Counter[str] = Counter()
        for tensor in listed:
            dtypes[tensor.dtype] += tensor.elements_count
        return cls(
            count=len(listed),
            elements_count=sum(dtypes.values()),
            dtypes=dict(dtypes),
            items=tuple(listed[:MAX_LISTED_TENSORS]),
        )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a reader found. `executable`: loading the file may run code that it carries."""

    format: str
    parameters_count: int | None = None
    tensors: Tensors | None = None
    inputs: Sequence[Port] | None = None
    outputs: Sequence[Port] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    executable: bool = False
    findings: Sequence[Text] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "parameters_count": self.parameters_count,
            "tensors": None if self.tensors is None else _tensors_json(self.tensors),
            "inputs": _ports_json(self.inputs),
            "outputs": _ports_json(self.outputs),
            "metadata": dict(self.metadata),
            "executable": self.executable,
            "findings": [finding.detail for finding in self.findings],
        }


def malformed(template: str, /, **values: Any) -> Invalid:
    return Invalid(template, code="malformed_file", **values)


def in_figures(number: float) -> str:
    """Write a number that a file claims; whole ones may be far beyond what a float holds."""
    if abs(number) >= 1 << 80:
        return f"over 2^{int(number).bit_length() - 1}"
    return f"{number:g}" if isinstance(number, float) else str(number)


def plain(value: bytes | str) -> str:
    """Make text from a file fit to store and show: no NUL, no broken characters, no novels."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    value = value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    return value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"


def bounded_metadata(pairs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        plain(key): plain(value) if isinstance(value, str) else value
        for key, value in list(pairs.items())[:MAX_METADATA]
    }


def _tensors_json(tensors: Tensors) -> dict[str, Any]:
    return {
        "count": tensors.count,
        "elements_count": tensors.elements_count,
        "dtypes": dict(tensors.dtypes),
        "items": [
            {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
            for tensor in tensors.items
        ],
        "truncated": tensors.count > len(tensors.items),
    }


def _ports_json(ports: Sequence[Port] | None) -> list[dict[str, Any]] | None:
    if ports is None:
        return None
    return [{"name": port.name, "dtype": port.dtype, "shape": list(port.shape)} for port in ports]
