"""Signing in through an OpenID Connect provider that really runs, and what it may get wrong."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from allauth.account.models import EmailAddress
from allauth.socialaccount.models import SocialAccount
from django.core.cache import cache
from django.test import Client

from registry.models import Event, Membership, Namespace, User
from tests.factories import PASSWORD, UserFactory
from tests.registry.web.conftest import signed_in

pytestmark = pytest.mark.django_db

BACK = "/login/provider/callback"


def users(*claims):
    return [part for one in claims for part in ("--user-claims", json.dumps(one))]


DORA = {
    "sub": "sub-of-dora",
    "preferred_username": "dora.lin",
    "email": "dora@example.org",
    "email_verified": True,
    "name": "Dora Lin",
}


def start_provider(*options):
    """Start the provider as a process; give it and its address, which it names on stderr."""
    command = [sys.executable, "-m", "oidc_provider_mock", "--port", "0", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, found.group()
    raise AssertionError("the provider did not start")


@pytest.fixture(scope="module")
def provider():
    process, address = start_provider("--require-nonce", *users(DORA))
    yield address
    process.terminate()
    process.wait(10)
    process.stderr.close()


@pytest.fixture(autouse=True)
def empty_cache():
    cache.clear()


@pytest.fixture
def oidc(settings, provider):
    settings.OIDC_ISSUER = provider
    settings.OIDC_CLIENT_ID = "modelyard"
    settings.OIDC_CLIENT_SECRET = "a secret of the client"
    settings.OIDC_NAME = "Example Login"
    return provider


def put_user(provider, sub, **claims):
    httpx.put(f"{provider}/users/{sub}", json=claims).raise_for_status()


def go(client, **form):
    """Press the button on the sign-in page; give the address at the provider it leads to."""
    answer = client.post("/login/provider", form)
    assert answer.status_code == 302, answer.content.decode()
    return answer["Location"]


def agree(address, sub="sub-of-dora"):
    """Say yes at the provider; give the way back that it sends the browser."""
    answer = httpx.post(address, data={"sub": sub})
    assert answer.status_code == 302, answer.text
    return answer.headers["Location"]


def come_back(client, location):
    parts = urlsplit(location)
    return client.get(f"{parts.path}?{parts.query}")


def sign_in(client, sub="sub-of-dora", **form):
    return come_back(client, agree(go(client, **form), sub))


def whoever(client):
    page = client.get("/settings")
    return page.context["actor"].username if page.status_code == 200 else None


def reason():
    return Event.objects.filter(action="session.refuse").last().data["reason"]


def test_the_page_offers_it_only_where_there_is_one(oidc, settings):
    assert "Continue with Example Login" in Client().get("/login").content.decode()
    settings.OIDC_ISSUER = ""
    assert "Continue with" not in Client().get("/login").content.decode()
    assert Client().post("/login/provider").status_code == 404
    assert Client().get(BACK).status_code == 404


def test_what_is_asked_of_the_provider(oidc):
    asked = parse_qs(urlsplit(go(Client())).query)
    assert asked["response_type"] == ["code"]
    assert asked["code_challenge_method"] == ["S256"]
    assert len(asked["nonce"][0]) >= 32
    assert set(asked["scope"][0].split()) == {"openid", "profile", "email"}
    assert asked["redirect_uri"] == [f"http://testserver{BACK}"]
    # What a link says changes nothing of it.
    sly = Client().post("/login/provider?scope=admin&auth_params=nonce%3Dmine")
    asked = parse_qs(urlsplit(sly["Location"]).query)
    assert "admin" not in asked["scope"][0]
    assert asked["nonce"] != ["mine"]


def test_a_new_person_gets_account_and_namespace(oidc):
    client = Client()
    assert sign_in(client, next="/jobs")["Location"] == "/jobs"
    assert whoever(client) == "dora-lin"
    dora = User.objects.get(username="dora-lin")
    assert not dora.has_usable_password()
    assert (dora.email, dora.first_name) == ("dora@example.org", "Dora")
    assert Membership.objects.get(user=dora).role == "owner"
    assert Namespace.objects.get(slug="dora-lin").kind == "person"
    assert list(Event.objects.order_by("pk").values_list("action", flat=True)) == [
        "user.sign_up",
        "session.open",
    ]
    kept = SocialAccount.objects.get().extra_data["userinfo"]
    assert "nonce" not in kept
    # The second time it is the same person.
    assert sign_in(Client()).status_code == 302
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    ("wanted", "taken", "given"),
    [
        ("ed", [], "ed"),
        ("ed", ["ED"], "ed-2"),
        ("ed", ["ed", "ed-2"], "ed-3"),
        ("models", [], "models-2"),
        ("Ünïcode Name", [], "n-code-Name"),
        ("___", [], "ed-at-work"),
        ("x" * 200, [], "x" * 64),
        ("x" * 200, ["x" * 64], "x" * 62 + "-2"),
        ("../../etc", [], "etc"),
    ],
)
def test_a_free_name_is_chosen(oidc, wanted, taken, given):
    for name in taken:
        UserFactory(username=name)
    sub = f"sub-{len(wanted)}-{ord(wanted[0])}-{len(taken)}"
    put_user(oidc, sub, preferred_username=wanted, email="ed-at-work@example.org")
    client = Client()
    sign_in(client, sub)
    assert whoever(client) == given


def test_strange_claims_break_nothing(oidc):
    claims = {
        "preferred_username": ["a", "list"],
        "email": {"not": "text"},
        "name": "N\u202eul\x00l" * 200,
        "email_verified": "true",
    }
    put_user(oidc, "strange", **claims)
    client = Client()
    assert sign_in(client, "strange").status_code == 302
    assert whoever(client)


def test_it_stays_in_the_language_it_began_in(oidc):
    client = Client()
    answer = client.post("/zh-hans/login/provider")
    assert come_back(client, agree(answer["Location"]))["Location"] == "/zh-hans/"


def test_a_matching_address_opens_nobodys_account(oidc):
    owner = UserFactory(username="owner", email="dora@example.org")
    EmailAddress.objects.create(user=owner, email=owner.email, verified=True, primary=True)
    client = Client()
    sign_in(client)
    assert whoever(client) != "owner"


@pytest.mark.parametrize(
    ("provider_says", "we_say", "opened"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_a_trusted_providers_verified_address_opens_it(
    oidc, settings, provider_says, we_say, opened
):
    settings.OIDC_TRUST_EMAIL = True
    owner = UserFactory(username="owner", email="owner@example.org")
    EmailAddress.objects.create(user=owner, email=owner.email, verified=we_say, primary=True)
    sub = f"owner {provider_says} {we_say}"
    put_user(oidc, sub, email="Owner@example.org", email_verified=provider_says)
    client = Client()
    sign_in(client, sub)
    assert (whoever(client) == "owner") is opened
    owner.refresh_from_db()
    assert owner.has_usable_password()


def test_an_identity_is_linked_from_a_session_only_after_proof(oidc):
    alice = UserFactory(username="alice")
    client = signed_in(alice)
    led = client.post("/login/provider", {"process": "connect"})
    assert led["Location"].startswith("/login/again")
    client.post("/login/again?next=/settings/identity", {"password": PASSWORD})
    answer = sign_in(client, process="connect", next="/settings/identity")
    assert answer["Location"] == "/settings/identity"
    assert "dora.lin" in client.get("/settings/identity").content.decode()
    assert Event.objects.filter(action="identity.link", actor="alice").exists()
    stranger = Client()
    sign_in(stranger)
    assert whoever(stranger) == "alice"
    # Somebody else cannot have it too.
    other = signed_in(UserFactory(username="bob"))
    other.post("/login/again?next=/settings/identity", {"password": PASSWORD})
    sign_in(other, process="connect", next="/settings/identity")
    assert SocialAccount.objects.get().user == alice
    account = SocialAccount.objects.get()
    client.post("/settings/identity", {"account": account.pk})
    assert not SocialAccount.objects.exists()
    assert Event.objects.filter(action="identity.unlink", actor="alice").exists()


def test_who_has_nothing_else_keeps_the_identity(oidc):
    client = Client()
    sign_in(client)
    account = SocialAccount.objects.get()
    client.post("/settings/identity", {"account": account.pk})
    assert SocialAccount.objects.exists()


def test_somebody_from_the_provider_sets_up_a_factor_while_it_is_fresh(oidc):
    client = Client()
    sign_in(client)
    assert client.get("/settings/second-factors/app").status_code == 200
    session = client.session
    session["account_authentication_methods"][0]["at"] -= 600
    session.save()
    led = client.get("/settings/second-factors/app")
    assert led["Location"].startswith("/login/again/provider")
    page = client.get(led["Location"])
    assert "Continue with Example Login" in page.content.decode()
    again = sign_in(client, next=page.context["next"])
    assert again["Location"] == "/settings/second-factors/app"
    assert client.get("/settings/second-factors/app").status_code == 200


def test_an_account_that_is_off_stays_shut(oidc):
    sign_in(Client())
    User.objects.update(is_active=False)
    client = Client()
    assert sign_in(client)["Location"] == "/login/switched-off"
    assert whoever(client) is None


def test_a_provider_may_only_know_people_whom_we_know(oidc, settings):
    settings.OIDC_SIGNUP = False
    client = Client()
    refused = sign_in(client)
    assert refused.status_code == 403
    assert "no account here is linked" in refused.content.decode()
    assert not User.objects.exists()


# --- What goes wrong ---------------------------------------------------------------------------


def test_somebody_says_no(oidc):
    client = Client()
    state = parse_qs(urlsplit(go(client)).query)["state"][0]
    # The mock forgets the state that the standard wants back.
    refused = client.get(f"{BACK}?{urlencode({'error': 'access_denied', 'state': state})}")
    assert refused.status_code == 401
    assert "You stopped the sign-in" in refused.content.decode()


@pytest.mark.parametrize("state", ["", "wrong"])
def test_a_way_back_that_nobody_left_for(oidc, state):
    client = Client()
    location = agree(go(client))
    query = parse_qs(urlsplit(location).query)
    asked = {"code": query["code"][0], "state": state}
    refused = client.get(f"{BACK}?{urlencode(asked)}")
    assert refused.status_code == 401
    assert whoever(client) is None
    assert reason() == "provider: unknown state"


def test_anothers_way_back_signs_nobody_in(oidc):
    """A link with the attacker's code must not sign the victim in as the attacker."""
    location = agree(go(Client()))
    victim = Client()
    go(victim)
    assert come_back(victim, location).status_code == 401
    assert whoever(victim) is None


