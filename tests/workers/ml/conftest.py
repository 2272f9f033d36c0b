"""Measuring takes seconds so that numbers are steady; tests of behaviour need no steady numbers."""

from pathlib import Path

import pytest

from tests.workers.ml.little import write_digits, write_texts
from workers.ml import evaluate


@pytest.fixture(autouse=True)
def hasty_measurements(monkeypatch, request):
    monkeypatch.setattr(evaluate, "_LATENCY_SECONDS", 0.01)
    if "real_footprint" not in request.fixturenames:
        monkeypatch.setattr(evaluate, "_footprint", lambda path, threads: 1)


@pytest.fixture
def real_footprint(monkeypatch):
    """Let a test start the process that measures memory, with the environment of a job."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))
