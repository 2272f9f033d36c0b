"""Coming in by password: throttle, sessions, second factors, and what the log says of it."""

import io
import itertools
import time

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.core.cache import cache
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from registry.authenticate import Visit, actor_from_session
from registry.errors import Denied
from registry.models import Event, Namespace, Token, User
from tests.factories import PASSWORD, UserFactory, make_admin, make_model
from tests.registry.web.conftest import signed_in
from workers.tasks import clean_up

pytestmark = pytest.mark.django_db

WRONG = "not the password"
_hosts = itertools.count(int(time.time()) % 60_000 * 65_536)


def visitor(**extra):
    """Make a browser at an address of its own, for the limits count addresses across tests."""
    number = next(_hosts)
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Client(REMOTE_ADDR=address, **extra)


@pytest.fixture
def alice(db):
    # A name of its own, for the limits count names across tests too.
    return UserFactory(username=f"alice-{next(_hosts)}")


def sign_in(client, user, password=PASSWORD, **more):
    return client.post("/login", {"username": user.username, "password": password, **more})


def is_in(client):
    return client.get("/settings").status_code == 200


def actions():
    return list(Event.objects.order_by("pk").values_list("action", flat=True))


# --- Passwords ---------------------------------------------------------------------------------


def test_signing_in_and_out_is_in_the_log(alice):
    client = visitor()
    assert sign_in(client, alice)["Location"] == "/"
    assert is_in(client)
    client.post("/logout")
    assert not is_in(client)
    opened, closed = Event.objects.order_by("pk")
    assert (opened.action, opened.target, opened.data) == (
        "session.open",
        alice.username,
        {"methods": ["password"]},
    )
    assert opened.ip.startswith("10.")
    assert (closed.action, closed.actor) == ("session.close", alice.username)


def test_a_wrong_password_and_an_unknown_name_read_the_same(alice):
    answers = [
        visitor().post("/login", {"username": name, "password": WRONG}).content.decode()
        for name in (alice.username, "nobody-of-that-name")
    ]
    assert "Name or password is wrong" in answers[0]
    strip = [a.split('name="username"')[0].split("<main")[1] for a in answers]
    assert "alert" in strip[0]
    refusals = Event.objects.filter(action="session.refuse").order_by("pk")
    # In the field of the name people type passwords too.
    assert [event.target for event in refusals] == [alice.username, ""]


def test_an_unknown_name_costs_a_password_check_too(alice, settings, monkeypatch):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.Argon2PasswordHasher"]
    from django.contrib.auth.hashers import Argon2PasswordHasher  # noqa: PLC0415

    made = []
    encode = Argon2PasswordHasher.encode

    def counted(self, password, salt):
        made.append(password)
        return encode(self, password, salt)

    monkeypatch.setattr(Argon2PasswordHasher, "encode", counted)
    visitor().post("/login", {"username": "nobody-of-that-name", "password": WRONG})
    assert made == [WRONG]


def test_an_account_takes_five_wrong_passwords_from_anywhere(alice):
    for _ in range(5):
        assert sign_in(visitor(), alice, WRONG).status_code == 200
    refused = sign_in(visitor(), alice)
    assert refused.status_code == 429
    assert 200 < int(refused["Retry-After"]) <= 300
    assert f"wait {refused['Retry-After']} seconds" in refused.content.decode()
    assert Event.objects.last().data == {"reason": "too many attempts"}


def test_another_host_name_is_no_way_around_the_limit(alice):
    for number in range(5):
        client = visitor(HTTP_HOST=f"host{number}.test")
        assert sign_in(client, alice, WRONG).status_code == 200
    assert sign_in(visitor(HTTP_HOST="other.test"), alice).status_code == 429


def test_an_address_takes_ten_wrong_passwords_for_anybody():
    client = visitor()
    names = [f"nobody-{next(_hosts)}" for _ in range(11)]
    answers = [client.post("/login", {"username": n, "password": WRONG}) for n in names]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429]
    assert 0 < int(answers[-1]["Retry-After"]) <= 60


def test_right_passwords_do_not_count(alice):
    for _ in range(7):
        assert sign_in(visitor(), alice).status_code == 302


