"""Jobs as rows: submitted, claimed, renewed, ended; what a worker may write and a zombie not."""

import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
import redis
from django.conf import settings as django_settings
from django.db import connection, connections
from django.utils import timezone

from registry import queue
from registry.errors import (
    Conflict,
    Denied,
    Invalid,
    NotFound,
    QuotaExceeded,
    RegistryError,
    Unauthenticated,
)
from registry.models import (
    ANONYMOUS,
    Attempt,
    Evaluation,
    Event,
    Job,
    JobEvent,
    JobState,
    LineageEdge,
    Membership,
    Repository,
    Version,
    Worker,
)
from registry.services import catalog, jobs, versions, workers
from registry.services.jobs import LeaseLost, Message
from registry.services.results import Outcome
from registry.services.versions import EvaluationSpec
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_blob,
    make_member,
    make_model,
    make_version,
    safetensors_bytes,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def data(alice):
    repository = make_model(alice, "digits", kind="dataset")
    return make_version(alice, repository, {"train.csv": b"image,label\na,b\n"})


@pytest.fixture
def model(alice):
    return make_version(alice, make_model(alice, "classifier"))


def train(**changes):
    return {
        "kind": "train",
        "schema": 1,
        "dataset": "alice/digits",
        "output": "alice/trained",
        "architecture": {"name": "digits_cnn"},
        "steps": [{"method": "train"}],
        **changes,
    }


def compress(**changes):
    return {
        "kind": "compress",
        "schema": 1,
        "model": "alice/classifier",
        "steps": [{"method": "quantize_dynamic"}],
        **changes,
    }


def infer(**changes):
    return {
        "kind": "infer",
        "schema": 1,
        "model": "alice/classifier",
        "dataset": "alice/digits",
        "output": "alice/predictions",
        "steps": [{"method": "predict"}],
        **changes,
    }


def submit(user, recipe=None):
    return jobs.submit_job(actor=actor_of(user), recipe=recipe or train())


def claim(worker="w1", queues=("cpu",)):
    found = jobs.claim_job(worker=worker, queues=list(queues))
    assert found is not None
    return found


def expire(job):
    Job.objects.filter(pk=job.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))


def result(**details):
    files = {
        "config.json": make_blob(b'{"task": "image-classification"}'),
        "model.safetensors": make_blob(safetensors_bytes(weight=[4.0])),
    }
    return Outcome(files=files, message="made", report={"schema": 1}, **details)


def states(job):
    return list(
        JobEvent.objects.filter(job=job, type="state")
        .order_by("pk")
        .values_list("data__state", flat=True)
    )


# --- Submitting ----------------------------------------------------------------------------------


def test_references_are_made_exact(alice, data):
    job = submit(alice)
    make_version(alice, data.repository, {"train.csv": b"image,label\nc,d\n"})
    assert job.recipe["dataset"] == "alice/digits@1"
    assert list(job.inputs.all()) == [data]
    assert (job.state, job.queue, job.kind) == (JobState.QUEUED, "cpu", "train")
    assert job.namespace.slug == "alice"
    assert states(job) == ["queued"]
    event = Event.objects.get(action="job.submit")
    assert (event.actor, event.target) == ("alice", str(job.pk))


def test_an_alias_is_made_exact(alice, model):
    catalog.set_alias(
        actor=actor_of(alice), repository=model.repository, alias="champion", version=model
    )
    job = submit(alice, compress(model="alice/classifier@champion"))
    assert job.recipe["model"] == "alice/classifier@1"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"epoch": 3}, "epoch"),
        ({"steps": [{"method": "train", "epochs": 10**9}]}, "steps.0.epochs"),
        ({"steps": [{"method": "train", "learning_rate": float("nan")}]}, "steps.0.learning_rate"),
        ({"steps": [{"method": "train", "epochs": "3"}]}, "steps.0.epochs"),
        ({"dataset": "a/b/c"}, "dataset"),
        ({"kind": "mine_bitcoin"}, "kind"),
    ],
)
def test_a_bad_recipe_is_refused_by_field(alice, data, change, field):
    with pytest.raises(Invalid) as refused:
        submit(alice, train(**change))
    assert [error.field for error in refused.value.errors] == [field]
    assert not Job.objects.exists()