def test_a_code_is_good_once(oidc):
    client = Client()
    location = agree(go(client))
    come_back(client, location)
    assert come_back(Client(), location).status_code == 401
    second = Client()
    state = parse_qs(urlsplit(go(second)).query)["state"][0]
    code = parse_qs(urlsplit(location).query)["code"][0]
    refused = second.get(f"{BACK}?{urlencode({'code': code, 'state': state})}")
    assert refused.status_code == 401
    assert reason() == "no access token"


def test_an_answer_of_another_issuer(oidc):
    client = Client()
    location = agree(go(client))
    refused = come_back(client, f"{location}&iss=https%3A%2F%2Felsewhere.test")
    assert refused.status_code == 401
    assert reason() == "provider: the answer is of another issuer"


def test_a_token_for_another_request(oidc):
    """The provider answers with the nonce of another sign-in."""
    client = Client()
    address = re.sub(r"nonce=[^&]+", "nonce=one-of-somebody-else-1234", go(client))
    refused = come_back(client, agree(address))
    assert refused.status_code == 401
    assert reason() == "provider: the ID token answers another request"
    assert whoever(client) is None


def test_an_expired_token(settings):
    process, address = start_provider("--token-max-age=-120", *users(DORA))
    settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID = address, "modelyard"
    try:
        client = Client()
        refused = sign_in(client)
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()
    assert refused.status_code == 401
    assert whoever(client) is None