def test_nobody_is_let_in_uncounted(alice, settings):
    settings.CACHES = {
        "default": {
            **settings.CACHES["default"],
            "LOCATION": "redis://127.0.0.1:1/0",
        }
    }
    client = visitor()
    refused = sign_in(client, alice)
    assert refused.status_code == 503
    assert refused["Retry-After"] == "1"
    assert not is_in(client)


def test_whoever_is_signed_in_goes_on_without_the_counter(alice, settings):
    client = signed_in(alice)
    settings.CACHES = {
        "default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}
    }
    assert is_in(client)


def test_an_account_that_is_off_opens_nothing(alice):
    client = visitor()
    sign_in(client, alice)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert not is_in(client)
    refused = sign_in(visitor(), alice)
    assert refused["Location"] == "/login/switched-off"
    assert "switched off" in client.get("/login/switched-off").content.decode()


def test_a_session_never_keeps_the_key_it_had_before(alice):
    client = visitor()
    client.get("/login")
    session = client.session
    session["planted"] = True
    session.save()
    client.cookies["sessionid"] = session.session_key
    sign_in(client, alice)
    assert client.cookies["sessionid"].value != session.session_key
    assert not Session.objects.filter(session_key=session.session_key).exists()


@pytest.mark.parametrize("path", ["/login", "/settings/password", "/settings/sessions/others"])
@pytest.mark.parametrize("headers", [{}, {"HTTP_ORIGIN": "https://elsewhere.test"}])
def test_forms_take_nothing_from_other_sites(alice, path, headers):
    client = Client(enforce_csrf_checks=True, REMOTE_ADDR="10.9.9.9")
    client.force_login(alice)
    client.get("/settings")
    token = client.cookies["csrftoken"].value if "csrftoken" in client.cookies else ""
    form = {"csrfmiddlewaretoken": token} if headers else {}
    assert client.post(path, form, **headers).status_code == 403


def test_strangers_make_no_account_unless_they_may(db, settings):
    form = {"username": f"new-{next(_hosts)}", "password": "quite long enough"}
    assert visitor().post("/login/new", form).status_code == 404
    settings.SIGNUP = True
    assert visitor().post("/login/new", {**form, "username": "models"}).status_code == 200
    assert visitor().post("/login/new", {**form, "password": "password"}).status_code == 200
    client = visitor()
    assert client.post("/login/new", form)["Location"] == "/"
    assert is_in(client)
    assert Namespace.objects.filter(slug=form["username"], kind="person").exists()


# --- Sessions ----------------------------------------------------------------------------------


def test_sessions_are_listed_and_one_is_ended_at_once(alice):
    here = visitor(HTTP_USER_AGENT="Mozilla/5.0 (X11; Linux x86_64) Chrome/130.0 Safari/537.36")
    there = visitor(HTTP_USER_AGENT="Mozilla/5.0 (iPhone) Version/18.0 Safari/604.1")
    sign_in(here, alice)
    sign_in(there, alice)
    page = here.get("/settings/sessions").content.decode()
    assert "Chrome on Linux" in page
    assert "Safari on iPhone" in page
    assert page.count("this one") == 1
    key = there.cookies["sessionid"].value
    other = UserSession.objects.get(session_key=key)
    assert here.post(f"/settings/sessions/{other.pk}/end").status_code == 302
    assert not is_in(there)
    assert actor_from_session(key, Visit(door="web")).is_anonymous
    assert is_in(here)
    assert "session.revoke" in actions()


def test_nobody_ends_the_session_of_another(alice, stranger):
    theirs = visitor()
    sign_in(theirs, stranger)
    row = UserSession.objects.get(user=stranger)
    assert signed_in(alice).post(f"/settings/sessions/{row.pk}/end").status_code == 404
    assert is_in(theirs)


def test_all_other_sessions_end_together(alice):
    clients = [visitor() for _ in range(3)]
    for client in clients:
        sign_in(client, alice)
    clients[0].post("/settings/sessions/others")
    assert [is_in(client) for client in clients] == [True, False, False]


