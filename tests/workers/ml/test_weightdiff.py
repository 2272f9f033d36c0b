import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from registry.errors import Invalid
from registry.formats.weights import NOTHING, Chosen, choose_weights
from tests.registry.formats import samples
from tests.workers.ml.little import ROOT
from workers.ml import graph_weights, myz, weightdiff
from workers.ml.stored import OpenFiles, Stored
from workers.ml.tensors import open_tensors
from workers.ml.weightdiff import Change, Progress, compare_tensors

RNG = np.random.default_rng(7)


def opened(folder: Path, *paths: str, format_name: str = "safetensors") -> dict[str, Stored]:
    return open_tensors(folder, Chosen(format_name, paths), folder / "scratch", OpenFiles())


def compared(before: dict[str, Stored], after: dict[str, Stored]) -> dict[str, Change]:
    return {one.name: one for one in compare_tensors(before, after, Progress(0))}


def saved(folder: Path, name: str, tensors: dict[str, Any]) -> dict[str, Stored]:
    save_file(tensors, folder / f"{name}.safetensors")
    return opened(folder, f"{name}.safetensors")


def test_says_of_each_tensor_what_became_of_it(tmp_path: Path) -> None:
    kept = RNG.standard_normal((40, 30)).astype("f4")
    pruned = kept * (np.abs(kept) > 1)
    moved = kept + np.float32(0.01)
    before = saved(
        tmp_path,
        "before",
        {
            "same": kept,
            "pruned": kept,
            "moved": kept,
            "shape": kept,
            "old.name": kept[:7].copy(),
            "gone": kept[:3].copy(),
        },
    )
    after = saved(
        tmp_path,
        "after",
        {
            "same": kept,
            "pruned": pruned,
            "moved": moved,
            "shape": kept[:20].copy(),
            "new.name": kept[:7].copy(),
            "extra": kept[:5].copy(),
        },
    )
    found = compared(before, after)
    assert {name: one.state for name, one in found.items()} == {
        "same": "equal",
        "pruned": "changed",
        "moved": "changed",
        "shape": "reshaped",
        "new.name": "renamed",
        "extra": "new",
        "gone": "gone",
    }
    lost = int((np.abs(kept) <= 1).sum())
    one = found["pruned"]
    assert (one.emptied, one.filled, one.changed) == (lost, 0, lost)
    assert (one.zeros_before, one.zeros_after) == (0, lost)
    assert one.relative == pytest.approx(np.linalg.norm(pruned - kept) / np.linalg.norm(kept))
    assert one.max_change == pytest.approx(float(np.abs(pruned - kept).max()))
    cosine = float((pruned * kept).sum()) / np.linalg.norm(pruned) / np.linalg.norm(kept)
    assert one.cosine == pytest.approx(cosine, rel=1e-5)
    assert found["same"].relative == 0.0
    assert found["new.name"].name_before == "old.name"
    assert found["shape"].shape_after == [20, 30]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8])
