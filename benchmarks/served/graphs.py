"""The models that are served: three of different weight, and one that takes 600 kB a row."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from config.local import sample_data
from registry.recipes import DigitsCnn

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "var" / "bench" / "serving"
WIDTH, HIDDEN, CLASSES = 16, 32, 4
LARGE = 150_000
TOKENS = 32


@dataclass(frozen=True)
class Graph:
    """An ONNX file, and one row for it."""

    name: str
    title: str
    file: Path
    row: Mapping[str, Any]


def all_graphs() -> dict[str, Graph]:
    """Make what is missing under `var/bench/serving`; give all of it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(7)
    image = drawn.integers(0, 256, (1, 28, 28)).astype(np.uint8)
    tokens = drawn.integers(1000, 20_000, (1, TOKENS)).astype(np.int64)
    graphs = [
        Graph("mlp", "tiny MLP", _mlp(), {"x": _floats(drawn, WIDTH)}),
        Graph("cnn", "CNN", _cnn(), {"image": image}),
        Graph("minilm", "MiniLM", _minilm(), {"input_ids": tokens}),
        Graph("large", "600 kB tensor", _large(), {"x": _floats(drawn, LARGE)}),
    ]
    return {one.name: _with_masks(one) for one in graphs}


def mlp_bytes(seed: int) -> tuple[bytes, Any, Any]:
    """Make the tiny network; give its file and its two matrices."""
    drawn = np.random.default_rng(seed)
    first = drawn.standard_normal((WIDTH, HIDDEN)).astype(np.float32)
    second = drawn.standard_normal((HIDDEN, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "w2"], ["y"]),
    ]
    weights = [numpy_helper.from_array(first, "w1"), numpy_helper.from_array(second, "w2")]
    return _file(nodes, WIDTH, CLASSES, weights), first, second


def _file(nodes: list[Any], taken: int, given: int, weights: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", taken])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", given])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def _floats(drawn: np.random.Generator, width: int) -> Any:
    return drawn.standard_normal((1, width)).astype(np.float32)


def _with_masks(graph: Graph) -> Graph:
    """Give an encoder all its inputs: ones where it asks which tokens count, zeros else."""
    rows = dict(graph.row)
    known = onnx.load(graph.file, load_external_data=False).graph.input
    for port in known:
        if port.name not in rows:
            fill = int(port.name == "attention_mask")
            rows[port.name] = np.full((1, TOKENS), fill, np.int64)
    return Graph(graph.name, graph.title, graph.file, {one.name: rows[one.name] for one in known})


def _mlp() -> Path:
    file = FOLDER / "mlp.onnx"
    file.write_bytes(mlp_bytes(0)[0])
    return file


def _large() -> Path:
    file = FOLDER / "large.onnx"
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)
    file.write_bytes(_file([node], LARGE, 1, []))
    return file


def _cnn() -> Path:
    if (file := FOLDER / "cnn.onnx").is_file():
        return file
    from safetensors.torch import save  # noqa: PLC0415 - loads torch, once

    from workers.ml.architectures import build  # noqa: PLC0415 - see above

    parameters = DigitsCnn(name="digits_cnn")
    config = {"architecture": parameters.model_dump(), "labels": [str(one) for one in range(10)]}
    weights = save(build(parameters, classes=10).state_dict())
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    return _exported("cnn", files)


def _minilm() -> Path:
    return _exported(
        "minilm", {name: file.read_bytes() for name, file in sample_data.encoder_files().items()}
    )


def _exported(name: str, files: Mapping[str, bytes]) -> Path:
    """Have our exporter make an ONNX file of a torch model, as serving does."""
    target = FOLDER / name
    file = FOLDER / f"{name}.onnx"
    if file.is_file():
        return file
    source = FOLDER / f"{name}-source"
    source.mkdir(exist_ok=True)
    target.mkdir(exist_ok=True)
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    subprocess.run(
        [sys.executable, "-m", "workers.serving.prepare", source, target], cwd=ROOT, check=True
    )
    made = target / "model.onnx"
    if not made.is_file():
        raise RuntimeError((target / "report.json").read_text(encoding="utf-8"))
    return made.rename(file)
