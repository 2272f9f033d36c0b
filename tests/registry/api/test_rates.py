"""How often a caller may ask over REST: headers that count down to a 429, a budget for each."""

import itertools
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from django.conf import settings as django_settings

from registry import rates
from registry.models import Token
from tests.budgets import refill
from tests.factories import make_model, make_token
from tests.registry.api.conftest import Api, api_of, problem_of

pytestmark = pytest.mark.django_db

GOOD = "my_" + "0" * 46


@pytest.fixture(autouse=True)
def few(settings):
    settings.RATE_REQUESTS, settings.RATE_WRITES = 3, 2


def left(response):
    """Give what is left of each budget, as the headers say."""
    return {
        name: int(count)
        for name, count in re.findall(r'"(\w+)";r=(\d+);t=\d+', response["RateLimit"])
    }


def test_headers_count_down_to_a_refusal_and_back_up(api, alice):
    caller = f"token:{Token.objects.get().pk}"
    first = api.get("whoami")
    assert first["RateLimit-Policy"] == '"requests";q=3;w=60'
    assert re.fullmatch(r'"requests";r=2;t=20', first["RateLimit"])
    assert [left(api.get("whoami")) for _ in range(2)] == [{"requests": 1}, {"requests": 0}]
    refused = api.get("whoami")
    said = problem_of(refused, 429, "rate_limited")
    assert said["detail"].startswith("This token asked more than 3 times within a minute")
    assert left(refused) == {"requests": 0}
    assert 1 <= int(refused["Retry-After"]) <= 20
    # A refusal takes nothing.
    assert int(api.get("whoami")["Retry-After"]) <= 20
    refill(caller)
    assert left(api.get("whoami")) == {"requests": 2}


def test_a_budget_refills_steadily(api, settings):
    """Of 600 a minute one comes back in a tenth of a second, not after the minute."""
    settings.RATE_REQUESTS = 600
    caller = f"token:{Token.objects.get().pk}"
    full = int((time.time() + 60) * 1_000_000)
    with redis.Redis.from_url(django_settings.REDIS_URL) as store:
        store.set(rates.key_of(caller, rates.REQUESTS), full + 200_000, px=60_000)
        refused = api.get("whoami")
        assert (refused.status_code, refused["Retry-After"]) == (429, "1")
        store.set(rates.key_of(caller, rates.REQUESTS), full - 1_000_000, px=60_000)
    assert 8 <= left(api.get("whoami"))["requests"] <= 20


def test_a_hasty_caller_gets_its_whole_budget_and_no_more(settings, db):
    """Also where requests come so fast that some are taken in advance, in many threads."""
    settings.RATE_REQUESTS = 1200
    began = time.time()

    def ask(_):
        budgets = rates.count_token(1, writes=False).budgets
        return [(one.left, one.wait_seconds) for one in budgets]

    with ThreadPoolExecutor(4) as pool:
        answers = [one for [one] in pool.map(ask, range(1500))]
    passed = [left for left, wait in answers if not wait]
    refilled = math.ceil((time.time() - began) * 20) + 1
    # Threads may lose each other what they took in advance: a hundredth each, now and then.
    assert 600 <= len(passed) <= 1200 + refilled
    assert all(wait <= 0.05 for left, wait in answers if wait)


def test_what_was_taken_in_advance_counts_down_one_by_one(api, settings):
    settings.RATE_REQUESTS = 1200
    seen = [left(api.get("whoami"))["requests"] for _ in range(40)]
    assert seen[0] == 1199
    # One comes back each twentieth of a second.
    assert all(before - 1 <= after <= before + 40 for before, after in itertools.pairwise(seen))


