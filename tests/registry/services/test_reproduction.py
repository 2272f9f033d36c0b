"""Jobs that run others again: what they made is compared, and nothing of it is kept."""

from dataclasses import replace
from datetime import timedelta

import pytest

from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.models import Artifact, Job, JobState, Repository, Version
from registry.services import catalog, jobs
from registry.services.collection import collect_garbage
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


def searching(alice, model):
    """Queue a search as one that was submitted stands there."""
    rows = make_version(alice, make_model(alice, "digits", kind="dataset"), {"a.csv": b"1"})
    job = Job.objects.create(
        kind="search",
        recipe={
            "kind": "search",
            "schema": 1,
            "model": model.ref,
            "dataset": rows.ref,
            "steps": [{"method": "search", "max_accuracy_loss": 0.01}],
        },
        queue="cpu",
        namespace=model.repository.namespace,
        created_by=alice,
        max_attempts=1,
    )
    job.inputs.set([model, rows])
    return job


def variants(**values):
    return Outcome(
        variants=[
            Made(
                variant=variant,
                files={
                    "README.md": make_blob(f"{variant} {value}".encode()),
                    "model.safetensors": make_blob(weights(weight=[value])),
                },
                message="made",
            )
            for variant, value in values.items()
        ]
    )


def test_what_was_deleted_for_good_since_is_compared_by_its_digest(alice, model):
    job = run(searching(alice, model), variants(a=1.0, b=2.0))
    assert "made_digests" in job.report
    assert "made_digests" not in job.shown_report
    delete_version(actor=actor_of(alice), version=Version.objects.get(job=job, variant="b"))
    list(collect_garbage(undo=timedelta(0), keep=timedelta(0)))
    assert not Version.objects.filter(job=job, variant="b").exists()

    def compared(**values):
        found = compare_outcome(Job(kind="search", reproduces=job), variants(**values))
        return found["same"], found["new_variants"], [one["variant"] for one in found["versions"]]

    assert compared(a=1.0, b=2.0) == (True, [], ["a"])
    assert compared(a=1.0, b=3.0) == (False, [], ["a"])
    assert compared(a=1.0) == (False, [], ["a"])
    assert compared(a=1.0, b=2.0, c=3.0) == (False, ["c"], ["a"])
    # Jobs that ended before digests were kept say nothing of what is gone.
    job.report.pop("made_digests")
    job.save()
    assert compared(a=1.0, b=2.0) == (False, ["b"], ["a"])


def test_what_is_run_again_reads_what_the_first_run_read(alice, model, first):
    catalog.describe_repository(
        actor=actor_of(alice), repository=model.repository, changes={"name": "renamed"}
    )
    other = make_version(alice, make_model(alice, "classifier"), {"config.json": b"{}"})
    second = jobs.reproduce_job(actor=actor_of(alice), job=first)
    assert list(second.inputs.all()) == [model] != [other]
    assert second.recipe["model"] == "alice/renamed@1"
    assert second.recipe["steps"] == first.recipe["steps"]


@pytest.fixture
def tuned(alice):
    return make_version(alice, make_model(alice, "tuned"))


@pytest.fixture
def merged(alice, model, tuned):
    """Give a job that merged the model and a tuned one."""
    merge = {**COMPRESS, "steps": [{"method": "merge", "others": ["alice/tuned"]}]}
    return run(jobs.submit_job(actor=actor_of(alice), recipe=merge), outcome())


def rename(user, version, name):
    repository = Repository.objects.get(pk=version.repository_id)
    catalog.describe_repository(actor=actor_of(user), repository=repository, changes={"name": name})


def exchange_names(user, model, tuned):
    rename(user, model, "moving")
    rename(user, tuned, "classifier")
    rename(user, model, "tuned")


def test_inputs_keep_their_roles_whatever_became_of_their_names(alice, model, tuned, merged):
    exchange_names(alice, model, tuned)
    second = jobs.reproduce_job(actor=actor_of(alice), job=merged)
    assert second.recipe["model"] == "alice/tuned@1"
    assert second.recipe["steps"][0]["others"] == ["alice/classifier@1"]
    hold = jobs.claim_job(worker="w", queues=["cpu"])
    assert jobs.find_inputs(hold) == {"model": model, "other_1": tuned}


def test_names_of_an_older_job_that_went_from_one_input_to_another_are_refused(
    alice, model, tuned, merged
):
    Job.objects.filter(pk=merged.pk).update(input_ids={})
    merged.refresh_from_db()
    rename(alice, model, "first")
    second = jobs.reproduce_job(actor=actor_of(alice), job=merged)
    assert second.recipe["model"] == "alice/first@1"
    assert second.recipe["steps"][0]["others"] == ["alice/tuned@1"]
    rename(alice, tuned, "classifier")
    with pytest.raises(Conflict, match="cannot read any more"):
        jobs.reproduce_job(actor=actor_of(alice), job=merged)
    # Both names are those of the recipe, and each is the other one's.
    rename(alice, model, "tuned")
    with pytest.raises(Conflict, match="cannot read any more"):
        jobs.reproduce_job(actor=actor_of(alice), job=merged)


def names_told(hold):
    told = jobs.name_inputs(hold, jobs.find_inputs(hold))
    return {role: (name.ref, name.may_be_named) for role, name in told.items()}


def test_a_second_run_is_told_the_names_that_the_first_was_told(alice, model, tuned):
    merge = {**COMPRESS, "steps": [{"method": "merge", "others": ["alice/tuned"]}]}
    first = jobs.submit_job(actor=actor_of(alice), recipe=merge)
    # Between its submission and its start: what it is told then is what its files say.
    rename(alice, tuned, "better")
    hold = jobs.claim_job(worker="w", queues=["cpu"])
    told = {"model": ("alice/classifier@1", True), "other_1": ("alice/better@1", True)}
    assert names_told(hold) == told
    jobs.finish_job(hold, outcome())
    rename(alice, tuned, "best")
    Repository.objects.filter(pk=tuned.repository_id).update(visibility="private")
    first = jobs.find_job(actor_of(alice), first.pk)
    jobs.reproduce_job(actor=actor_of(alice), job=first)
    assert names_told(jobs.claim_job(worker="w", queues=["cpu"])) == told


def test_of_an_older_job_the_names_of_its_recipe_are_told(alice, model, merged):
    assert not merged.input_names
    rename(alice, model, "first")
    jobs.reproduce_job(actor=actor_of(alice), job=merged)
    told = names_told(jobs.claim_job(worker="w", queues=["cpu"]))
    assert told == {"model": ("alice/classifier@1", True), "other_1": ("alice/tuned@1", True)}


def test_names_are_kept_for_the_attempt_that_holds_the_job(alice, model):
    job = jobs.submit_job(actor=actor_of(alice), recipe=COMPRESS)
    hold = jobs.claim_job(worker="w", queues=["cpu"])
    inputs = jobs.find_inputs(hold)
    Job.objects.filter(pk=job.pk).update(fence=hold.fence + 1)
    with pytest.raises(jobs.LeaseLost):
        jobs.name_inputs(hold, inputs)
    job.refresh_from_db()
    assert job.input_names == {}


def test_what_the_first_run_read_has_to_be_there(alice, model, first):
    delete_version(actor=actor_of(alice), version=model)
    with pytest.raises(Conflict, match="cannot read any more") as refusal:
        jobs.reproduce_job(actor=actor_of(alice), job=first)
    assert refusal.value.reason == "not_reproducible"


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