def test_what_one_may_not_see_does_not_exist(alice, data):
    bob = UserFactory(username="bob")
    make_version(bob, make_model(bob, "secret", kind="dataset", visibility="private"))
    with pytest.raises(NotFound) as hidden:
        submit(alice, train(dataset="bob/secret@1"))
    with pytest.raises(NotFound) as absent:
        submit(alice, train(dataset="bob/absent@1"))
    assert hidden.value.detail == absent.value.detail.replace("absent", "secret")
    assert hidden.value.errors[0].field == "dataset"


def test_a_missing_version_is_named(alice, data):
    with pytest.raises(NotFound, match="no version '7'"):
        submit(alice, train(dataset="alice/digits@7"))


def test_a_model_that_cannot_be_opened_is_refused(alice):
    make_version(alice, make_model(alice, "opaque"), {"weights.bin": b"\x00\x01\x02"})
    with pytest.raises(Invalid, match="safetensors, ONNX or myz") as refused:
        submit(alice, compress(model="alice/opaque"))
    assert refused.value.reason == "not_runnable"


def test_a_dataset_without_files_is_refused(alice):
    make_version(alice, make_model(alice, "empty", kind="dataset"), {})
    with pytest.raises(Conflict, match="no files"):
        submit(alice, train(dataset="alice/empty@1"))


def test_the_place_of_the_result_is_checked_before_the_work(alice, data, model):
    bob = UserFactory(username="bob")
    with pytest.raises(Denied):
        submit(bob, train(output="alice/mine"))
    with pytest.raises(Denied):
        submit(bob, compress())
    with pytest.raises(NotFound, match="no namespace"):
        submit(alice, train(output="nowhere/mine"))
    with pytest.raises(Invalid):
        submit(alice, train(output="alice/a..b"))
    assert submit(bob, train(output="bob/mine")).namespace.slug == "bob"


def test_who_may_submit(alice, data):
    with pytest.raises(Unauthenticated):
        jobs.submit_job(actor=ANONYMOUS, recipe=train())
    for scopes in ({"read", "write"}, {"read", "jobs"}):
        narrow = replace(actor_of(alice), scopes=frozenset(scopes))
        with pytest.raises(Denied) as refused:
            jobs.submit_job(actor=narrow, recipe=train())
        assert refused.value.reason == "missing_scope"


def test_waiting_jobs_are_bounded(alice, data, settings):
    settings.JOB_MAX_QUEUED = 2
    submit(alice)
    submit(alice)
    with pytest.raises(QuotaExceeded):
        submit(alice)
    claim()
    submit(alice)


def test_an_input_of_a_waiting_job_stays(alice, data):
    submit(alice)
    with pytest.raises(Conflict):
        versions.delete_version(actor=actor_of(alice), version=data)
    with pytest.raises(Conflict):
        catalog.delete_repository(actor=actor_of(alice), repository=data.repository)


# --- Queues --------------------------------------------------------------------------------------


def test_a_gpu_is_used_where_one_is_offered(alice, data):
    with pytest.raises(Conflict) as refused:
        submit(alice, train(device="gpu"))
    assert refused.value.reason == "no_gpu"
    workers.register_worker(name="big", queues=["cpu", "gpu"], devices=[{"kind": "gpu"}])
    job = submit(alice)
    assert job.queue == "gpu"
    assert submit(alice, train(device="cpu")).queue == "cpu"
    assert jobs.leave_gpu_queue() == 0

    Worker.objects.update(seen_at=timezone.now() - timedelta(minutes=5))
    assert jobs.leave_gpu_queue() == 1
    job.refresh_from_db()
    assert job.queue == "cpu"


def test_workers_come_and_go(db):
    for _ in range(2):
        workers.register_worker(name="one", queues=["cpu"], devices=[])
    workers.register_worker(name="two", queues=["cpu"], devices=[])
    workers.dismiss_worker(name="two")
    assert Worker.objects.get().name == "one"
    Worker.objects.update(seen_at=timezone.now() - timedelta(days=2))
    assert workers.forget_workers() == 1


