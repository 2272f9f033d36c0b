"""Real jobs, run by the runner in this process: their process, their results, their folders."""

from registry.models import Evaluation, JobState, LineageEdge, Repository
from registry.services import jobs
from tests.factories import actor_of
from tests.workers.tiny import run_next, training


def test_training_becomes_a_version(owner, digits_dataset):
    job = jobs.submit_job(actor=actor_of(owner), recipe=training())
    run_next()
    job.refresh_from_db()
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    version = job.result
    assert version.ref == "alice/tiny@1"
    assert version.job == job
    assert LineageEdge.objects.get(child=version).parent == digits_dataset
    assert Evaluation.objects.filter(version=version, measured=True, job=job).exists()
    assert Repository.objects.get(name="tiny").visibility == "public"


def test_the_four_kinds_of_job(owner, digits_dataset):
    alice = actor_of(owner)

    def run(recipe):
        job = jobs.submit_job(actor=alice, recipe=recipe)
        run_next()
        job.refresh_from_db()
        assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
        return job

    trained = run(training(epochs=2)).result
    small = run(
        {
            "kind": "compress",
            "schema": 1,
            "model": "alice/tiny",
            "dataset": "alice/digits",
            "steps": [{"method": "quantize_dynamic"}],
        }
    ).result
    assert (small.ref, small.variant) == ("alice/tiny@2", "int8")
    assert Repository.objects.get(name="tiny").latest_number == 1
    assert [edge.parent for edge in small.parent_edges.all()] == [trained]
    metrics = {row.metric: row for row in Evaluation.objects.filter(version=small)}
    assert metrics["accuracy"].dataset_version == digits_dataset
    assert {"latency_p50_batch1", "latency_p95_batch32"} <= set(metrics)

    predictions = run(
        {
            "kind": "infer",
            "schema": 1,
            "model": "alice/tiny@2",
            "dataset": "alice/digits",
            "output": "alice/predictions",
            "steps": [{"method": "predict"}],
        }
    ).result
    assert predictions.ref == "alice/predictions@1"
    assert {edge.parent for edge in predictions.parent_edges.all()} == {small, digits_dataset}

    measured = run(
        {
            "kind": "evaluate",
            "schema": 1,
            "model": "alice/tiny@1",
            "dataset": "alice/digits",
            "steps": [{"method": "evaluate"}],
        }
    )
    assert measured.result == trained
    assert Evaluation.objects.filter(job=measured, version=trained).exists()
