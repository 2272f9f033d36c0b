"""What a text that stays says of things that its readers may not see: from outside, as one of A.

Bob belongs to A and to B. Anna maintains A, Olga owns it; neither of them knows of B.
"""

from datetime import timedelta

import orjson
import pytest

from registry.models import Evaluation, Job, JobEvent, Membership, Role
from registry.services import catalog, jobs, webhooks
from registry.services.announcements import EVENTS
from registry.services.collection import collect_garbage
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
from tests.registry.api.conftest import api_of, problem_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def bob():
    person = UserFactory(username="bob")
    for slug, role in (("team-a", Role.OWNER), ("bureau", Role.OWNER)):
        Membership.objects.create(namespace=NamespaceFactory(slug=slug), user=person, role=role)
    return person


@pytest.fixture
def space(bob):
    return bob.memberships.get(namespace__slug="team-a").namespace


@pytest.fixture
def anna(space):
    return api_of(make_member(space, Role.MAINTAINER))


@pytest.fixture
def olga(space):
    return make_member(space, Role.OWNER)


@pytest.fixture
def webhook(space, olga):
    return webhooks.create_webhook(
        actor=actor_of(olga),
        namespace=space,
        url="https://hooks.example.org/a",
        events=list(EVENTS),
    )


@pytest.fixture
def secret(bob):
    place = make_model(bob, "cabal", kind="dataset", namespace="bureau", visibility="private")
    return make_version(bob, place, {"train.csv": b"image,label\na,b\n"})


@pytest.fixture
def out(bob):
    return make_model(bob, "out", namespace="team-a")


def submit(bob, **changes):
    recipe = {
        "kind": "train",
        "schema": 1,
        "dataset": "bureau/cabal",
        "output": "team-a/out",
        "architecture": {"name": "digits_cnn"},
        "steps": [{"method": "train"}],
        **changes,
    }
    answer = api_of(bob).post("jobs", {"recipe": recipe})
    assert answer.status_code == 202, answer.content
    return Job.objects.get(pk=answer.json()["id"])


def claim():
    return jobs.claim_job(worker="w", queues=["cpu"])


def finish(secret):
    number = EvaluationSpec(metric="accuracy", value=0.5, dataset=secret)
    weights = make_blob(safetensors_bytes(weight=[1.0]))
    return jobs.finish_job(
        claim(), Outcome(files={"model.safetensors": weights}, evaluations=[number])
    )


ADDRESSES = (
    "events",
    "events/export",
    "jobs",
    "models",
    "datasets",
    "tokens",
    "webhooks",
    "models/team-a/out",
    "models/team-a/out/versions",
    "models/team-a/out/versions/1",
    "models/team-a/out/versions/1/evaluations",
    "models/team-a/out/lineage",
    "namespaces",
    "whoami",
)


def traces(api, *words):
    """Give the addresses at which one of these words is read."""
    found = {}
    for address in ADDRESSES:
        answer = api.get(address)
        body = b"".join(answer) if answer.streaming else answer.content
        if any(word in body.decode().lower() for word in words):
            found[address] = body.decode()
    return found


def payloads(webhook):
    return orjson.dumps(list(webhook.deliveries.values_list("payload", flat=True))).decode()


def test_what_was_hidden_from_a_reads_as_nothing_in_a(bob, anna, webhook, secret, out):
    first = submit(bob)
    jobs.fail_job(claim(), code="bad_data", detail="bureau/cabal@1 has no split 'test'.")
    submit(bob)
    finish(secret)
    assert traces(anna, "cabal", "bureau") == {}
    (told,) = [one for one in anna.get("events").json()["items"] if one["target"] == str(first.pk)][
        -1:
    ]
    assert told["data"] == {"kind": "train", "output": "team-a/out", "inputs": []}
    problem_of(anna.get(f"jobs/{first.pk}"), 404, "job_not_found")
    assert "cabal" not in payloads(webhook)
    failed = webhook.deliveries.filter(event="job.finished").order_by("pk").first()
    assert failed.payload["data"]["error"] == {"code": "bad_data", "detail": None}
    (number,) = anna.get("models/team-a/out/versions/1/evaluations").json()["items"]
    assert (number["metric"], number["dataset"]) == ("accuracy", None)
    # Who sees both reads both.
    theirs = api_of(bob).get(f"jobs/{first.pk}").json()
    assert theirs["recipe"]["dataset"] == "bureau/cabal@1"