def test_submitting_wakes_a_worker(alice, data, django_capture_on_commit_callbacks):
    with redis.Redis.from_url(django_settings.REDIS_URL) as broker:
        broker.delete("cpu")
        with django_capture_on_commit_callbacks(execute=True):
            job = submit(alice)
        message = json.loads(broker.lpop("cpu"))
    assert message["headers"]["task"] == queue.RUN_JOB
    assert str(job.pk) in message["headers"]["argsrepr"]


def test_a_broker_that_is_down_fails_nobody(
    alice, data, settings, caplog, monkeypatch, django_capture_on_commit_callbacks
):
    monkeypatch.setattr(queue, "_patience", queue._Patience())
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    with django_capture_on_commit_callbacks(execute=True):
        job = submit(alice)
    assert "broker did not take" in caplog.text
    assert Job.objects.get().state == JobState.QUEUED
    assert claim().job_id == job.pk


def test_those_who_listen_hear_what_a_job_says(alice, data, django_capture_on_commit_callbacks):
    job = submit(alice)
    hold = claim()
    with redis.Redis.from_url(django_settings.REDIS_URL) as broker, broker.pubsub() as ear:
        ear.subscribe(queue.job_channel(job.pk))
        assert ear.get_message(timeout=5)["type"] == "subscribe"
        with django_capture_on_commit_callbacks(execute=True):
            jobs.record_events(hold, [Message("log", {"message": "hello"})])
        heard = json.loads(ear.get_message(timeout=5)["data"])
    row = JobEvent.objects.get(type="log")
    assert heard == {
        "id": row.pk,
        "type": "log",
        "data": {"message": "hello"},
        "at": row.at.isoformat(),
    }


# --- Claiming ------------------------------------------------------------------------------------


def test_the_urgent_come_first_then_the_old(alice, data):
    first, second, urgent = (submit(alice).pk for _ in range(3))
    Job.objects.filter(pk=urgent).update(priority=5)
    assert [claim().job_id for _ in range(3)] == [urgent, first, second]
    assert jobs.claim_job(worker="w", queues=["cpu"]) is None


def test_a_worker_takes_only_what_it_serves(alice, data):
    submit(alice)
    assert jobs.claim_job(worker="w", queues=["gpu"]) is None
    assert jobs.claim_job(worker="w", queues=[]) is None


def test_a_claim_is_an_attempt_under_a_lease(alice, data):
    job = submit(alice)
    hold = jobs.claim_job(worker="w1", queues=["cpu"], devices={"cpu": "Xeon"})
    job.refresh_from_db()
    assert (job.state, job.worker, job.fence, job.attempts_count) == ("running", "w1", 1, 1)
    assert job.lease_expires_at > timezone.now()
    attempt = Attempt.objects.get()
    assert (attempt.fence, attempt.worker, attempt.device) == (hold.fence, "w1", "Xeon")
    assert states(job) == ["queued", "running"]
    assert jobs.find_inputs(hold) == {"dataset": data}


def test_a_recipe_of_another_release_does_not_stand_in_the_way(alice, data):
    old, new = submit(alice), submit(alice)
    Job.objects.filter(pk=old.pk).update(recipe={"kind": "forgotten"})
    assert jobs.claim_job(worker="w", queues=["cpu"]) is None
    assert claim().job_id == new.pk
    old.refresh_from_db()
    assert (old.state, old.error_code) == (JobState.FAILED, "unknown_recipe")


@pytest.mark.django_db(transaction=True)
def test_many_workers_claim_each_job_once(alice, data):
    count = 24
    for _ in range(count):
        submit(alice)

    def work(number):
        taken = []
        try:
            while (hold := jobs.claim_job(worker=f"w{number}", queues=["cpu"])) or not_all_taken():
                if hold:
                    taken.append(hold.job_id)
        finally:
            connections.close_all()
        return taken

    def not_all_taken():
        return Job.objects.filter(state=JobState.QUEUED).exists()

    with ThreadPoolExecutor(8) as pool:
        taken = [job for some in pool.map(work, range(8)) for job in some]
    assert len(taken) == len(set(taken)) == count
    assert Attempt.objects.count() == count


# --- Leases and fences ---------------------------------------------------------------------------


