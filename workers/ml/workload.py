"""What a version is given while its settings are measured: what callers of a deployment send.

Tensors are drawn as the signature has them. A model of texts is given sentences, each as the
request of a caller of its own, for the serving process to tokenise. They are of several lengths,
because how much of a batch is padding decides how far it is worth joining requests.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from registry.errors import Invalid

# What serving takes in one message by default.
MAX_INPUT_BYTES = 64 * 1024 * 1024
_BYTES = "BYTES"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
}
# Common ones, and some that tokenizers take apart, about as often as texts have them.
_WORDS = (
    *("the", "of", "and", "to", "a", "in", "is", "it", "for", "was", "on", "with", "as", "they"),
    *("be", "at", "by", "this", "have", "from", "or", "one", "had", "not", "but", "what", "all"),
    *("were", "when", "we", "there", "can", "an", "which", "their", "if", "will", "each", "how"),
    *("water", "morning", "letter", "harbour", "question", "weather", "kitchen", "delivery"),
    *("arrived", "looked", "answered", "carried", "measured", "returned", "opened", "explained"),
    *("quickly", "small", "bright", "seldom", "careful", "northern", "expensive", "ordinary"),
    *("lighthouse", "refurbished", "thermostat", "unmistakably", "photosynthesis", "kilometres"),
    *("27", "1986", "3.5"),
)
_WORDS_A_SENTENCE = 14

Spec = tuple[str, str, tuple[int, ...]]
Array = NDArray[Any]
Kind = Literal["texts", "fields", "strings", "tensors"]


@dataclass(frozen=True)
class Part:
    """Numbers, or bytes, for the memory that is shared with the model."""

    data: Array
    # Of a tensor.
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Batch:
    """What one message to the model's process asks for."""

    verb: str
    parts: list[Part]

    @property
    def nbytes(self) -> int:
        return sum(part.data.nbytes for part in self.parts)


@dataclass(frozen=True)
class Workload:
    """Makes up batches for a model that describes itself so; the same ones for the same seed."""

    inputs: Sequence[Spec]
    # How named fields go into the model (workers.serving.fields), and the name of the text's.
    fed_by: str
    column: str
    # Lengths of texts in words, and of axes that the signature leaves open.
    words: Sequence[int]
    free: int
    seed: int

    @property
    def kind(self) -> Kind:
        """Say what a request has: a text for a vector of it, or a field, or tensors, some texts."""
        if self.fed_by == "wordpieces":
            return "texts"
        if self.fed_by == "words":
            return "fields"
        return "strings" if any(kind == _BYTES for _, kind, _ in self.inputs) else "tensors"

    def turn(self, rows: int) -> list[Batch]:
        """Make as few batches as have texts of each length equally often; of tensors, one.

        Raises:
            Invalid: the inputs are of a kind that is not made up, or too large.

        """
        lengths = len(self.words)
        count = 1 if self.kind == "tensors" else lengths // math.gcd(rows, lengths)
        if self.kind in {"texts", "fields"}:
            texts = self._texts(count * rows, salt=rows)
            parts = [[self._request(text)] for text in texts]
            verb = "texts" if self.kind == "texts" else "rows"
            made = [
                Batch(verb, [Part(_bytes(orjson.dumps(one))) for one in parts[at : at + rows]])
                for at in range(0, len(parts), rows)
            ]
        else:
            made = [self._tensors(rows, at) for at in range(count)]
        for batch in made:
            if batch.nbytes > MAX_INPUT_BYTES:
                raise Invalid(
                    "{rows} rows of inputs are larger than {limit} bytes.",
                    code="bad_input",
                    rows=rows,
                    limit=MAX_INPUT_BYTES,
                )
        return made

    def _request(self, text: str) -> Any:
        return text if self.kind == "texts" else {self.column: text}

    def _texts(self, count: int, *, salt: int) -> list[str]:
        """Make texts, of each length as many, in an order of chance."""
        drawn = np.random.default_rng([self.seed, salt])
        lengths = [self.words[at % len(self.words)] for at in range(count)]
        drawn.shuffle(lengths)
        return [_text(drawn, length) for length in lengths]

    def _tensors(self, rows: int, at: int) -> Batch:
        drawn = np.random.default_rng([self.seed, rows, at] if at else [self.seed, rows])
        return Batch("run", [self._tensor(drawn, spec, rows, at) for spec in self.inputs])

    def _tensor(self, drawn: np.random.Generator, spec: Spec, rows: int, at: int) -> Part:
        name, datatype, shape = spec
        dtype = _DTYPES.get(datatype)
        if dtype is None and datatype != _BYTES:
            raise Invalid(
                "Input {name!r} is of the type {datatype}, of which no inputs are made up.",
                code="unsupported_input",
                name=name[:100],
                datatype=datatype[:20],
            )
        inner = [self.free if size < 0 else size for size in shape[1:]]
        sizes = (rows if shape[0] < 0 else shape[0], *inner) if shape else ()
        if math.prod(sizes) * (dtype.itemsize if dtype else 1) > MAX_INPUT_BYTES:
            raise Invalid(
                "{rows} rows of input {name!r} are larger than {limit} bytes.",
                code="bad_input",
                rows=rows,
                name=name[:100],
                limit=MAX_INPUT_BYTES,
            )
        if dtype is None:
            return Part(self._strings(drawn, math.prod(sizes), at), sizes)
        if dtype.kind == "f":
            return Part(np.asarray(drawn.standard_normal(sizes)).astype(dtype), sizes)
        return Part(np.asarray(drawn.integers(0, 2, sizes)).astype(dtype), sizes)

    def _strings(self, drawn: np.random.Generator, count: int, at: int) -> Array:
        """Make the elements of a tensor of texts; those of the next batch go on where it ended."""
        lengths = [self.words[(at * count + one) % len(self.words)] for one in range(count)]
        texts = [_text(drawn, length).encode() for length in lengths]
        return _bytes(b"".join(len(one).to_bytes(4, "little") + one for one in texts))

    def said(self) -> dict[str, Any]:
        """Describe it for the report."""
        given: dict[str, Any] = {"kind": self.kind, "seed": self.seed}
        if self.kind != "tensors":
            given["words"] = list(self.words)
        if self.kind in {"strings", "tensors"}:
            given["free_size"] = self.free
        return given


def _text(drawn: np.random.Generator, words: int) -> str:
    chosen = [_WORDS[at] for at in drawn.integers(0, len(_WORDS), words)]
    sentences = [
        " ".join(chosen[at : at + _WORDS_A_SENTENCE]).capitalize()
        for at in range(0, words, _WORDS_A_SENTENCE)
    ]
    return ". ".join(sentences) + "."


def _bytes(data: bytes) -> Array:
    return np.frombuffer(data, np.uint8)
