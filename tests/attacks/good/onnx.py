"""ONNX files as the library of that name, torch and ONNX Runtime write them."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.attacks.corpus import good

FILE = "model.onnx"
SHAPE = ["batch", 3]


def port(name, dtype=TensorProto.FLOAT, shape=SHAPE):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, *, weights=(), inputs=None, outputs=None, opset=17, **details):
    graph = helper.make_graph(
        nodes, "main", inputs or [port("x")], outputs or [port("y")], initializer=list(weights)
    )
    opsets = [helper.make_opsetid("", opset), *details.pop("opsets", ())]
    made = helper.make_model(graph, opset_imports=opsets, **details)
    onnx.checker.check_model(made)
    return made


def written(*args, **options):
    return model(*args, **options).SerializeToString()


def weight(array, name="w"):
    return numpy_helper.from_array(np.asarray(array), name)


def add(weights=None, **options):
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return written([node], weights=weights or [weight(np.zeros(3, np.float32))], **options)


def of_opset(opset):
    @good("onnx", FILE, called=f"opset {opset}", parameters=3, metadata={"opset": opset})
    def make():
        return add(opset=opset)


for number in (7, 9, 11, 13, 17, 20, 21, 22, 23):
    of_opset(number)


@good("onnx", FILE, parameters=0, inputs=["x"], outputs=["y"])
def a_graph_without_weights():
    return written([helper.make_node("Identity", ["x"], ["y"])])


def typed(name, kind, values):
    """Write a weight as a list of numbers in place of bytes."""

    @good("onnx", FILE, called=f"{name} written as numbers", parameters=len(values))
    def make():
        tensor = helper.make_tensor("w", kind, [len(values)], values)
        node = helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)
        return written([node], weights=[tensor], outputs=[port("y", shape=[len(values)])])


typed("float32", TensorProto.FLOAT, [1.0, 2.0])
typed("float64", TensorProto.DOUBLE, [1.0, 2.0, 3.0])
typed("int64", TensorProto.INT64, [-1, 1 << 62])
typed("int32", TensorProto.INT32, [-1, 0, 1, 2])
typed("uint8", TensorProto.UINT8, [0, 255])
typed("bool", TensorProto.BOOL, [True, False])
typed("uint64", TensorProto.UINT64, [(1 << 64) - 1])
typed("float16", TensorProto.FLOAT16, [0.5, 1.5])
typed("bfloat16", TensorProto.BFLOAT16, [0.5, 1.5, 2.5])
typed("float8", TensorProto.FLOAT8E4M3FN, [0.5, 1.5])


@good("onnx", FILE, parameters=2, tensors={"w": ["string", [2]]})
def words():
    tensor = helper.make_tensor("w", TensorProto.STRING, [2], [b"one", "二".encode()])
    node = helper.make_node("Identity", ["w"], ["y"])
    return written([node], weights=[tensor], outputs=[port("y", TensorProto.STRING, [2])])


@good("onnx", FILE, parameters=7, tensors={"w": ["int4", [7]]})
def seven_halves_of_a_byte():
    tensor = helper.make_tensor("w", TensorProto.INT4, [7], [1, -2, 3, -4, 5, -6, 7])
    node = helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)
    return written([node], weights=[tensor], opset=21, outputs=[port("y", shape=[7])])


@good("onnx", FILE, parameters=0, tensors={"w": ["float32", [0, 3]]})
def an_empty_weight():
    node = helper.make_node("Concat", ["x", "w"], ["y"], axis=0)
    return written([node], weights=[weight(np.zeros((0, 3), np.float32))])


@good("onnx", FILE, parameters=3)
def a_choice_of_two_graphs():
    def branch(name):
        out = [port(name, shape=[3])]
        return helper.make_graph([helper.make_node("Identity", ["w"], [name])], name, [], out)

    choose = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("yes"), else_branch=branch("no")
    )
    return written(
        [choose],
        weights=[weight(np.zeros(3, np.float32))],
        inputs=[port("c", TensorProto.BOOL, [])],
        outputs=[port("y", shape=[3])],
    )


@good("onnx", FILE, parameters=0)
def a_constant_within_a_node():
    constant = helper.make_node("Constant", [], ["c"], value=weight(np.zeros(3, np.float32), "c"))
    return written([constant, helper.make_node("Add", ["x", "c"], ["y"])])


@good("onnx", FILE, parameters=0)
def a_sparse_weight():
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = helper.make_tensor("at", TensorProto.INT64, [2], [0, 2])
    sparse = helper.make_sparse_tensor(values, places, [3])
    made = model([helper.make_node("Identity", ["x"], ["y"])])
    made.graph.sparse_initializer.append(sparse)
    return made.SerializeToString()


@good("onnx", FILE, metadata={"producer_name": "我们", "metadata.author": "somebody"})
def words_about_the_model():
    made = model([helper.make_node("Identity", ["x"], ["y"])], producer_name="我们")
    helper.set_model_props(made, {"author": "somebody"})
    made.doc_string = "Long words. " * 1000
    return made.SerializeToString()


@good("onnx", FILE, metadata={"opsets": {"": 17, "ai.onnx.ml": 3}})
def operators_of_classical_learning():
    scale = helper.make_node(
        "Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0, 0.0, 0.0], scale=[1.0, 1.0, 1.0]
    )
    return written([scale], opsets=[helper.make_opsetid("ai.onnx.ml", 3)])


@good("onnx", FILE, parameters=0)
def a_function_of_its_own():
    function = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    return written(
        [helper.make_node("Twice", ["x"], ["y"], domain="mine")],
        opsets=[helper.make_opsetid("mine", 1)],
        functions=[function],
    )


@good("onnx", FILE, parameters=3)
def weights_named_among_the_inputs_as_long_ago():
    node = helper.make_node("Add", ["x", "w"], ["y"])
    inputs = [port("x"), port("w", shape=[3])]
    return written([node], weights=[weight(np.zeros(3, np.float32))], inputs=inputs, opset=7)


@good("onnx", FILE, parameters=2000, finds="model.onnx.data")
def weights_in_a_file_beside_it():
    node = helper.make_node("Add", ["x", "w"], ["y"])
    made = model(
        [node],
        weights=[weight(np.zeros(2000, np.float32))],
        inputs=[port("x", shape=[2000])],
        outputs=[port("y", shape=[2000])],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        onnx.save(made, path, save_as_external_data=True, location="model.onnx.data")
        return {name.name: name.read_bytes() for name in Path(folder).iterdir()}


@good("onnx", "model_int8.onnx")
def quantised_by_onnx_runtime():
    from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415 - takes a second

    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    made = model([node], weights=[weight(np.eye(3, dtype=np.float32))])
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        onnx.save(made, source)
        quantize_dynamic(source, target, op_types_to_quantize=["MatMul"])
        return target.read_bytes()


@good("onnx", FILE, parameters=8, inputs=["x"])
def exported_by_torch():
    layer = torch.nn.Linear(3, 2).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(layer, (torch.zeros(1, 3),), input_names=["x"], verbose=False)
    return program.model_proto.SerializeToString()