def test_reads_numbers_of_every_width_as_torch_does(tmp_path: Path, dtype: torch.dtype) -> None:
    wide = torch.tensor([[0.0, 1.0, -2.0, 3.0, 100.0, -1.0]])
    save_torch({"w": wide}, tmp_path / "wide.safetensors")
    save_torch({"w": wide.to(dtype)}, tmp_path / "narrow.safetensors")
    found = compared(opened(tmp_path, "wide.safetensors"), opened(tmp_path, "narrow.safetensors"))[
        "w"
    ]
    apart = int((wide.to(dtype).double() != wide.double()).sum())
    assert found.changed == apart
    assert found.state == ("changed" if apart else "recast")
    assert found.norm_after == pytest.approx(float(wide.to(dtype).double().norm()))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
)
def test_knows_what_every_byte_of_a_small_float_stands_for(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    save_torch({"w": codes}, tmp_path / "small.safetensors")
    stored = opened(tmp_path, "small.safetensors")["w"]
    numbers = stored.numbers(stored.raw(0, 256), 0)
    np.testing.assert_array_equal(numbers, codes.double().numpy())


def test_what_is_no_number_is_counted_and_left_out(tmp_path: Path) -> None:
    odd = np.array([np.nan, np.inf, 1.0, 2.0], "f4")
    before = saved(tmp_path, "before", {"w": np.array([np.nan, 5.0, 1.0, 2.0], "f4")})
    found = compared(before, saved(tmp_path, "after", {"w": odd}))["w"]
    assert (found.odd_before, found.odd_after, found.changed) == (1, 2, 1)
    assert found.relative is not None
    assert math.isfinite(found.relative)


def test_empty_and_scalar_tensors_compare(tmp_path: Path) -> None:
    tensors = {"none": np.zeros((0, 4), "f4"), "one": np.array(3.0, "f4")}
    before = saved(tmp_path, "before", tensors)
    after = saved(tmp_path, "after", {**tensors, "one": np.array(4.0, "f4")})
    found = compared(before, after)
    assert found["none"].state == "equal"
    assert found["one"].relative == pytest.approx(1 / 3)


def test_a_coded_file_is_compared_with_a_plain_one(tmp_path: Path) -> None:
    tensors = {"w": RNG.standard_normal((64, 64)).astype("f4"), "b": np.zeros(64, "f4")}
    before = saved(tmp_path, "model", tensors)
    myz.pack(tmp_path / "model.safetensors", tmp_path / "model.myz")
    found = compared(before, opened(tmp_path, "model.myz", format_name="myz"))
    assert {one.state for one in found.values()} == {"equal"}


def graph(path: Path, weights: list[TensorProto], nodes: list[Any]) -> None:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        weights,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def test_a_quantized_weight_is_compared_with_the_one_that_it_was_made_of(tmp_path: Path) -> None:
    weight = RNG.standard_normal((4, 3)).astype("f4")
    scale = (np.abs(weight).max(axis=0) / 127).astype("f4")
    whole = np.round(weight / scale).astype("i1")
    plain = helper.make_node("MatMul", ["x", "fc.weight"], ["y"])
    graph(tmp_path / "plain.onnx", [numpy_helper.from_array(weight, "fc.weight")], [plain])
    graph(
        tmp_path / "int8.onnx",
        [
            numpy_helper.from_array(whole, "fc.weight_quantized"),
            numpy_helper.from_array(scale, "fc.weight_scale"),
            numpy_helper.from_array(np.zeros(3, "i1"), "fc.weight_zero_point"),
        ],
        [
            helper.make_node(
                "DequantizeLinear",
                ["fc.weight_quantized", "fc.weight_scale", "fc.weight_zero_point"],
                ["fc.weight"],
                axis=1,
            ),
            plain,
        ],
    )
    found = compared(
        opened(tmp_path, "plain.onnx", format_name="onnx"),
        opened(tmp_path, "int8.onnx", format_name="onnx"),
    )
    assert list(found) == ["fc.weight"]
    one = found["fc.weight"]
    exact = np.linalg.norm(whole * scale - weight) / np.linalg.norm(weight)
    assert one.relative == pytest.approx(exact, rel=1e-5)
    assert (one.dtype_before, one.dtype_after) == ("F32", "I8")


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_a_weight_that_is_multiplied_as_whole_numbers_is_compared_too(
    tmp_path: Path, *, per_channel: bool, turned: bool
) -> None:
    """As the dynamic quantizer leaves it: turned, its products scaled, and put back by no node."""
    weight = RNG.standard_normal((3, 4)).astype("f4")
    before = saved(tmp_path, "before", {"fc.weight": weight})
    lies = weight.T if turned else weight
    most = np.abs(lies).max(axis=0) if per_channel else np.abs(lies).max(keepdims=True).ravel()
    scale = (most / 127).astype("f4")
    zero = np.full(len(scale), 3, "i1")
    whole = np.clip(np.round(lies / scale) + 3, -128, 127).astype("i1")
    name = "fc.weight_Transposed" if turned else "fc.weight"
    graph(
        tmp_path / "int8.onnx",
        [
            numpy_helper.from_array(whole, f"{name}_quantized"),
            numpy_helper.from_array(scale, f"{name}_scale"),
            helper.make_tensor(f"{name}_zero_point", TensorProto.INT8, [len(zero)], zero.tolist()),
        ],
        [helper.make_node("MatMulInteger", ["x", f"{name}_quantized"], ["y"])],
    )
    found = compared(before, opened(tmp_path, "int8.onnx", format_name="onnx"))
    assert list(found) == ["fc.weight"]
    one = found["fc.weight"]
    put_back = (whole.astype("f4") - 3) * scale
    exact = np.linalg.norm(put_back - lies) / np.linalg.norm(weight)
    assert one.relative == pytest.approx(exact, rel=1e-5)
    assert (one.state, one.dtype_after, one.shape_after) == ("changed", "I8", [3, 4])
    assert one.cosine == pytest.approx(1, abs=1e-3)


def test_a_turned_matrix_that_is_too_large_to_hold_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = RNG.standard_normal((5, 4)).astype("f4")
    node = helper.make_node("Identity", ["x"], ["y"])
    graph(tmp_path / "a.onnx", [numpy_helper.from_array(matrix, "w_Transposed")], [node])
    assert next(iter(opened(tmp_path, "a.onnx", format_name="onnx").values())).shape == (4, 5)
    monkeypatch.setattr(graph_weights, "_TURNED_BYTES", matrix.nbytes - 1)
    assert list(opened(tmp_path, "a.onnx", format_name="onnx")) == ["w_Transposed"]


def test_numbers_that_lie_otherwise_in_a_graph_still_compare(tmp_path: Path) -> None:
    floats = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    whole = helper.make_tensor("n", TensorProto.INT64, [2], [-1, 300])
    bytes_of = helper.make_tensor("z", TensorProto.INT8, [2], [-128, 5])
    other = helper.make_tensor("u", TensorProto.UINT64, [2], [1, 300])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph(tmp_path / "a.onnx", [floats, whole, bytes_of, other], [node])
    floats.float_data[0] = 4.0
    whole.int64_data[1] = 301
    bytes_of.int32_data[1] = 7
    other.uint64_data[1] = 301
    graph(tmp_path / "b.onnx", [floats, whole, bytes_of, other], [node])
    found = compared(
        opened(tmp_path, "a.onnx", format_name="onnx"),
        opened(tmp_path, "b.onnx", format_name="onnx"),
    )
    assert found["w"].max_change == 3.0
    assert (found["n"].max_change, found["n"].norm_before) == (1.0, math.sqrt(1 + 300**2))
    assert (found["z"].max_change, found["z"].norm_before) == (2.0, math.sqrt(128**2 + 25))
    # Numbers that are written in yet another way can only be the same, or not.
    assert (found["u"].state, found["u"].max_change) == ("changed", None)


def test_shapes_that_an_exporter_writes_are_no_weights(tmp_path: Path) -> None:
    weight = RNG.standard_normal((4, 3)).astype("f4")
    constants = {
        "val_2": np.array([1, 4], "i8"),
        "axes": np.array([0], "i8"),
        "ids": np.array([0, 1], "i8"),
        "both": np.array([1, 3], "i8"),
        "scale": np.array(0.5, "f4"),
        "wide": np.ones((2, 2), "i8"),
        "unused": np.array([7], "i8"),
    }
    tensors = [
        numpy_helper.from_array(values, name) for name, values in {"w": weight, **constants}.items()
    ]
    nodes = [
        helper.make_node("Reshape", ["x", "val_2"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "axes"], ["more"]),
        helper.make_node("Gather", ["more", "ids"], ["some"]),
        helper.make_node("Reshape", ["some", "both"], ["a"]),
        helper.make_node("Add", ["a", "both"], ["b"]),
        helper.make_node("Mul", ["b", "scale"], ["c"]),
        helper.make_node("Tile", ["c", "wide"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    graph(tmp_path / "model.onnx", tensors, nodes)
    found = compared(
        saved(tmp_path, "model", {"w": weight}),
        opened(tmp_path, "model.onnx", format_name="onnx"),
    )
    states = {name: one.state for name, one in found.items()}
    assert states == {"w": "equal", **dict.fromkeys(constants.keys() - {"val_2", "axes"}, "new")}
    # What lies in another graph may use them otherwise.
    branch = helper.make_graph([], "branch", [], [])
    inside = helper.make_node("If", ["c"], ["e"], then_branch=branch, else_branch=branch)
    graph(tmp_path / "branched.onnx", tensors, [*nodes, inside])
    names = opened(tmp_path, "branched.onnx", format_name="onnx").keys()
    assert names == {"w", *constants}


def test_weights_beside_a_graph_are_read_and_nothing_else(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(RNG.standard_normal((4, 3)).astype("f4"), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph(tmp_path / "inside.onnx", [weight], [node])
    model = onnx.load(tmp_path / "inside.onnx")
    onnx.save(
        model,
        tmp_path / "outside.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    inside = opened(tmp_path, "inside.onnx", format_name="onnx")
    outside = opened(tmp_path, "outside.onnx", format_name="onnx")
    assert compared(inside, outside)["w"].state == "equal"
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(Invalid, match="not there"):
        opened(tmp_path, "outside.onnx", format_name="onnx")


MOST_OPEN = 320
MANY = 200


def write_adapters(folder: Path, last: float) -> None:
    for at in range(MANY):
        values = np.full(3, last if at == MANY - 1 else 1.0, "f4")
        save_file({"w": values}, folder / f"{at:03}.safetensors")


def write_coded_adapters(folder: Path, last: float) -> None:
    write_adapters(folder, last)
    for path in folder.glob("*.safetensors"):
        myz.pack(path, path.with_suffix(".myz"))
        path.unlink()


def write_outside(folder: Path, last: float) -> None:
    weights = []
    for at in range(MANY):
        (folder / f"{at:03}").write_bytes(np.full(3, last if at == MANY - 1 else 1.0, "f4"))
        place = samples.field(1, "location") + samples.field(2, f"{at:03}")
        said = samples.field(13, place) + samples.field(14, 1)
        weights.append(samples.onnx_tensor(f"{at:03}:w", dims=(3,), raw=None, extra=said))
    (folder / "model.onnx").write_bytes(samples.onnx(initializers=weights))


@pytest.mark.parametrize("write", [write_adapters, write_coded_adapters, write_outside])
def test_a_version_may_have_more_files_than_a_process_may_open(
    tmp_path: Path, write: Callable[[Path, float], None]
) -> None:
    described: dict[str, Any] = {"job_id": "0", "inputs": {}, "out": "out", "checkpoints": "kept"}
    described["recipe"] = {"kind": "diff", "base": "a/experts@1", "model": "a/experts@2"}
    for number, role in enumerate(("base", "model"), 1):
        (tmp_path / role).mkdir()
        write(tmp_path / role, float(number))
        place = {"path": role, "ref": described["recipe"][role], "may_be_named": True}
        described["inputs"][role] = place
    (tmp_path / "job.json").write_text(json.dumps(described))
    limited = ["/bin/sh", "-c", f'ulimit -n {MOST_OPEN} && exec "$@"', "sh"]
    ended = subprocess.run(
        [*limited, sys.executable, "-P", "-s", "-m", "workers.ml", "job.json"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "out" / "report.json").read_text())["summary"]
    assert found["counts"] == {"changed": 1, "equal": MANY - 1}
    (changed,) = (row["name"] for row in found["tensors"] if row["state"] == "changed")
    assert changed == f"{MANY - 1}:w"


def test_of_many_files_a_few_stay_open_and_none_at_the_end(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_text(name)
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir()))
    with OpenFiles(most=2) as files:
        readers = [files.reader(tmp_path / name) for name in "abcd"]
        assert b"".join(read(0, 1) for read in [*readers, *readers]) == b"abcdabcd"
        assert len(list(handles.iterdir())) == before + 2
    assert len(list(handles.iterdir())) == before


def test_memory_stays_flat_however_large_a_tensor_is(tmp_path: Path) -> None:
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [1 << 26], "data_offsets": [0, 1 << 28]}}
    ).encode()
    for name in ("a", "b"):
        with (tmp_path / f"{name}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + (1 << 28))
            if name == "b":
                file.seek(8 + len(header) + (1 << 27))
                file.write(np.array([1.0], "f4").tobytes())
    before, after = (opened(tmp_path, f"{name}.safetensors") for name in ("a", "b"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = compared(before, after)["w"]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert (found.filled, found.zeros_before, found.max_change) == (1, 1 << 26, 1.0)
    assert grown < 60 * 1024  # of 512 MiB that were read


def test_goes_on_after_what_is_known(tmp_path: Path) -> None:
    tensors = {name: RNG.standard_normal(10).astype("f4") for name in ("a", "b")}
    before, after = saved(tmp_path, "before", tensors), saved(tmp_path, "after", tensors)
    told = Change(name="a", state="changed", relative=0.5)
    heard: list[str] = []
    found = compare_tensors(
        before, after, Progress(0), known={"a": told}, keep=lambda one: heard.append(one.name)
    )
    assert found[0] is told
    assert heard == ["b"]


def test_a_report_lists_what_changed_before_what_did_not() -> None:
    many = [Change(name=f"w{n}", state="equal") for n in range(weightdiff.MOST_LISTED)]
    said = weightdiff.summarise([*many, Change(name="x", state="changed", changed=1)])
    assert said["counts"] == {"changed": 1, "equal": weightdiff.MOST_LISTED}
    assert said["tensors"][-1]["name"] == "x"
    assert len(said["tensors"]) == weightdiff.MOST_LISTED


def test_what_was_zero_before_counts_in_what_changed_of_all(tmp_path: Path) -> None:
    kept = np.array([3.0, 4.0], "f4")
    before = saved(tmp_path, "before", {"a": kept, "b": np.zeros(2, "f4")})
    after = saved(tmp_path, "after", {"a": kept, "b": np.array([6.0, 8.0], "f4")})
    changes = compare_tensors(before, after, Progress(0))
    assert weightdiff.summarise(changes)["relative"] == pytest.approx(2.0)
    onto_zeros = [one for one in changes if one.name == "b"]
    assert weightdiff.summarise(onto_zeros)["relative"] is None


def test_numbers_as_large_as_doubles_are_can_be_summed(tmp_path: Path) -> None:
    before = saved(tmp_path, "before", {"w": np.array([6e153]), "v": np.array([6e153])})
    after = saved(tmp_path, "after", {"w": np.array([1.2e154]), "v": np.array([1.2e154])})
    changes = compare_tensors(before, after, Progress(0))
    assert weightdiff.summarise(changes)["relative"] == pytest.approx(1.0)
    larger = saved(tmp_path, "larger", {"w": np.array([1e200]), "v": np.array([1.0])})
    with np.errstate(over="ignore"):
        said = weightdiff.summarise(compare_tensors(before, larger, Progress(0)))
    assert said["relative"] is None
    json.dumps(said, allow_nan=False)


@pytest.mark.parametrize(
    ("before", "after", "first", "second"),
    [
        (
            ["model.safetensors", "model.onnx"],
            ["model.onnx"],
            Chosen("onnx", ("model.onnx",)),
            Chosen("onnx", ("model.onnx",)),
        ),
        (
            ["model.safetensors"],
            ["model.myz", "README.md"],
            Chosen("safetensors", ("model.safetensors",)),
            Chosen("myz", ("model.myz",)),
        ),
        (
            ["m-00002-of-00002.safetensors", "m-00001-of-00002.safetensors", "x.safetensors"],
            ["a/model.safetensors", "program.safetensors", "other.safetensors"],
            Chosen(
                "safetensors",
                (
                    "m-00001-of-00002.safetensors",
                    "m-00002-of-00002.safetensors",
                    "x.safetensors",
                ),
                ("other", "other", "x"),
            ),
            Chosen(
                "safetensors", ("a/model.safetensors", "other.safetensors"), ("a/model", "other")
            ),
        ),
        (
            ["model.safetensors"],
            ["model.safetensors", "adapter_model.safetensors"],
            Chosen("safetensors", ("model.safetensors",), ("model",)),
            Chosen(
                "safetensors",
                ("adapter_model.safetensors", "model.safetensors"),
                ("adapter_model", "model"),
            ),
        ),
        (
            ["encoder.safetensors", "decoder.safetensors"],
            ["encoder.onnx", "decoder.onnx"],
            Chosen(
                "safetensors",
                ("decoder.safetensors", "encoder.safetensors"),
                ("decoder", "encoder"),
            ),
            Chosen("onnx", ("decoder.onnx", "encoder.onnx"), ("decoder", "encoder")),
        ),
        (
            ["model.safetensors", "model-00001-of-00001.safetensors"],
            ["model.safetensors"],
            Chosen(
                "safetensors",
                ("model-00001-of-00001.safetensors", "model.safetensors"),
                ("model-00001-of-00001.safetensors", "model.safetensors"),
            ),
            Chosen("safetensors", ("model.safetensors",), ("model.safetensors",)),
        ),
        (
            ["model.safetensors", "pytorch_model.bin.safetensors", "program.safetensors"],
            ["weights.safetensors"],
            Chosen("safetensors", ("model.safetensors",)),
            Chosen("safetensors", ("weights.safetensors",)),
        ),
        (
            ["model.safetensors", "program.safetensors"],
            ["model.safetensors", "program.safetensors"],
            Chosen(
                "safetensors", ("model.safetensors", "program.safetensors"), ("model", "program")
            ),
            Chosen(
                "safetensors", ("model.safetensors", "program.safetensors"), ("model", "program")
            ),
        ),
        (
            ["m-00001-of-00002.fp16.safetensors", "m-00002-of-00002.fp16.safetensors"],
            ["m.fp16.safetensors"],
            Chosen(
                "safetensors",
                ("m-00001-of-00002.fp16.safetensors", "m-00002-of-00002.fp16.safetensors"),
            ),
            Chosen("safetensors", ("m.fp16.safetensors",)),
        ),
        (
            ["m.safetensors", "m-00001-of-00001.safetensors", "m.safetensors.safetensors"],
            ["m.safetensors"],
            Chosen(
                "safetensors",
                ("m-00001-of-00001.safetensors", "m.safetensors", "m.safetensors.safetensors"),
                ("m-00001-of-00001.safetensors", "m.safetensors", "m.safetensors.safetensors"),
            ),
            Chosen("safetensors", ("m.safetensors",), ("m.safetensors",)),
        ),
        (["README.md"], ["model.onnx"], NOTHING, Chosen("onnx", ("model.onnx",))),
    ],
)
def test_chooses_files_that_can_be_compared(
    before: list[str], after: list[str], first: Chosen, second: Chosen
) -> None:
    assert choose_weights(before, after) == (first, second)


def test_components_of_a_model_are_told_apart(tmp_path: Path) -> None:
    tensors = {"w": RNG.standard_normal((8, 8)).astype("f4")}
    for folder, change in (("before", 0), ("after", 1)):
        (tmp_path / folder).mkdir()
        for part in ("encoder", "decoder"):
            moved = tensors["w"] + np.float32(change * (part == "encoder"))
            path = tmp_path / folder / f"{part}.safetensors"
            save_file({"w": moved}, path)
            myz.pack(path, path.with_suffix(".myz"))
    for format_name in ("safetensors", "myz"):
        paths = [f"{part}.{format_name}" for part in ("encoder", "decoder")]
        found = compared(
            *(
                open_tensors(
                    tmp_path / folder, chosen, tmp_path / format_name / folder, OpenFiles()
                )
                for folder, chosen in zip(
                    ("before", "after"), choose_weights(paths, paths), strict=True
                )
            )
        )
        states = {name: one.state for name, one in found.items()}
        assert states == {"encoder:w": "changed", "decoder:w": "equal"}


def test_names_that_end_otherwise_are_not_taken_for_one_another(tmp_path: Path) -> None:
    long = "x" * 300
    one, two = np.zeros(2, "f4"), np.ones(2, "f4")
    before = saved(tmp_path, "before", {f"{long}a": one, f"{long}b": one})
    after = saved(tmp_path, "after", {f"{long}a": one, f"{long}b": two})
    changes = compare_tensors(before, after, Progress(0))
    assert [one.state for one in changes] == ["equal", "changed"]
    again = compare_tensors(before, after, Progress(0), known={one.name: one for one in changes})
    assert again == changes
    said = [row["name"] for row in weightdiff.summarise(changes)["tensors"]]
    assert [(len(name), name[-2:]) for name in said] == [(300, "xa"), (300, "xb")]


@pytest.mark.parametrize("numbers", [3, 5000])
@pytest.mark.parametrize("one", [1, b"\1"])
def test_numbers_that_a_graph_lists_one_by_one_are_few(
    tmp_path: Path, numbers: int, one: int | bytes
) -> None:
    weight = samples.onnx_tensor(
        dtype=7, dims=(numbers,), raw=None, extra=samples.field(7, one) * numbers
    )
    (tmp_path / "model.onnx").write_bytes(samples.onnx(initializers=[weight]))
    found = opened(tmp_path, "model.onnx", format_name="onnx")
    assert found["w"].is_opaque == (numbers == 5000)
