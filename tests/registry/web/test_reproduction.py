"""Running a job again from its page, and what the page then says."""

import pytest

from registry.models import Job
from registry.services import jobs
from registry.services.results import Outcome
from tests.factories import actor_of, make_blob, make_model, make_token, make_version
from tests.factories import safetensors_bytes as weights

pytestmark = pytest.mark.django_db


def finish(value, **environment):
    files = {"model.safetensors": make_blob(weights(weight=[value]))}
    report = {"environment": environment}
    hold = jobs.claim_job(worker="w", queues=["cpu"])
    jobs.finish_job(hold, Outcome(files=files, message="made", report=report))


@pytest.fixture
def job(owner):
    make_version(owner, make_model(owner, "plain"))
    recipe = {
        "kind": "compress",
        "model": "olga/plain",
        "steps": [{"method": "quantize_dynamic"}],
    }
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    finish(1.0, threads=2)
    return job


def page(client, job, language=""):
    return client.get(f"{language}/jobs/{job.pk}").content.decode()


@pytest.mark.parametrize(("value", "said"), [(1.0, "Same bytes"), (2.0, "Other bytes")])
def test_a_job_is_run_again_from_its_page(as_owner, job, value, said):
    assert f'action="/jobs/{job.pk}/reproduce"' in page(as_owner, job)
    answer = as_owner.post(f"/jobs/{job.pk}/reproduce")
    again = Job.objects.get(reproduces=job)
    assert answer.url == f"/jobs/{again.pk}"
    finish(value, threads=3)
    shown = page(as_owner, again)
    assert said in shown
    assert "threads" in shown
    assert f'action="/jobs/{again.pk}/reproduce"' not in shown
    assert said in page(as_owner, job)


def test_what_cannot_be_run_again_says_why(as_owner, owner, job):
    waiting = jobs.submit_job(actor=actor_of(owner), recipe=job.recipe)
    assert "reproduce" not in page(as_owner, waiting)
    answer = as_owner.post(f"/jobs/{waiting.pk}/reproduce", follow=True)
    assert "no result to compare with" in answer.content.decode()


def test_over_rest_both_jobs_are_named(client, as_owner, job):
    as_owner.post(f"/jobs/{job.pk}/reproduce")
    finish(1.0)
    again = Job.objects.get(reproduces=job)
    token = make_token(again.created_by)
    body = client.get(f"/api/v1/jobs/{again.pk}", HTTP_AUTHORIZATION=f"Bearer {token}").json()
    assert body["reproduces"] == str(job.pk)
    assert body["report"]["reproduction"]["same"] is True
