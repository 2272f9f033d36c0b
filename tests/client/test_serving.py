"""Deploying and what may be done to an endpoint, through the command line and the SDK."""

import pytest

from modelyard import Client, NotFound, Refused
from registry.services import catalog
from tests.factories import actor_of, make_model, make_version


@pytest.fixture
def classifier(alice):
    model = make_model(alice, "classifier")
    for _ in range(2):
        version = make_version(alice, model)
    catalog.set_alias(actor=actor_of(alice), repository=model, alias="candidate", version=version)
    return model


def served(command):
    found = command.json("endpoint", "show", "alice/classifier")
    return {one["alias"] or one["version"]: one["weight"] for one in found["deployments"]}


def test_a_version_is_deployed_beside_another_and_takes_over(command, classifier):
    made = command.json("deploy", "alice/classifier@1", "--option", "max_batch_size=8")
    assert (made["version"], made["weight"]) == (1, 100)
    assert made["options"]["max_batch_size"] == 8
    command.run("deploy", "alice/classifier@candidate", "--role", "canary", "--weight", "10")
    assert served(command) == {1: 90, "candidate": 10}
    shown = command.run("endpoint", "show", "alice/classifier").out
    assert "@candidate" in shown
    command.run("endpoint", "promote", "alice/classifier", "@candidate")
    assert served(command) == {1: 0, "candidate": 100}
    command.run("endpoint", "roll-back", "alice/classifier")
    assert served(command) == {1: 90, "candidate": 10}
    command.run("endpoint", "split", "alice/classifier", "1=100")
    command.run("endpoint", "undeploy", "alice/classifier", "@candidate")
    assert served(command) == {1: 100}
    (line,) = command.run("endpoint", "list", "--namespace", "alice").out.splitlines()
    assert line.split("\t")[:3] == ["alice/classifier", "alice/classifier", "1 100%"]
    command.run("endpoint", "delete", "alice/classifier")
    command.run("endpoint", "show", "alice/classifier", status=3)


def test_what_is_wrong_is_said(command, classifier):
    command.run("deploy", "alice/classifier@1")
    refused = command.run("deploy", "alice/classifier@1", status=1)
    assert "deployed at alice/classifier already" in refused.err
    assert "KEY=VALUE" in command.run("deploy", "alice/classifier@2", "--option", "x", status=2).err
    unknown = command.run("endpoint", "promote", "alice/classifier", "2", status=2)
    assert "'2' is not deployed there; 1 is." in unknown.err
    assert (
        "VERSION=PERCENT" in command.run("endpoint", "split", "alice/classifier", "1", status=2).err
    )


def test_what_does_not_fit_takes_a_reason_to_begin_to_answer(command, classifier):
    command.run("deploy", "alice/classifier@1")
    command.run("deploy", "alice/classifier@2")
    for number, name in ((1, "text"), (2, "image")):
        port = {"name": name, "dtype": "int64", "shape": ["batch", 8]}
        classifier.versions.filter(number=number).update(
            signature={"inputs": [port], "outputs": []}
        )
    split = ("endpoint", "split", "alice/classifier", "1=0", "2=100")
    assert "does not fit what callers" in command.run(*split, status=1).err
    command.run(*split, "--reason", "Callers know.")
    assert served(command) == {1: 0, 2: 100}
    # The way back asks nothing.
    command.run("endpoint", "roll-back", "alice/classifier")
    assert served(command) == {1: 100, 2: 0}


def test_the_sdk_deploys_once_for_a_key(home, server, token, classifier):
    with Client(server.url, token) as client:
        first = client.deploy("alice/classifier@1", key="one")
        assert client.deploy("alice/classifier@1", key="one") == first
        with pytest.raises(Refused):
            client.deploy("alice/classifier@1")
        (endpoint,) = client.endpoints(model="alice/classifier")
        assert [one["id"] for one in endpoint["deployments"]] == [first["id"]]
        assert "replicas" in client.standing("alice/classifier")
        client.delete_endpoint("alice/classifier")
        with pytest.raises(NotFound):
            client.endpoint("alice/classifier")
