"""Files of torch and JAX: opened by a process with nothing but those, the version's own answers."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from registry.errors import Invalid
from registry.recipes import EXPORTED_FILES
from tests.workers.ml import little
from workers.ml.formats import open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.probes import NOWHERE

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LONGEST = 12  # of the little LSTM's texts
TEXTS = ["the cat and the dog", "one two", "snow", "rain wind cloud storm sun frost"]
# Somewhere else, where none of this project's packages can be found.
LOADER = """
import sys

import numpy as np
import torch

kind, file, inputs, answers = sys.argv[1:]
if kind == "torchscript":
    model = torch.jit.load(file)
elif kind == "pt2":
    model = torch.export.load(file).module()
else:
    model = torch._inductor.aoti_load_package(file)
found = {}
batches = np.load(inputs)
for batch in sorted({name.partition("/")[0] for name in batches}):
    names = sorted(name for name in batches if name.startswith(f"{batch}/"))
    with torch.no_grad():
        found[batch] = model(*(torch.from_numpy(batches[name]) for name in names)).numpy()
np.savez(answers, **found)
ours = sorted({name.partition(".")[0] for name in sys.modules} & {"registry", "workers"})
assert not ours, ours
assert "transformers" not in sys.modules
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write one model of each architecture, and say what rows it reads."""
    folder = tmp_path_factory.mktemp("models")
    digits = little.write_digits(folder / "digits")
    little.write_program(folder / "program", digits)
    image = np.random.default_rng(3).integers(0, 256, (7, 28, 28)).astype(np.uint8)
    images = [{"image": image[:3]}, {"image": image[3:4]}]
    texts = [{"text": TEXTS}, {"text": TEXTS[:1]}]
    return {
        "cnn": (little.write_cnn(folder / "cnn"), images),
        "lstm": (little.write_lstm(folder / "lstm", bidirectional=True), texts),
        "encoder": (little.write_encoder(folder / "encoder"), texts),
        "program": (folder / "program", images),
    }


def export(tmp_path, folder, target):
    recipe = {
        "kind": "export",
        "model": "alice/tiny@1",
        "steps": [{"method": "export", "target": target}],
    }
    made = little.run_job(tmp_path / "job", recipe, model=folder)
    (file,) = made.files.iterdir()
    assert file.name == EXPORTED_FILES[target]
    return file, made.report["summary"]


def batches_of(folder, rows, *, length=None):
    """Give what the version is fed with, and what it answers, for each batch."""
    runtime = load_runtime(open_model(folder, trainable=True), device="cpu", threads=1)
    inputs, expected = {}, {}
    for batch, columns in enumerate(rows):
        feeds = runtime.feeder.feeds(columns, NOWHERE)
        (expected[str(batch)],) = runtime.engine.run(feeds).values()
        for at, name in enumerate(runtime.engine.input_names):
            one = feeds[name]
            if length is not None:
                one = np.pad(one, ((0, 0), (0, length - one.shape[1])))
            inputs[f"{batch}/{at}"] = np.ascontiguousarray(one)
    return inputs, expected


def answers_elsewhere(tmp_path, kind, file, inputs):
    np.savez(tmp_path / "inputs.npz", **inputs)
    command = [sys.executable, "-I", "-c", LOADER, kind, str(file)]
    done = subprocess.run(
        [*command, str(tmp_path / "inputs.npz"), str(tmp_path / "answers.npz")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(tmp_path / "answers.npz"))


@pytest.mark.parametrize("kind", ["cnn", "lstm", "encoder", "program"])
@pytest.mark.parametrize("target", ["torchscript", "pt2"])
def test_torch_alone_loads_it_and_answers_the_same(tmp_path, models, kind, target):
    folder, rows = models[kind]
    file, summary = export(tmp_path, folder, target)
    # A model that reads step by step is exported for one length, which padding fills.
    length = LONGEST if (kind, target) == ("lstm", "pt2") else None
    inputs, expected = batches_of(folder, rows, length=length)
    found = answers_elsewhere(tmp_path, target, file, inputs)
    assert found.keys() == expected.keys()
    for batch, answer in expected.items():
        assert np.abs(found[batch] - answer).max() <= 1e-5
    assert summary["off_by"] <= 1e-5
    assert all(port["shape"][0] == "batch" for port in summary["inputs"])
    if length:
        assert summary["inputs"][0]["shape"] == ["batch", length]


@pytest.mark.parametrize("target", ["torchscript", "pt2"])
def test_it_says_nothing_of_the_machine_that_wrote_it(tmp_path, models, target):
    file, _ = export(tmp_path, models["cnn"][0], target)
    with zipfile.ZipFile(file) as archive:
        held = b"".join(archive.read(name) for name in archive.namelist())
    for place in (str(little.ROOT), sys.prefix, str(tmp_path)):
        assert place.encode() not in held


def test_an_onnx_graph_is_refused(tmp_path, models):
    recipe = {
        "kind": "compress",
        "model": "alice/tiny@1",
        "steps": [{"method": "export_onnx"}],
    }
    made = little.run_job(tmp_path / "graph", recipe, model=models["cnn"][0])
    for target in EXPORTED_FILES:
        with pytest.raises(Invalid, match="ONNX graph"):
            export(tmp_path / target, made.files, target)
        assert list((tmp_path / target).rglob(EXPORTED_FILES[target])) == []


def test_without_a_compiler_it_says_so(tmp_path, models, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Invalid, match="no C\\+\\+ compiler"):
        export(tmp_path, models["cnn"][0], "aotinductor")


@pytest.mark.skipif(importlib.util.find_spec("torchax") is not None, reason="torchax is here")
def test_stablehlo_names_the_package_that_is_missing(tmp_path, models):
    with pytest.raises(Invalid) as refused:
        export(tmp_path, models["cnn"][0], "stablehlo")
    assert refused.value.reason == "missing_package"
    assert refused.value.values["package"] in {"jax", "torchax"}


JAX_LOADER = """
import sys

