"""Jobs: submitted, listed, followed through a broken line, and left running."""

import json

import pytest

from modelyard import BadAnswer, Client
from modelyard.following import read_events
from registry.models import Job, JobState, Namespace
from registry.services.jobs import claim_job
from tests.client.conftest import Command
from tests.factories import make_model, make_version
from tests.local.waiting import wait_until
from tests.registry.stream.test_events import finish, job, say

__all__ = ["job"]
RECIPE = {
    "kind": "compress",
    "schema": 1,
    "model": "alice/classifier",
    "steps": [{"method": "quantize_dynamic"}],
}


@pytest.fixture
def version(alice):
    return make_version(alice, make_model(alice))


@pytest.mark.slow
def test_a_job_is_submitted_from_a_file_and_from_standard_input(command, version, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(RECIPE))
    made = command.json("jobs", "submit", recipe)
    assert (made["state"], made["recipe"]["model"]) == ("queued", "alice/classifier@1")
    other = command.run("jobs", "submit", "-", given=json.dumps(RECIPE)).out.strip()
    assert {row["id"] for row in command.json("jobs", "list", "--state", "queued")} == {
        made["id"],
        other,
    }
    assert other in command.run("jobs", "list", "--kind", "compress", "--limit", "1").out
    assert command.json("jobs", "show", other)["id"] == other
    assert "queued" in command.run("jobs", "show", other).out
    assert command.json("jobs", "cancel", other)["state"] == "cancelled"
    assert command.json("jobs", "resume", other)["state"] == "queued"


def test_a_job_says_what_it_waits_for(command, version):
    Namespace.objects.filter(slug="alice").update(quota_jobs=1)
    for _ in range(2):
        waiting = command.run("jobs", "submit", "-", given=json.dumps(RECIPE)).out.strip()
    claim_job(worker="w", queues=["cpu"])
    assert "Waits: 1 of 1 jobs of alice run." in command.run("jobs", "show", waiting).out


@pytest.mark.parametrize("given", ["", "{", "[]", "[" * 100_000])
def test_a_recipe_that_is_none(command, given):
    assert "JSON" in command.run("jobs", "submit", "-", given=given, status=2).err


def test_a_wrong_recipe_names_its_fields(command, version):
    wrong = json.dumps({**RECIPE, "surprise": 1})
    said = command.run("jobs", "submit", "-", given=wrong, status=1)
    assert "surprise" in said.err
    assert not Job.objects.exists()


def test_no_such_job(command):
    for verb in ("show", "follow", "cancel", "log"):
        command.run("jobs", verb, "6a0a0a0a-0000-4000-8000-000000000000", status=3)
        command.run("jobs", verb, "../whoami", status=1)


def test_what_a_job_said(command, job):
    say(job, "log", message="one")
    say(job, "log", message="\x1b[31mtwo")
    out = command.run("jobs", "log", job.pk).out
    assert [line.partition("Z ")[2] for line in out.splitlines()] == ["one", "\ufffd[31mtwo"]
    assert len(command.json("jobs", "log", job.pk)["log"]) == 2


def test_a_finished_job_is_told_from_its_beginning(command, job):
    say(job, "log", message="hello", live=False)
    say(job, "metric", name="loss", value=0.5, live=False)
    finish(job, live=False)
    said = command.run("jobs", "follow", job.pk)
    assert said.err.splitlines() == ["hello", "metric: name loss, value 0.5", "state: succeeded"]
    assert said.out == "succeeded\n"
    lines = command.run("jobs", "follow", job.pk, "--format", "json").out.splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["state", "log", "metric", "state"]


def test_a_job_that_failed_ends_with_1(command, job):
    job.state, job.error_code, job.error_detail = JobState.FAILED, "out_of_memory", "No memory."
    job.save()
    say(job, "state", live=False, state="failed")
    said = command.run("jobs", "follow", job.pk, status=1)
    assert "out_of_memory: No memory." in said.err
    assert said.out == "failed\n"


def told(process):
    return json.loads(process.stdout.readline())["data"]


def test_a_line_that_breaks_loses_nothing_and_tells_nothing_twice(home, relay, token, job):
    command = Command(home, relay.url, token)
    say(job, "log", message="one")
    process = command.start("jobs", "follow", job.pk, "--format", "json")
    assert told(process)["state"] == "queued"
    assert told(process)["message"] == "one"
    relay.cut()
    say(job, "log", message="two", live=False)
    finish(job, live=False)
    out, err = process.communicate(timeout=60)
    rest = [json.loads(line) for line in out.splitlines()]
    assert [row["data"].get("message") for row in rest if row["type"] == "log"] == ["two"]
    assert rest[-1]["data"]["state"] == "succeeded"
    assert process.returncode == 0, err


def test_ctrl_c_leaves_the_job_running(command, job):
    process = command.start("jobs", "follow", job.pk, "--format", "json")
    assert told(process)["state"] == "queued"
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"modelyard jobs follow {job.pk}" in err
    assert Job.objects.get().state == "queued"


def test_submit_and_follow(command, version):
    process = command.start("jobs", "submit", "-", "--follow", "--format", "json")
    process.stdin.write(json.dumps(RECIPE))
    process.stdin.close()
    process.stdin = None
    made = wait_until(Job.objects.first, "the job")
    finish(made)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["data"]["state"] == "succeeded"


# --- The stream itself ---------------------------------------------------------------------------


def event(number, **data):
    return {"id": number, "type": "log", "data": data, "at": "2026-01-01T00:00:00Z"}


def test_events_are_read_by_the_rules():
    lines = [
        ": a comment",
        "id: 7",
        "event: log",
        f"data: {json.dumps(event(7, message='a'))}",
        "",
        "",
        "data: no json",
        "",
        "id: 8\0",
        "data:" + json.dumps(event(8))[:10],
        "data:" + json.dumps(event(8))[10:],
        "",
        "data: cut off",
    ]
    read = list(read_events(lines))
    assert [(number, row["id"]) for number, row in read] == [("7", 7), ("7", 8)]


def test_a_stream_is_split_at_line_feeds_alone(home, impostor):
    text = "one\u2028two\x85three"
    row = json.dumps(event(1, message=text, state="succeeded"), ensure_ascii=False)
    content = f"id: 1\ndata: {row}\n\n"
    impostor.say("/jobs/1/events", content.encode(), content_type="text/event-stream")
    with Client(impostor.url, "") as client:
        (only,) = client.follow_job("1")
    assert only["data"]["message"] == text


@pytest.mark.parametrize("content", [b"data: [1]\n\n", b"data: " + b"x" * (17 << 20)])
@pytest.mark.slow
def test_a_stream_that_is_none(home, impostor, content):
    impostor.say("/jobs/1/events", content, content_type="text/event-stream")
    with Client(impostor.url, "") as client, pytest.raises(BadAnswer):
        list(client.follow_job("1"))


def test_the_line_is_picked_up_where_it_broke(home, impostor):
    turns = [
        f"id: 4\ndata: {json.dumps(event(4, message='one'))}\n\nid: 5\ndata: {{",
        f"id: 5\ndata: {json.dumps(event(5, state='succeeded'))}\n\n",
    ]
    impostor.say(
        "/jobs/1/events",
        lambda _: (200, {"content-type": "text/event-stream"}, turns.pop(0)),
    )
    with Client(impostor.url, "") as client:
        assert [row["id"] for row in client.follow_job("1")] == [4, 5]
    assert impostor.asked[1][2]["Last-Event-ID"] == "4"
