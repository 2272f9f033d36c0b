"""A tuning through the queue: measured by a real job, kept with the version, served by."""

import asyncio

import pytest

from registry.errors import Denied, Invalid
from registry.models import Deployment, Job, JobState, Tuning
from registry.routes import read_routes
from registry.services.deployments import deploy
from registry.services.exports import find_export
from registry.services.jobs import submit_job
from registry.services.sharing import set_grant
from registry.services.tuning import keep_tuning
from tests import factories
from tests.factories import actor_of
from tests.workers.serving import yard
from tests.workers.tiny import run_next
from workers.ml.environment import class_of_cpu
from workers.serving.dataplane import DataPlane

# Not what a deployment has by default, so that it shows where it is from.
STEP = {"threads": [1], "batch_sizes": [4, 8], "repetitions": 3, "budget_minutes": 10}
RECIPE = {"kind": "tune", "model": "alice/mlp@1", "steps": [STEP]}


@pytest.fixture
def version(owner):
    repository = factories.make_model(owner, "mlp")
    return factories.make_version(owner, repository, {"model.onnx": yard.mlp()})


async def config_of(root, actor):
    plane = DataPlane(root=root, arena_bytes=8 << 20, memory_bytes=4 << 30)
    plane.apply(await asyncio.to_thread(read_routes, plane.device_class))
    try:
        return await plane.model_config(actor, "alice/mlp", "")
    finally:
        await plane.stop(grace_seconds=0.5)


def test_what_a_job_finds_best_is_what_is_served_and_exported(owner, version, tmp_path):
    actor = actor_of(owner)
    job = submit_job(actor=actor, recipe=RECIPE)
    run_next()
    job = Job.objects.get(pk=job.pk)
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    row = Tuning.objects.get()
    assert (row.version, row.device_class, row.job) == (version, class_of_cpu(), job)
    assert (row.threads, row.runtime) == (1, "onnxruntime")
    assert row.max_batch_size in {4, 8}
    assert {one["batch_size"] for one in row.summary["tried"]} == {4, 8}
    deploy(actor=actor, model="alice/mlp", version="1")
    config = asyncio.run(config_of(tmp_path / "open", actor))
    assert config["max_batch_size"] == row.max_batch_size
    assert config["parameters"]["intra_op_thread_count"]["string_value"] == "1"
    # What somebody says wins.
    Deployment.objects.update(options={"max_batch_size": 2})
    assert asyncio.run(config_of(tmp_path / "said", actor))["max_batch_size"] == 2
    address = {"namespace": "alice", "name": "mlp", "version": "1", "address": "http://here"}
    export = find_export(actor=actor, file="triton.tar", **address)
    ((_, written), *_) = export.package.entries
    assert f"preferred_batch_size: [ {row.max_batch_size} ]".encode() in written
    # Measured again, it is kept in place of the first.
    submit_job(actor=actor, recipe={**RECIPE, "steps": [{**STEP, "objective": "latency"}]})
    run_next()
    row.refresh_from_db()
    assert (row.summary["objective"], Tuning.objects.count()) == ("latency", 1)


def test_a_job_that_measures_nothing_keeps_nothing_but_its_report(owner):
    repository = factories.make_model(owner, "mlp")
    factories.make_version(owner, repository, {"model.onnx": yard.looping_beyond(0)})
    step = {**STEP, "patience_seconds": 0.2}
    job = submit_job(actor=actor_of(owner), recipe={**RECIPE, "steps": [step]})
    run_next()
    job = Job.objects.get(pk=job.pk)
    assert (job.state, job.error_code) == (JobState.FAILED, "nothing_measured")
    assert all("No answer" in one["reason"] for one in job.report["summary"]["tried"])
    assert not Tuning.objects.exists()


def test_only_maintainers_tune(owner, version):
    guest = factories.UserFactory(username="carl")
    place = {"actor": actor_of(owner), "repository": version.repository, "username": "carl"}
    set_grant(**place, role="contributor")
    with pytest.raises(Denied):
        submit_job(actor=actor_of(guest), recipe=RECIPE)
    set_grant(**place, role="maintainer")
    assert submit_job(actor=actor_of(guest), recipe=RECIPE).kind == "tune"


CHOSEN = {"threads": 2, "max_batch_size": 16, "runtime": "torch"}


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {},
        {"device_class": "here"},
        {"chosen": CHOSEN},
        {"device_class": "here", "chosen": {**CHOSEN, "threads": 65}},
        {"device_class": "here", "chosen": {**CHOSEN, "threads": "2"}},
        {"device_class": "here", "chosen": {**CHOSEN, "max_batch_size": 0}},
        {"device_class": "here", "chosen": {**CHOSEN, "runtime": "of my own"}},
    ],
)
def test_a_report_is_believed_no_more_than_any_input(owner, version, said):
    job = submit_job(actor=actor_of(owner), recipe=RECIPE)
    with pytest.raises(Invalid):
        keep_tuning(actor=actor_of(owner), version=version, job=job, said=said)
    assert not Tuning.objects.exists()
