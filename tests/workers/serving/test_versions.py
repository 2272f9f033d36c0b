"""Versions that are no ONNX file: exported once, decoded, or run by torch; the same answers."""

import asyncio
import io
import json
import math
import shutil
import time

import numpy as np
import pytest
import torch

from registry.errors import Invalid, Unavailable
from tests.workers.ml import little
from tests.workers.serving import yard as y
from workers.ml import myz
from workers.ml.convert import convert
from workers.ml.formats import open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.probes import NOWHERE, SENTENCES
from workers.serving.messages import Tensor

# Each exports a model, which takes seconds.
pytestmark = pytest.mark.slow

PATIENT = {"deadline_ms": 600_000}
COMPILES = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def torch_says(folder, rows):
    return load_runtime(open_model(folder), device="cpu", threads=1).run(rows, NOWHERE)


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28)).astype(np.uint8)


async def served(plane, name):
    await plane.load(y.ALICE, name)
    return (await plane.model_metadata(y.ALICE, name, "")).platform


def until():
    return time.monotonic() + 600


@pytest.mark.parametrize(
    ("runtime", "platform", "used"),
    [
        ("auto", "onnxruntime_onnx", "onnxruntime/cpu"),
        ("torch", "pytorch", "torch/cpu"),
        pytest.param("aotinductor", "pytorch", "aotinductor/cpu", marks=COMPILES),
    ],
)
def test_a_torch_classifier_answers_as_torch_does(tmp_path, yard, runtime, platform, used):
    folder = little.write_cnn(tmp_path / "cnn")
    image = images(5)
    expected = torch_says(folder, {"image": image})
    labels = open_model(folder).labels

    async def go():
        yard.route("a/cnn", yard.version("a/cnn", 1, files_of(folder), runtime=runtime, **PATIENT))
        async with yard.plane() as plane:
            assert await served(plane, "a/cnn") == platform
            tensor = Tensor("image", "UINT8", image.shape, image.tobytes())
            response, (logits,) = await y.ask(plane, "a/cnn", tensor)
            assert response.parameters["modelyard_runtime"] == used
            assert np.allclose(logits, expected, atol=1e-4)
            rows = [{"image": one.tolist()} for one in image]
            said = await plane.predict(y.ALICE, "a/cnn", "", rows, until())
            assert [row["label"] for row in said.rows] == [labels[at] for at in expected.argmax(1)]
            with pytest.raises(Invalid, match="28 x 28"):
                await plane.predict(y.ALICE, "a/cnn", "", [{"image": [1, 2, 300]}], until())
        exports = yard.root / "serving" / "exports"
        assert len(list(exports.glob("*.onnx"))) == (runtime == "auto")
        assert len(list(exports.glob("*.pt2"))) == (runtime == "aotinductor")

    asyncio.run(go())


def test_an_export_is_made_once(tmp_path, yard):
    folder = little.write_cnn(tmp_path / "cnn")

    async def go():
        yard.route("a/cnn", yard.version("a/cnn", 1, files_of(folder), **PATIENT))
        exports = yard.root / "serving" / "exports"
        async with yard.plane() as plane:
            await served(plane, "a/cnn")
        (made,) = exports.glob("*.onnx")
        before = made.stat()
        async with yard.plane() as plane:
            await served(plane, "a/cnn")
        assert made.stat().st_mtime_ns == before.st_mtime_ns

    asyncio.run(go())


def test_a_coded_version_is_served(tmp_path, yard):
    folder = little.write_cnn(tmp_path / "cnn")
    image = images(3)
    expected = torch_says(folder, {"image": image})
    myz.pack_folder(folder)
    assert not (folder / "model.safetensors").exists()

    async def go():
        yard.route("a/cnn", yard.version("a/cnn", 1, files_of(folder), **PATIENT))
        async with yard.plane() as plane:
            await served(plane, "a/cnn")
            tensor = Tensor("image", "UINT8", image.shape, image.tobytes())
            _, (logits,) = await y.ask(plane, "a/cnn", tensor)
            assert np.allclose(logits, expected, atol=1e-4)

    asyncio.run(go())


@COMPILES
def test_machine_code_is_given_nothing_that_it_was_not_compiled_for(tmp_path, yard):
    """It looks at no shape itself, and would read what lies behind: the inputs of others."""
    files = files_of(little.write_encoder(tmp_path / "encoder"))

    def inputs(*shapes):
        names = ("input_ids", "attention_mask", "token_type_ids")
        return [
            Tensor(name, "INT64", shape, np.ones(shape, np.int64).tobytes())
            for name, shape in zip(names, shapes, strict=True)
        ]

    async def go():
        yard.route("a/enc", yard.version("a/enc", 1, files, runtime="aotinductor", **PATIENT))
        async with yard.plane() as plane:
            await served(plane, "a/enc")
            good = inputs((1, 8), (1, 8), (1, 8))
            response, _ = await y.ask(plane, "a/enc", *good, seconds=600)
            assert response.parameters["modelyard_runtime"] == "aotinductor/cpu"
            for shapes in (
                [(2, 8), (2, 3), (2, 8)],
                [(2, 8), (1, 8), (2, 8)],
                [(1, 1), (1, 1), (1, 1)],
                [(1, 41), (1, 41), (1, 41)],
            ):
                with pytest.raises(Invalid):
                    await y.ask(plane, "a/enc", *inputs(*shapes), seconds=600)
            unknown = np.full((1, 8), 5000, np.int64).tobytes()
            wrong = Tensor("input_ids", "INT64", (1, 8), unknown)
            with pytest.raises(Invalid):
                await y.ask(plane, "a/enc", wrong, *good[1:], seconds=600)
            await y.ask(plane, "a/enc", *good, seconds=600)

    asyncio.run(go())


