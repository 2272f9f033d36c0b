"""Accounts over REST: made, switched off and on, given passwords, by administrators only."""

import pytest
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django.test import Client

from registry.models import Event, Namespace, User
from tests.factories import PASSWORD, UserFactory, make_admin, make_token
from tests.registry.api.conftest import Api, api_of, problem_of

pytestmark = pytest.mark.django_db

NEW = {"username": "carol", "password": "quite long enough", "email": "carol@example.org"}


@pytest.fixture
def root(db):
    return make_admin()


@pytest.fixture
def admin(root):
    return api_of(root)


def test_an_installation_gets_more_people(admin):
    made = admin.post("users", NEW)
    assert made.status_code == 201
    body = made.json()
    assert (body["username"], body["is_active"], body["is_admin"]) == ("carol", True, False)
    assert "password" not in body
    assert Namespace.objects.filter(slug="carol", kind="person").exists()
    assert EmailAddress.objects.get(user__username="carol").verified
    client = Client()
    answer = client.post("/login", {"username": "carol", "password": NEW["password"]})
    assert answer["Location"] == "/"
    assert admin.get("users").json()["items"][0]["username"] == "carol"
    assert admin.get("users/CAROL").json()["last_sign_in_at"] is not None
    assert Event.objects.get(action="user.create").target == "carol"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"username": "models"}, "reserved_name"),
        ({"username": "../up"}, "bad_name"),
        ({"username": "a\u202eb"}, "bad_character"),
        ({"password": "short"}, "invalid"),
        ({"password": "password123"}, "invalid"),
        ({"email": "no address"}, "bad_email"),
    ],
)
def test_what_makes_no_account(admin, change, code):
    body = problem_of(admin.post("users", {**NEW, **change}), 400, code)
    assert [one["field"] for one in body["errors"]] == list(change)
    assert User.objects.count() == 1


def test_a_name_is_taken_by_a_person_or_an_organisation(admin):
    UserFactory(username="Carol")
    problem_of(admin.post("users", NEW), 409, "already_exists")


def test_an_account_that_is_switched_off_opens_no_door(admin):
    carol = UserFactory(username="carol")
    api = Api(make_token(carol))
    client = Client()
    client.post("/login", {"username": "carol", "password": PASSWORD})
    assert client.get("/settings").status_code == 200
    assert admin.patch("users/carol", {"is_active": False}).json()["is_active"] is False
    problem_of(api.get("whoami"), 401, "unauthenticated")
    assert client.get("/settings").status_code == 302
    assert admin.patch("users/carol", {"is_active": True}).json()["is_active"] is True
    assert api.get("whoami").status_code == 200
    # The session was ended, not paused.
    assert client.get("/settings").status_code == 302
    named = Event.objects.filter(target="carol", action__startswith="user.").order_by("pk")
    assert [event.action for event in named] == ["user.deactivate", "user.activate"]


def test_the_last_administrator_stays(admin, root):
    problem_of(admin.patch(f"users/{root.username}", {"is_active": False}), 409, "own_account")
    problem_of(admin.patch(f"users/{root.username}", {"is_admin": False}), 409, "own_account")
    other = make_admin()
    User.objects.filter(pk=root.pk).update(is_active=False)
    User.objects.filter(pk=root.pk).update(is_active=True)
    assert admin.patch(f"users/{other.username}", {"is_admin": False}).status_code == 200
    assert User.objects.filter(is_superuser=True).count() == 1


def test_a_password_is_given_and_ends_sessions(admin):
    carol = UserFactory(username="carol")
    client = Client()
    client.post("/login", {"username": "carol", "password": PASSWORD})
    assert admin.put("users/carol/password", {"password": "brand new words"}).status_code == 204
    assert client.get("/settings").status_code == 302
    carol.refresh_from_db()
    assert carol.check_password("brand new words")
    problem_of(admin.put("users/carol/password", {"password": "a"}), 400, "invalid")
    assert "brand new words" not in str(list(Event.objects.values()))


def test_lost_factors_are_reset(admin):
    carol = UserFactory(username="carol")
    Authenticator.objects.create(user=carol, type="totp", data={"secret": "x"})
    assert admin.get("users/carol").json()["has_second_factor"] is True
    assert admin.delete("users/carol/factors").status_code == 204
    assert admin.get("users/carol").json()["has_second_factor"] is False


def test_an_administrators_narrow_token_administers_nobody(admin, root):
    problem_of(Api(make_token(root)).get("users"), 403, "missing_scope")
    made = admin.post(
        "tokens", {"name": "one place", "scopes": ["read", "admin"], "namespace": root.username}
    )
    problem_of(Api(made.json()["token"]).get("users"), 403, "denied")


def test_a_user_that_is_not_there(admin):
    problem_of(admin.get("users/nobody"), 404, "user_not_found")
