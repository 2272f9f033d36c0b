"""What became of a model over its versions, through the command line and the SDK."""

import threading

import pytest

from modelyard import Client, JobFailed
from registry.models import Job
from registry.services import jobs
from tests.factories import make_model, make_version, safetensors_bytes
from tests.local.waiting import wait_until
from tests.workers.tiny import run_next


@pytest.fixture
def classifier(alice):
    model = make_model(alice, "classifier")
    for words, numbers in (("one", [1.0, 2.0]), ("two", [0.0, 2.0])):
        make_version(
            alice,
            model,
            {
                "README.md": f"# {words}\n".encode(),
                "model.safetensors": safetensors_bytes(weight=numbers),
            },
            tags={"words": words},
        )
    return model


def test_diff_says_what_changed(command, classifier):
    said = command.run("diff", "alice/classifier@1", "alice/classifier@2").out.splitlines()
    assert "-# one" in said
    assert "+# two" in said
    assert "tag       words: one -> two" in said
    assert "Nobody has compared the weights yet: --weights does." in said
    found = command.json("diff", "alice/classifier@1", "alice/classifier@2")
    assert [change["path"] for change in found["files"]["changed"]] == [
        "README.md",
        "model.safetensors",
    ]


def test_diff_of_weights(command, classifier, alice, home, server, token):
    pair = ("alice/classifier@1", "alice/classifier@2", "--weights")
    with Client(server.url, token) as client:
        assert client.diff_weights(*pair[:2], wait=False)["state"] == "running"
    run_next()
    found = command.json("diff", *pair)
    assert found["state"] == "known"
    assert found["tensors"][0]["emptied"] == 1
    assert "1 changed" in command.run("diff", *pair).out
    other = make_model(alice, "other")
    make_version(alice, other, {"model.safetensors": safetensors_bytes(weight=[0.0, 2.0])})
    there = command.run("diff", "alice/classifier@2", "alice/other", "--weights").out
    assert there == "The weights are the same, byte for byte.\n"


def test_compare_sets_versions_beside_each_other(command, classifier, alice):
    make_version(alice, make_model(alice, "other"), {"README.md": b"# one\n"})
    names = ("alice/classifier@1", "alice/classifier", "alice/other@1")
    said = command.run("compare", *names).out.splitlines()
    assert "tags\twords\tone\ttwo\t" in said
    assert any(line.startswith("files\tREADME.md\t") for line in said)
    found = command.json("compare", *names[:2], "--differences-only")
    lines = [line for section in found["sections"] for line in section["lines"]]
    assert [one["number"] for one in found["versions"]] == [1, 2]
    assert all(line["differs"] for line in lines)
    once = command.run("compare", names[0], names[0], status=1)
    assert "is named twice" in once.err
    assert "alice/none" in command.run("compare", names[0], "alice/none", status=3).err


def test_a_comparison_that_fails_says_why(home, server, token, classifier):
    def fail():
        wait_until(lambda: Job.objects.filter(state="queued").exists(), "the job")
        claim = jobs.claim_job(worker="w", queues=["cpu"])
        jobs.fail_job(claim, code="broken", detail="It is broken.")

    worker = threading.Thread(target=fail)
    worker.start()
    with Client(server.url, token) as client, pytest.raises(JobFailed, match="It is broken"):
        client.diff_weights("alice/classifier@1", "alice/classifier@2")
    worker.join()


def test_restore_makes_an_old_version_the_newest(command, classifier):
    name = command.run("restore", "alice/classifier@1", "--message", "Sevens").out.strip()
    assert name == "alice/classifier@3"
    made = command.json("info", name)["version"]
    assert made["message"] == "Restores version 1: Sevens"
    assert made["tags"] == {"words": "one"}
    command.run("restore", "alice/classifier@3", status=1)
    command.run("restore", "alice/classifier@9", status=3)
