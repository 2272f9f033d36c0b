"""Jobs over REST: submitted, listed, read, cancelled, resumed; recipes and workers."""

import uuid

import pytest
from django.utils import timezone

from registry.models import Job, JobState, Worker
from registry.pages import encode_cursor
from registry.services import jobs
from tests.factories import make_model, make_version
from tests.registry.api.conftest import api_of, problem_of

pytestmark = pytest.mark.django_db

RECIPE = {
    "kind": "compress",
    "schema": 1,
    "model": "alice/classifier",
    "steps": [{"method": "quantize_dynamic"}],
}


@pytest.fixture
def version(alice):
    return make_version(alice, make_model(alice))


def submit(api, **changes):
    return api.post("jobs", {"recipe": {**RECIPE, **changes}})


def test_a_job_is_queued_with_exact_references(api, version):
    made = submit(api)
    assert made.status_code == 202
    body = made.json()
    assert made["Location"] == f"/api/v1/jobs/{body['id']}"
    assert body == api.get(f"jobs/{body['id']}").json()
    assert (body["state"], body["attempts"]) == ("queued", 0)
    assert body["recipe"]["model"] == "alice/classifier@1"
    assert body["progress"] == {"done": 0, "total": None, "unit": "", "step": ""}
    assert body["result"] is None
    assert body["results"] == []
    assert body["error"] is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "explode"}, "kind"),
        ({"surprise": 1}, "surprise"),
        ({"steps": []}, "steps"),
        ({"steps": [{"method": "quantize_dynamic", "per_channel": "yes"}]}, "steps.0.per_channel"),
        ({"model": "alice/classifier@@"}, "model"),
    ],
)
def test_a_wrong_recipe_is_refused_by_field(api, version, changes, field):
    body = problem_of(submit(api, **changes), 400, "invalid")
    assert field in [error["field"] for error in body["errors"]]
    assert not Job.objects.exists()


@pytest.mark.parametrize("recipe", [None, [], "text", 5])
def test_a_recipe_is_an_object(api, recipe):
    problem_of(api.post("jobs", {"recipe": recipe}), 400, "invalid")
    problem_of(api.post("jobs", {}), 400, "invalid")


def test_numbers_out_of_bounds_are_refused(api, version):
    train = {"kind": "train", "schema": 1, "dataset": "alice/digits", "output": "alice/new"}
    for step in ({"epochs": 10**9}, {"learning_rate": -1}, {"epochs": "5"}):
        recipe = {
            **train,
            "architecture": {"name": "digits_cnn"},
            "steps": [{"method": "train", **step}],
        }
        assert api.post("jobs", {"recipe": recipe}).status_code == 400
    raw = b'{"recipe": {"kind": "train", "steps": [{"learning_rate": NaN}]}}'
    problem_of(api.post("jobs", raw=raw), 400, "not_finite")


def test_an_estimate_queues_nothing(api, version):
    recipe = {"kind": "compress", "model": "alice/classifier", "steps": [{"method": "export_onnx"}]}
    answer = api.post("jobs/estimate", {"recipe": recipe})
    body = answer.json()
    assert (answer.status_code, body["queue"]) == (200, "cpu")
    assert body["recipe"]["model"] == "alice/classifier@1"
    assert body["seconds"]["low"] is None
    assert body["read_bytes"]["low"] == body["read_bytes"]["high"] > 0
    low, high = (body["result_bytes"][end] for end in ("low", "high"))
    assert low < high
    assert (type(low), type(high)) == (int, int)
    assert all(body[part]["grounds"] for part in ("seconds", "memory_bytes", "waiting", "quota"))
    assert not Job.objects.exists()


def test_an_estimate_refuses_as_submitting_does(api, alice, version):
    bad = {"kind": "compress", "model": "alice/absent", "steps": [{"method": "export_onnx"}]}
    body = problem_of(api.post("jobs/estimate", {"recipe": bad}), 404, "model_not_found")
    assert body["errors"][0]["field"] == "model"
    problem_of(api.post("jobs/estimate", {"recipe": {**bad, "steps": []}}), 400, "invalid")
    read_only = api_of(alice, ("read", "write"))
    problem_of(read_only.post("jobs/estimate", {"recipe": bad}), 403, "missing_scope")


def test_an_input_that_is_not_there(api, version):
    body = problem_of(submit(api, model="alice/absent"), 404, "model_not_found")
    assert body["errors"][0]["field"] == "model"


def test_a_model_of_somebody_else_cannot_be_compressed_in_place(bob, version):
    problem_of(submit(api_of(bob)), 403, "denied")


def test_jobs_need_their_scope(alice, version):
    problem_of(submit(api_of(alice, ("read", "write"))), 403, "missing_scope")


def test_jobs_are_listed_newest_first(api, version):
    ids = [submit(api).json()["id"] for _ in range(3)]
    page = api.get("jobs", query={"limit": 2})
    assert [job["id"] for job in page.json()["items"]] == ids[:0:-1]
    rest = api.get("jobs", query={"cursor": page.json()["next_cursor"]}).json()
    assert [job["id"] for job in rest["items"]] == ids[:1]
    assert api.get("jobs", query={"state": "running"}).json()["items"] == []
    assert (
        len(api.get("jobs", query={"kind": "compress", "namespace": "ALICE"}).json()["items"]) == 3
    )
    assert api.get("jobs", query={"state": "odd"}).status_code == 400