def test_changes_have_a_budget_of_their_own(api, alice):
    body = {"namespace": "alice", "name": "m"}
    made = api.post("models", body)
    assert made["RateLimit-Policy"] == '"requests";q=3;w=60, "writes";q=2;w=60'
    assert left(made) == {"requests": 2, "writes": 1}
    # Also one that is refused for another reason.
    assert left(api.post("models", body)) == {"requests": 1, "writes": 0}
    refused = problem_of(api.post("models", {**body, "name": "n"}), 429, "rate_limited")
    assert "changed more than 2 things" in refused["detail"]
    problem_of(api.get("models/alice/n"), 429, "rate_limited")
    refill(f"token:{Token.objects.get().pk}")
    assert api.get("models/alice/m").status_code == 200
    problem_of(api.get("models/alice/n"), 404, "model_not_found")


def test_each_token_has_its_own_budget(api, alice, bob):
    for _ in range(4):
        last = api.get("whoami")
    assert last.status_code == 429
    assert Api(make_token(alice)).get("whoami").status_code == 200
    assert api_of(bob).get("whoami").status_code == 200
    assert Api().get("models").status_code == 200


def test_whoever_has_no_token_is_counted_by_address(alice, settings):
    make_model(alice, "m")
    settings.RATE_REQUESTS = 2

    def ask(address, token=None):
        caller = Api(token)
        caller.client.defaults["REMOTE_ADDR"] = address
        return caller.get("models/alice/m")

    assert [ask("192.0.2.1").status_code for _ in range(3)] == [200, 200, 429]
    refused = problem_of(ask("192.0.2.1"), 429, "rate_limited")
    assert "send a token" in refused["detail"]
    # One client has many addresses in IPv6: the first half of them is what counts.
    sent = [ask(f"2001:db8::{number}").status_code for number in (1, 2, 3)]
    assert sent == [200, 200, 429]
    assert ask("2001:db8:0:1::1").status_code == 200
    # Guesses at tokens count too.
    assert [ask("192.0.2.2", GOOD).status_code for _ in range(3)] == [401, 401, 429]
    assert ask("192.0.2.3", GOOD)["RateLimit-Policy"] == '"requests";q=2;w=60'


def test_refusals_of_every_kind_are_counted_and_say_so(api):
    assert left(api.get("models/alice/none")) == {"requests": 2}
    assert left(api.delete("whoami")) == {"requests": 1, "writes": 1}
    assert left(api.get("models", headers={"Accept": "text/html"})) == {"requests": 0}


def test_what_operators_look_at_is_not_counted(client, settings):
    settings.RATE_REQUESTS = 1
    for address in ("/healthz", "/readyz", "/metrics"):
        for _ in range(3):
            answer = client.get(address)
            assert answer.status_code == 200
            assert "RateLimit" not in answer.headers


def test_pages_are_not_counted(client, settings):
    settings.RATE_REQUESTS = 1
    assert [client.get("/models").status_code for _ in range(3)] == [200, 200, 200]


def test_no_limit_asks_nobody(api, settings):
    settings.RATE_REQUESTS = settings.RATE_WRITES = 0
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    for _ in range(5):
        answer = api.get("whoami")
        assert answer.status_code == 200
        assert "RateLimit" not in answer.headers


def test_without_redis_everybody_passes(api, settings, monkeypatch, caplog):
    monkeypatch.setattr(rates, "_rest", rates._Rest())
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    for _ in range(5):
        answer = api.get("whoami")
        assert answer.status_code == 200
        assert "RateLimit" not in answer.headers
    # Nobody waits for it each time.
    assert caplog.text.count("Requests are not counted for now") == 1


def test_what_is_kept_of_a_caller_goes_by_itself(api, settings):
    settings.RATE_REQUESTS = 6000
    with redis.Redis.from_url(django_settings.REDIS_URL) as store:
        mine = f"modelyard:rate:*:token:{Token.objects.get().pk}"
        # Another test may have had a token of this number, and used its budget up.
        for key in store.keys(mine):
            store.delete(key)
        api.post("models", {"namespace": "alice", "name": "m"})
        kept = {key: store.pttl(key) for key in store.keys(mine)}
    assert len(kept) <= 2
    # One that is full again may have gone between the two questions, or have no millisecond left.
    gone = -2
    assert all(life == gone or 0 <= life <= 60_000 for life in kept.values())
