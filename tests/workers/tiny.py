"""Small inputs and recipes for real jobs, and a way to run the next job in this thread."""

import json
import random
import threading

from registry.services import jobs
from workers.runner import Place, run_claimed

DESCRIBED = {
    "task": "image-classification",
    "labels": [str(digit) for digit in range(10)],
    "columns": {"image": "image", "label": "label"},
    "splits": {"train": 120, "test": 40},
}


def safetensors(**tensors):
    """Write tensors given as (dtype, shape, bytes)."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def digits(count, *, seed=0):
    """Draw images whose bright band tells their label, so that even a tiny model learns them."""
    chance = random.Random(seed)
    labels = [index % 10 for index in range(count)]
    images = b"".join(
        bytes(
            chance.randrange(20) + (200 if at // 28 // 2 == label + 2 else 0) for at in range(784)
        )
        for label in labels
    )
    return safetensors(
        image=("U8", [count, 28, 28], images),
        label=("I64", [count], b"".join(label.to_bytes(8, "little") for label in labels)),
    )


def training(**changes):
    """Make the recipe of a training job that takes a few seconds; `changes` go to its step."""
    return {
        "kind": "train",
        "schema": 1,
        "dataset": "alice/digits",
        "output": "alice/tiny",
        "architecture": {"name": "digits_cnn", "channels": 2, "hidden_size": 8},
        "steps": [{"method": "train", "epochs": 1, "batch_size": 20, **changes}],
    }


def run_next(*, worker="tester", stopping=None):
    """Claim the next job and run it to its end, in this thread; give the claim."""
    claim = jobs.claim_job(worker=worker, queues=["cpu"])
    if claim is not None:
        run_claimed(claim, place=Place(threads=1), stopping=stopping or threading.Event())
    return claim
