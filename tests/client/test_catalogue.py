"""Finding and showing, through the command line and the SDK."""

import pytest

from modelyard import BadName, Client, NotFound, NotSignedIn
from registry.services import catalog, versions
from tests.factories import actor_of, make_model, make_token, make_version


@pytest.fixture
def classifier(alice):
    model = make_model(alice, "classifier", summary="Tells digits apart.")
    make_version(alice, model, message="The first")
    make_version(alice, model, message="The second")
    catalog.set_alias(
        actor=actor_of(alice),
        repository=model,
        alias="champion",
        version=model.versions.get(number=1),
    )
    return model


@pytest.fixture
def client(home, server, token):
    with Client(server.url, token) as client:
        yield client


def test_search_by_words_and_facts(command, classifier, alice):
    make_model(alice, "sentiment", task="text-classification", tags={"team": "support"})
    make_model(alice, "digits", kind="dataset")

    def names(*arguments):
        return [row["name"] for row in command.json("search", *arguments)]

    assert names("apart") == ["classifier"]
    assert names("--task", "text-classification") == ["sentiment"]
    assert names("--with-format", "safetensors", "--max-params", "10") == ["classifier"]
    assert names("--tag", "team=support") == ["sentiment"]
    assert names("--sort", "name", "--limit", "1") == ["classifier"]
    assert names("--dataset") == ["digits"]
    assert names("nothing like this") == []


def test_rows_for_other_programs_stand_between_tabs(command, classifier):
    (line,) = command.run("search", "classifier").out.splitlines()
    assert line.split("\t")[:4] == ["alice/classifier", "2", "image-classification", "3"]


def test_info_with_and_without_a_version(command, classifier):
    said = command.run("info", "alice/classifier").out
    assert "Tells digits apart." in said
    assert "model.safetensors" in said
    assert "champion -> 1" in said
    shown = command.json("info", "alice/classifier@champion")
    assert (shown["version"]["number"], shown["version"]["message"]) == (1, "The first")
    assert command.json("info", "alice/classifier:2")["version"]["number"] == 2
    assert "It tells digits apart." in command.run("info", "alice/classifier", "--card").out
    command.run("info", "alice/classifier@nobody", status=3)


def test_a_model_without_versions(command, alice):
    make_model(alice, "empty")
    assert command.json("info", "alice/empty")["version"] is None
    assert "alice/empty" in command.run("info", "alice/empty").out


def test_versions_newest_first(command, classifier, alice):
    make_version(alice, classifier, message="Beside", variant="int8")
    assert [row["number"] for row in command.json("versions", "alice/classifier")] == [3, 2, 1]
    only = command.json("versions", "alice/classifier", "--main-line", "--limit", "1")
    assert [row["message"] for row in only] == ["The second"]
    versions.describe_version(
        actor=actor_of(alice),
        version=classifier.versions.get(number=1),
        changes={"state": "deprecated", "state_reason": "Use the second."},
    )
    rows = command.run("versions", "alice/classifier", "--state", "deprecated").out
    assert rows.split("\t")[:3] == ["1", "deprecated", "champion"]


def test_a_long_list_is_given_whole(client, alice):
    for number in range(103):
        make_model(alice, f"model-{number}")
    names = {row["name"] for row in client.search()}
    assert len(names) == 103
    assert len(list(client.search(limit=101))) == 101


def test_private_models_are_not_there(server, home, alice, bob):
    make_model(alice, "secret", visibility="private")
    with Client(server.url, make_token(bob)) as client:
        assert list(client.search("secret")) == []
        with pytest.raises(NotFound) as refusal:
            client.repository("alice/secret")
    assert (refusal.value.status, refusal.value.code) == (404, "model_not_found")
    assert refusal.value.request_id


def test_the_sdk_raises_what_the_server_says(server, home, token):
    with Client(server.url, "my_wrong") as client, pytest.raises(NotSignedIn):
        client.whoami()
    with Client(server.url, token) as client:
        with pytest.raises(BadName, match="namespace/name"):
            client.repository("no slash")
        made = client.create_repository("alice/made", summary="By hand")
        assert (made["visibility"], made["summary"]) == ("private", "By hand")
