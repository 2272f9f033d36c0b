"""Following a job: its state first, then what it says, and nothing twice or left out."""

import json

import httpx
import pytest
from django.db import transaction

from registry.models import Job, JobEvent, JobState, Namespace
from registry.queue import publish
from tests.factories import make_token


@pytest.fixture
def job(alice):
    return Job.objects.create(
        kind="train",
        recipe={},
        queue="cpu",
        namespace=Namespace.objects.get(slug="alice"),
        created_by=alice,
    )


def say(job, kind, *, live=True, **data):
    row = JobEvent.objects.create(job=job, type=kind, data=data)
    if live:
        tell(row)
    return row


def tell(row):
    event = {"id": row.pk, "type": row.type, "data": row.data, "at": row.at.isoformat()}
    publish(row.job_id, [event])


def finish(job, *, live=True):
    job.state = JobState.SUCCEEDED
    # At once, as services write them: between the two, a follower would miss the end.
    with transaction.atomic():
        job.save()
        row = say(job, "state", live=False, state="succeeded")
    if live:
        tell(row)
    return row


class Stream:
    """Server-sent events, one after the other."""

    def __init__(self, answer):
        self.answer = answer
        self.lines = answer.iter_lines()

    def next(self):
        event = {}
        for line in self.lines:
            if line.startswith((":", "retry")):
                continue
            if not line:
                if event:
                    return event
                continue
            name, _, value = line.partition(": ")
            event[name] = value
        return None

    def names(self):
        names = []
        while event := self.next():
            names.append((event["event"], json.loads(event["data"])["data"]))
        return names


def follow(client, job, **options):
    return client.stream("GET", f"/api/v1/jobs/{job.pk}/events", **options)


def test_state_then_history_then_live_then_the_end(client, job):
    say(job, "metric", name="loss", value=1.0)
    with follow(client, job) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["cache-control"] == "no-store"
        stream = Stream(answer)
        first = stream.next()
        assert first["event"] == "state"
        assert json.loads(first["data"])["data"]["state"] == "queued"
        assert json.loads(stream.next()["data"])["data"] == {"name": "loss", "value": 1.0}
        row = say(job, "progress", done=1, total=2)
        event = stream.next()
        assert (event["event"], event["id"]) == ("progress", str(row.pk))
        assert json.loads(event["data"])["data"] == {"done": 1, "total": 2}
        finish(job)
        assert stream.names() == [("state", {"state": "succeeded"})]


@pytest.mark.slow
def test_what_the_broker_lost_is_told_all_the_same(client, job):
    with follow(client, job) as answer:
        stream = Stream(answer)
        stream.next()
        say(job, "log", live=False, message="unheard")
        finish(job, live=False)
        assert [name for name, _ in stream.names()] == ["log", "state"]


def test_a_client_goes_on_after_the_last_it_saw(client, job):
    seen = say(job, "log", message="one")
    say(job, "log", message="two")
    finish(job)
    with follow(client, job, headers={"Last-Event-ID": str(seen.pk)}) as answer:
        assert [data.get("message") for _, data in Stream(answer).names()][1:] == ["two", None]
    with follow(client, job, params={"after": str(seen.pk)}) as answer:
        assert len(Stream(answer).names()) == 3


def test_a_job_that_is_told_to_its_end_stops_the_browser_asking(client, job):
    last = finish(job)
    with follow(client, job, headers={"Last-Event-ID": str(last.pk)}) as answer:
        assert answer.status_code == 204


def test_a_finished_job_is_told_and_closed(client, job):
    say(job, "log", message="one")
    finish(job)
    with follow(client, job) as answer:
        assert [name for name, _ in Stream(answer).names()] == ["state", "log", "state"]


def test_more_history_than_fits_a_page(client, job):
    JobEvent.objects.bulk_create(
        JobEvent(job=job, type="log", data={"n": number}) for number in range(1203)
    )
    finish(job)
    with follow(client, job) as answer:
        numbers = [data["n"] for name, data in Stream(answer).names() if name == "log"]
    assert numbers == list(range(1203))


@pytest.mark.parametrize("job_id", ["00000000-0000-0000-0000-000000000000", "nonsense"])
def test_a_job_that_is_not_there(client, job_id):
    answer = client.get(f"/api/v1/jobs/{job_id}/events")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


def test_a_job_of_others_does_not_exist(stranger, bob, job):
    url = f"/api/v1/jobs/{job.pk}/events"
    assert stranger.get(url).status_code == 404
    headers = {"Authorization": f"Bearer {make_token(bob)}"}
    assert stranger.get(url, headers=headers).status_code == 404


@pytest.mark.slow
def test_a_revoked_token_ends_the_stream(server, alice, job):
    from registry.models import Token  # noqa: PLC0415
    from registry.services.tokens import revoke_token  # noqa: PLC0415
    from tests.factories import actor_of  # noqa: PLC0415

    headers = {"Authorization": f"Bearer {make_token(alice)}"}
    with (
        httpx.Client(base_url=server.url, headers=headers, timeout=20) as client,
        follow(client, job) as answer,
    ):
        stream = Stream(answer)
        stream.next()
        revoke_token(actor=actor_of(alice), token_id=Token.objects.get().pk)
        assert stream.next() is None


def test_a_page_follows_from_now_on_with_its_session(server, alice, job):
    from django.test import Client  # noqa: PLC0415

    page = Client()
    page.force_login(alice)
    say(job, "log", message="before")
    with httpx.Client(base_url=server.url, timeout=20) as browser:
        url = f"/jobs/{job.pk}/events"
        assert browser.get(url).status_code == 404
        browser.cookies.set("sessionid", page.cookies["sessionid"].value)
        with browser.stream("GET", url) as answer:
            stream = Stream(answer)
            assert stream.next()["event"] == "state"
            say(job, "log", message="after")
            assert json.loads(stream.next()["data"])["data"] == {"message": "after"}


@pytest.mark.slow
def test_without_a_broker_the_database_tells(server, client, job, tmp_path_factory):
    from tests.registry.stream.conftest import WebServer  # noqa: PLC0415

    environment = {**server.environment, "REDIS_URL": "redis://127.0.0.1:9/0"}
    lonely = WebServer(environment, tmp_path_factory.mktemp("lonely") / "web.log")
    lonely.start()
    try:
        with (
            httpx.Client(base_url=lonely.url, headers=client.headers, timeout=20) as other,
            follow(other, job) as answer,
        ):
            stream = Stream(answer)
            stream.next()
            finish(job, live=False)
            assert [name for name, _ in stream.names()] == ["state"]
    finally:
        lonely.stop()