def test_a_lease_is_renewed_and_tells_of_cancellation(alice, data):
    job = submit(alice)
    hold = claim()
    expire(job)
    assert jobs.renew_lease(hold) is False
    assert jobs.requeue_expired() == 0
    jobs.cancel_job(actor=actor_of(alice), job=job)
    assert jobs.renew_lease(hold) is True
    assert jobs.is_cancel_requested(hold)


def test_a_zombie_writes_nothing(alice, data):
    job = submit(alice)
    zombie = claim("dead")
    expire(job)
    assert jobs.requeue_expired() == 1
    successor = claim("alive")
    assert successor.fence == zombie.fence + 1
    for write in (
        jobs.renew_lease,
        lambda hold: jobs.record_events(hold, [Message("log", {"message": "boo"})]),
        lambda hold: jobs.finish_job(hold, result()),
        lambda hold: jobs.fail_job(hold, code="x", detail="y"),
        jobs.confirm_cancel,
        jobs.release_job,
    ):
        with pytest.raises(LeaseLost):
            write(zombie)
    job.refresh_from_db()
    assert (job.state, job.worker) == (JobState.RUNNING, "alive")
    assert not Version.objects.filter(job=job).exists()
    assert not JobEvent.objects.filter(data__message="boo").exists()
    assert Attempt.objects.get(fence=1).outcome == "lost"
    jobs.finish_job(successor, result())
    assert Version.objects.get(job=job).ref == "alice/trained@1"


def test_a_job_that_kills_its_workers_ends(alice, data, settings):
    settings.JOB_MAX_ATTEMPTS = 2
    job = submit(alice)
    for _ in range(2):
        claim()
        expire(job)
        assert jobs.requeue_expired() == 1
    job.refresh_from_db()
    assert (job.state, job.error_code) == (JobState.FAILED, "worker_lost")
    assert "each of 2 attempts" in job.error_detail


def test_a_cancelled_job_whose_worker_died_is_cancelled(alice, data):
    job = submit(alice)
    claim()
    jobs.cancel_job(actor=actor_of(alice), job=job)
    expire(job)
    jobs.requeue_expired()
    job.refresh_from_db()
    assert job.state == JobState.CANCELLED


def test_a_worker_that_goes_away_does_not_count_as_a_failure(alice, data, settings):
    settings.JOB_MAX_ATTEMPTS = 1
    job = submit(alice)
    jobs.release_job(claim())
    assert jobs.fail_job(claim(), code="x", detail="y", retryable=True) == JobState.FAILED
    assert list(job.attempts.order_by("fence").values_list("outcome", flat=True)) == [
        "released",
        "failed",
    ]
    failed = Event.objects.get(action="job.fail")
    assert (failed.target, failed.data) == (str(job.pk), {"code": "x"})


# --- What a job says -----------------------------------------------------------------------------


def test_only_the_last_word_on_progress_stays(alice, data):
    job = submit(alice)
    hold = claim()
    steps = [Message("progress", {"done": done, "total": 9}) for done in range(3)]
    jobs.record_events(hold, [*steps, Message("metric", {"name": "loss", "value": 1.0})])
    jobs.record_events(hold, [Message("progress", {"done": 7, "total": 9})])
    job.refresh_from_db()
    assert job.progress == {"done": 7, "total": 9}
    assert JobEvent.objects.get(type="progress").data["done"] == 7
    jobs.fail_job(hold, code="x", detail="y")
    assert not JobEvent.objects.filter(type="progress").exists()
    assert JobEvent.objects.filter(type="metric").count() == 1


# --- Ending --------------------------------------------------------------------------------------


def test_training_registers_its_model(alice, data):
    job = submit(alice)
    hold = claim()
    numbers = [EvaluationSpec(metric="accuracy", value=0.9, n=40, dataset=data)]
    version = jobs.finish_job(hold, result(evaluations=numbers))
    job.refresh_from_db()
    assert (job.state, job.result, job.report) == (JobState.SUCCEEDED, version, {"schema": 1})
    assert (version.ref, version.variant, version.message) == ("alice/trained@1", "", "made")
    assert version.created_by == alice
    edge = LineageEdge.objects.get(child=version)
    assert (edge.parent, edge.role, edge.job) == (data, "data", job)
    measured = Evaluation.objects.get(version=version)
    assert (measured.value, measured.measured, measured.dataset_version) == (0.9, True, data)
    assert JobEvent.objects.filter(job=job).last().data == {
        "state": "succeeded",
        "result": {"namespace": "alice", "name": "trained", "number": 1},
    }


