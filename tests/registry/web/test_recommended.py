"""What the pages recommend: the tab of similar models, and what suits a need, with reasons."""

import re

import pytest
from django.db import connection
from django.test import Client

from registry import encoder, meaning
from registry.models import CardVector, Repository
from registry.services.vectors import encode_cards
from tests.factories import UserFactory, make_model, make_version
from tests.registry.web.conftest import signed_in

pytestmark = pytest.mark.django_db

BY_WORDS = "Compared by words alone"
ALONE = "Found by words alone"


@pytest.fixture
def away(settings, tmp_path):
    settings.ENCODER_SOCKET = tmp_path / "nobody"
    encoder.forget_queries()
    yield
    encoder.forget_queries()


def model(
    owner, name, summary, *, task="audio-classification", downloads=0, parameters=1000, **facts
):
    row = make_model(owner, name, summary=summary, task=task, **facts)
    make_version(owner, row, {"notes.txt": b"nothing to load"})
    Repository.objects.filter(pk=row.pk).update(
        downloads_count=downloads, parameters_count=parameters
    )
    return row


def songs(owner):
    model(owner, "jazz", "Tags songs by genre")
    model(owner, "tunes", "Songs and their genre, by ear", downloads=5)
    model(owner, "melody", "Recognises the style of a piece of music")
    model(owner, "pumps", "Hears when a pump begins to fail")
    model(owner, "secret", "Tags songs by genre, for the label alone", visibility="private")


def page_of(client, address):
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def similar(client, language="", name="jazz"):
    return page_of(client, f"{language}/models/olga/{name}?tab=similar")


def names_in(section):
    return re.findall(r'<span class="ns">olga/</span>([\w-]+)', section)


def section(page, key):
    """Cut a section out of a page by the id of its heading; empty where there is none."""
    _before, found, rest = page.partition(f'aria-labelledby="{key}-h"')
    return rest.partition("</section>")[0] if found else ""


def reasons_in(part):
    """Give the reasons of each name in a section, in their order."""
    rows = re.split(r'<span class="ns">olga/</span>', part)[1:]
    return {
        re.match(r"[\w-]+", row)[0]: re.findall(r'<li class="tag">([^<]+)</li>', row)
        for row in rows
    }


# --- Similar ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_similar_ones_are_near_by_what_their_cards_mean(as_owner, as_stranger, owner, at_hand):
    songs(owner)
    encode_cards(seconds=600)
    page = similar(as_stranger)
    told = reasons_in(section(page, "similar"))
    assert BY_WORDS not in page
    assert next(iter(told)) == "tunes"
    assert told["tunes"] == ["same task", "its card says much the same"]
    assert told["melody"] == ["same task", "its card says something alike"]
    assert "secret" not in page
    assert "secret" in names_in(section(similar(as_owner), "similar"))
    assert names_in(section(similar(Client()), "similar")) == list(told)


@pytest.mark.slow
def test_reasons_and_headings_are_told_in_chinese(as_stranger, owner, at_hand):
    songs(owner)
    encode_cards(seconds=600)
    page = similar(as_stranger, "/zh-hans")
    assert reasons_in(section(page, "similar"))["tunes"] == ["任务相同", "说明内容非常相近"]
    assert "相似的模型" in page
    assert "仅按词语比较" not in page


def test_without_vectors_words_tell_what_is_similar_and_the_page_says_so(
    as_owner, as_stranger, owner
):
    songs(owner)
    page = similar(as_stranger)
    assert BY_WORDS in page
    told = reasons_in(section(page, "similar"))
    assert told == {"tunes": ["same task", "its card has words in common"]}
    assert set(names_in(section(similar(as_owner), "similar"))) == {"tunes", "secret"}
    chinese = similar(as_stranger, "/zh-hans")
    assert "仅按词语比较" in chinese
    assert reasons_in(section(chinese, "similar")) == {"tunes": ["任务相同", "说明文字有相同的词"]}


@pytest.mark.slow
def test_similar_ones_need_no_encoder_once_their_cards_were_read(
    as_stranger, owner, at_hand, settings, tmp_path
):
    songs(owner)
    encode_cards(seconds=600)
    with_it = similar(as_stranger)
    settings.ENCODER_SOCKET = tmp_path / "nobody"
    encoder.forget_queries()
    fresh = model(owner, "fresh", "Tags songs by mood")
    assert encode_cards(seconds=1) == 0
    assert names_in(section(similar(as_stranger), "similar")) == names_in(
        section(with_it, "similar")
    )
    # The card of this one came while the encoder was away.
    assert not CardVector.objects.filter(pk=fresh.pk).exists()
    page = similar(as_stranger, name="fresh")
    assert BY_WORDS in page
    assert "its card has words in common" in page


