"""Tiny datasets and models as folders of files, and ways to run a job over them."""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from registry import recipes
from workers.ml.__main__ import _run
from workers.ml.architectures import build
from workers.ml.convert import PROGRAM, convert
from workers.ml.events import Events
from workers.ml.formats import describe_module, save_module
from workers.ml.interrupt import Interrupt
from workers.ml.job import read_job
from workers.ml.vocabulary import build_vocabulary

ROOT = Path(__file__).parents[3]
CNN = {"name": "digits_cnn", "channels": 2, "hidden_size": 8, "dropout": 0.1}
LSTM = {"name": "text_classifier", "embedding_size": 8, "hidden_size": 8, "max_length": 12}
SUBJECTS = {
    "animals": ["cat", "dog", "horse", "sheep", "bird", "fish", "whale", "cow"],
    "numbers": ["one", "two", "three", "four", "five", "six", "seven", "eight"],
    "weather": ["rain", "snow", "wind", "cloud", "storm", "sun", "frost", "hail"],
}


def write_digits(folder, *, train=120, test=40, classes=4, seed=0):
    """Write images whose bright band tells the class."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(seed)
    for name, count in (("train", train), ("test", test)):
        label = (np.arange(count) % classes).astype(np.int64)
        image = drawn.integers(0, 60, (count, 28, 28)).astype(np.uint8)
        for row, number in enumerate(label):
            image[row, 6 * number : 6 * number + 6] += 150
        save_file({"image": image, "label": label}, folder / f"{name}.safetensors")
    described = {"labels": [str(number) for number in range(classes)]}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def write_texts(folder, *, train=120, test=30, suffix="csv", seed=0):
    """Write sentences about three subjects, of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(seed)
    names = list(SUBJECTS)
    for split, count in (("train", train), ("test", test)):
        rows = []
        for row in range(count):
            name = names[row % len(names)]
            words = drawn.choice([*SUBJECTS[name], "the", "and", "of"], drawn.integers(3, 11))
            rows.append((" ".join([*words, SUBJECTS[name][0]]), name))
        lines = (
            ["text,label", *(f'"{text}",{name}' for text, name in rows)]
            if suffix == "csv"
            else [json.dumps({"text": text, "label": name}) for text, name in rows]
        )
        (folder / f"{split}.{suffix}").write_text("\n".join(lines) + "\n")
    return folder


