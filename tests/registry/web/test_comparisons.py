"""A new version beside its parent: numbers, answers to the same rows, and its promotion."""

import base64
import zlib

import pytest
from django.utils import timezone

from registry.models import Alias, Job, Version
from registry.services import jobs
from registry.services.proposals import protect_aliases
from registry.web.history import TIMES
from tests.factories import actor_of

pytestmark = pytest.mark.django_db

PIXELS = bytes(range(6))
ROWS = [
    {
        "row": 6,
        "outcome": "lost",
        "input": {"image": {"width": 3, "height": 2, "grey": base64.b64encode(PIXELS).decode()}},
        "label": "seven",
        "parent": {"answer": "seven", "score": 0.91},
        "child": {"answer": "one", "score": 0.55},
    },
    {
        "row": 9,
        "outcome": "same",
        "input": {"text": "a <b>bold</b> text"},
        "label": "one",
        "parent": {"answer": "one", "score": 0.5},
        "child": {"answer": "one", "score": 0.6},
    },
]
METRICS = [
    {
        "metric": "stored_bytes",
        "value": 2_000_000,
        "unit": "bytes",
        "details": {"parent": {"value": 8_000_000}},
    },
    {
        "metric": "accuracy",
        "value": 0.97,
        "unit": "share",
        "details": {"parent": {"value": 0.98}},
    },
    {
        "metric": "worst_class_recall_change",
        "value": -0.2,
        "unit": "share",
        "details": {"class": "seven", "parent": {"value": 0.9}},
    },
]
REPORT = {"metrics": METRICS, "summary": {"compared": ROWS}}


@pytest.fixture
def finished(owner, model):
    recipe = {
        "kind": "compress",
        "model": "olga/digits-cnn@2",
        "steps": [{"method": "quantize_dynamic"}],
    }
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    made = Version.objects.get(repository=model, variant="int8")
    Version.objects.filter(pk=made.pk).update(job=job)

    def leave(report):
        Job.objects.filter(pk=job.pk).update(
            state="succeeded", report=report, result=made, finished_at=timezone.now()
        )
        return f"/jobs/{job.pk}/compare"

    return leave


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize("prefix", ["", "/zh-hans"])
def test_numbers_and_answers_stand_side_by_side(as_owner, finished, prefix):
    page = text_of(as_owner.get(prefix + finished(REPORT)))
    for words in ("8.0 MB", "2.0 MB", f"4.0{TIMES}", "98.0%", "97.0%", "90.0%", "70.0%"):
        assert words in page, words
    assert page.index("91.0%") < page.index("55.0%"), "the parent's answer comes first"
    assert "a &lt;b&gt;bold&lt;/b&gt; text" in page
    assert "olga/digits-cnn@2" in page


def test_a_grey_picture_is_drawn_as_it_was(as_owner, finished):
    page = text_of(as_owner.get(finished(REPORT)))
    start = page.index("data:image/png;base64,") + len("data:image/png;base64,")
    png = base64.b64decode(page[start : page.index('"', start)])
    assert png.startswith(b"\x89PNG")
    size = int.from_bytes(png[33:37], "big")
    assert zlib.decompress(png[41 : 41 + size]) == b"\0\x00\x01\x02\0\x03\x04\x05"


def test_rows_are_shown_by_what_became_of_the_answer(as_owner, finished):
    address = finished(REPORT)
    lost = text_of(as_owner.get(f"{address}?show=lost"))
    assert "55.0%" in lost
    assert "bold" not in lost


def test_a_comparison_is_for_those_who_see_the_job(client, as_stranger, finished):
    address = finished(REPORT)
    assert as_stranger.get(address).status_code == 404
    assert client.get(address)["Location"].startswith("/login")
    page = text_of(as_stranger.get("/models/olga/digits-cnn/versions/3"))
    assert "/compare" not in page, "nor does the version's page lead there"


def test_the_pages_of_the_version_and_the_job_lead_there(as_owner, finished):
    address = finished(REPORT)
    for page in ("/models/olga/digits-cnn/versions/3", address.removesuffix("/compare")):
        assert address in text_of(as_owner.get(page)), page


def test_one_click_promotes(as_owner, finished):
    page = text_of(as_owner.get(finished(REPORT)))
    assert "v2 → v3" in page
    form = {"alias": "champion", "version": "3", "page": "3"}
    answer = as_owner.post("/models/olga/digits-cnn/aliases", form)
    assert answer["Location"] == "/models/olga/digits-cnn/versions/3"
    assert Alias.objects.get(name="champion").version.number == 3
    assert "Point @champion here" not in text_of(as_owner.get(finished(REPORT)))


def test_a_protected_alias_is_proposed(as_owner, owner, model, finished):
    protect_aliases(
        actor=actor_of(owner), repository=model, aliases=["champion"], second_approver=True
    )
    page = text_of(as_owner.get(finished(REPORT)))
    assert "Propose @champion" in page
    assert 'value="champion"' not in page


def test_each_variant_of_a_search_has_its_own_part(as_owner, finished):
    other = {"name": "int8", "metrics": METRICS, "summary": {"compared": ROWS[1:]}}
    page = text_of(as_owner.get(finished({"metrics": [], "variants": [other]})))
    assert f"4.0{TIMES}" in page
    assert "bold" in page


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"metrics": "x", "summary": {"compared": [{"input": 3, "parent": [], "row": "x"}]}},
        {
            "summary": {
                "compared": [{"input": {"image": {"width": 10**9, "height": 1, "grey": ""}}}]
            }
        },
        {"summary": {"compared": [{"input": {"image": {"width": 2, "height": 2, "grey": "*"}}}]}},
        {"metrics": [{"metric": "accuracy", "value": 1, "details": {"parent": {"value": "x"}}}]},
        {"variants": [{"name": "int8"}, 3]},
    ],
)
def test_a_report_of_another_shape_breaks_no_page(as_owner, finished, report):
    text_of(as_owner.get(finished(report)))


def test_a_job_without_a_result_says_so(as_owner, owner, model):
    recipe = {
        "kind": "compress",
        "model": "olga/digits-cnn@2",
        "steps": [{"method": "quantize_dynamic"}],
    }
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    assert "made no version" in text_of(as_owner.get(f"/jobs/{job.pk}/compare"))
