"""Kept questions answer as their query sets do, and PostgreSQL keeps their plans."""

import pytest
from django.db import connection
from django.db.models import Q
from django.utils import timezone

from registry.api.v1 import wire
from registry.models import ANONYMOUS, Actor, Grant, Job, Namespace, Repository, Role, Token
from registry.prepared import Parameter, Question
from tests.factories import UserFactory, actor_of, make_model, make_version
from tests.registry.api.conftest import api_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice():
    return UserFactory(username="alice")


def test_a_question_answers_as_its_query_set(alice):
    for name in ("one", "two"):
        make_version(alice, make_model(alice, name, tags={"a": "b"}))
    names = ("id", "labels", "created_at", "parameters_count", "visibility")
    rows = Repository.objects.order_by("pk").values(*names, "namespace__slug")
    question = Question(rows.filter(namespace__slug=Parameter("owner"), kind="model"))
    for owner in ("alice", "nobody"):
        assert question.all(owner=owner) == list(rows.filter(namespace__slug=owner))
    assert question.first(owner="alice") == rows.first()


def test_values_of_every_kind_come_back_as_django_gives_them(alice):
    model = make_model(alice)
    make_version(alice, model, tags={"seed": "1", "note": 'a "quoted" \\ text'})
    job = Job.objects.create(
        kind="compress", namespace=model.namespace, recipe={"steps": [1.5, None, "x"]}
    )
    rows = Job.objects.values("id", "recipe", "created_at", "started_at")
    question = Question(rows.filter(pk=Parameter("job")))
    assert question.first(job=job.pk) == rows.get(pk=job.pk)
    found = wire.find_version_row(ANONYMOUS, "model", "alice", "classifier", "1")
    assert found["tag_pairs"] == [
        {"key": "note", "value": 'a "quoted" \\ text'},
        {"key": "seed", "value": "1"},
    ]


def test_where_nothing_can_match_nothing_is_asked(django_assert_num_queries):
    question = Question(Repository.objects.filter(pk__in=[]).values("id"))
    with django_assert_num_queries(0):
        assert question.all() == []
        assert question.first() is None


def test_a_moment_cannot_be_kept():
    rows = Token.objects.filter(Q(expires_at__gt=timezone.now()))
    with pytest.raises(TypeError, match="grows old"):
        Question(rows.values("id"))


def test_what_programs_ask_is_planned_once(alice):
    """Nothing else shows it when a read is planned anew each time: it is only twice as slow."""
    make_version(alice, make_model(alice))
    api = api_of(alice)
    api.put("models/alice/classifier/aliases/champion", {"version": 1})
    for _ in range(12):
        assert api.get("models/alice/classifier/versions/@champion").status_code == 200
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT statement FROM pg_prepared_statements WHERE generic_plans > 0 ORDER BY 1"
        )
        kept = [statement for (statement,) in cursor.fetchall()]
    for table in ("registry_token", "registry_version", "registry_artifact"):
        assert any(f'FROM "{table}"' in statement for statement in kept), table


def test_a_kept_question_shows_nobody_what_another_may_see(alice):
    model = make_model(alice, visibility="private")
    make_version(alice, model)
    bob, carol = UserFactory(username="bob"), UserFactory(username="carol")

    def sees(user):
        row = wire.find_version_row(actor_of(user), "model", "alice", "classifier", "latest")
        return row is not None

    for _ in range(8):
        assert [sees(user) for user in (alice, bob, carol)] == [True, False, False]
    grant = Grant.objects.create(user=bob, repository=model, role=Role.READER)
    assert [sees(user) for user in (alice, bob, carol)] == [True, True, False]
    grant.delete()
    assert [sees(user) for user in (alice, bob, carol)] == [True, False, False]
    other = Namespace.objects.create(slug="other")
    narrowed = actor_of(alice)
    narrowed = Actor(**{**vars(narrowed), "limited_namespace_id": other.pk})
    assert wire.find_version_row(narrowed, "model", "alice", "classifier", "1") is None


def test_actors_are_alike_but_for_their_visit(alice):
    actor = actor_of(alice)
    here = Actor(**{**vars(actor), "door": "api", "request_id": "a", "ip": "127.0.0.1"})
    assert here.without_visit == actor.without_visit
    assert hash(here.without_visit) == hash(actor.without_visit)
    stranger = Actor(**{**vars(actor), "roles": {}})
    assert stranger.without_visit != actor.without_visit


def test_an_expired_token_is_refused_by_the_kept_question(alice):
    api = api_of(alice)
    for _ in range(8):
        assert api.get("whoami").status_code == 200
    Token.objects.update(expires_at=timezone.now())
    assert api.get("whoami").status_code == 401