def test_what_is_like_nothing_says_how_that_is_mended(as_stranger, owner):
    model(owner, "jazz", "Tags songs by genre")
    page = similar(as_stranger)
    assert names_in(section(page, "similar")) == []
    assert "A task, a summary and a card make it easier to tell." in page


# --- Suits your need ----------------------------------------------------------------------------


def needs(owner):
    """Make three that do the same and one that few may see; of the three, one is small."""
    model(owner, "churn", "Predicts which subscribers cancel next month", task="tabular")
    model(owner, "leavers", "Foretells who gives notice soon", task="tabular")
    model(owner, "loyal", "Scores how faithful buyers are", task="tabular", parameters=9)
    model(owner, "leaves", "Diagnoses plant diseases from photos of leaves", task="image")
    hidden = "Customers about to quit, told early"
    model(owner, "secret", hidden, task="tabular", visibility="private", downloads=99)


def search(client, q, language=""):
    return page_of(client, f"{language}/models?q={q}")


@pytest.mark.slow
def test_a_need_in_other_words_is_met_by_its_meaning(as_owner, as_stranger, owner, at_hand):
    needs(owner)
    encode_cards(seconds=600)
    page = search(as_stranger, "customers about to quit")
    assert "These come nearest to what they mean." in page
    assert ALONE not in page
    suited = reasons_in(section(page, "suited"))
    assert "closest to what you ask for" in next(iter(suited.values()))
    assert suited["loyal"] == ["the smallest of these"]
    assert "secret" not in page
    # Who may see it is told of it.
    mine = search(as_owner, "customers about to quit")
    assert names_in(section(mine, "results"))[0] == "secret"


@pytest.mark.slow
def test_a_need_in_chinese_is_met_in_chinese(as_stranger, owner, at_hand):
    model(owner, "aphids", "Plant disease that aphids spread", task="image", parameters=9)
    model(owner, "leaves", "Plant disease, from photos of leaves", task="image")
    model(owner, "wheat", "Plant disease of wheat: rust and mildew", task="image", downloads=9)
    model(owner, "jazz", "Tags songs by genre")
    encode_cards(seconds=600)
    page = search(as_stranger, "植物病害", "/zh-hans")
    suited = reasons_in(section(page, "suited"))
    assert "与您的需求最接近" in next(iter(suited.values()))
    assert "其中最小" in suited["aphids"]
    assert "其中下载最多" in suited["wheat"]
    assert "jazz" not in suited
    assert "适合您的需求" in page


def test_while_the_encoder_is_away_words_answer_and_the_page_says_so(
    as_owner, as_stranger, owner, away
):
    needs(owner)
    model(owner, "quitters", "Subscribers who quit", task="tabular", parameters=9)
    model(owner, "monthly", "Counts month by month: subscribers", task="tabular", downloads=3)
    page = search(as_stranger, "subscribers")
    assert ALONE in page
    assert set(names_in(section(page, "results"))) == {"churn", "quitters", "monthly"}
    told = reasons_in(section(page, "suited"))
    assert told["monthly"] == ["closest to what you ask for", "downloaded most of these"]
    assert told["quitters"] == ["the smallest of these"]
    assert "仅按词语查找" in search(as_stranger, "subscribers", "/zh-hans")
    # Nothing was to be told by its meaning here.
    for address in ("", "subscribers&sort=name", "12", "task:tabular"):
        assert ALONE not in search(as_stranger, address)
    assert names_in(section(search(as_stranger, "quit"), "results")) == ["quitters"]
    assert set(names_in(section(search(as_owner, "quit"), "results"))) == {"quitters", "secret"}


@pytest.mark.slow
def test_an_encoder_without_any_vectors_yet_leaves_words(as_stranger, owner, at_hand):
    needs(owner)
    page = search(as_stranger, "subscribers")
    assert names_in(section(page, "results")) == ["churn"]
    assert section(page, "suited") == ""
    nothing = search(as_stranger, "somebody about to quit")
    assert names_in(section(nothing, "results")) == []


def test_a_database_that_holds_no_vectors_shows_no_notice_of_them(as_stranger, owner, away):
    songs(owner)
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE registry_cardvector")
    meaning.forget_table()
    try:
        page = search(as_stranger, "songs")
        assert set(names_in(section(page, "results"))) == {"jazz", "tunes"}
        assert ALONE not in page
        assert names_in(section(similar(as_stranger), "similar")) == ["tunes"]
    finally:
        meaning.forget_table()


def test_a_private_model_has_no_tab_for_others(as_stranger, owner):
    songs(owner)
    outsiders = (as_stranger, Client(), signed_in(UserFactory()))
    for client in outsiders:
        assert client.get("/models/olga/secret?tab=similar").status_code == 404