def test_a_new_password_ends_the_other_sessions(alice):
    here, there = visitor(), visitor()
    sign_in(here, alice)
    sign_in(there, alice)
    wrong = here.post("/settings/password", {"current": WRONG, "password": "brand new words"})
    assert "not your present password" in wrong.content.decode()
    easy = here.post("/settings/password", {"current": PASSWORD, "password": "password"})
    assert easy.status_code == 200
    right = {"current": PASSWORD, "password": "brand new words"}
    assert here.post("/settings/password", right)["Location"] == "/settings"
    assert is_in(here)
    assert not is_in(there)
    assert here.get("/settings/sessions").content.decode().count("<li>") >= 1
    assert sign_in(visitor(), alice).status_code == 200
    assert sign_in(visitor(), alice, "brand new words").status_code == 302
    assert "password.change" in actions()


def test_pages_notice_where_a_session_is_seen(alice):
    client = signed_in(alice)
    assert not UserSession.objects.exists()
    client.get("/", REMOTE_ADDR="10.1.2.3", HTTP_USER_AGENT="curl/8.1")
    row = UserSession.objects.get()
    assert (row.user, row.ip, row.user_agent) == (alice, "10.1.2.3", "curl/8.1")


def test_sessions_that_ended_are_forgotten(alice):
    clients = [visitor() for _ in range(3)]
    for client in clients:
        sign_in(client, alice)
    keys = [client.cookies["sessionid"].value for client in clients]
    Session.objects.filter(session_key=keys[0]).update(expire_date=timezone.now())
    Session.objects.filter(session_key=keys[1]).delete()
    clean_up()
    assert list(UserSession.objects.values_list("session_key", flat=True)) == keys[2:]
    assert list(Session.objects.values_list("session_key", flat=True)) == keys[2:]
    assert [is_in(client) for client in clients] == [False, False, True]


# --- Second factors ----------------------------------------------------------------------------


def code_for(secret, *, steps=0):
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps))


def prove(client, path="/settings"):
    return client.post(f"/login/again?next={path}", {"password": PASSWORD})


def set_up_app(client):
    """Set an authenticator app up as a person does; give its secret."""
    page = client.get("/settings/second-factors/app")
    assert page.status_code == 200
    secret = page.context["form"].secret
    answer = client.post("/settings/second-factors/app", {"code": code_for(secret)})
    assert answer["Location"] == "/settings/second-factors/codes"
    return secret


@pytest.fixture
def with_app(alice):
    """Give a person with an authenticator app, its secret, and the recovery codes."""
    client = visitor()
    sign_in(client, alice)
    prove(client)
    secret = set_up_app(client)
    codes = client.get("/settings/second-factors/codes").context["unused_codes"]
    return alice, secret, codes


def test_setting_up_a_factor_asks_for_the_password_again(alice):
    client = visitor()
    sign_in(client, alice)
    led = client.get("/settings/second-factors/app")
    assert led["Location"] == "/login/again?next=%2Fsettings%2Fsecond-factors%2Fapp"
    wrong = client.post(led["Location"], {"password": WRONG})
    assert "The password is wrong" in wrong.content.decode()
    assert prove(client, "/settings/second-factors/app")["Location"].endswith("/app")
    assert client.get("/settings/second-factors/app").status_code == 200


def test_the_password_alone_no_longer_signs_in(with_app):
    alice, secret, _ = with_app
    client = visitor()
    assert sign_in(client, alice, next="/jobs")["Location"] == "/login/second-factor"
    assert not is_in(client)
    wrong = client.post("/login/second-factor", {"code": "000000"})
    assert "The code is wrong" in wrong.content.decode()
    # The code of the set-up may be used up: take the next step's, which the tolerance allows.
    right = client.post("/login/second-factor", {"code": code_for(secret, steps=1)})
    assert right["Location"] == "/jobs"
    assert is_in(client)
    opened = Event.objects.filter(action="session.open").last()
    assert opened.data == {"methods": ["password", "totp"]}


