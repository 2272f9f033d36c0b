"""The profile of a version on its page and on the page of its job."""

import pytest
from django.utils import timezone

from registry.models import Job, Version
from registry.services import jobs
from tests.factories import actor_of

pytestmark = pytest.mark.django_db

PAGE = "/models/olga/digits-cnn/versions/2"
LAYERS = [
    {
        "name": "hidden.very.deep.inside.of.a.large.model.dense",
        "kind": "Linear",
        "parameters": 4616,
        "bytes": 18464,
        "macs": 4608,
        "milliseconds": 0.3,
        "bottleneck": True,
        "sensitivity": {"int8": -0.002, "pruned": -0.125},
    },
    {"name": "(other operators)", "kind": "", "milliseconds": 0.1, "sensitivity": {}},
]
TRIED = {
    "measure": "accuracy",
    "rows": 256,
    "split": "train",
    "dataset": "olga/digits@1",
    "baseline": 0.981,
    "ways": ["int8", "pruned"],
}
SUMMARY = {"layers": LAYERS, "milliseconds": 0.4, "batch": 8, "sensitivity": TRIED}


@pytest.fixture
def profiled(owner, model):
    recipe = {"kind": "profile", "model": "olga/digits-cnn@2", "steps": [{}]}
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)

    def leave(summary):
        Job.objects.filter(pk=job.pk).update(
            state="succeeded",
            report={"summary": summary},
            result=Version.objects.get(repository=model, number=2),
            started_at=timezone.now(),
            finished_at=timezone.now(),
        )
        return f"/jobs/{job.pk}"

    return leave


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize("prefix", ["", "/zh-hans"])
def test_a_profile_is_drawn_and_listed(as_owner, profiled, prefix):
    job = profiled(SUMMARY)
    for address in (job, PAGE):
        page = text_of(as_owner.get(prefix + address))
        assert 'width="75.00%"' in page, "three quarters of the time"
        assert f"…{LAYERS[0]['name'][-35:]}" in page, "the end of the name tells layers apart"
        assert "hidden.very.deep.inside" in page
        assert "4.6 k" in page
    shown = text_of(as_owner.get(job))
    assert "12.50 pt" in shown
    assert "98.1%" in shown
    assert "256 rows of olga/digits@1, train" in shown
    assert shown.count('<span class="tag warn">bottleneck</span>') == 1


def test_a_profile_is_for_those_who_see_its_job(client, profiled, as_stranger):
    job = profiled(SUMMARY)
    for visitor in (client, as_stranger):
        assert "large.model.dense" not in text_of(visitor.get(PAGE))
    assert as_stranger.get(job).status_code == 404


def test_a_version_without_one_offers_to_make_one(as_owner, client, model):
    assert "kind=profile&amp;model=olga/digits-cnn%402" in text_of(as_owner.get(PAGE))
    assert "kind=profile" not in text_of(client.get(PAGE))
    form = text_of(as_owner.get("/jobs/new?kind=profile&model=olga/digits-cnn@2"))
    assert 'name="steps.0.max_rows"' in form


@pytest.mark.parametrize(
    "summary",
    [
        {"layers": "none"},
        {"layers": [{"name": 3, "milliseconds": "x", "bytes": None, "sensitivity": []}]},
        {"layers": [{}], "sensitivity": {"rows": "x", "baseline": [], "measure": 1}, "batch": "x"},
    ],
)
def test_a_profile_of_another_shape_breaks_no_page(as_owner, profiled, summary):
    job = profiled(summary)
    for address in (job, PAGE):
        text_of(as_owner.get(address))
