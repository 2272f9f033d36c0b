"""What a job was estimated to take, beside what it took."""

import pytest

from registry.models import JobState
from registry.services import jobs
from registry.services.estimates import estimate_job
from tests.factories import actor_of
from tests.workers.tiny import run_next, training

pytestmark = pytest.mark.slow

RECIPES = {
    "int8": [{"method": "quantize_dynamic"}],
    "int4": [{"method": "quantize_weights", "bits": 4}],
    "packed": [{"method": "pack_linear"}],
    "sparse": [
        {"method": "prune_magnitude", "sparsity": 0.8, "epochs": 0},
        {"method": "code"},
    ],
}


def compress(name):
    return {
        "kind": "compress",
        "model": "alice/tiny",
        "dataset": "alice/digits",
        "variant": name,
        "steps": RECIPES[name],
    }


def done(alice, recipe):
    job = jobs.submit_job(actor=alice, recipe=recipe)
    run_next()
    job.refresh_from_db()
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    return job


def test_a_job_takes_and_makes_what_was_estimated(owner, digits_dataset):
    alice = actor_of(owner)
    long = training(epochs=10, learning_rate=0.01)
    long["architecture"] = {"name": "digits_cnn", "channels": 4, "hidden_size": 128}
    expected = estimate_job(actor=alice, recipe=long).result_bytes
    parent = done(alice, long).result
    assert expected.low <= parent.size_bytes <= expected.high

    for name in RECIPES:
        before = estimate_job(actor=alice, recipe=compress(name))
        assert before.read_bytes.is_exact
        result = done(alice, compress(name)).result
        said = before.result_bytes
        assert said.low <= result.size_bytes <= said.high, (name, said, result.size_bytes)
        # Narrow enough to be worth reading.
        assert said.high - said.low < 1.3 * parent.size_bytes, (name, said)

    again = estimate_job(actor=alice, recipe=compress("int8"))
    assert "with this very recipe" in again.seconds.grounds.detail
    job = done(alice, compress("int8"))
    attempt = job.attempts.get()
    took = (attempt.ended_at - attempt.started_at).total_seconds()
    assert again.seconds.low / 4 <= took <= again.seconds.high * 4  # the machine is shared
    assert again.result_bytes.low <= job.result.size_bytes <= again.result_bytes.high
    assert again.memory_bytes.low <= 2 * job.report["job_memory_bytes"]
    assert job.report["job_memory_bytes"] <= 2 * again.memory_bytes.high