def test_ending_twice_makes_one_version(alice, data):
    submit(alice)
    hold = claim()
    first = jobs.finish_job(hold, result())
    assert jobs.finish_job(hold, result()) == first
    assert Version.objects.filter(job=hold.job_id).count() == 1
    with pytest.raises(LeaseLost):
        jobs.fail_job(hold, code="late", detail="late")


def test_a_variant_stands_beside_the_main_line(alice, model):
    submit(alice, compress())
    version = jobs.finish_job(claim(), result())
    assert (version.ref, version.variant) == ("alice/classifier@2", "int8")
    assert Repository.objects.get(pk=model.repository_id).latest_number == 1


def merge(*others, **changes):
    return compress(steps=[{"method": "merge", "others": list(others)}], **changes)


def test_a_merge_reads_all_its_models_and_comes_from_each(alice, model):
    others = [make_version(alice, make_model(alice, name)) for name in ("tuned", "other")]
    job = submit(alice, merge("alice/tuned", "alice/other@1"))
    assert job.recipe["steps"][0]["others"] == ["alice/tuned@1", "alice/other@1"]
    assert set(job.inputs.all()) == {model, *others}
    hold = claim()
    expected = {"model": model, "other_1": others[0], "other_2": others[1]}
    assert jobs.find_inputs(hold) == expected
    version = jobs.finish_job(hold, result())
    parents = LineageEdge.objects.filter(child=version).values_list("parent", "role")
    assert set(parents) == {(model.pk, "weights"), *((other.pk, "merged") for other in others)}


def test_inputs_that_were_renamed_do_not_take_each_other_s_place(alice, model):
    others = [make_version(alice, make_model(alice, name)) for name in ("tuned", "other")]
    submit(alice, merge("alice/tuned", "alice/other"))
    hold = claim()
    for version in (model, *others):
        catalog.describe_repository(
            actor=actor_of(alice),
            repository=version.repository,
            changes={"name": f"new-{version.repository.name}"},
        )
    expected = {"model": model, "other_1": others[0], "other_2": others[1]}
    assert jobs.find_inputs(hold) == expected


def rename(user, version, name):
    repository = Repository.objects.get(pk=version.repository_id)
    catalog.describe_repository(actor=actor_of(user), repository=repository, changes={"name": name})


def test_inputs_that_changed_names_with_each_other_keep_their_roles(alice, model):
    tuned = make_version(alice, make_model(alice, "tuned"))
    submit(alice, merge("alice/tuned"))
    rename(alice, model, "moving")
    rename(alice, tuned, "classifier")
    rename(alice, model, "tuned")
    hold = claim()
    assert jobs.find_inputs(hold) == {"model": model, "other_1": tuned}
    version = jobs.finish_job(hold, result())
    assert version.repository_id == model.repository_id
    parents = LineageEdge.objects.filter(child=version).values_list("parent", "role")
    assert set(parents) == {(model.pk, "weights"), (tuned.pk, "merged")}


def test_a_job_that_an_earlier_release_queued_goes_by_the_names_in_its_recipe(alice, model):
    tuned = make_version(alice, make_model(alice, "tuned"))
    job = submit(alice, merge("alice/tuned"))
    Job.objects.filter(pk=job.pk).update(input_ids={})
    rename(alice, tuned, "other")
    assert jobs.find_inputs(claim()) == {"model": model, "other_1": tuned}


def test_a_hidden_model_cannot_be_merged_nor_told_from_one_that_is_not_there(alice, model):
    bob = UserFactory(username="bob")
    hidden = make_version(bob, make_model(bob, "secret", visibility="private"))
    said = []
    for name in ("secret", "nothing"):
        with pytest.raises(NotFound) as caught:
            submit(alice, merge("alice/classifier", f"bob/{name}"))
        (error,) = caught.value.errors
        said.append((caught.value.reason, error.field, caught.value.detail.replace(name, "-")))
    assert said[0] == said[1]
    assert said[0][1] == "steps.0.others.1"
    assert not hidden.read_by_jobs.exists()


