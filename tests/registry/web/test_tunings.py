"""What tunings found, on the page of the version, of the job, and where it is deployed."""

import pytest
from django.utils import timezone

from registry.models import Job, Tuning, Version
from registry.services import jobs
from tests.factories import actor_of

pytestmark = pytest.mark.django_db

PAGE = "/models/olga/digits-cnn/versions/2"
TRIED = {"runtime": "onnxruntime", "threads": 2, "batch_size": 16, "rows_per_second": 12_345.6}
SUMMARY = {
    "device_class": "AMD EPYC, 2 cores",
    "objective": "throughput",
    "max_wait_ms": 20,
    "chosen": {"runtime": "onnxruntime", "threads": 2, "max_batch_size": 16},
    "tried": [
        {**TRIED, "low": 11_000, "high": 13_000, "batch_ms": 1.25, "wait_ms": 3.5, "chosen": True},
        {"runtime": "torch", "threads": 1, "batch_size": 64, "reason": "It <b>hung</b>."},
    ],
}


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


@pytest.fixture
def tuned(owner, model):
    recipe = {"kind": "tune", "model": "olga/digits-cnn@2"}
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    version = Version.objects.get(repository=model, number=2)
    found = {"runtime": "onnxruntime", "threads": 2, "max_batch_size": 16}
    known = {"device_class": "AMD EPYC, 2 cores", "summary": SUMMARY, "job": job}
    return Tuning.objects.create(version=version, **known, **found)


def test_the_page_of_a_version_shows_what_was_tried(as_owner, as_stranger, tuned):
    page = text_of(as_owner.get(PAGE))
    for words in ("ONNX Runtime, 2 threads, 16 rows", "12,346", "11,000 … 13,000", "Open the job"):
        assert words in page
    assert "callers wait no longer than 20 ms" in page
    assert "It &lt;b&gt;hung&lt;/b&gt;." in page
    assert "kind=tune" in page
    # The page is for whoever sees the version; the job is not.
    page = text_of(as_stranger.get(PAGE))
    assert "ONNX Runtime, 2 threads, 16 rows" in page
    assert f"/jobs/{tuned.job_id}" not in page
    assert "kind=tune" not in page


def test_what_was_found_is_read_over_rest(as_owner, client, tuned):
    (found,) = client.get(f"/api/v1{PAGE}/tunings").json()["items"]
    assert (found["device_class"], found["threads"]) == ("AMD EPYC, 2 cores", 2)
    assert found["summary"]["tried"][1]["reason"] == "It <b>hung</b>."


def test_the_form_that_deploys_says_what_was_measured(as_owner, tuned):
    page = text_of(as_owner.get("/endpoints/new?model=olga/digits-cnn&version=2"))
    assert "Measured on AMD EPYC, 2 cores: 2 threads, 16 rows" in page
    page = text_of(as_owner.get("/endpoints/new?model=olga/digits-cnn&version=1"))
    assert "Measure what is best" in page


def test_the_page_of_a_job_that_failed_shows_what_it_tried(as_owner, tuned):
    Job.objects.filter(pk=tuned.job_id).update(
        state="failed",
        report={"summary": {**SUMMARY, "chosen": None}},
        started_at=timezone.now(),
        finished_at=timezone.now(),
    )
    page = text_of(as_owner.get(f"/jobs/{tuned.job_id}"))
    assert "Settings that were tried" in page
    assert "It &lt;b&gt;hung&lt;/b&gt;." in page


def test_a_tuning_says_which_texts_it_was_measured_with(as_owner, tuned):
    texts = {"kind": "texts", "seed": 0, "words": [6, 48]}
    words = "made-up texts of 6, 48 words, each length equally often"
    tuned.summary = {**SUMMARY, "workload": texts}
    tuned.save()
    assert f"Measured with {words}." in text_of(as_owner.get(PAGE))
    tuned.summary["workload"]["tokens"] = {"least": 8, "mean": 33.25, "most": 61}
    tuned.save()
    said = f"Measured with {words}: 8 to 61 tokens, 33.2 on average."
    assert said in text_of(as_owner.get(PAGE))


@pytest.mark.parametrize("odd", [{}, {"tried": "x"}, {"tried": [{"threads": "no"}], "chosen": 3}])
def test_a_report_of_any_shape_is_shown(as_owner, tuned, odd):
    Tuning.objects.update(summary=odd)
    Job.objects.filter(pk=tuned.job_id).update(
        state="succeeded",
        report={"summary": odd},
        started_at=timezone.now(),
        finished_at=timezone.now(),
    )
    text_of(as_owner.get(PAGE))
    text_of(as_owner.get(f"/jobs/{tuned.job_id}"))