def test_what_cannot_be_compiled_is_run_otherwise_unless_it_was_asked_for(tmp_path, yard):
    """An LSTM is compiled for one length of text; a tuning may be of another machine."""
    files = files_of(little.write_lstm(tmp_path / "lstm"))

    async def go():
        yard.route("a/tuned", yard.version("a/tuned", 1, files, is_compiled=True, **PATIENT))
        yard.route("a/asked", yard.version("a/asked", 1, files, runtime="aotinductor", **PATIENT))
        async with yard.plane() as plane:
            assert await served(plane, "a/tuned") == "onnxruntime_onnx"
            with pytest.raises(Unavailable, match=r"one length of text only.*auto"):
                await plane.load(y.ALICE, "a/asked")

    asyncio.run(go())


def test_an_lstm_reads_words(tmp_path, yard):
    folder = little.write_lstm(tmp_path / "lstm")
    texts = ["the cat and the dog", "one two three", "snow", ""]
    expected = torch_says(folder, {"text": texts})
    labels = open_model(folder).labels

    async def go():
        yard.route("a/lstm", yard.version("a/lstm", 1, files_of(folder), **PATIENT))
        async with yard.plane() as plane:
            await served(plane, "a/lstm")
            rows = [{"text": text} for text in texts]
            said = await plane.predict(y.ALICE, "a/lstm", "", rows, until())
            assert [row["label"] for row in said.rows] == [labels[at] for at in expected.argmax(1)]

    asyncio.run(go())


def test_an_encoder_makes_the_vectors_that_torch_makes(tmp_path, yard):
    folder = little.write_encoder(tmp_path / "encoder")
    texts = [*SENTENCES[:9], "a", "the " * 40]
    expected = torch_says(folder, {"text": texts})

    async def go():
        yard.route("a/lm", yard.version("a/lm", 1, files_of(folder), **PATIENT))
        async with yard.plane() as plane:
            await served(plane, "a/lm")
            together = await plane.embed(y.ALICE, "a/lm", "", texts, None, until())
            assert np.allclose(together.vectors, expected, atol=1e-4)
            apart = await asyncio.gather(
                *(plane.embed(y.ALICE, "a/lm", "", [text], None, until()) for text in texts)
            )
            assert np.allclose(np.concatenate([one.vectors for one in apart]), expected, atol=1e-4)
            assert sum(one.tokens for one in apart) == together.tokens
            short = await plane.embed(y.ALICE, "a/lm", "", texts[:1], 4, until())
            assert short.vectors.shape == (1, 4)
            assert math.isclose(float(np.linalg.norm(short.vectors)), 1.0, rel_tol=1e-5)
            with pytest.raises(Invalid, match="dimensions"):
                await plane.embed(y.ALICE, "a/lm", "", texts[:1], 4096, until())
            with pytest.raises(Invalid, match="token numbers"):
                await plane.embed(y.ALICE, "a/lm", "", [[10**9]], None, until())
            json.dumps(await plane.model_config(y.ALICE, "a/lm", ""))

    asyncio.run(go())


@pytest.mark.parametrize("runtime", ["auto", "torch"])
def test_an_exported_program_is_served(tmp_path, yard, runtime):
    digits = little.write_digits(tmp_path / "digits")
    folder = tmp_path / "program"
    little.write_program(folder, digits)
    (folder / "model.onnx").unlink()
    image = images(4)
    expected = torch_says(folder, {"image": image})

    async def go():
        yard.route("a/own", yard.version("a/own", 1, files_of(folder), runtime=runtime, **PATIENT))
        async with yard.plane() as plane:
            await served(plane, "a/own")
            rows = [{"image": one.tolist()} for one in image]
            said = await plane.predict(y.ALICE, "a/own", "", rows, until())
            assert [row["label_index"] for row in said.rows] == expected.argmax(1).tolist()

    asyncio.run(go())


# torch warns of its own scripts in several ways; people have such files all the same.
@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_served_as_what_the_sandbox_made_of_it(tmp_path, yard):
    # The file itself is opened by nobody but the sandbox; the graph takes any number of rows.
    torch.manual_seed(0)
    module = little.Banded().eval()
    scripted = torch.jit.trace(module, torch.zeros(2, 28, 28, dtype=torch.uint8))
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    signature = {"inputs": [{"name": "image", "dtype": "uint8", "shape": ["rows", 28, 28]}]}
    sink = io.BytesIO()
    size = len(file.getvalue())
    file.seek(0)
    said = convert("torchscript", file, size, sink, hints={"signature": signature})
    assert (said.format, said.reason) == ("onnx", None)
    image = images(5)
    with torch.no_grad():
        expected = scripted(torch.from_numpy(image)).numpy()

    async def go():
        files = {"model.onnx": sink.getvalue()}
        yard.route("a/script", yard.version("a/script", 1, files, **PATIENT))
        async with yard.plane() as plane:
            assert await served(plane, "a/script") == "onnxruntime_onnx"
            for rows in (5, 1):
                tensor = Tensor("image", "UINT8", (rows, 28, 28), image[:rows].tobytes())
                _, (logits,) = await y.ask(plane, "a/script", tensor)
                assert np.allclose(logits, expected[:rows], atol=1e-5)

    asyncio.run(go())
