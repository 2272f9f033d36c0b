import base64
from datetime import timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from registry.authenticate import (
    Visit,
    actor_from_authorization,
    actor_from_session,
    is_token_shaped,
    make_token,
)
from registry.errors import Denied, Invalid, NotFound, Unauthenticated
from registry.models import Repository, Token
from registry.services import catalog, tokens
from tests.factories import UserFactory, actor_of, make_admin, make_model
from tests.factories import make_token as token_of

pytestmark = pytest.mark.django_db
VISIT = Visit(door="test")


def ask(secret: str):
    return actor_from_authorization(f"Bearer {secret}", VISIT)


def test_a_token_is_stored_as_a_digest_and_stands_for_its_person():
    alice = UserFactory(username="alice")
    row, secret = tokens.create_token(actor=actor_of(alice), name="ci", scopes=["read", "write"])
    assert secret not in str(Token.objects.values())
    assert is_token_shaped(secret)
    actor = ask(secret)
    assert (actor.username, actor.scopes) == ("alice", {"read", "write"})
    basic = base64.b64encode(f"x:{secret}".encode()).decode()
    assert actor_from_authorization(f"Basic {basic}", VISIT).token_id == row.pk


def test_bad_tokens_are_refused_alike():
    alice = UserFactory()
    row, secret = tokens.create_token(actor=actor_of(alice), name="ci")
    tokens.revoke_token(actor=actor_of(alice), token_id=row.pk)
    _, expired = tokens.create_token(
        actor=actor_of(alice), name="old", expires_at=timezone.now() + timedelta(days=1)
    )
    Token.objects.filter(name="old").update(expires_at=timezone.now() - timedelta(seconds=1))
    mistyped = make_token()[:-1] + "!"
    for bad in (secret, expired, make_token(), mistyped, "", "short", "ü" * 30, "x" * 500):
        with pytest.raises(Unauthenticated):
            ask(bad or " ")
    inactive = token_of(alice)
    alice.is_active = False
    alice.save()
    with pytest.raises(Unauthenticated):
        ask(inactive)
    for header in ("Digest abc", "Basic !!!", "Bearer"):
        with pytest.raises(Unauthenticated):
            actor_from_authorization(header, VISIT)


def test_scopes_and_places_narrow_a_token():
    admin = make_admin()
    model = make_model(admin, "one", visibility="private")
    other = make_model(admin, "two", visibility="private")
    reader = ask(token_of(admin, scopes=["read"]))
    assert not reader.is_admin
    with pytest.raises(Denied, match="lacks the scope 'write'"):
        catalog.set_tag(actor=reader, repository=model, key="a", value="b")
    _, secret = tokens.create_token(actor=actor_of(admin), name="one only", repository=model)
    narrow = ask(secret)
    assert list(Repository.objects.visible_to(narrow)) == [model]
    catalog.set_tag(actor=narrow, repository=model, key="a", value="b")
    with pytest.raises(Denied):
        catalog.set_tag(actor=narrow, repository=other, key="a", value="b")
    with pytest.raises(Denied):
        tokens.create_token(actor=narrow, name="more")


def test_making_tokens_is_checked():
    actor = actor_of(UserFactory())
    for wrong in (
        {"name": ""},
        {"name": "x", "scopes": ["root"]},
        {"name": "x", "scopes": []},
        {"name": "x", "expires_at": timezone.now() - timedelta(days=1)},
    ):
        with pytest.raises(Invalid):
            tokens.create_token(actor=actor, **wrong)
    with pytest.raises(NotFound):
        tokens.revoke_token(actor=actor, token_id=10**9)


def test_an_installation_may_bring_its_own_token():
    admin = make_admin()
    tokens.install_token(user=admin, secret="chosen-by-operator", name="installation")
    actor = ask("chosen-by-operator")
    assert actor.is_admin
    with pytest.raises(Invalid):
        tokens.install_token(user=admin, secret="short", name="installation")


def test_a_session_makes_an_actor_until_the_password_changes(client):
    alice = UserFactory(username="alice")
    client.force_login(alice)
    key = client.session.session_key
    assert actor_from_session(key, VISIT).username == "alice"
    alice.set_password("something else entirely")
    alice.save()
    assert actor_from_session(key, VISIT).is_anonymous
    assert actor_from_session(None, VISIT).is_anonymous
    assert actor_from_session("no-such-session", VISIT).is_anonymous


@given(st.text(max_size=80))
def test_no_text_breaks_the_checksum(text):
    assert not is_token_shaped(text)


def test_a_token_makes_none_that_outlives_it():
    end = timezone.now() + timedelta(hours=1)
    _, secret = tokens.create_token(
        actor=actor_of(UserFactory()), name="short", scopes=tokens.SCOPES, expires_at=end
    )
    maker = ask(secret)
    with pytest.raises(Invalid, match="cannot live longer"):
        tokens.create_token(actor=maker, name="long", expires_at=end + timedelta(seconds=1))
    heir, _ = tokens.create_token(actor=maker, name="heir")
    assert heir.expires_at == end
    sooner, _ = tokens.create_token(
        actor=maker, name="sooner", expires_at=end - timedelta(minutes=1)
    )
    assert sooner.expires_at < end
