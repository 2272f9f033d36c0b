"""Search by meaning, with the real encoder; everything here works in its absence too."""

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from django.db import connection

from benchmarks.relevant.fill import fill
from benchmarks.relevant.gain import ndcg
from benchmarks.relevant.needs import grades, needs
from benchmarks.relevant.plausible import plausible_models
from config.local.for_tests import FOLDER
from registry import encoder, meaning
from registry.errors import Unavailable
from registry.models import ANONYMOUS, CardVector, Repository, make_vector_table
from registry.search import SearchQuery, search_repositories
from registry.services import catalog
from registry.services.vectors import encode_cards
from tests.factories import UserFactory, actor_of, make_model

pytestmark = [pytest.mark.django_db, pytest.mark.slow]


@pytest.fixture
def alice():
    return UserFactory(username="alice")


def search(q, actor=ANONYMOUS, **more):
    return search_repositories(actor, "model", SearchQuery(q=q, **more))


def names(q, actor=ANONYMOUS, **more):
    return [row["name"] for row in search(q, actor, **more).items]


def some_models(alice):
    make_model(alice, "churn", summary="Predicts which subscribers cancel next month")
    make_model(alice, "leaves", summary="Diagnoses plant diseases from photos of leaves")
    make_model(alice, "jazz", summary="Tags songs by genre and instrument")
    encode_cards(seconds=600)


def test_a_need_in_words_that_no_card_has_is_met(alice, at_hand):
    some_models(alice)
    found = search("customers about to quit")
    assert found.items[0]["name"] == "churn"
    assert found.reading == {"how": "by_meaning", "q": "customers quit"}
    assert names("style of music")[0] == "jazz"
    assert names("植物病害")[0] == "leaves"
    assert found.facets["total"] >= 1


def test_words_and_exact_names_stand_before_what_is_near(alice, at_hand):
    some_models(alice)
    make_model(alice, "music", summary="Counts cars")
    encode_cards(seconds=600)
    assert names("music")[:2] == ["music", "jazz"]
    assert search("music").reading is None


def test_what_may_not_be_seen_is_not_near(alice, at_hand):
    make_model(
        alice, "secret", visibility="private", summary="Customers who cancel", task="tabular"
    )
    make_model(alice, "leaves", summary="Diagnoses plant diseases from photos of leaves")
    encode_cards(seconds=600)
    found = search("subscribers about to quit")
    assert "secret" not in [row["name"] for row in found.items]
    assert found.facets["total"] == len(found.items)
    assert found.facets["task"] == []
    assert names("subscribers about to quit", actor_of(alice))[0] == "secret"
    assert "secret" not in names("subscribers about to quit", actor_of(UserFactory()))


def test_a_word_that_only_others_may_see_is_never_told(alice, at_hand):
    some_models(alice)
    make_model(alice, "subscribersx", visibility="private")
    encode_cards(seconds=600)
    for q in ("subscribersy", "subscribersy quit"):
        found = search(q)
        assert found.items
        assert "subscribersx" not in found.reading["q"]


def test_filters_and_unwanted_words_hold_for_what_is_near(alice, at_hand):
    some_models(alice)
    catalog.describe_repository(
        actor=actor_of(alice),
        repository=Repository.objects.get(name="churn"),
        changes={"task": "tabular-classification"},
    )
    assert names("people who quit task:tabular-classification") == ["churn"]
    assert names("people who quit task:translation") == []
    assert "churn" not in names("people who quit -subscribers")
    assert names('"who quit"') == names('music "of leaves"')[1:] == []


def test_pages_go_on_where_the_one_before_ended(alice, at_hand, settings):
    for number in range(7):
        make_model(alice, f"song-{number}", summary=f"Tags songs by genre, take {number}")
    encode_cards(seconds=600)
    whole = names("style of music", limit=100)
    page = search("style of music", limit=3)
    walked = [row["name"] for row in page.items]
    while page.next_cursor:
        cursor = page.next_cursor
        page = search("style of music", limit=3, cursor=cursor)
        walked += [row["name"] for row in page.items]
    assert walked == whole
    assert len(whole) == 7
    settings.ENCODER_SOCKET = "/nowhere"
    encoder.forget_queries()
    with pytest.raises(Unavailable):
        search("style of music", limit=3, cursor=cursor)


def test_pages_by_words_go_on_by_words(alice, at_hand, settings):
    for number in range(4):
        make_model(alice, f"song-{number}", summary="Tags songs")
    encode_cards(seconds=600)
    nearby, settings.ENCODER_SOCKET = settings.ENCODER_SOCKET, "/nowhere"
    encoder.forget_queries()
    first = search("tags songs", limit=2)
    settings.ENCODER_SOCKET = nearby
    encoder.forget_queries()
    second = search("tags songs", limit=2, cursor=first.next_cursor)
    assert {row["name"] for row in [*first.items, *second.items]} == {
        f"song-{number}" for number in range(4)
    }


