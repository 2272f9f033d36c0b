"""What a finished job's report says on its page, whatever shape it has."""

import pytest
from django.utils import timezone

from registry.errors import Text
from registry.models import Job
from registry.web.history import MINUS
from workers.ml.guards import warning

pytestmark = pytest.mark.django_db

COMPRESS = {"model": "olga/digits-cnn@2", "steps.0.per_channel": "on", "device": "cpu"}
FALLING = Text(
    "Step {number} stopped training while the loss was still falling: more epochs may give a "
    "better result.",
    number=1,
)


@pytest.fixture
def finished(as_owner, model):
    address = as_owner.post("/jobs/new?kind=compress", COMPRESS)["Location"]

    def leave(report):
        Job.objects.update(
            state="succeeded",
            report=report,
            started_at=timezone.now(),
            finished_at=timezone.now(),
            lease_expires_at=None,
        )
        return address

    return leave


def test_warnings_are_shown_in_the_language_of_the_page(as_owner, finished):
    report = {"summary": {"warnings": [warning("still_falling", FALLING)]}}
    address = finished(report)
    assert "while the loss was still falling" in as_owner.get(address).content.decode()
    assert "在损失仍在下降时停止了训练" in as_owner.get(f"/zh-hans{address}").content.decode()


@pytest.mark.parametrize(
    "summary",
    [
        None,
        [],
        {"warnings": "none"},
        {"warnings": [1, {"said": {"template": 3, "values": []}, "detail": None}]},
        {"warnings": [{"said": {"template": "{a.b}", "values": {}}, "detail": "x"}]},
    ],
)
def test_a_report_of_another_shape_breaks_no_page(as_owner, finished, summary):
    assert as_owner.get(finished({"summary": summary})).status_code == 200


def test_differences_of_shares_read_as_points(as_owner, finished):
    metric = {"metric": "accuracy_change", "value": -0.0049, "unit": "share", "low": -0.011}
    page = as_owner.get(finished({"metrics": [{**metric, "high": 0.0012, "n": 900}]}))
    assert f"{MINUS}0.49 pt" in page.content.decode()
    assert f"{MINUS}1.10 pt" in page.content.decode()
    assert "Accuracy against the parent" in page.content.decode()


def test_the_gap_to_a_control_reads_as_points(as_owner, finished):
    gap = {"metric": "gap_to_dense_control", "value": 0.004, "unit": "share", "n": 900}
    page = as_owner.get(finished({"metrics": [gap]})).content.decode()
    assert "+0.40 pt" in page
    assert "Accuracy against the dense control" in page
