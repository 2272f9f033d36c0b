"""The device that a job computes on: threads, determinism, and whether there is a GPU at all."""

import os

import torch

from registry.errors import Unavailable


def prepare(*, device: str, threads: int) -> None:
    """Fix threads, device and determinism before anything is computed."""
    if device == "cuda" and not torch.cuda.is_available():
        raise Unavailable("The job was given a GPU, and there is none here.", code="no_device")
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers' threads
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.backends.cudnn.benchmark = False
