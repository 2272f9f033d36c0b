"""Estimates of jobs: what they rest on, what they admit not to know; nothing is written."""

import json
from datetime import timedelta

import pytest
from django.utils import timezone

from registry.errors import Denied, Invalid, NamespaceFull, NotFound
from registry.models import Attempt, Event, Job, JobState, Namespace, Worker
from registry.services import jobs, quotas, sharing
from registry.services.estimates import estimate_job
from tests.factories import UserFactory, actor_of, make_model, make_version
from tests.workers.tiny import safetensors

pytestmark = pytest.mark.django_db
CNN = {
    "architecture": {"name": "digits_cnn", "channels": 2, "hidden_size": 64},
    "labels": [str(digit) for digit in range(10)],
}


def cnn_weights():
    """Write weights of the shapes that the architecture has, all zero."""
    shapes = {
        "first.weight": [2, 1, 3, 3],
        "first.bias": [2],
        "second.weight": [4, 2, 3, 3],
        "second.bias": [4],
        "hidden.weight": [64, 576],
        "hidden.bias": [64],
        "classes.weight": [10, 64],
        "classes.bias": [10],
    }
    count = dict.fromkeys(shapes, 1)
    for name, shape in shapes.items():
        for size in shape:
            count[name] *= size
    return safetensors(**{n: ("F32", s, bytes(4 * count[n])) for n, s in shapes.items()})


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    files = {"config.json": json.dumps(CNN).encode(), "model.safetensors": cnn_weights()}
    return make_version(alice, make_model(alice, "cnn"), files)


def compress(*steps, **changes):
    steps = steps or ({"method": "quantize_weights", "bits": 8},)
    return {"kind": "compress", "model": "alice/cnn", "steps": list(steps), **changes}


def search(**changes):
    step = {"method": "search", "max_accuracy_loss": 0.01, "budget_minutes": 3, **changes}
    return {"kind": "search", "model": "alice/cnn", "dataset": "alice/rows", "steps": [step]}


def estimate(user, recipe):
    return estimate_job(actor=actor_of(user), recipe=recipe)


def ran(user, recipe, *, seconds, **report):
    """Write a job that ran for so long, as a worker would have."""
    job = jobs.submit_job(actor=actor_of(user), recipe=recipe)
    now = timezone.now()
    Job.objects.filter(pk=job.pk).update(state=JobState.SUCCEEDED, finished_at=now, report=report)
    Attempt.objects.create(
        job=job,
        fence=1,
        worker="w",
        started_at=now - timedelta(seconds=seconds),
        ended_at=now,
        outcome="succeeded",
    )
    return job


def test_nothing_is_written(alice, model):
    before = Event.objects.count()
    found = estimate(alice, compress())
    assert found.recipe.model == "alice/cnn@1"
    assert (Job.objects.count(), Event.objects.count()) == (0, before)


def test_what_is_not_known_is_said_to_be(alice, model):
    found = estimate(alice, compress())
    assert (found.seconds.low, found.seconds.high) == (None, None)
    assert "has run that you may see" in found.seconds.grounds.detail
    assert found.memory_bytes.high is None
    assert found.memory_bytes.low > 4 * model.parameters_count
    assert found.waiting.workers == 0
    assert "No worker serves the queue cpu" in found.waiting.grounds.detail


def test_the_result_follows_from_the_header(alice, model):
    eight = estimate(alice, compress({"method": "quantize_weights", "bits": 8})).result_bytes
    four = estimate(alice, compress({"method": "quantize_weights", "bits": 4})).result_bytes
    same = estimate(alice, compress({"method": "export_onnx"})).result_bytes
    assert four.low < eight.low < same.low
    assert 4 * model.parameters_count * 0.9 < same.low < model.size_bytes < same.high
    assert "From 37.7 k parameters of alice/cnn@1" in eight.grounds.detail


def test_what_is_read_is_known_exactly(alice, model):
    rows = make_version(
        alice,
        make_model(alice, "rows", kind="dataset"),
        {"test.csv": b"image,label\n"},
    )
    found = estimate(alice, compress(dataset="alice/rows")).read_bytes
    assert found.is_exact
    assert found.low == model.size_bytes + rows.size_bytes
    assert "alice/cnn@1, alice/rows@1" in found.grounds.detail


def test_earlier_jobs_are_grounds_the_most_alike_first(alice, model):
    ran(alice, compress({"method": "export_onnx"}), seconds=500)
    loose = estimate(alice, compress()).seconds
    assert "with other steps or data, took 500 to 500 s" in loose.grounds.detail
    assert loose.low < 500 < loose.high
    for seconds in (10, 20):
        ran(alice, compress(), seconds=seconds, job_memory_bytes=seconds * 10**8)
    close = estimate(alice, compress())
    assert "last 2 job(s) with this very recipe took 10 to 20 s" in close.seconds.grounds.detail
    assert (close.seconds.low, close.seconds.high) == (7, 30)
    assert "held up to 2000 MB" in close.memory_bytes.grounds.detail
    assert close.memory_bytes.high == pytest.approx(2.6e9)


def test_jobs_that_one_may_not_see_are_no_grounds(alice, model):
    ran(alice, compress(), seconds=10)
    bob = UserFactory(username="bob")
    # Bob may write into the model, and sees neither Alice's namespace nor its jobs.
    sharing.set_grant(
        actor=actor_of(alice), repository=model.repository, username="bob", role="contributor"
    )
    assert estimate(bob, compress()).seconds.low is None
    assert estimate(alice, compress()).seconds.low is not None


def test_a_search_takes_its_budget(alice, model):
    rows = {"train.csv": b"image,label\n", "test.csv": b"image,label\n"}
    make_version(alice, make_model(alice, "rows", kind="dataset"), rows)
    found = estimate(alice, search(most_variants=2))
    assert (found.seconds.low, found.seconds.high) == (None, 3 * 60 + 60)
    assert "at most 3 minutes" in found.seconds.grounds.detail
    assert found.result_bytes.low is None
    assert found.result_bytes.high > 2 * model.size_bytes


def test_the_queue_and_the_limit_come_from_live_workers(alice, model):
    Worker.objects.create(
        name="w1",
        queues=["cpu"],
        devices=[{"kind": "cpu", "job_memory_bytes": 10_000}],
        seen_at=timezone.now(),
    )
    assert "starts at once" in estimate(alice, compress()).waiting.grounds.detail
    jobs.submit_job(actor=actor_of(alice), recipe=compress())
    found = estimate(alice, compress())
    assert (found.waiting.before, found.waiting.workers) == (1, 1)
    assert "1 job(s) wait before it" in found.waiting.grounds.detail
    assert found.memory_limit_bytes == 10_000
    assert found.fits_memory is False


@pytest.mark.parametrize(("room", "fits"), [(10**9, True), (70_000, None), (100, False)])
def test_the_quota_is_looked_at(alice, model, room, fits):
    Namespace.objects.filter(slug="alice").update(quota_bytes=model.size_bytes + room)
    found = estimate(alice, compress())
    assert found.fits_quota is fits
    assert quotas.say_bytes(room) in found.quota_grounds.detail


def test_it_refuses_what_submitting_refuses(alice, model):
    with pytest.raises(Invalid):
        estimate(alice, compress({"method": "prune_magnitude", "sparsity": 1.0}))
    with pytest.raises(NotFound):
        estimate(UserFactory(), compress(model="alice/none"))
    with pytest.raises(Denied):
        estimate(UserFactory(), compress())
    Namespace.objects.filter(slug="alice").update(quota_bytes=1)
    with pytest.raises(NamespaceFull):
        estimate(alice, compress())