def test_only_what_changed_is_encoded_again(alice, at_hand):
    model = make_model(alice, "jazz", summary="Tags songs")
    other = make_model(alice, "leaves", summary="Plant diseases")
    assert encode_cards(seconds=600) == 2
    assert encode_cards(seconds=600) == 0
    before = {row.pk: row.digest for row in CardVector.objects.all()}
    catalog.describe_repository(
        actor=actor_of(alice), repository=model, changes={"summary": "Reads aloud"}
    )
    assert encode_cards(seconds=600) == 1
    after = {row.pk: row.digest for row in CardVector.objects.all()}
    assert after[other.pk] == before[other.pk]
    assert after[model.pk] != before[model.pk]
    CardVector.objects.filter(pk=model.pk).update(encoder="another")
    assert encode_cards(seconds=600, everything=True) == 1


def test_a_vector_goes_with_its_row(alice, at_hand):
    row = Repository.objects.create(
        kind="model", namespace=alice.memberships.get().namespace, name="bare"
    )
    assert encode_cards(seconds=600) == 1
    row.delete()
    connection.check_constraints()
    assert not CardVector.objects.exists()


def test_a_database_without_vectors_is_searched_by_words(alice, at_hand):
    make_model(alice, "jazz", summary="Tags songs")
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE registry_cardvector")
        cursor.execute("DROP EXTENSION vector")
        cursor.execute("CREATE ROLE no_installer; SET LOCAL ROLE no_installer")
        assert make_vector_table(connection) is False
        cursor.execute("RESET ROLE")
    meaning.forget_table()
    try:
        assert names("songs") == ["jazz"]
        assert names("style of music") == []
        assert encode_cards(seconds=600) == 0
        assert make_vector_table(connection) is True
        meaning.forget_table()
        assert encode_cards(seconds=600) == 1
    finally:
        meaning.forget_table()


@pytest.mark.parametrize("answer", [b"", b"\xff\xff\xff\xff", b"\0\0\0\x02{}", b"\0\0\0\x02[1"])
def test_an_encoder_that_talks_nonsense_is_away(tmp_path, settings, alice, answer):
    make_model(alice, "jazz", summary="Tags songs")
    settings.ENCODER_SOCKET = tmp_path / "s"
    encoder.forget_queries()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(settings.ENCODER_SOCKET))
        listener.listen()
        listener.settimeout(30)

        def speak():
            with listener.accept()[0] as call:
                call.recv(1 << 16)
                call.sendall(answer)

        thread = threading.Thread(target=speak)
        thread.start()
        assert names("songs") == ["jazz"]
        thread.join()
    encoder.forget_queries()


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{}",
        b"\0\0\0\x01[",
        json.dumps({"texts": ["a"] * 33}).encode(),
        json.dumps({"texts": [1]}).encode(),
        json.dumps({"texts": ["a" * 8001]}).encode(),
    ],
)
def test_the_encoder_ends_calls_that_it_does_not_understand(encoder_socket, frame):
    if frame.startswith(b'{"'):
        frame = encoder.LENGTH.pack(len(frame)) + frame
    with socket.socket(socket.AF_UNIX) as call:
        call.settimeout(30)
        call.connect(str(encoder_socket))
        call.sendall(frame)
        assert call.recv(1) == b""


def run_encoder(home, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "workers.encoder"],
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "MODELYARD_HOME": str(home),
            **more,
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_encoder_runs_as_a_process_of_its_own(encoder_socket, settings):
    home = Path(tempfile.mkdtemp(prefix="encoder-"))
    # Its graph was exported for the fixture.
    (home / "encoder").symlink_to(FOLDER / "encoder")
    settings.ENCODER_SOCKET = home / "encoder.sock"
    process = run_encoder(home)
    try:
        assert any("Encoding on" in line for line in process.stderr)
        assert len(encoder.encode(["one", "two"], seconds=60).vectors) == 2
        assert settings.ENCODER_SOCKET.stat().st_mode & 0o777 == 0o600
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0
    assert not settings.ENCODER_SOCKET.exists()
    shutil.rmtree(home)


def test_without_a_model_the_encoder_says_so_and_waits(tmp_path):
    process = run_encoder(tmp_path, MODELYARD_ENCODER_MODEL="/nowhere")
    try:
        assert "No encoder model is installed" in next(process.stderr)
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0


def test_vectors_of_like_meaning_are_near(at_hand):
    texts = ["a happy customer", "a satisfied buyer", "a broken pump"]
    one, like, unlike = (json.loads(vector) for vector in encoder.encode(texts, seconds=60).vectors)
    assert sum(number * number for number in one) == pytest.approx(1, abs=1e-3)
    near, far = (sum(a * b for a, b in zip(one, two, strict=True)) for two in (like, unlike))
    assert near > far + 0.3


def test_words_with_meaning_are_no_worse_than_words(at_hand, settings):
    """On a slice of the relevance set; `python -m benchmarks relevance` measures all of it."""
    models = list(plausible_models(72))
    known = fill(models)
    encode_cards(seconds=600)
    asked = needs()[::4]

    def quality():
        return statistics.fmean(
            ndcg(
                [known[row["id"]] for row in search(need.q, limit=10).items],
                grades(need, models),
            )
            for need in asked
        )

    blended = quality()
    settings.ENCODER_SOCKET = "/nowhere"
    encoder.forget_queries()
    assert blended > quality() - 0.02
