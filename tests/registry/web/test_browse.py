"""Every state of a search is in the address of its page, whatever form or link leads there."""

import re
from html import unescape
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from registry.models import SavedSearch

pytestmark = pytest.mark.django_db


def text_of(response):
    assert response.status_code == 200
    return response.content.decode()


def state_of(address):
    """Read what an address asks for, by the names of its parts."""
    return {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}


def fits(client, address="/models", **fields):
    """Send the form that fits results to a machine, as it stands on the page of `address`."""
    page = text_of(client.get(address))
    (form,) = re.findall(r'<form class="fits".*?</form>', page, re.DOTALL)
    sent = {}
    for tag in re.findall(r"<input[^>]*>", form):
        said = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        sent[said["name"]] = unescape(said["value"])
    chosen = re.search(r"<option selected>([^<]*)</option>", form)
    sent["fits_device"] = unescape(chosen[1]) if chosen else ""
    assert not fields.keys() - sent.keys()
    return client.get(urlsplit(address).path, {**sent, **fields})


@pytest.mark.parametrize("prefix", ["", "/zh-hans"])
@pytest.mark.parametrize("kind", ["models", "datasets"])
@pytest.mark.parametrize(
    ("sent", "query"),
    [
        ({"fits_memory": "500"}, "memory:<=500MB"),
        ({"fits_memory": "500", "fits_latency": "5"}, "memory:<=500MB latency:<=5ms"),
        ({"fits_latency": "2.50"}, "latency:<=2.50ms"),
        ({"fits_latency": "1e3"}, "latency:<=1000ms"),
        ({"fits_memory": "500", "fits_device": "cpu"}, "memory:<=500MB device:cpu"),
        ({"fits_device": "NVIDIA H100"}, 'device:"NVIDIA H100"'),
        ({"q": "bert memory:<=1MB v1.5", "fits_memory": "64"}, "bert v1.5 memory:<=64MB"),
        ({"q": 'device:"NVIDIA H100" bert', "fits_device": ""}, "bert"),
        ({"q": '"latency:5ms paper" -device:cuda', "fits_device": "cpu"},
         '"latency:5ms paper" -device:cuda device:cpu'),
        ({"q": "memory:>1GB latency:<5ms", "fits_latency": "9"}, "memory:>1GB latency:<=9ms"),
    ],
)  # fmt: skip
def test_a_machine_becomes_fields_of_the_query(client, prefix, kind, sent, query):
    kept = {"sort": "name", "license": "mit", "owner": "olga"}
    answer = client.get(f"{prefix}/{kind}", {**kept, **sent})
    assert answer.status_code == 302
    assert urlsplit(answer["Location"]).path == f"{prefix}/{kind}"
    assert state_of(answer["Location"]) == {**kept, "q": query}
    text_of(client.get(answer["Location"]))


def test_a_form_without_a_word_leads_to_everything(client):
    answer = client.get("/models?q=&fits_memory=&fits_latency=&fits_device=")
    assert state_of(answer["Location"]) == {}
    text_of(client.get(answer["Location"]))


@pytest.mark.parametrize("sent", ["many", "-5", "5 paper", "1e999999", "NaN", "5MB..", '5"'])
def test_what_is_no_number_is_refused_on_the_page(client, sent):
    answer = client.get("/models", {"q": "bert", "fits_memory": sent})
    assert answer.status_code == 302
    page = client.get(answer["Location"])
    assert page.status_code == 400
    assert 'id="q-refusal"' in page.content.decode()


def test_a_query_that_cannot_be_read_stays_as_it_was(client):
    answer = client.get("/models", {"q": 'bert "open', "fits_memory": "5"})
    page = client.get(answer["Location"])
    assert page.status_code == 400
    assert "bert &quot;open" in page.content.decode()


def test_the_form_on_the_page_finds_what_fits(as_owner, model):
    page = text_of(as_owner.get(fits(as_owner, fits_latency="1000", fits_device="cpu")["Location"]))
    assert "digits-cnn" in page
    page = text_of(as_owner.get(fits(as_owner, fits_latency="0.000001")["Location"]))
    assert "digits-cnn" not in page


def test_the_form_reads_its_own_words_back(client):
    asked = {"q": 'bert memory:<=64MB latency:<=2.5ms device:"NVIDIA H100"', "sort": "quality"}
    again = fits(client, f"/models?{urlencode(asked)}")
    assert state_of(again["Location"]) == asked
    other = fits(client, f"/models?{urlencode(asked)}", fits_memory="", fits_device="cpu")
    assert state_of(other["Location"])["q"] == "bert latency:<=2.5ms device:cpu"


def test_links_and_forms_keep_the_state_of_each_other(as_owner, model):
    asked = {"q": "digits latency:<=1000ms", "sort": "name", "owner": "olga"}
    page = text_of(as_owner.get(f"/models?{urlencode(asked)}"))
    links = [unescape(one) for one in re.findall(r'<a href="(\?[^"]*)"', page)]
    states = [state_of(one) for one in links]
    assert {**asked, "license": "apache-2.0"} in states, "a facet adds its own part"
    assert {name: asked[name] for name in ("q", "sort")} in states, "the chosen one is taken away"

    found = as_owner.get(f"/models?{urlencode({**asked, 'license': 'apache-2.0'})}")
    kept = unescape(re.findall(r'name="query" value="([^"]*)"', text_of(found))[0])
    saved = as_owner.post("/settings/searches/models", {"name": "Small", "query": kept})
    assert state_of(saved["Location"]) == {**asked, "license": "apache-2.0"}
    assert state_of("?" + SavedSearch.objects.get().query) == state_of(saved["Location"])
    page = text_of(as_owner.get(saved["Location"]))
    assert re.search(r'aria-current="true">\s*Small', page)

    fitting = fits(as_owner, saved["Location"], fits_memory="500")
    wanted = {**state_of(saved["Location"]), "q": "digits memory:<=500MB latency:<=1000ms"}
    assert state_of(fitting["Location"]) == wanted


def test_a_label_is_taken_away_alone(client):
    asked = {"q": "digits", "sort": "name", "license": "mit", "label": "small"}
    page = text_of(client.get(f"/models?{urlencode(asked)}"))
    (link,) = re.findall(r'<a class="tag now" href="([^"]*)"', page)
    assert state_of(unescape(link)) == {name: asked[name] for name in ("q", "sort", "license")}
