"""What computes: a torch module, or an ONNX Runtime session; both take and give plain arrays."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from registry.errors import Invalid
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.sessions import first_line, open_session
from workers.ml.program import Program

PACKAGE_INPUTS = "inputs"
"""Where a package says what its inputs have to be."""
_DTYPES = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
}


class Engine(Protocol):
    """Computes a model's outputs."""

    @property
    def name(self) -> str: ...

    @property
    def input_names(self) -> list[str]: ...

    @property
    def row_outputs(self) -> list[str]:
        """Name the outputs that say something of single rows, as far as the model tells."""
        ...

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]: ...


class TorchEngine:
    """Runs a module in inference mode on one device."""

    def __init__(
        self, module: nn.Module, input_names: Sequence[str], output_name: str, device: str
    ) -> None:
        self.module = module.eval().to(device)
        self.device = device
        self._inputs = list(input_names)
        self._output = output_name

    @property
    def name(self) -> str:
        return f"torch/{self.device}"

    @property
    def input_names(self) -> list[str]:
        return self._inputs

    @property
    def row_outputs(self) -> list[str]:
        return [self._output]

    @torch.inference_mode()
    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        tensors = [
            torch.from_numpy(np.ascontiguousarray(feeds[name])).to(self.device)
            for name in self._inputs
        ]
        return {self._output: self.module(*tensors).float().cpu().numpy()}


class ProgramEngine(TorchEngine):
    """Runs an exported program, which knows the shapes of its inputs."""

    def __init__(self, module: Program, output_name: str, device: str) -> None:
        super().__init__(module, module.input_names, output_name, device)
        self._ports = module.ports

    def inputs(self) -> dict[str, tuple[np.dtype[Any], list[int | str | None]]]:
        """Tell each input's type and shape; a free axis is nothing."""
        return {
            port.name: (
                np.dtype(port.dtype),
                [None if size < 0 else size for size in port.shape],
            )
            for port in self._ports
        }


class CompiledEngine:
    """Runs a package of AOTInductor: machine code for a processor, with the weights in it.

    That code looks at no shape: what is given to it has to be what it was compiled for, or it
    reads what lies behind.
    """

    name = "aotinductor/cpu"

    def __init__(self, package: Path, input_names: Sequence[str], output_name: str) -> None:
        self._opened = open_package(package)
        self._taken = json.loads(self._opened.get_metadata()[PACKAGE_INPUTS])
        self._inputs = list(input_names)
        self._output = output_name
        if len(self._taken) != len(self._inputs):
            raise Invalid("The package takes other inputs.", code="bad_config")

    @property
    def input_names(self) -> list[str]:
        return self._inputs

    @property
    def row_outputs(self) -> list[str]:
        return [self._output]

    @torch.inference_mode()
    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self._inputs]
        self._check(tensors)
        answer = self._opened(*tensors)
        first = answer[0] if isinstance(answer, tuple | list) else answer
        return {self._output: first.float().numpy()}

    def _check(self, tensors: Sequence[torch.Tensor]) -> None:
        sizes: dict[str, int] = {}
        for name, tensor, taken in zip(self._inputs, tensors, self._taken, strict=True):
            fits = (
                str(tensor.dtype) == f"torch.{taken['dtype']}"
                and tensor.dim() == len(taken["axes"])
                and all(map(_is_within, tensor.shape, taken["axes"]))
                and all(
                    sizes.setdefault(axis[0], size) == size
                    for size, axis in zip(tensor.shape, taken["axes"], strict=True)
                    if isinstance(axis, list)
                )
            )
            if not fits:
                raise Invalid(
                    "Input {name!r} of the shape {shape} is not what the model was compiled for.",
                    code="run_failed",
                    name=name,
                    shape=list(tensor.shape),
                )


def _is_within(size: int, axis: int | list[Any]) -> bool:
    return size == axis if isinstance(axis, int) else axis[1] <= size <= axis[2]


def open_package(file: Path) -> Any:
    """Load a package of AOTInductor, which is called with tensors, and looks at no shape."""
    from torch import _inductor  # noqa: PLC0415 - loads compilers

    return _inductor.aoti_load_package(str(file))


class OnnxEngine:
    """Runs an ONNX file; on a GPU where this ONNX Runtime was built for one."""

    def __init__(self, file: Path, *, device: str, threads: int) -> None:
        self._session = open_session(file, threads=threads, gpu=device == "cuda", log_severity=3)
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def name(self) -> str:
        on_gpu = "CUDAExecutionProvider" in self._session.get_providers()
        return f"onnxruntime/{'cuda' if on_gpu else 'cpu'}"

    @property
    def input_names(self) -> list[str]:
        return [taken.name for taken in self._session.get_inputs()]

    @property
    def row_outputs(self) -> list[str]:
        sizes = {taken.shape[0] for taken in self._session.get_inputs() if taken.shape}
        first, *others = self._session.get_outputs()
        # Of another size than the inputs, such as the layers of a state, or what was found.
        of_rows = [
            one.name
            for one in others
            if not one.shape
            or one.shape[0] in {None, *sizes}
            or (isinstance(one.shape[0], str) and None in sizes)
        ]
        return [first.name, *of_rows]

    def inputs(self) -> dict[str, tuple[np.dtype[Any], list[int | str | None]]]:
        """Tell each input's type and shape; a free axis is a name or nothing."""
        found = {}
        for taken in self._session.get_inputs():
            if taken.type not in _DTYPES:
                raise Invalid(
                    "Input {name!r} is a {type}, which no dataset column can feed.",
                    code="unsupported_input",
                    name=taken.name,
                    type=taken.type,
                )
            if not taken.shape:
                raise Invalid(
                    "Input {name!r} is a single number, not one a row.",
                    code="unsupported_input",
                    name=taken.name,
                )
            found[taken.name] = (_DTYPES[taken.type], list(taken.shape))
        return found

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        try:
            answers = self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # see above
            raise Invalid(
                "The model refused its input: {problem}",
                code="run_failed",
                problem=first_line(error),
            ) from error
        return dict(zip(self._outputs, answers, strict=True))
