"""The weights of an ONNX graph by the layers that use them: found, read, replaced, written.

Every name made here comes from a name that was there, so the same graph gives the same bytes.
"""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from registry.errors import Invalid
from workers.ml.graphs import inspect_onnx

MICROSOFT = "com.microsoft"
SMALLEST = 64
"""Weights with fewer numbers stay as they are: their scales would take what rounding saves."""

Role = Literal["product", "table", "other"]
_INTEGER_OPS = {
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "QuantizeLinear",
    "DequantizeLinear",
    "MatMulNBits",
    "GatherBlockQuantized",
}
# The inputs that hold weights, of operators that are neither products nor look-ups.
_OTHERS = {"Conv": (1,), "ConvTranspose": (1,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}


@dataclass(frozen=True)
class Layer:
    """One constant weight, and the node that uses it."""

    name: str
    """The node's."""
    role: Role
    operator: str
    weight: str
    position: int
    """Which input of the node the weight is."""
    input: str
    """What it is multiplied with; empty where that is no one tensor."""


class Graph:
    """An ONNX model that is being rewritten."""

    def __init__(self, file: Path) -> None:
        try:
            self.model = onnx.load(file, load_external_data=False)
        except Exception as error:  # protobuf raises its own DecodeError
            raise Invalid(
                "{file} is no ONNX model: {problem}",
                code="malformed_file",
                file=file.name,
                problem=error,
            ) from error
        self._name_nodes()
        self._lift_constants()
        self._constants = {tensor.name: tensor for tensor in self.model.graph.initializer}

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        nodes: Sequence[onnx.NodeProto] = self.model.graph.node
        return nodes

    def _name_nodes(self) -> None:
        """Name every node once: exporters repeat names or leave them out."""
        taken: set[str] = set()
        for number, node in enumerate(self.nodes):
            if not node.name or node.name in taken:
                node.name = f"{node.op_type}_{number}"
            taken.add(node.name)

    def _lift_constants(self) -> None:
        """Make initializers of constants that are nodes, and of what only turns a constant."""
        graph = self.model.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        kept: list[onnx.NodeProto] = []
        for node in graph.node:
            made = _constant_of(node, constants)
            if made is None:
                kept.append(node)
                continue
            made.name = node.output[0]
            constants[made.name] = made
            graph.initializer.append(made)
        del graph.node[:]
        graph.node.extend(kept)

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def read(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self._constants[name])

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant other numbers, for all that use it."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        self._constants[name].CopyFrom(tensor)

    def add(self, name: str, values: NDArray[Any]) -> str:
        """Add a constant, once for a name."""
        if name not in self._constants:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
            self._constants[name] = tensor
            self.model.graph.initializer.append(tensor)
        return name

    def add_tensor(self, tensor: onnx.TensorProto) -> None:
        """Add a constant of a type that numpy does not have."""
        self._constants[tensor.name] = tensor
        self.model.graph.initializer.append(tensor)

    def import_domain(self, domain: str, version: int = 1) -> None:
        if all(found.domain != domain for found in self.model.opset_import):
            self.model.opset_import.append(onnx.helper.make_opsetid(domain, version))

    def layers_of(self, node: onnx.NodeProto) -> Iterator[Layer]:
        """Yield the weights that a node's operator takes, whatever they are."""
        return _layers_of(node)

    def layers(self) -> Iterator[Layer]:
        """Yield the layers with a constant float32 weight that is worth rounding."""
        for node in self.nodes:
            for layer in _layers_of(node):
                if self._is_weight(layer):
                    yield layer

    def _is_weight(self, layer: Layer) -> bool:
        tensor = self._constants.get(layer.weight)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return False
        dims = tuple(tensor.dims)
        if layer.role != "other" and len(dims) != 2:
            return False
        return len(dims) >= 2 and int(np.prod(dims)) >= SMALLEST

    def names(self) -> dict[str, list[str]]:
        """Give for each node that has weights what people may call it."""
        found: dict[str, list[str]] = {}
        for layer in self.layers():
            found.setdefault(layer.name, [layer.name]).append(layer.weight)
        return found

    def node(self, name: str) -> onnx.NodeProto:
        """Find a node; adding or replacing nodes makes all that were found before stale."""
        return next(node for node in self.nodes if node.name == name)

    def replace(self, name: str, made: Sequence[onnx.NodeProto]) -> None:
        """Put nodes in the place of one."""
        kept: list[onnx.NodeProto] = []
        for node in self.nodes:
            kept.extend(made if node.name == name else [node])
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)

    def put_first(self, made: Sequence[onnx.NodeProto]) -> None:
        """Put nodes that need nothing but constants before all others."""
        kept = [*made, *self.nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)

    def drop_unused(self) -> None:
        """Leave out constants that nothing uses any more."""
        used = _used(self.model.graph)
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        # Types of intermediate values speak of the graph as it was.
        del self.model.graph.value_info[:]

    def save(self, file: Path) -> None:
        self.drop_unused()
        file.write_bytes(self.model.SerializeToString(deterministic=True))