def test_what_lies_in_a_is_named_in_a(bob, anna, webhook, out):
    data = make_model(bob, "rows", kind="dataset", namespace="team-a", visibility="private")
    make_version(bob, data, {"train.csv": b"image,label\na,b\n"})
    job = submit(bob, dataset="team-a/rows")
    jobs.fail_job(claim(), code="bad_data", detail="team-a/rows@1 has no split 'test'.")
    told = [one for one in anna.get("events").json()["items"] if one["action"] == "job.submit"]
    assert told[0]["data"]["inputs"] == ["team-a/rows@1"]
    assert anna.get(f"jobs/{job.pk}").json()["error"]["code"] == "bad_data"
    (failed,) = webhook.deliveries.filter(event="job.finished")
    assert failed.payload["data"]["error"]["detail"].startswith("team-a/rows@1")


def test_what_is_gone_for_good_stays_hidden(bob, anna, olga, secret, out):
    job = submit(bob)
    version = finish(secret)
    assert version.parent_edges.count() == 1
    catalog.delete_repository(actor=actor_of(bob), repository=secret.repository)
    list(collect_garbage(undo=timedelta(), strays=False))
    assert Evaluation.objects.get().dataset_version is None
    assert traces(anna, "cabal", "bureau") == {}
    for api in (anna, api_of(olga)):
        problem_of(api.get(f"jobs/{job.pk}"), 404, "job_not_found")
    assert api_of(bob).get(f"jobs/{job.pk}").status_code == 200


def test_what_everybody_saw_is_remembered_by_its_name(bob, anna, secret, out):
    api_of(bob).patch("datasets/bureau/cabal", {"visibility": "public"})
    job = submit(bob)
    finish(secret)
    catalog.delete_repository(actor=actor_of(bob), repository=secret.repository)
    list(collect_garbage(undo=timedelta(), strays=False))
    (number,) = anna.get("models/team-a/out/versions/1/evaluations").json()["items"]
    assert number["details"] == {"dataset": "bureau/cabal@1"}
    assert anna.get(f"jobs/{job.pk}").status_code == 200


def test_what_left_a_takes_its_new_name_along(bob, anna, olga, webhook, out):
    data = make_model(bob, "rows", kind="dataset", namespace="team-a")
    make_version(bob, data, {"train.csv": b"image,label\na,b\n"})
    job = submit(bob, dataset="team-a/rows")
    jobs.finish_job(claim(), Outcome(files={"a.safetensors": make_blob(safetensors_bytes(a=[1]))}))
    owner = api_of(olga)
    limited = owner.post("tokens", {"name": "ci", "model": "team-a/out"}).json()
    one = {"model": "team-a/out", "url": "https://x.example.org/", "events": ["alias.moved"]}
    assert owner.post("webhooks", one).status_code == 201
    assert anna.get(f"jobs/{job.pk}").json()["result"]["name"] == "out"
    theirs = api_of(bob)
    # A job that is queued before ends after.
    later = submit(bob, dataset="team-a/rows")
    theirs.patch("models/team-a/out", {"visibility": "private"})
    theirs.post("models/team-a/out/transfer", {"namespace": "bureau"})
    theirs.patch("models/bureau/out", {"name": "cabal"})
    jobs.finish_job(claim(), Outcome(files={"a.safetensors": make_blob(safetensors_bytes(a=[2]))}))
    later.refresh_from_db()
    assert later.result.ref == "bureau/cabal@2"
    for api in (anna, owner):
        assert traces(api, "cabal", "bureau") == {}
        for one in (job, later):
            assert api.get(f"jobs/{one.pk}").json()["result"] is None
    said = JobEvent.objects.filter(job__in=[job, later]).values_list("data", flat=True)
    assert "cabal" not in str(list(said))
    assert "cabal" not in payloads(webhook)
    (shown,) = [row for row in owner.get("tokens").json()["items"] if row["id"] == limited["id"]]
    assert (shown["model"], shown["limited"]) == (None, True)
    seen = theirs.get(f"jobs/{job.pk}").json()["result"]
    assert (seen["namespace"], seen["name"]) == ("bureau", "cabal")