def test_a_code_opens_once(with_app):
    alice, secret, _ = with_app
    code = code_for(secret, steps=1)
    first, second = visitor(), visitor()
    sign_in(first, alice)
    sign_in(second, alice)
    assert first.post("/login/second-factor", {"code": code}).status_code == 302
    assert second.post("/login/second-factor", {"code": code}).status_code == 200


def test_a_recovery_code_opens_once(with_app):
    alice, _, codes = with_app
    first, second = visitor(), visitor()
    sign_in(first, alice)
    sign_in(second, alice)
    assert first.post("/login/second-factor", {"code": codes[0]}).status_code == 302
    assert second.post("/login/second-factor", {"code": codes[0]}).status_code == 200


def test_codes_are_guessed_five_times_at_most(with_app):
    alice, secret, _ = with_app
    client = visitor()
    sign_in(client, alice)
    guesses = [client.post("/login/second-factor", {"code": f"{n:06}"}) for n in range(6)]
    assert [guess.status_code for guess in guesses] == [200] * 5 + [429]
    assert client.post("/login/second-factor", {"code": code_for(secret)}).status_code == 429


def test_recovery_codes_are_shown_once(with_app):
    alice, _, codes = with_app
    client = signed_in(alice)
    prove(client)
    page = client.get("/settings/second-factors/codes").content.decode()
    assert not any(code in page for code in codes)


def test_secrets_of_factors_are_encrypted_at_rest(with_app):
    _, secret, codes = with_app
    kept = str(list(Authenticator.objects.values_list("data", flat=True)))
    assert secret not in kept
    assert not any(code in kept for code in codes)


def test_a_factor_under_a_lost_key_is_refused_clearly(with_app, settings):
    alice, secret, _ = with_app
    client = visitor()
    sign_in(client, alice)
    settings.SECRET_KEY = "another key of an installation, long enough"
    settings.SECRET_KEY_FALLBACKS = []
    cookie = visitor()
    sign_in(cookie, alice)
    refused = cookie.post("/login/second-factor", {"code": code_for(secret)})
    assert refused.status_code == 409
    assert "administrator can reset" in refused.content.decode()


def test_factors_and_sessions_outlive_the_secret_key(with_app, settings):
    alice, secret, codes = with_app
    open_before = signed_in(alice)
    old = settings.SECRET_KEY
    settings.SECRET_KEY = "another key of an installation, long enough"
    settings.SECRET_KEY_FALLBACKS = [old]
    key = open_before.cookies["sessionid"].value
    assert not actor_from_session(key, Visit(door="test")).is_anonymous
    assert open_before.get("/settings").status_code == 200
    said = io.StringIO()
    call_command("renew_factors", stdout=said)
    assert "2 second factors encrypted anew" in said.getvalue()
    settings.SECRET_KEY_FALLBACKS = []
    assert open_before.get("/settings").status_code == 200
    client = visitor()
    sign_in(client, alice)
    assert client.post("/login/second-factor", {"code": codes[0]}).status_code == 302
    again = visitor()
    sign_in(again, alice)
    assert again.post("/login/second-factor", {"code": code_for(secret)}).status_code == 302


def test_an_app_is_removed_after_proving_it_is_you(with_app):
    alice, _, _ = with_app
    client = signed_in(alice)
    led = client.get("/settings/second-factors/app/remove")
    assert led["Location"].startswith("/login/again")
    prove(client)
    assert client.post("/settings/second-factors/app/remove").status_code == 302
    assert not Authenticator.objects.filter(user=alice).exists()
    assert {"factor.add", "factor.remove"} <= set(actions())


@pytest.mark.parametrize("policy", ["all", "admins"])
def test_the_installation_can_ask_for_a_second_factor(settings, policy):
    settings.REQUIRE_MFA = policy
    person = make_admin()
    client = visitor()
    sign_in(client, person)
    key = client.cookies["sessionid"].value
    for page in ("/", "/models", "/settings", "/settings/tokens", "/users", "/jobs/new"):
        assert client.get(page)["Location"] == "/settings/second-factors", page
    with pytest.raises(Denied):
        actor_from_session(key, Visit(door="web"))
    assert "asks you for a second factor" in client.get("/settings/second-factors").content.decode()
    prove(client, "/settings/second-factors/app")
    set_up_app(client)
    assert client.get("/models").status_code == 200
    assert actor_from_session(key, Visit(door="web")).username == person.username


