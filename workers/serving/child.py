"""The process of one loaded model: `python -m workers.serving.child`, inside the sandbox.

It is told over a socket what to compute, one batch at a time; the numbers lie in memory that it
shares with the server, so that a batch costs one message there and one back. For an ONNX file it
loads numpy and ONNX Runtime, and nothing of torch.
"""

import json
import math
import mmap
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from registry.errors import Invalid, RegistryError, pack
from workers.ml.infer.sessions import first_line, open_session
from workers.serving.fields import Array, Input, group_by_length, read_fields
from workers.serving.messages import MAX_STRINGS, check_string_count

if TYPE_CHECKING:
    from workers.ml.infer.engines import Engine

MESSAGE_BYTES = 128 * 1024
ALIGNMENT = 64
_MAX_CONFIG_BYTES = 4 * 1024 * 1024
_STRING = np.dtype(object)
# Free axes but the first are so long in what a model is warmed up with.
_FREE = 16
_MAX_PROBE = 1 << 22
_ONNX = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_DTYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("u2"),
    "UINT32": np.dtype("u4"),
    "UINT64": np.dtype("u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("i2"),
    "INT32": np.dtype("i4"),
    "INT64": np.dtype("i8"),
    "FP16": np.dtype("f2"),
    "FP32": np.dtype("f4"),
    "FP64": np.dtype("f8"),
    "BYTES": _STRING,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Spec = tuple[str, str, tuple[int, ...]]


class Model(Protocol):
    """Something that computes lists of arrays from lists of arrays."""

    runtime: str
    platform: str
    inputs: list[Spec]
    outputs: list[Spec]

    def run(self, arrays: Sequence[Array]) -> list[Array]: ...


class OnnxModel:
    """A graph in ONNX Runtime."""

    def __init__(self, file: Path, *, threads: int, gpu: bool) -> None:
        import onnxruntime  # noqa: PLC0415 - a torch model does without

        onnxruntime.disable_telemetry_events()
        self._session = open_session(file, threads=threads, gpu=gpu, log_severity=4)
        used = self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        self.runtime = f"onnxruntime/{used}"
        self.platform = "onnxruntime_onnx"
        self.inputs = [_spec(one) for one in self._session.get_inputs()]
        self.outputs = [_spec(one) for one in self._session.get_outputs()]
        self._names = [name for name, _, _ in self.inputs]

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        try:
            answers: list[Array] = self._session.run(
                None, dict(zip(self._names, arrays, strict=True))
            )
        except Exception as error:  # see above
            raise _refusal(error) from error
        return answers


class TorchModel:
    """A torch module, where it does not go into ONNX; as machine code if there is a package."""

    def __init__(
        self, folder: Path, *, threads: int, gpu: bool, package: Path | None = None
    ) -> None:
        from workers.ml import device  # noqa: PLC0415 - loads torch, which takes seconds
        from workers.ml.architectures import KINDS, read_parameters  # noqa: PLC0415
        from workers.ml.formats import open_model  # noqa: PLC0415
        from workers.ml.infer.engines import (  # noqa: PLC0415
            CompiledEngine,
            ProgramEngine,
            TorchEngine,
        )
        from workers.ml.infer.runtime import load_runtime  # noqa: PLC0415

        # Machine code is of this machine's processor.
        used = "cuda" if gpu and package is None else "cpu"
        device.prepare(device=used, threads=threads)
        opened = open_model(folder)
        loaded = load_runtime(opened, device=used, threads=threads)
        if not isinstance(loaded.engine, TorchEngine):
            raise Invalid("An ONNX file is not run by torch.", code="unsupported_format")
        self._engine: Engine = loaded.engine
        self.runtime, self.platform = loaded.engine.name, "pytorch"
        self.inputs: list[Spec]
        if isinstance(loaded.engine, ProgramEngine):
            self.inputs = [
                (name, _NAMES[dtype], tuple(one if isinstance(one, int) else -1 for one in axes))
                for name, (dtype, axes) in loaded.engine.inputs().items()
            ]
        elif "architecture" in opened.config:
            kind = KINDS[read_parameters(opened.config["architecture"]).name]
            datatype = _NAMES[np.dtype(kind.input_dtype)]
            self.inputs = [(kind.input_name, datatype, kind.input_shape)]
        else:
            self.inputs = [(name, "INT64", (-1, -1)) for name in loaded.engine.input_names]
        answer = loaded.engine.run(
            {
                name: np.ones([3 if size < 0 else size for size in shape], _DTYPES[datatype])
                for name, datatype, shape in self.inputs
            }
        )
        self.outputs: list[Spec] = [
            (name, _NAMES[value.dtype], (-1, *value.shape[1:])) for name, value in answer.items()
        ]
        if package is not None:
            names = [name for name, _, _ in self.inputs]
            self._engine = CompiledEngine(package, names, self.outputs[0][0])
            self.runtime = self._engine.name

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        names = [name for name, _, _ in self.inputs]
        try:
            return list(self._engine.run(dict(zip(names, arrays, strict=True))).values())
        except RuntimeError as error:
            raise _refusal(error) from error


class Server:
    """Answers what comes over the socket until it closes."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._poller = select.poll()
        self._poller.register(channel, select.POLLIN)

    def serve(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self.channel, MESSAGE_BYTES, 2)
        if not message:
            return
        plan = orjson.loads(message)
        given, taken = (mmap.mmap(number, 0) for number in descriptors)
        self.given, self.taken = memoryview(given), memoryview(taken)
        try:
            self._load(plan)
        except RegistryError as error:
            self._say(_said(error))
            return
        does: Mapping[str, Callable[..., list[Any]]] = {
            "run": self._run,
            "rows": self._rows,
            "texts": self._texts,
        }
        while message := self.channel.recv(MESSAGE_BYTES):
            verb, arguments, awake_ns = orjson.loads(message)
            try:
                reply = does[verb](arguments)
            except RegistryError as error:
                reply = _said(error)
            except MemoryError:
                reply = _said(Invalid("The batch needs too much memory.", code="out_of_memory"))
            except Exception as error:  # noqa: BLE001 - one odd request must not end the process
                reply = _said(_refusal(error))
            self._say(reply)
            if awake_ns:
                self._look_out(awake_ns)

    def _look_out(self, ns: int) -> None:
        """Wait for the next message without sleeping, for so long (see `workers.serving.pace`)."""
        until = time.monotonic_ns() + ns
        while not self._poller.poll(0) and time.monotonic_ns() < until:
            pass

    def _say(self, reply: list[Any]) -> None:
        self.channel.send(orjson.dumps(reply))

    # --- loading ----------------------------------------------------------------------------------

    def _load(self, plan: Mapping[str, Any]) -> None:
        folder = Path(plan["folder"])
        threads = plan["threads"]
        self.model: Model
        if plan["onnx"]:
            self.model = OnnxModel(Path(plan["onnx"]), threads=threads, gpu=plan["gpu"])
        else:
            package = Path(plan["package"]) if plan["package"] else None
            self.model = TorchModel(folder, threads=threads, gpu=plan["gpu"], package=package)
        self.dtypes = [_DTYPES[datatype] for _, datatype, _ in self.model.inputs]
        taken = [
            Input(name, dtype, shape)
            for (name, _, shape), dtype in zip(self.model.inputs, self.dtypes, strict=True)
        ]
        names = [name for name, _, _ in self.model.outputs]
        self.fields = read_fields(folder, _read_config(folder), taken, names)
        self.batch_size = plan["batch_size"]
        self._say(["opened"])
        described = {
            "inputs": self.model.inputs,
            "outputs": self.model.outputs,
            "runtime": self.model.runtime,
            "platform": self.model.platform,
            "fields": self.fields.describe(),
            **(self._warm_up() if plan["warm"] else {"batchable": False, "usual_ns": 0}),
        }
        self._say(["ready", described])

    def _warm_up(self) -> dict[str, Any]:
        """Run made-up rows: the first run is slow, and it shows whether rows go in together.

        Only a model that gives each row the same answer beside others as alone has its requests
        joined.
        """
        batchable, usual = False, 0
        with suppress(RegistryError):
            one = self._probe(1, seed=1)
            self.model.run(one)
            began = time.perf_counter_ns()
            alone = self.model.run(one)
            usual = time.perf_counter_ns() - began
            shapes = [shape for _, _, shape in (*self.model.inputs, *self.model.outputs)]
            if all(shape and shape[0] == -1 for shape in shapes):
                other = self._probe(1, seed=2)
                joined = self.model.run(
                    [np.concatenate(pair) for pair in zip(one, other, strict=True)]
                )
                beside = self.model.run(other)
                batchable = all(
                    _same(both, first, second)
                    for both, first, second in zip(joined, alone, beside, strict=True)
                )
        return {"batchable": batchable, "usual_ns": usual}

    def _probe(self, rows: int, *, seed: int) -> list[Array]:
        drawn = np.random.default_rng(seed)
        made: list[Array] = []
        for (_, _, shape), dtype in zip(self.model.inputs, self.dtypes, strict=True):
            inner = [_FREE if size < 0 else size for size in shape[1:]]
            sizes = [rows if shape[0] < 0 else shape[0], *inner] if shape else []
            if math.prod(sizes) > _MAX_PROBE:
                raise Invalid("The inputs are too large to make up.", code="unsupported_input")
            if dtype.kind == "f":
                made.append(np.asarray(drawn.standard_normal(sizes)).astype(dtype))
            elif dtype.kind == "O":
                made.append(np.full(sizes, "a", dtype=object))
            else:
                made.append(np.asarray(drawn.integers(0, 2, sizes)).astype(dtype))
        return made

    # --- computing --------------------------------------------------------------------------------

    def _run(self, inputs: list[tuple[int, int, list[int]]]) -> list[Any]:
        """Compute tensors: places, sizes and shapes of the inputs in the model's order."""
        began = time.perf_counter_ns()
        arrays = [self._array(dtype, *one) for dtype, one in zip(self.dtypes, inputs, strict=True)]
        fed = time.perf_counter_ns()
        outputs = self.model.run(arrays)
        ran = time.perf_counter_ns()
        places = self._put(outputs)
        return ["ok", [fed - began, ran - fed, time.perf_counter_ns() - ran], places]

    def _rows(self, places: list[tuple[int, int]]) -> list[Any]:
        """Compute rows of named fields: one JSON list a request, one such answer back."""
        began = time.perf_counter_ns()
        asked = [orjson.loads(self.given[start : start + size]) for start, size in places]
        rows = [row for one in asked for row in one]
        feeds = self.fields.feeds(rows)
        fed = time.perf_counter_ns()
        outputs = self.model.run(feeds)
        ran = time.perf_counter_ns()
        answers = self.fields.answers(outputs, feeds)
        written = []
        at = 0
        for one in asked:
            part = answers[at : at + len(one)] if len(answers) == len(rows) else answers
            written.append(orjson.dumps(part, option=orjson.OPT_SERIALIZE_NUMPY))
            at += len(one)
        return [
            "ok",
            [fed - began, ran - fed, time.perf_counter_ns() - ran],
            self._put_bytes(written),
        ]

    def _texts(self, places: list[tuple[int, int]]) -> list[Any]:
        """Compute vectors of texts, or of token ids; texts of like length run together."""
        began = time.perf_counter_ns()
        if self.fields.tokenizer is None:
            raise Invalid("This model makes no vectors of texts.", code="not_an_encoder")
        asked = [orjson.loads(self.given[start : start + size]) for start, size in places]
        tokens = [row for one in asked for row in self.fields.tokens(one)]
        fed = time.perf_counter_ns()
        vectors: NDArray[np.float32] | None = None
        for group in group_by_length(tokens, self.batch_size):
            feeds = self.fields.padded([tokens[at] for at in group])
            found = self.fields.vectors(self.model.run(feeds)[0], feeds)
            if vectors is None:
                vectors = np.empty((len(tokens), *found.shape[1:]), np.float32)
            vectors[group] = found
        ran = time.perf_counter_ns()
        assert vectors is not None
        counts, at = [], 0
        for one in asked:
            counts.append(sum(map(len, tokens[at : at + len(one)])))
            at += len(one)
        placed = self._put([vectors])
        return ["ok", [fed - began, ran - fed, time.perf_counter_ns() - ran], placed, counts]

    # --- the shared memory ------------------------------------------------------------------------

    def _array(self, dtype: np.dtype[Any], start: int, size: int, shape: list[int]) -> Array:
        if dtype is not _STRING:
            return np.ndarray(shape, dtype, self.given, start)
        values: Array = np.empty(math.prod(shape), dtype=object)
        place = start
        for at in range(len(values)):
            length = int.from_bytes(self.given[place : place + 4], "little")
            place += 4
            try:
                values[at] = str(self.given[place : place + length], "utf-8")
            except UnicodeDecodeError as error:
                raise Invalid("A text is not UTF-8.", code="bad_tensor") from error
            place += length
        assert place == start + size
        return values.reshape(shape)

    def _put(self, outputs: Sequence[Array]) -> list[tuple[int, int, tuple[int, ...]]]:
        places = []
        start = 0
        strings = MAX_STRINGS
        for (name, datatype, _), output in zip(self.model.outputs, outputs, strict=False):
            if datatype == "BYTES":
                check_string_count(name, output.size, strings)
                strings -= output.size
                flat = [str(value).encode() for value in np.asarray(output).ravel()]
                data = b"".join(
                    part for one in flat for part in (len(one).to_bytes(4, "little"), one)
                )
                size = len(data)
                self._need(start + size)
                self.taken[start : start + size] = data
            else:
                size = output.nbytes
                self._need(start + size)
                np.copyto(np.ndarray(output.shape, output.dtype, self.taken, start), output)
            places.append((start, size, output.shape))
            start += -(-size // ALIGNMENT) * ALIGNMENT
        return places

    def _put_bytes(self, parts: Sequence[bytes]) -> list[tuple[int, int]]:
        places = []
        start = 0
        for part in parts:
            self._need(start + len(part))
            self.taken[start : start + len(part)] = part
            places.append((start, len(part)))
            start += len(part)
        return places

    def _need(self, size: int) -> None:
        if size > len(self.taken):
            raise Invalid(
                "The answer is larger than {limit} bytes.",
                code="answer_too_large",
                limit=len(self.taken),
            )


def _spec(one: Any) -> Spec:
    datatype = _ONNX.get(one.type)
    if datatype is None:
        raise Invalid(
            "Tensor {name!r} of the model is a {type}, which no protocol carries.",
            code="unsupported_input",
            name=one.name,
            type=one.type,
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in one.shape)
    return one.name, datatype, shape


def _same(both: Array, first: Array, second: Array) -> bool:
    """Say whether a batch of two gave the answers of each alone."""
    if both.ndim == 0 or first.shape[:1] != (1,) or both.shape != (2, *first.shape[1:]):
        return False
    alone = np.concatenate([first, second])
    if both.dtype.kind != "f":
        return np.array_equal(both, alone)
    alone = alone.astype(np.float64)
    size = max(1.0, float(np.abs(alone).max(initial=0.0)))
    return bool(np.abs(both.astype(np.float64) - alone).max(initial=0.0) <= 1e-3 * size)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file() or file.stat().st_size > _MAX_CONFIG_BYTES:
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _refusal(error: Exception) -> Invalid:
    return Invalid(
        "The model refused its input: {problem}", code="run_failed", problem=first_line(error)
    )


def _said(error: RegistryError) -> list[Any]:
    return ["no", error.reason, pack(error)]


def main() -> None:
    """Speak over standard input, which is the socket."""
    channel = socket.socket(fileno=sys.stdin.fileno())
    try:
        Server(channel).serve()
    except (BrokenPipeError, ConnectionResetError):
        return  # the server has gone, or gave up on this process
    finally:
        channel.detach()


if __name__ == "__main__":
    main()
