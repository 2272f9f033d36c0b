"""A search on the pages: a goal is picked, candidates come in, and the rest is told why it lost."""

import re

import pytest
from django.utils import timezone

from registry.errors import Text, pack
from registry.models import Job, JobEvent, JobState, Repository, Version
from registry.services import jobs
from registry.services.versions import EvaluationSpec, add_evaluations
from tests.factories import actor_of

pytestmark = pytest.mark.django_db

NEW = "/jobs/new?kind=search&model=olga/digits-cnn@2"
WON = Text("It is the best for the goal.")
LOST = Text("It is {size} bytes, more than {limit}.", size=9, limit=8)


def candidate(name, *, verdict="met", size=2_000_000, loss=0.002, why=WON, took=1.2):
    judged = {"value": loss, "low": loss - 0.004, "high": loss + 0.005, "n": 900}
    return {
        "name": name,
        "bytes": size,
        "latency_ms": took,
        "quality": {"accuracy": judged},
        "verdict": verdict,
        "reason": why.detail,
        "said": pack(why),
    }


REPORT = {
    "summary": {
        "recommended": "int8",
        "rows": 900,
        "parent_bytes": 8_000_000,
        "candidates": [
            candidate("int8"),
            candidate("int4", verdict="failed", size=1_000_000, loss=0.2, why=LOST),
            {"name": "distil", "verdict": "error", "reason": "It was ended.", "quality": {}},
        ],
    }
}


@pytest.fixture
def search(owner, model, dataset):
    recipe = {
        "kind": "search",
        "model": "olga/digits-cnn@2",
        "dataset": "olga/digits@1",
        "steps": [{"max_accuracy_loss": 0.01}],
    }
    return jobs.submit_job(actor=actor_of(owner), recipe=recipe)


def finish(job, report, state=JobState.SUCCEEDED):
    made = Version.objects.get(variant="int8")
    Version.objects.filter(pk=made.pk).update(job=job)
    moment = timezone.now()
    Job.objects.filter(pk=job.pk).update(
        state=state, report=report, result=made, started_at=moment, finished_at=moment
    )


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


def value_of(page, name):
    (field,) = re.findall(rf'<input[^>]*name="{re.escape(name)}"[^>]*>', page)
    found = re.search(r'value="([^"]*)"', field)
    return found[1] if found else ""


def test_the_model_and_its_versions_lead_to_the_goals(as_owner, client, model):
    for page in ("/models/olga/digits-cnn", "/models/olga/digits-cnn/versions/2"):
        assert "kind=search&amp;model=olga/digits-cnn" in text_of(as_owner.get(page)), page
        assert "kind=search" not in text_of(client.get(page)), "nobody else may write here"


@pytest.mark.parametrize(
    ("goal", "filled"),
    [
        ("smallest", {"max_accuracy_loss": "0.01", "min_cosine": "", "max_bytes": ""}),
        ("smallest-vectors", {"max_accuracy_loss": "", "min_cosine": "0.99"}),
        ("fits", {"max_accuracy_loss": "", "max_bytes": "8000000"}),
        ("fast-enough", {"max_accuracy_loss": "", "min_accuracy": "0.95", "max_latency_ms": "5"}),
    ],
)
def test_a_goal_fills_the_form(as_owner, model, goal, filled):
    page = text_of(as_owner.get(f"{NEW}&way={goal}"))
    for name, value in filled.items():
        assert value_of(page, f"steps.0.{name}") == value, name


def test_an_encoder_is_asked_for_its_vectors(as_owner, model):
    assert value_of(text_of(as_owner.get(NEW)), "steps.0.max_accuracy_loss") == "0.01"
    Repository.objects.filter(pk=model.pk).update(task="sentence-similarity")
    assert value_of(text_of(as_owner.get(NEW)), "steps.0.min_cosine") == "0.99"


def test_what_measures_begins_with_the_data_of_the_model(as_owner, owner, model, dataset):
    add_evaluations(
        actor=actor_of(owner),
        version=model.versions.get(number=2),
        evaluations=[EvaluationSpec(metric="accuracy", value=0.9, dataset=dataset.versions.get())],
    )
    for kind in ("search", "compress", "evaluate", "profile"):
        page = text_of(as_owner.get(f"/jobs/new?kind={kind}&model=olga/digits-cnn@2"))
        assert value_of(page, "dataset") == "olga/digits@1", kind
    assert not value_of(text_of(as_owner.get("/jobs/new?kind=search&model=olga/none")), "dataset")
    assert not value_of(text_of(as_owner.get("/jobs/new?kind=search&model=")), "dataset")
    page = text_of(as_owner.get("/jobs/new?kind=infer&model=olga/digits-cnn@2"))
    assert not value_of(page, "dataset"), "new rows are what an inference is for"