def test_a_hidden_model_is_named_to_nobody_who_sees_the_merge(alice, model):
    hidden = make_version(alice, make_model(alice, "secret", visibility="private"))
    Repository.objects.filter(pk=model.repository_id).update(visibility="public")
    job = submit(alice, merge("alice/secret"))
    hold = claim()
    assert jobs.inputs_to_name(hold.recipe, jobs.find_inputs(hold)) == {"model"}
    version = jobs.finish_job(hold, result())
    bob = actor_of(UserFactory(username="bob"))
    assert not Job.objects.visible_to(bob).filter(pk=job.pk).exists()
    assert hidden.ref not in version.message


def test_predictions_come_from_both_inputs(alice, model, data):
    submit(alice, infer())
    version = jobs.finish_job(claim(), result())
    assert version.repository.kind == "dataset"
    parents = LineageEdge.objects.filter(child=version).values_list("parent", "role")
    assert set(parents) == {(model.pk, "weights"), (data.pk, "data")}


def test_evaluation_keeps_numbers_beside_the_version(alice, model, data):
    job = submit(
        alice,
        {
            "kind": "evaluate",
            "schema": 1,
            "model": "alice/classifier",
            "dataset": "alice/digits",
            "steps": [{"method": "evaluate"}],
        },
    )
    numbers = [EvaluationSpec(metric="accuracy", value=0.5)]
    assert jobs.finish_job(claim(), Outcome(evaluations=numbers)) == model
    assert Evaluation.objects.get(version=model, job=job, measured=True).value == 0.5
    assert Version.objects.filter(job=job).count() == 0


def test_a_profile_keeps_numbers_and_its_report(alice, model):
    asked = {"kind": "profile", "schema": 1, "model": "alice/classifier", "steps": [{}]}
    job = submit(alice, asked)
    numbers = [EvaluationSpec(metric="macs_per_row", value=58280, unit="count")]
    assert jobs.finish_job(claim(), Outcome(evaluations=numbers)) == model
    assert Evaluation.objects.get(version=model, job=job, measured=True).value == 58280
    assert Version.objects.filter(job=job).count() == 0


@pytest.mark.parametrize(
    ("of_model", "of_data", "expected"),
    [
        ("public", "public", "public"),
        ("public", "internal", "internal"),
        ("internal", "private", "private"),
        ("private", "public", "private"),
    ],
)
def test_a_new_repository_is_as_closed_as_its_inputs(
    alice, model, data, of_model, of_data, expected
):
    for version, visibility in ((model, of_model), (data, of_data)):
        Repository.objects.filter(pk=version.repository_id).update(visibility=visibility)
    submit(alice, infer())
    assert jobs.finish_job(claim(), result()).repository.visibility == expected


def test_an_existing_output_gets_the_next_version(alice, data):
    make_version(alice, make_model(alice, "trained"))
    submit(alice)
    assert jobs.finish_job(claim(), result()).ref == "alice/trained@2"


def test_rights_that_are_gone_end_the_job_without_a_result(alice, data):
    team = NamespaceFactory(slug="team")
    bob = make_member(team, "contributor")
    job = submit(bob, train(output="team/model"))
    hold = claim()
    Membership.objects.filter(namespace=team).delete()
    with pytest.raises(RegistryError):
        jobs.finish_job(hold, result())
    assert not Repository.objects.filter(name="model").exists()
    bob.is_active = False
    bob.save()
    with pytest.raises(Denied):
        jobs.find_inputs(hold)
    job.refresh_from_db()
    assert job.state == JobState.RUNNING


def test_an_input_that_was_hidden_meanwhile_is_not_read(alice, data):
    bob = UserFactory(username="bob")
    submit(bob, train(output="bob/mine"))
    hold = claim()
    Repository.objects.filter(pk=data.repository_id).update(visibility="private")
    with pytest.raises(NotFound, match="cannot be read any more"):
        jobs.find_inputs(hold)


def test_a_renamed_input_is_still_the_same(alice, model):
    submit(alice, compress())
    hold = claim()
    catalog.describe_repository(
        actor=actor_of(alice), repository=model.repository, changes={"name": "renamed"}
    )
    make_version(alice, make_model(alice, "classifier"))
    assert jobs.find_inputs(hold) == {"model": model}
    assert jobs.finish_job(hold, result()).ref == "alice/renamed@2"


