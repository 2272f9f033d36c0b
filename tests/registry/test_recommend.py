"""What may serve in the place of another model, with reasons, and what those give away."""

import pytest

from registry.models import ANONYMOUS, Job, Repository, Role
from registry.recommend import LEAST_PEOPLE, similar_to, suited_to_need
from registry.services.vectors import encode_cards
from registry.services.versions import EvaluationSpec, add_evaluations
from tests.factories import UserFactory, actor_of, make_member, make_model, make_version

pytestmark = pytest.mark.django_db

FILES = {"notes.txt": b"nothing to load"}


@pytest.fixture
def alice():
    return UserFactory(username="alice")


def model(owner, name, *, summary="Tags songs by genre", task="audio-classification", **facts):
    row = make_model(owner, name, summary=summary, task=task, **facts)
    make_version(owner, row, FILES)
    row.refresh_from_db()
    return row


def sized(row, count):
    Repository.objects.filter(pk=row.pk).update(parameters_count=count)
    row.refresh_from_db()
    return row


def told(row, actor=ANONYMOUS):
    return {
        one.repository.name: [reason.detail for reason in one.reasons]
        for one in similar_to(actor, row)
    }


def measured(owner, row, value, dataset):
    version = row.versions.get()
    add_evaluations(
        actor=actor_of(owner),
        version=version,
        evaluations=[EvaluationSpec(metric="accuracy", value=value, dataset=dataset)],
    )
    row.refresh_from_db()


def use(user, *rows):
    job = Job.objects.create(
        kind="evaluate",
        recipe={},
        namespace=user.memberships.get().namespace,
        queue="cpu",
        created_by=user,
    )
    job.inputs.set([row.versions.get() for row in rows])


def test_words_tell_what_is_alike_where_there_are_no_vectors(alice):
    jazz = model(alice, "jazz")
    model(alice, "songs", summary="Genre of songs")
    model(alice, "pumps", summary="Hears broken pumps")
    model(alice, "lyrics", summary="Songs by genre, from their words", task="text-classification")
    assert told(jazz) == {"songs": ["same task", "its card has words in common"]}
    assert told(model(alice, "bare", summary="", task="translation")) == {}


def test_what_may_not_be_seen_is_never_recommended(alice):
    jazz = model(alice, "jazz")
    model(alice, "secret", visibility="private")
    assert told(jazz) == {}
    assert set(told(jazz, actor_of(alice))) == {"secret"}


def test_a_size_is_a_reason_and_numbers_only_of_the_same_rows(alice):
    dataset = make_model(alice, "rows", kind="dataset")
    rows = make_version(alice, dataset, {"data.csv": b"a,b\n1,2\n"})
    other = make_version(alice, dataset, {"data.csv": b"a,b\n3,4\n"})
    large = sized(model(alice, "large"), 3_000_000)
    small = sized(model(alice, "small"), 1_000_000)
    elsewhere = sized(model(alice, "elsewhere"), 1_000_000)
    plain = sized(model(alice, "plain"), 3_000_000)
    measured(alice, large, 0.96, rows)
    measured(alice, small, 0.956, rows)
    measured(alice, elsewhere, 0.99, other)
    likely = ["same task", "its card has words in common"]
    assert told(large) == {
        "small": [*likely, "3 times smaller at 0.4 points less"],
        "elsewhere": [*likely, "3 times smaller"],
        "plain": likely,
    }
    assert told(small)["large"] == [*likely, "3 times larger and 0.4 points better"]
    measured(alice, plain, 0.97, rows)
    assert told(large)["plain"] == [*likely, "1.0 points better at the same size"]


def test_what_few_people_used_is_not_told(alice):
    jazz = model(alice, "jazz")
    pumps = model(alice, "pumps", summary="Hears broken pumps", task="regression")
    for _ in range(LEAST_PEOPLE - 1):
        use(UserFactory(), jazz, pumps)
    one = UserFactory()
    for _ in range(LEAST_PEOPLE):
        use(one, jazz)
    assert told(jazz) == {}
    use(one, pumps)
    assert told(jazz) == {"pumps": ["people who used this one used it too"]}
    Repository.objects.filter(pk=pumps.pk).update(visibility="private")
    assert told(jazz) == {}
    member = make_member(pumps.namespace, Role.READER)
    assert set(told(jazz, actor_of(member))) == {"pumps"}


@pytest.mark.slow
def test_meaning_tells_what_is_alike(alice, at_hand):
    jazz = model(alice, "jazz")
    model(alice, "melody", summary="Recognises the style of a piece of music", task=jazz.task)
    model(alice, "pumps", summary="Hears when a pump begins to fail", task=jazz.task)
    model(alice, "same", summary="Tags songs by genre", task=jazz.task)
    model(alice, "secret", visibility="private")
    encode_cards(seconds=600)
    found = told(jazz)
    assert list(found)[:2] == ["same", "melody"]
    assert found["same"] == ["same task", "its card says much the same"]
    assert found["melody"] == ["same task", "its card says something alike"]
    assert "secret" not in found
    assert "secret" in told(jazz, actor_of(alice))


def found_row(key, **facts):
    plain = {
        "id": key,
        "task": "translation",
        "quality": None,
        "quality_metric": "",
        "parameters_count": None,
        "downloads_count": 0,
    }
    return {**plain, **facts}


def test_of_what_is_found_some_stand_out():
    rows = [
        found_row(1, quality=0.8, quality_metric="accuracy", parameters_count=9),
        found_row(2, quality=0.9, quality_metric="accuracy", parameters_count=7),
        found_row(3, quality=0.99, quality_metric="f1_macro", parameters_count=5),
        found_row(4, task="other", quality=1.0, quality_metric="accuracy", parameters_count=1),
        found_row(5, downloads_count=3),
    ]
    said = {one.row["id"]: [why.detail for why in one.reasons] for one in suited_to_need(rows)}
    assert said == {
        1: ["closest to what you ask for"],
        2: ["the best number of these"],
        3: ["the smallest of these"],
        5: ["downloaded most of these"],
    }
    assert suited_to_need(rows[:2]) == []