def _constant_of(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]
) -> onnx.TensorProto | None:
    if (
        node.op_type == "Constant"
        and len(node.attribute) == 1
        and node.attribute[0].name == "value"
    ):
        made = onnx.TensorProto()
        made.CopyFrom(node.attribute[0].t)
        return made
    if node.op_type not in {"Identity", "Transpose"} or node.domain:
        return None
    tensor = constants.get(node.input[0])
    if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    values = numpy_helper.to_array(tensor)
    if node.op_type == "Transpose":
        order = next((list(found.ints) for found in node.attribute if found.name == "perm"), None)
        values = np.ascontiguousarray(values.transpose(order))
    return numpy_helper.from_array(values, tensor.name)


def _layers_of(node: onnx.NodeProto) -> Iterator[Layer]:
    if node.domain:
        return
    if node.op_type in {"MatMul", "Gemm"} and attribute(node, "transA", 0) == 0:
        yield Layer(node.name, "product", node.op_type, node.input[1], 1, node.input[0])
    elif node.op_type == "Gather" and attribute(node, "axis", 0) == 0:
        yield Layer(node.name, "table", node.op_type, node.input[0], 0, "")
    else:
        for position in _OTHERS.get(node.op_type, ()):
            given = "" if position == 2 else node.input[0]
            yield Layer(node.name, "other", node.op_type, node.input[position], position, given)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    for found in node.attribute:
        if found.name == name:
            return onnx.helper.get_attribute_value(found)
    return default


def _used(graph: onnx.GraphProto) -> set[str]:
    names = {output.name for output in graph.output}
    for node in graph.node:
        names.update(node.input)
        for found in node.attribute:
            if found.type == onnx.AttributeProto.GRAPH:
                names |= _used(found.g)
            for inner in found.graphs:
                names |= _used(inner)
    return names


def excluded(names: Mapping[str, Sequence[str]], patterns: Sequence[str]) -> set[str]:
    """Tell which layers the patterns name, each by any of its names or by what they begin with.

    `names` has for each layer all that it is called: its node, its weight, such as classes.weight.

    Raises:
        Invalid: a pattern names none, which is a misspelling more often than a wish.

    """
    found: set[str] = set()
    for pattern in patterns:
        matching = {
            layer for layer, called in names.items() if any(_fits(name, pattern) for name in called)
        }
        if not matching:
            known = [", ".join(dict.fromkeys(called)) for called in names.values()]
            raise Invalid(
                "No layer is called {pattern}; this model has {layers}.",
                code="no_such_layer",
                pattern=pattern,
                layers="; ".join([*known[:20], *(["..."] if len(known) > 20 else [])]),
            )
        found |= matching
    return found


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def refuse_quantized(source: Path) -> None:
    """Refuse a file whose weights are rounded already.

    Raises:
        Invalid: it has operators over integers.

    """
    if done := sorted(_INTEGER_OPS & inspect_onnx(source).operators.keys()):
        raise Invalid(
            "The model is quantized already: it has {done}. "
            "Choose the version that it was made from.",
            code="already_quantized",
            done=", ".join(done),
        )