def test_asking_administrators_for_it_leaves_others_alone(alice, settings):
    settings.REQUIRE_MFA = "admins"
    assert is_in(signed_in(alice))


# --- Tokens that can do everything --------------------------------------------------------------


def test_a_token_that_administers_asks_who_one_is(alice):
    client = visitor()
    sign_in(client, alice)
    form = {"name": "wide", "scopes": ["read", "admin"], "days": "30"}
    led = client.post("/settings/tokens", form)
    assert led["Location"].startswith("/login/again?next=")
    assert not Token.objects.exists()
    narrow = visitor()
    sign_in(narrow, alice)
    assert narrow.post("/settings/tokens", {**form, "scopes": ["read"]}).status_code == 200
    made = client.post(led["Location"], {"password": PASSWORD})
    assert "not shown again" in made.content.decode()
    assert Token.objects.filter(scopes=["read", "admin"]).count() == 1


def test_a_token_is_limited_to_a_place(alice):
    make_model(alice, "one")
    client = signed_in(alice)
    form = {"name": "ci", "scopes": ["read"], "days": "30"}
    for place in ("", alice.username, f"{alice.username}/one"):
        assert client.post("/settings/tokens", {**form, "place": place}).context["secret"]
    page = client.get("/settings/tokens").content.decode()
    assert f"{alice.username}/one" in page
    refused = client.post("/settings/tokens", {**form, "place": "nobody/nothing"})
    assert not refused.context["secret"]
    rows = Token.objects.order_by("pk").values_list("namespace__slug", "repository__name")
    assert list(rows) == [(None, None), (alice.username, None), (None, "one")]


def test_counters_hold_no_names(alice):
    sign_in(visitor(), alice, WRONG)
    client = cache._cache.get_client()
    keys = [key.decode() for key in client.scan_iter("*allauth*")]
    assert keys
    assert not any(alice.username in key for key in keys)


# --- What a stranger may send ------------------------------------------------------------------


CREDENTIALS = [
    "",
    "no json",
    "null",
    "[]",
    "7",
    "{}",
    '{"id": 1}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {}}',
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": []}',
    (
        '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"userHandle": "AA",'
        ' "clientDataJSON": "AA", "authenticatorData": "AA", "signature": "AA"}}'
    ),
    (
        '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"userHandle": 7,'
        ' "clientDataJSON": "e30", "authenticatorData": "", "signature": ""}}'
    ),
    (
        '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"userHandle": "MQ",'
        ' "clientDataJSON": "e30", "authenticatorData": "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQ'
        'UFBQUFBQQ", "signature": "AA"}}'
    ),
    "[" * 5000,
    '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"clientDataJSON": "e30",'
    ' "attestationObject": "' + "gYGB" * 4000 + '"}}',
    (
        '{"id": "AA", "rawId": "AA", "type": "public-key", "response": {"clientDataJSON": "e30",'
        ' "attestationObject": "o2NmbXRkbm9uZWdhdHRTdG10oGhhdXRoRGF0YUEA"}}'
    ),
    "x" * 100_000,
]


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_a_passkey_that_is_none_signs_nobody_in(alice, credential):
    client = visitor()
    asked = client.get("/login/passkey", headers={"Accept": "application/json"})
    assert set(asked.json()["request_options"]["publicKey"]) >= {"challenge", "rpId"}
    answer = client.post("/login/passkey", {"credential": credential})
    assert answer.status_code == 302
    assert answer["Location"] == "/login"
    assert not is_in(client)


@pytest.mark.parametrize("credential", CREDENTIALS)
def test_a_passkey_that_is_none_is_not_added(alice, credential):
    client = visitor()
    sign_in(client, alice)
    prove(client)
    client.get("/settings/passkeys/add")
    answer = client.post("/settings/passkeys/add", {"name": "x", "credential": credential})
    assert answer.status_code == 200
    assert not Authenticator.objects.exists()
