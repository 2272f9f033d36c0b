"""Real jobs, run by the runner in this process: their process, their results, their folders."""

from registry.models import Evaluation, Job, JobEvent, JobState, LineageEdge, Repository
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