def test_a_provider_that_is_not_there(oidc, settings):
    settings.OIDC_ISSUER = "http://127.0.0.1:1"
    refused = Client().post("/login/provider")
    assert refused.status_code == 503
    assert "Example Login cannot be reached" in refused.content.decode()
    # Passwords go on.
    alice = UserFactory(username="alice")
    client = Client()
    client.post("/login", {"username": "alice", "password": PASSWORD})
    assert whoever(client) == alice.username


class Odd(BaseHTTPRequestHandler):
    """Serves a discovery document that a test has written, byte for byte."""

    def do_GET(self):
        status, body, headers = self.server.says
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for part in body:
                self.wfile.write(part)
        except OSError:
            self.server.hung_up.set()

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def odd(settings):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.hung_up = threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID = server.address, "modelyard"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def document(address, **changes):
    names = ("authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")
    return {"issuer": address, **{name: f"{address}/{name}" for name in names}, **changes}


def test_a_good_document_leads_on(odd):
    odd.says = (200, [json.dumps(document(odd.address)).encode()], {})
    assert go(Client()).startswith(f"{odd.address}/authorization_endpoint?")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"issuer": "https://elsewhere.test"}, 401),
        ({"issuer": None}, 401),
        ({"token_endpoint": None}, 401),
        ({"token_endpoint": "file:///etc/passwd"}, 401),
        ({"jwks_uri": "gopher://127.0.0.1/"}, 401),
        ({"authorization_endpoint": "javascript:alert(1)"}, 401),
        ({"userinfo_endpoint": 7}, 401),
    ],
)
def test_a_document_that_is_not_the_providers(odd, change, status):
    odd.says = (200, [json.dumps(document(odd.address, **change)).encode()], {})
    assert Client().post("/login/provider").status_code == status


@pytest.mark.parametrize(
    "says",
    [
        (200, [b"<html>"], {}),
        (200, [b"[]"], {}),
        (404, [b"{}"], {}),
        (500, [b"{}"], {}),
        (302, [], {"Location": "http://127.0.0.1:1/"}),
    ],
)
def test_an_answer_that_is_no_document(odd, says):
    odd.says = says
    assert Client().post("/login/provider").status_code in {401, 503}


def test_a_document_without_end(odd):
    odd.says = (200, (b"x" * 65536 for _ in range(100_000)), {})
    assert Client().post("/login/provider").status_code == 503
    # It was not read to its end.
    assert odd.hung_up.wait(20)


def test_nothing_secret_is_kept_or_logged(oidc, caplog):
    client = Client()
    location = agree(go(client))
    come_back(client, location)
    code = parse_qs(urlsplit(location).query)["code"][0]
    kept = str(list(Event.objects.values())) + str(list(SocialAccount.objects.values()))
    for secret in (code, "a secret of the client"):
        assert secret not in kept
        assert secret not in caplog.text
