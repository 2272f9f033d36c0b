"""What training and compressing the samples gives: accuracy, fidelity, size and latency.

The same jobs as the workers run, in the same process of their own, without a server around them.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, keep
from config.local import sample_data as samples

ROOT = Path(__file__).resolve().parents[1]
QUANTIZE = {"method": "quantize_dynamic"}
TRAIN_TOPICS = {
    **samples.TRAIN_DIGITS,
    "dataset": samples.DOCS,
    "output": "samples/topics",
    "architecture": {"name": "text_classifier", "dropout": 0.4},
    "steps": [
        {"method": "train", "epochs": 8, "batch_size": 32, "learning_rate": 0.003, "seed": 0}
    ],
}


class Report(dict[str, Any]):
    """The report of a job, and where its files are."""

    def __init__(self, folder: Path) -> None:
        super().__init__(json.loads((folder / "out" / "report.json").read_text()))
        self.files = folder / "out" / "files"

    def metric(self, name: str) -> dict[str, Any]:
        (found,) = [metric for metric in self["metrics"] if metric["metric"] == name]
        return dict(found)

    def value(self, name: str) -> float:
        return float(self.metric(name)["value"])

    def parent(self, name: str) -> float:
        return float(self.metric(name)["details"]["parent"]["value"])


def run(folder: Path, recipe: dict[str, Any], **inputs: Path) -> Report:
    """Run one job; `inputs` are the folders of its model and dataset."""
    write_job(folder, recipe, **inputs)
    print(f"  {folder.name}", file=sys.stderr, flush=True)
    subprocess.run(
        [sys.executable, "-m", "workers.ml", "job.json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return Report(folder)


def write_job(folder: Path, recipe: dict[str, Any], **inputs: Path) -> Path:
    """Make the folder of a job, and the file that tells what it is."""
    folder.mkdir()
    exact = {**recipe, **{role: f"{recipe[role].split('@')[0]}@1" for role in inputs}}
    job = {
        "job_id": folder.name,
        "recipe": exact,
        "inputs": {
            role: {"path": str(path), "ref": exact[role], "may_be_named": True}
            for role, path in inputs.items()
        },
        "out": "out",
        "checkpoints": "checkpoints",
        "device": "cpu",
        "threads": len(os.sched_getaffinity(0)),
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    return file


def lay_out(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def compress(model: str, dataset: str, **step: bool) -> dict[str, Any]:
    steps = [{**QUANTIZE, **step}]
    return {"kind": "compress", "schema": 1, "model": model, "dataset": dataset, "steps": steps}


def quality(name: str, trained: Report) -> list[Figure]:
    found = trained.metric("accuracy")
    n = found["n"]
    return [
        Figure(what=f"{name}: accuracy on {n} test rows", value=found["value"], unit=""),
        Figure(what=f"{name}: 95 % interval from", value=found["low"], unit=""),
        Figure(what=f"{name}: 95 % interval to", value=found["high"], unit=""),
        Figure(
            what=f"{name}: share of the largest class",
            value=found["details"]["majority_class"],
            unit="",
        ),
    ]


def price(name: str, small: Report) -> list[Figure]:
    """Tell what a variant gained and lost."""
    if any(metric["metric"] == "accuracy" for metric in small["metrics"]):
        lost = small.value("accuracy") - small.parent("accuracy")
        kept = Figure(what=f"{name}: change of accuracy", value=lost, unit="")
    else:
        kept = Figure(
            what=f"{name}: cosine to the parent", value=small.value("cosine_to_parent"), unit=""
        )
    times = small.metric("stored_bytes")["details"]["times_smaller"]
    p50 = "latency_p50_batch"
    return [
        kept,
        Figure(what=f"{name}: times smaller", value=times, unit="x"),
        *(
            Figure(
                what=f"{name}: times faster than torch, batch {batch}",
                value=small.parent(f"{p50}{batch}") / small.value(f"{p50}{batch}"),
                unit="x",
            )
            for batch in (1, 32)
        ),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as name:
        folder = Path(name)
        digits = lay_out(folder / "digits", samples.digits_files())
        docs = lay_out(folder / "docs", samples.docs_files())
        minilm = samples.encoder_files()["model.safetensors"].parent
        cnn = run(folder / "train-cnn", samples.TRAIN_DIGITS, dataset=digits)
        topics = run(folder / "train-lstm", TRAIN_TOPICS, dataset=docs)
        figures = [*quality("digits-cnn", cnn), *quality("topics", topics)]
        for label, step, model, reference, data, dataset in (
            ("digits-cnn int8", {}, cnn.files, samples.DIGITS_MODEL, digits, samples.DIGITS),
            (
                "digits-cnn int8 with convolutions",
                {"convolutions": True},
                cnn.files,
                samples.DIGITS_MODEL,
                digits,
                samples.DIGITS,
            ),
            ("topics int8", {}, topics.files, "samples/topics", docs, samples.DOCS),
            ("MiniLM int8", {}, minilm, samples.ENCODER, docs, samples.DOCS),
            (
                "MiniLM int8, float embeddings",
                {"embeddings": False},
                minilm,
                samples.ENCODER,
                docs,
                samples.DOCS,
            ),
            (
                "MiniLM int8, one scale a matrix",
                {"per_channel": False, "reduce_range": False},
                minilm,
                samples.ENCODER,
                docs,
                samples.DOCS,
            ),
        ):
            recipe = compress(reference, dataset, **step)
            small = run(folder / label.replace(" ", "-"), recipe, model=model, dataset=data)
            figures += price(label, small)
        environment = cnn["environment"]
    keep("models", figures, cpu_flags=environment["cpu_flags"], threads=environment["threads"])


if __name__ == "__main__":
    main()