def test_a_retryable_failure_goes_back_a_few_times(alice, data, settings):
    settings.JOB_MAX_ATTEMPTS = 2
    job = submit(alice)
    hold = claim()
    assert jobs.fail_job(hold, code="busy", detail="Busy.", retryable=True) == JobState.QUEUED
    assert jobs.fail_job(claim(), code="busy", detail="Busy.", retryable=True) == JobState.FAILED
    job.refresh_from_db()
    assert (job.error_code, job.error_detail) == ("busy", "Busy.")
    assert JobEvent.objects.filter(job=job).last().data["error"]["code"] == "busy"


# --- Cancelling and resuming ---------------------------------------------------------------------


def test_a_waiting_job_is_cancelled_at_once(alice, data):
    job = jobs.cancel_job(actor=actor_of(alice), job=submit(alice))
    assert job.state == JobState.CANCELLED
    assert job.finished_at is not None
    assert jobs.claim_job(worker="w", queues=["cpu"]) is None
    assert jobs.cancel_job(actor=actor_of(alice), job=job).state == JobState.CANCELLED
    assert Event.objects.filter(action="job.cancel").count() == 1


def test_a_running_job_is_cancelled_by_its_worker(alice, data):
    job = submit(alice)
    hold = claim()
    asked = jobs.cancel_job(actor=actor_of(alice), job=job)
    assert (asked.state, asked.cancel_requested_at is not None) == (JobState.RUNNING, True)
    jobs.confirm_cancel(hold)
    job.refresh_from_db()
    assert job.state == JobState.CANCELLED
    assert Attempt.objects.get().outcome == "cancelled"


def test_an_ended_job_cannot_be_cancelled(alice, data):
    job = submit(alice)
    jobs.fail_job(claim(), code="x", detail="y")
    with pytest.raises(Conflict) as refused:
        jobs.cancel_job(actor=actor_of(alice), job=job)
    assert refused.value.reason == "job_finished"


def test_who_may_cancel(alice, data):
    team = NamespaceFactory(slug="team")
    job = submit(make_member(team, "contributor"), train(output="team/model"))
    with pytest.raises(Denied):
        jobs.cancel_job(actor=actor_of(make_member(team, "reader")), job=job)
    jobs.cancel_job(actor=actor_of(make_member(team, "contributor")), job=job)


def test_a_failed_job_can_be_resumed(alice, data, settings):
    settings.JOB_MAX_ATTEMPTS = 1
    job = submit(alice)
    with pytest.raises(Conflict):
        jobs.resume_job(actor=actor_of(alice), job=job)
    first = claim()
    jobs.fail_job(first, code="x", detail="y")
    again = jobs.resume_job(actor=actor_of(alice), job=job)
    assert (again.state, again.error_code, again.finished_at) == (JobState.QUEUED, "", None)
    second = claim()
    assert (second.job_id, second.fence) == (first.job_id, first.fence + 1)
    jobs.finish_job(second, result())
    with pytest.raises(Conflict):
        jobs.resume_job(actor=actor_of(alice), job=job)


def test_a_job_is_found_by_those_who_may_see_it(alice, data):
    job = submit(alice)
    assert jobs.find_job(actor_of(alice), str(job.pk)) == job
    for actor, key in (
        (actor_of(UserFactory()), job.pk),
        (ANONYMOUS, job.pk),
        (actor_of(alice), uuid.uuid4()),
        (actor_of(alice), "no-uuid\x00"),
    ):
        with pytest.raises(NotFound):
            jobs.find_job(actor, key)


@pytest.mark.django_db(transaction=True)
def test_two_submissions_at_once_share_the_last_place(alice, data, settings):
    settings.JOB_MAX_QUEUED = 1
    ready = threading.Barrier(2)

    def try_to():
        ready.wait(5)
        try:
            return bool(submit(alice))
        except QuotaExceeded:
            return False
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        outcomes = [future.result() for future in [pool.submit(try_to) for _ in range(2)]]
    assert sorted(outcomes) == [False, True]
