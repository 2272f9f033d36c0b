"""Jobs that run others again: what they made is compared, and nothing of it is kept."""

from dataclasses import replace

import pytest

from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.models import Artifact, Job, JobState, Version
from registry.services import jobs
from registry.services.reproduction import compare_outcome
from registry.services.results import Made, Outcome
from registry.services.versions import delete_version
from tests.factories import UserFactory, actor_of, make_blob, make_model, make_version
from tests.factories import safetensors_bytes as weights

COMPRESS = {
    "kind": "compress",
    "schema": 1,
    "model": "alice/classifier",
    "steps": [{"method": "quantize_dynamic"}],
}
CPU = {"device": "cpu", "threads": 2, "torch": "2.13.0"}


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    return make_version(alice, make_model(alice, "classifier"))


def outcome(value=4.0, *, card=b"p50 2 ms", environment=CPU, **more):
    files = {
        "README.md": make_blob(card),
        "model.safetensors": make_blob(weights(weight=[value])),
        **{path: make_blob(content) for path, content in more.items()},
    }
    return Outcome(files=files, message="made", report={"environment": dict(environment)})


def run(job, made):
    hold = jobs.claim_job(worker="w", queues=["cpu"])
    assert hold.job_id == job.pk
    jobs.finish_job(hold, made)
    job.refresh_from_db()
    return job


@pytest.fixture
def first(alice, model):
    return run(jobs.submit_job(actor=actor_of(alice), recipe=COMPRESS), outcome())


def again(user, job, made):
    return run(jobs.reproduce_job(actor=actor_of(user), job=job), made)


def test_the_same_bytes_are_the_same_whatever_the_card_measured(alice, first):
    counts = Version.objects.count(), Artifact.objects.count()
    second = again(alice, first, outcome(card=b"p50 3 ms"))
    assert second.reproduction == {
        "of": str(first.pk),
        "same": True,
        "versions": [
            {
                "number": 2,
                "variant": "int8",
                "same": True,
                "files": [
                    {
                        "path": "model.safetensors",
                        "before": (digest := made(first)["model.safetensors"]),
                        "after": digest,
                        "same": True,
                    }
                ],
            }
        ],
        "new_variants": [],
        "machine": [],
    }
    assert (second.result, second.reproduces) == (first.result, first)
    assert (Version.objects.count(), Artifact.objects.count()) == counts
    assert first.result.evaluations.count() == 0


def made(job):
    artifacts = job.result.revision.artifacts.select_related("blob")
    return {artifact.path: artifact.blob.sha256 for artifact in artifacts}


def test_other_bytes_are_named_by_file_and_so_is_another_machine(alice, first):
    second = again(
        alice, first, outcome(5.0, environment={**CPU, "threads": 8}, **{"more.json": b"{}"})
    )
    found = second.reproduction
    assert found["same"] is False
    assert {file["path"]: file["same"] for file in found["versions"][0]["files"]} == {
        "model.safetensors": False,
        "more.json": False,
    }
    assert found["machine"] == [{"what": "threads", "before": 2, "after": 8}]
    assert made(first)["model.safetensors"] == found["versions"][0]["files"][0]["before"]


def test_every_version_of_a_job_that_made_several_is_compared(alice, model):
    recipe = {"kind": "search", "schema": 1, "model": "alice/classifier", "dataset": None}
    job = Job.objects.create(
        kind="search",
        recipe=recipe,
        queue="cpu",
        namespace=model.repository.namespace,
        state=JobState.SUCCEEDED,
        created_by=alice,
    )
    for variant, value in (("int8", 1.0), ("tiny", 2.0)):
        version = make_version(
            alice, model.repository, {"model.safetensors": weights(weight=[value])}
        )
        Version.objects.filter(pk=version.pk).update(job=job, variant=variant)
        job.result = job.result or version
    job.save()
    second = Job(kind="search", recipe=recipe, reproduces=job)

    variants = [
        Made(variant=variant, files={"model.safetensors": make_blob(weights(weight=[value]))})
        for variant, value in (("int8", 1.0), ("tiny", 3.0), ("new", 4.0))
    ]
    found = compare_outcome(second, Outcome(variants=variants))
    assert [(one["variant"], one["same"]) for one in found["versions"]] == [
        ("int8", True),
        ("tiny", False),
    ]
    assert (found["same"], found["new_variants"]) == (False, ["new"])


def test_what_has_no_bytes_to_compare_is_refused(alice, model, first):
    waiting = jobs.submit_job(actor=actor_of(alice), recipe=COMPRESS)
    with pytest.raises(Conflict, match="no result to compare with"):
        jobs.reproduce_job(actor=actor_of(alice), job=waiting)
    second = again_waits(alice, first, waiting)
    with pytest.raises(Conflict, match="reproduce that one"):
        jobs.reproduce_job(actor=actor_of(alice), job=second)
    Job.objects.filter(pk=waiting.pk).update(kind="evaluate", state=JobState.SUCCEEDED)
    waiting.refresh_from_db()
    with pytest.raises(Invalid, match="times differ"):
        jobs.reproduce_job(actor=actor_of(alice), job=waiting)


def again_waits(alice, first, waiting):
    jobs.cancel_job(actor=actor_of(alice), job=waiting)
    return again(alice, first, outcome())


def test_a_result_that_went_meanwhile_fails_the_job_and_keeps_nothing(alice, first):
    second = jobs.reproduce_job(actor=actor_of(alice), job=first)
    hold = jobs.claim_job(worker="w", queues=["cpu"])
    Job.objects.filter(pk=first.pk).update(result=None)
    with pytest.raises(Conflict, match="deleted meanwhile"):
        jobs.finish_job(hold, outcome())
    second.refresh_from_db()
    assert (second.state, second.report) == ("running", {})


def test_who_may_reproduce(alice, first):
    stranger = UserFactory(username="bob")
    with pytest.raises(Denied):
        jobs.reproduce_job(actor=actor_of(stranger), job=first)
    first.result.repository.visibility = "private"
    first.result.repository.save()
    with pytest.raises((Denied, NotFound)):
        jobs.reproduce_job(actor=actor_of(stranger), job=first)
    with pytest.raises(Denied):
        jobs.reproduce_job(actor=replace(actor_of(alice), scopes=frozenset({"read"})), job=first)


def test_only_those_who_see_the_result_read_the_comparison(alice, first):
    second = again(alice, first, outcome())
    assert second.shown_report["reproduction"]["same"]
    second.result = None
    assert second.reproduction is None
    assert "reproduction" not in second.shown_report


def test_a_deleted_version_can_no_longer_be_reproduced(alice, first):
    delete_version(actor=actor_of(alice), version=first.result)
    first = jobs.find_job(actor_of(alice), first.pk)
    with pytest.raises((Conflict, NotFound)):
        again(alice, first, outcome())