def test_a_goal_is_submitted(as_owner, model, dataset):
    form = {
        "model": "olga/digits-cnn@2",
        "dataset": "olga/digits@1",
        "device": "cpu",
        "steps.0.goal": "smallest",
        "steps.0.max_accuracy_loss": "0.01",
        "steps.0.budget_minutes": "5",
    }
    response = as_owner.post(NEW, form)
    assert response.status_code == 302, response.content.decode()
    step = Job.objects.get(kind="search").recipe["steps"][0]
    assert (step["goal"], step["max_accuracy_loss"], step["budget_minutes"]) == (
        "smallest",
        0.01,
        5.0,
    )


def test_a_goal_without_a_limit_is_refused_in_words(as_owner, model, dataset):
    form = {"model": "olga/digits-cnn@2", "dataset": "olga/digits@1", "device": "cpu"}
    response = as_owner.post(NEW, {**form, "steps.0.goal": "smallest"})
    assert response.status_code == 422
    assert "Say what may be lost" in response.content.decode()


def test_candidates_are_shown_as_they_come(as_owner, search):
    page = text_of(as_owner.get(f"/jobs/{search.pk}"))
    assert "The first candidate is being made." in page
    Job.objects.filter(pk=search.pk).update(
        state=JobState.RUNNING, started_at=timezone.now(), lease_expires_at=timezone.now()
    )
    for name, size, verdict in (("int8", 2e6, "met"), ("int4", 1e6, "failed")):
        said = {"name": name, "verdict": verdict, "bytes": size, "loss": 0.1, "measure": "accuracy"}
        JobEvent.objects.create(job=search, type="candidate", data={**said, "reason": "Because."})
    page = text_of(as_owner.get(f"/jobs/{search.pk}?part=live"))
    assert "2 tried, 1 within the limits." in page
    assert page.count("Because.") == 2
    assert 'href="#candidate-1"' in page, "both are points of the picture"
    off = re.search(r'href="#candidate-2" class="([^"]*)"', page)
    assert "off" in off[1], "what fails is not on the front"


@pytest.mark.parametrize(("prefix", "words"), [("", "9 bytes"), ("/zh-hans", "9 字节")])
def test_reasons_are_said_in_the_language_of_the_page_while_it_runs(
    as_owner, search, prefix, words
):
    why = Text("It has {size} bytes, more than {limit}.", size=9, limit=8)
    said = {"name": "int4", "verdict": "failed", "reason": why.detail, "said": pack(why)}
    JobEvent.objects.create(job=search, type="candidate", data=said)
    page = text_of(as_owner.get(f"{prefix}/jobs/{search.pk}?part=live"))
    assert words in page
    assert (why.detail in page) is (prefix == "")


@pytest.mark.parametrize("prefix", ["", "/zh-hans"])
def test_a_finished_search_says_what_won_and_why_the_rest_lost(as_owner, search, prefix):
    finish(search, REPORT)
    page = text_of(as_owner.get(f"{prefix}/jobs/{search.pk}"))
    assert "4.0" in page
    assert '/models/olga/digits-cnn/versions/3"' in page
    assert "It was ended." in page
    if not prefix:
        assert "recommended" in page
        assert "It is 9 bytes, more than 8." in page


def test_the_latency_can_be_the_cost(as_owner, search):
    finish(search, REPORT)
    assert "p50 latency at batch 1" in text_of(as_owner.get(f"/jobs/{search.pk}?x=latency"))


def test_a_failed_search_shows_its_table_too(as_owner, search):
    finish(search, REPORT, JobState.FAILED)
    assert "It is 9 bytes" in text_of(as_owner.get(f"/jobs/{search.pk}"))


def test_an_estimate_of_a_search_names_its_budget(as_owner, search):
    form = {"model": "olga/digits-cnn@2", "dataset": "olga/digits@1", "device": "cpu"}
    limits = {"goal": "smallest", "max_accuracy_loss": "0.01", "budget_minutes": "3"}
    rest = {"most_variants": "2", "most_candidates": "9", "validation_fraction": "0.2"}
    step = {f"steps.0.{name}": value for name, value in {**limits, **rest}.items()}
    page = text_of(as_owner.post("/jobs/new?kind=search", {**form, **step, "do": "estimate"}))
    assert "It takes at most 3 minutes" in page
    assert "Up to 2 version(s)" in page


@pytest.mark.parametrize(
    "candidates",
    [
        "none",
        [3, {}],
        [{"name": 3, "bytes": "x", "quality": {"accuracy": 3}, "verdict": []}],
        [candidate("x", size=-1), {}],
        [candidate("same", loss=0.0), candidate("same", loss=0.0)],
        [candidate("bad", verdict="failed"), candidate("worse", verdict="failed", size=3_000_000)],
    ],
)
def test_a_report_of_another_shape_breaks_no_page(as_owner, search, candidates):
    finish(search, {"summary": {"candidates": candidates}})
    text_of(as_owner.get(f"/jobs/{search.pk}"))