@pytest.mark.parametrize(
    "moment", ["x", "2026-01-01", "2026-01-01T00:00:00", "0001-01-01T00:00:00+23:59"]
)
def test_a_cursor_that_was_not_made_here_is_refused(api, moment):
    cursor = encode_cursor("jobs", moment, str(uuid.uuid4()))
    assert api.get("jobs", query={"cursor": cursor}).json()["code"] == "bad_cursor"


def test_a_job_is_seen_by_those_of_its_namespace(api, bob, anonymous, version):
    job = submit(api).json()["id"]
    problem_of(api_of(bob).get(f"jobs/{job}"), 404, "job_not_found")
    assert api_of(bob).get("jobs").json()["items"] == []
    problem_of(anonymous.get("jobs"), 401, "unauthenticated")
    problem_of(anonymous.get(f"jobs/{job}"), 401, "unauthenticated")


@pytest.mark.parametrize("job", ["x", str(uuid.UUID(int=1)), "0" * 31])
def test_a_job_that_is_not_there(api, job):
    problem_of(api.get(f"jobs/{job}"), 404, "job_not_found")
    problem_of(api.post(f"jobs/{job}/cancel"), 404, "job_not_found")
    problem_of(api.get(f"jobs/{job}/log"), 404, "job_not_found")


def test_a_waiting_job_is_cancelled_and_resumed(api, version):
    job = submit(api).json()["id"]
    assert api.post(f"jobs/{job}/cancel").json()["state"] == "cancelled"
    resumed = api.post(f"jobs/{job}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (202, "queued")
    problem_of(api.post(f"jobs/{job}/resume"), 409, "job_not_resumable")


def test_a_job_that_failed_says_why(api, version):
    job = submit(api).json()["id"]
    claim = jobs.claim_job(worker="w", queues=["cpu"])
    jobs.record_events(
        claim,
        [
            jobs.Message("log", {"message": "reading", "level": "info"}),
            jobs.Message("progress", {"done": 1, "total": 4, "unit": "files", "step": "read"}),
        ],
    )
    running = api.get(f"jobs/{job}").json()
    assert running["state"] == "running"
    assert running["progress"] == {"done": 1, "total": 4, "unit": "files", "step": "read"}
    jobs.fail_job(claim, code="out_of_memory", detail="Too large; use smaller batches.")
    body = api.get(f"jobs/{job}").json()
    assert (body["state"], body["attempts"]) == ("failed", 1)
    assert body["error"] == {
        "code": "out_of_memory",
        "detail": "Too large; use smaller batches.",
    }
    log = api.get(f"jobs/{job}/log")
    assert log["Content-Type"] == "text/plain; charset=utf-8"
    words = [line.split(" ", 1)[1] for line in log.content.decode().splitlines()]
    assert words == ["queued", "running", "reading", "failed"]


def test_a_job_that_succeeded_names_its_result(api, alice, version):
    job = Job.objects.get(pk=submit(api).json()["id"])
    job.state, job.result, job.finished_at = JobState.SUCCEEDED, version, timezone.now()
    job.save()
    assert api.get(f"jobs/{job.pk}").json()["result"] == {
        "kind": "model",
        "namespace": "alice",
        "name": "classifier",
        "number": 1,
    }
    problem_of(api.post(f"jobs/{job.pk}/cancel"), 409, "job_finished")


def test_a_job_that_made_several_versions_names_them_all(api, alice, version):
    job = Job.objects.get(pk=submit(api).json()["id"])
    made = [
        make_version(alice, version.repository, variant=name, job=job) for name in ("int8", "slim")
    ]
    job.state, job.result, job.finished_at = JobState.SUCCEEDED, made[1], timezone.now()
    job.save()
    body = api.get(f"jobs/{job.pk}").json()
    assert body["result"]["number"] == 3
    assert [(one["number"], one["variant"]) for one in body["results"]] == [
        (3, "slim"),
        (2, "int8"),
    ]


def test_recipes_say_what_they_take(anonymous):
    kinds = [one["kind"] for one in anonymous.get("recipes").json()["items"]]
    assert kinds == [
        "compress",
        "search",
        "train",
        "infer",
        "evaluate",
        "profile",
        "diff",
        "tune",
        "export",
    ]
    for kind in kinds:
        assert "steps" in anonymous.get(f"recipes/{kind}").json()["properties"]
    problem_of(anonymous.get("recipes/explode"), 404, "recipe_not_found")


def test_workers_show_their_devices(api, anonymous):
    Worker.objects.create(name="w", queues=["cpu"], devices=[{"kind": "cpu", "name": "x"}])
    (worker,) = api.get("workers").json()["items"]
    assert (worker["queues"], worker["is_alive"]) == (["cpu"], True)
    problem_of(anonymous.get("workers"), 401, "unauthenticated")