import jax, jax.export
import numpy as np

file, inputs, answers = sys.argv[1:]
with open(file, "rb") as opened:
    exported = jax.export.deserialize(bytearray(opened.read()))
assert "tpu" in exported.platforms
batches = np.load(inputs)
found = {}
for batch in sorted({name.partition("/")[0] for name in batches}):
    names = sorted(name for name in batches if name.startswith(f"{batch}/"))
    found[batch] = np.asarray(exported.call(*(batches[name] for name in names)))
np.savez(answers, **found)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("kind", ["cnn", "lstm", "encoder"])
@pytest.mark.skipif(importlib.util.find_spec("torchax") is None, reason="torchax is not installed")
def test_jax_alone_loads_stablehlo_and_answers_the_same(tmp_path, models, kind):
    folder, rows = models[kind]
    file, _ = export(tmp_path, folder, "stablehlo")
    assert str(little.ROOT).encode() not in file.read_bytes()
    inputs, expected = batches_of(folder, rows, length=LONGEST if kind == "lstm" else None)
    np.savez(tmp_path / "inputs.npz", **inputs)
    command = [sys.executable, "-I", "-c", JAX_LOADER, str(file)]
    subprocess.run([*command, tmp_path / "inputs.npz", tmp_path / "answers.npz"], check=True)
    found = dict(np.load(tmp_path / "answers.npz"))
    for batch, answer in expected.items():
        assert np.abs(found[batch] - answer).max() <= 1e-5


def test_the_job_tells_what_the_file_takes(tmp_path, models):
    folder = models["cnn"][0]
    recipe = {
        "kind": "export",
        "model": "alice/tiny@1",
        "steps": [{"method": "export", "target": "torchscript"}],
    }
    path = little.write_job(tmp_path / "job", recipe, model=folder)
    code, events, log = little.run_process(path)
    assert code == 0, log
    said = [event["message"] for event in events if event["event"] == "log"]
    assert any("image uint8" in line for line in said)
    report = json.loads((path.parent / "out" / "report.json").read_text())
    assert report["summary"]["file"] == "torchscript.pt"
    assert report["environment"]["torch"]