def write_cnn(folder, *, classes=4, seed=0, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    parameters = recipes.DigitsCnn(**{**CNN, **changes})
    labels = [str(number) for number in range(classes)]
    module = build(parameters, classes=classes, seed=seed)
    save_module(module, describe_module(parameters, labels, {"image": "image"}), folder)
    return folder


def write_lstm(folder, *, seed=0, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    words = [word for listed in SUBJECTS.values() for word in listed]
    vocabulary = build_vocabulary(words, size=1000, max_length=12)
    parameters = recipes.TextClassifier(**{**LSTM, "vocabulary_size": len(vocabulary), **changes})
    module = build(parameters, classes=3, seed=seed)
    save_module(module, describe_module(parameters, list(SUBJECTS), {"text": "text"}), folder)
    vocabulary.save(folder)
    return folder


def write_encoder(folder):
    """Write a two-layer BERT with a word-level tokenizer, as Transformers lays it out."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "is", "of", "and", "to", "in", "."]
    words += [word for listed in SUBJECTS.values() for word in listed]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = BertConfig(
        vocab_size=128,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\npipeline_tag: sentence-similarity\n---\n")
    return folder


def train_recipe(architecture=None, **step):
    return {
        "kind": "train",
        "dataset": "alice/little@1",
        "output": "alice/tiny",
        "architecture": architecture or CNN,
        "steps": [
            {
                "epochs": 3,
                "batch_size": 16,
                "learning_rate": 0.01,
                "checkpoint_interval": 5,
                **step,
            }
        ],
    }


def compress_recipe(*, dataset="alice/little@1", **step):
    return {
        "kind": "compress",
        "model": "alice/tiny@1",
        "dataset": dataset,
        "steps": [{"method": "quantize_dynamic", **step}],
    }


def infer_recipe(**step):
    return {
        "kind": "infer",
        "model": "alice/tiny@1",
        "dataset": "alice/little@1",
        "output": "alice/predictions",
        "steps": [{"batch_size": 16, **step}],
    }


def write_job(folder, recipe, *, model=None, dataset=None, others=(), named=True, **place):
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {}
    if model is not None:
        inputs["model"] = {"path": str(model), "ref": recipe["model"], "may_be_named": named}
    if dataset is not None:
        inputs["dataset"] = {"path": str(dataset), "ref": recipe["dataset"], "may_be_named": named}
    merged = [text for step in recipe["steps"] for text in step.get("others", ())]
    texts = {f"other_{number}": text for number, text in enumerate(merged, 1)}
    if "base" in recipe["steps"][-1]:
        texts["base"] = recipe["steps"][-1]["base"]
    for path, (role, ref) in zip(others, texts.items(), strict=True):
        inputs[role] = {"path": str(path), "ref": ref, "may_be_named": named}
    job = {
        "job_id": "0",
        "recipe": recipe,
        "inputs": inputs,
        "out": "out",
        "checkpoints": "checkpoints",
        "device": "cpu",
        "threads": 1,
        **place,
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json"


@dataclass
class Result:
    """What a job left and said."""

    out: Path
    events: list[dict]

    @property
    def files(self):
        return self.out / "files"

    @property
    def report(self):
        return json.loads((self.out / "report.json").read_text())

    def metric(self, name):
        (found,) = [metric for metric in self.report["metrics"] if metric["metric"] == name]
        return found

    def curve(self, name):
        said = [event for event in self.events if event.get("name") == name]
        return [(event["step"], event["value"]) for event in said]


def read_events(text):
    return [json.loads(line) for line in text.splitlines()]


def run_job(folder, recipe, *, interrupt=None, **inputs):
    """Run a job in this process; refusals are raised."""
    path = write_job(folder, recipe, **inputs)
    said = io.StringIO()
    job = read_job(path, Events(said), interrupt or Interrupt())
    job.start_over()
    try:
        _run(job)
    finally:
        events = read_events(said.getvalue())
    return Result(job.out, events)


def start_process(path):
    """Start a job as the worker does, in a process of its own with a clean environment."""
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-m", "workers.ml", path.name],
        cwd=path.parent,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_process(path):
    process = start_process(path)
    said, log = process.communicate(timeout=240)
    return process.returncode, read_events(said), log


def read_state(file):
    from safetensors.torch import load_file  # noqa: PLC0415 - beside its one use

    return load_file(file)


def equal(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


class Banded(torch.nn.Module):
    """Somebody's own model over images of bytes: layers by torch's names, and a bare matrix."""

    def __init__(self, classes=4):
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()
        )
        self.pool = torch.nn.AdaptiveAvgPool2d((14, 2))
        self.drop = torch.nn.Dropout(0.1)
        self.hidden = torch.nn.Linear(112, 24)
        self.turn = torch.nn.Parameter(torch.eye(24))
        self.classes = torch.nn.Linear(24, classes)

    def forward(self, image):
        x = self.pool(self.features(image.unsqueeze(1).float() / 255)).flatten(1)
        return self.classes(self.drop(self.hidden(x).relu()) @ self.turn)


def export_program(module, *example, free=None):
    """Save a module as torch.export does; `free` are the axes of any length, of each input."""
    out = io.BytesIO()
    rows = torch.export.Dim("rows", min=1, max=4096)
    axes = free or tuple({0: rows} for _ in example)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=axes), out)
    return out.getvalue()


def write_program(folder, digits, *, seed=0, classes=4):
    """Write what the sandbox makes of an exported program: its ONNX, and what can be trained."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    module = Banded(classes)
    rows = read_state(digits / "train.safetensors")
    steps = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(25):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(module(rows["image"]), rows["label"]).backward()
        steps.step()
    module.eval()
    data = export_program(module, torch.zeros(2, 28, 28, dtype=torch.uint8))
    for kind, name in (("pt2", "model.onnx"), (PROGRAM, "program.safetensors")):
        with (folder / name).open("wb") as sink:
            said = convert(kind, io.BytesIO(data), len(data), sink, hints={})
        assert said.format, said
    config = {
        "labels": [str(number) for number in range(classes)],
        "preprocessing": {"kind": "image", "columns": {"image": "image"}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return module
