"""Quotas of a namespace: refused at the boundary, exact whatever happens to what is counted."""

import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis
from django.conf import settings as django_settings
from django.db import connection

from registry.errors import Denied, NamespaceFull, Unauthenticated
from registry.models import ANONYMOUS, Artifact, Event, Job, JobState, Namespace, Version
from registry.services import catalog, deletion, exports, jobs, quotas, sharing, versions
from registry.services.collection import collect_garbage
from registry.services.results import Outcome
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_admin,
    make_blob,
    make_member,
    make_model,
    make_version,
)
from tests.registry.services.test_jobs import claim, compress, result, submit

pytestmark = pytest.mark.django_db

ONE, TWO = b"1" * 100, b"2" * 200


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    return make_model(alice, "m")


def allow(slug="alice", **limits):
    space = Namespace.objects.get(slug=slug)
    quotas.set_quotas(actor=actor_of(make_admin()), namespace=space, changes=limits)


def used(slug="alice"):
    """Give what is counted, after a recount has found nothing to mend in it."""
    found = Namespace.objects.values_list("used_bytes", "used_versions").get(slug=slug)
    assert quotas.recount_usage() == 0
    return found


def add(owner, repository, **files):
    content = {f"{name}.txt": data for name, data in files.items()}
    return make_version(owner, repository, content)


# --- What is counted -----------------------------------------------------------------------------


def test_bytes_that_several_versions_hold_count_once(alice, model):
    add(alice, model, a=ONE, b=ONE)
    add(alice, model, a=ONE, c=TWO)
    other = make_model(alice, "n", kind="dataset")
    add(alice, other, c=TWO)
    assert used() == (300, 3)
    add(alice, other)
    assert used() == (300, 4)


def test_each_namespace_counts_for_itself(alice, model):
    bob = UserFactory(username="bob")
    add(alice, model, a=ONE)
    add(bob, make_model(bob, "m"), a=ONE)
    assert used("alice") == used("bob") == (100, 1)


def test_what_is_deleted_is_free_until_it_comes_back(alice, model):
    actor = actor_of(alice)
    first, second = add(alice, model, a=ONE), add(alice, model, a=ONE, b=TWO)
    versions.delete_version(actor=actor, version=first)
    assert used() == (300, 1)
    versions.delete_version(actor=actor, version=second)
    assert used() == (0, 0)
    deletion.restore_version(actor=actor, version=second)
    assert used() == (300, 1)
    model.refresh_from_db()
    catalog.delete_repository(actor=actor, repository=model)
    assert used() == (0, 0)
    deletion.restore_repository(actor=actor, repository=model)
    assert used() == (300, 1)
    # Asked again, neither counts twice.
    deletion.restore_repository(actor=actor, repository=model)
    deletion.restore_version(actor=actor, version=second)
    assert used() == (300, 1)


def test_what_is_gone_for_good_was_free_before(alice, model):
    gone, kept = add(alice, model, a=ONE), add(alice, model, b=TWO)
    other = make_model(alice, "n")
    add(alice, other, c=b"3")
    versions.delete_version(actor=actor_of(alice), version=gone)
    catalog.delete_repository(actor=actor_of(alice), repository=other)
    collected = [*collect_garbage(undo=timedelta(0), keep=timedelta(0))]
    assert {one.kind for one in collected} >= {"version", "model"}
    assert used() == (200, 1)
    assert Version.objects.get() == kept


def test_a_repository_that_moves_takes_what_it_holds_with_it(alice, model):
    team = NamespaceFactory(slug="team")
    team.memberships.create(user=alice, role="owner")
    shared = make_model(alice, "shared", namespace="team")
    add(alice, shared, a=ONE)
    add(alice, model, a=ONE, b=TWO)
    stays = make_model(alice, "stays")
    add(alice, stays, b=TWO)
    gone = add(alice, model, c=b"3")
    versions.delete_version(actor=actor_of(alice), version=gone)
    sharing.transfer_repository(actor=actor_of(alice), repository=model, namespace=team)
    assert used("alice") == (200, 1)
    assert used("team") == (300, 2)
    deletion.restore_version(actor=actor_of(alice), version=gone)
    assert used("team") == (301, 3)


def test_what_another_release_left_uncounted_is_counted_again(alice, model):
    add(alice, model, a=ONE)
    Namespace.objects.filter(slug="alice").update(used_bytes=7, used_versions=0)
    assert quotas.recount_usage() == 1
    assert used() == (100, 1)
    Namespace.objects.filter(slug="alice").update(used_bytes=7, used_versions=0)
    versions.delete_version(actor=actor_of(alice), version=Version.objects.get())
    assert used() == (0, 0)


def test_the_migration_counts_what_is_there_already(alice, model):
    team = NamespaceFactory(slug="team")
    team.memberships.create(user=alice, role="owner")
    other = make_model(alice, "n", namespace="team")
    add(alice, model, a=ONE, b=ONE)
    gone = add(alice, model, c=TWO)
    add(alice, other)
    add(alice, make_model(alice, "deleted"), c=TWO)
    versions.delete_version(actor=actor_of(alice), version=gone)
    catalog.delete_repository(
        actor=actor_of(alice),
        repository=catalog.find_repository(actor_of(alice), "model", "alice", "deleted"),
    )
    Namespace.objects.update(used_bytes=0, used_versions=0)
    migration = importlib.import_module("registry.migrations.0013_namespace_quota")
    with connection.cursor() as cursor:
        cursor.execute(migration.COUNT)
    assert (used("alice"), used("team")) == ((100, 1), (0, 1))


# --- Refused at the boundary ---------------------------------------------------------------------


def test_bytes_fill_up_to_the_last_one(alice, model):
    allow(bytes=300)
    add(alice, model, a=ONE)
    events = Event.objects.count()
    with pytest.raises(NamespaceFull) as refused:
        add(alice, model, b=TWO + b"2")
    assert refused.value.status == 403
    assert refused.value.reason == "bytes_quota_exceeded"
    assert refused.value.values["used"] == "100 B"
    assert refused.value.values["limit"] == "300 B"
    assert refused.value.values["asked"] == "201 B"
    # Nothing half-written: no number was used up, no file is held, no event recorded.
    model.refresh_from_db()
    assert (model.last_number, Artifact.objects.count()) == (1, 1)
    assert Event.objects.count() == events
    assert add(alice, model, b=TWO).number == 2
    with pytest.raises(NamespaceFull):
        add(alice, model, c=b"3")
    # What is held already takes nothing.
    assert add(alice, model, c=TWO).number == 3
    assert used() == (300, 3)


def test_versions_are_refused_beyond_their_number(alice, model):
    allow(versions=2)
    first, _second = add(alice, model, a=ONE), add(alice, model, a=ONE)
    with pytest.raises(NamespaceFull) as refused:
        add(alice, model, a=ONE)
    assert refused.value.reason == "versions_quota_exceeded"
    versions.delete_version(actor=actor_of(alice), version=first)
    assert add(alice, model, a=ONE).number == 3
    with pytest.raises(NamespaceFull):
        deletion.restore_version(actor=actor_of(alice), version=first)
    assert used() == (100, 2)


def test_nothing_comes_back_that_does_not_fit(alice, model):
    actor = actor_of(alice)
    add(alice, model, a=ONE)
    catalog.delete_repository(actor=actor, repository=model)
    other = make_model(alice, "n")
    allow(bytes=200)
    add(alice, other, b=TWO)
    with pytest.raises(NamespaceFull):
        deletion.restore_repository(actor=actor, repository=model)
    model.refresh_from_db()
    assert model.deleted_at is not None
    assert used() == (200, 1)
    allow(bytes=300)
    deletion.restore_repository(actor=actor, repository=model)
    assert used() == (300, 2)


def test_nothing_moves_to_where_it_does_not_fit(alice, model):
    team = NamespaceFactory(slug="team")
    team.memberships.create(user=alice, role="owner")
    add(alice, model, a=ONE)
    allow("team", bytes=99)
    with pytest.raises(NamespaceFull):
        sharing.transfer_repository(actor=actor_of(alice), repository=model, namespace=team)
    model.refresh_from_db()
    assert model.namespace.slug == "alice"
    assert used("alice") == (100, 1)
    assert used("team") == (0, 0)
    allow("team", bytes=100)
    sharing.transfer_repository(actor=actor_of(alice), repository=model, namespace=team)
    assert used("team") == (100, 1)


def test_the_installation_says_what_holds_where_nothing_else_is_set(alice, model, settings):
    settings.QUOTA_VERSIONS = 1
    bob = UserFactory(username="bob")
    add(alice, model, a=ONE)
    with pytest.raises(NamespaceFull):
        add(alice, model, a=ONE)
    allow(versions=0)
    add(alice, model, a=ONE)
    theirs = make_model(bob, "m")
    add(bob, theirs, a=ONE)
    with pytest.raises(NamespaceFull):
        add(bob, theirs, a=ONE)
    allow(versions=None)
    with pytest.raises(NamespaceFull):
        add(alice, model, a=ONE)


def test_who_sees_and_who_sets_quotas(alice, model):
    team = NamespaceFactory(slug="team")
    reader = make_member(team, "reader")
    assert quotas.read_quotas(actor=actor_of(reader), namespace=team)["bytes"].used == 0
    with pytest.raises(Denied):
        quotas.read_quotas(actor=actor_of(alice), namespace=team)
    for actor, refusal in (
        (actor_of(make_member(team, "owner")), Denied),
        (ANONYMOUS, Unauthenticated),
    ):
        with pytest.raises(refusal):
            quotas.set_quotas(actor=actor, namespace=team, changes={"bytes": 1})
    allow("team", bytes=5, jobs=0)
    event = Event.objects.filter(action="namespace.quota").latest("pk")
    assert event.namespace == team
    assert event.data == {
        "before": {"bytes": None, "jobs": None},
        "after": {"bytes": 5, "jobs": 0},
    }


# --- Many at once --------------------------------------------------------------------------------


def at_once(count, work):
    """Run `work(number)` in as many threads, started together; give what they gave or raised."""
    ready = threading.Barrier(count)

    def run(number):
        try:
            ready.wait(30)
            return work(number)
        except NamespaceFull as refused:
            return refused
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.django_db(transaction=True)
def test_creations_at_once_share_the_last_places(alice):
    """Twelve repositories get a version at once, where seven versions and five new files fit."""
    places = [make_model(alice, f"m{number}") for number in range(12)]
    # Half of them hold the same bytes, which count once.
    files = [make_blob(ONE if n % 2 else bytes([n]) * 100) for n in range(12)]
    allow(bytes=500, versions=7)
    actor = actor_of(alice)

    def create(number):
        return versions.create_version(
            actor=actor, repository=places[number], files={"a.txt": files[number]}
        )

    outcomes = at_once(12, create)
    made = [one for one in outcomes if isinstance(one, Version)]
    held, count = used()
    assert (len(made), count) == (Version.objects.count(), len(made))
    assert held <= 500
    assert count <= 7
    # Whatever was refused would not have fitted.
    assert held == 500 or count == 7
    assert {one.reason for one in outcomes if one not in made} <= {
        "bytes_quota_exceeded",
        "versions_quota_exceeded",
    }


@pytest.mark.django_db(transaction=True)
def test_counters_stay_exact_while_everything_happens_at_once(alice):
    team = NamespaceFactory(slug="team")
    team.memberships.create(user=alice, role="owner")
    actor = actor_of(alice)
    shared = make_blob(TWO)
    places = [make_model(alice, f"m{number}") for number in range(6)]
    ready = [
        versions.create_version(actor=actor, repository=place, files={"a.txt": shared})
        for place in places
    ]

    def happen(number):
        place = places[number]
        mine = {"a.txt": shared, "b.txt": make_blob(bytes([number]) * 50)}
        made = versions.create_version(actor=actor, repository=place, files=mine)
        versions.delete_version(actor=actor, version=ready[number])
        sharing.transfer_repository(
            actor=actor,
            repository=catalog.find_repository(actor, "model", "alice", place.name),
            namespace=team,
        )
        deletion.restore_version(
            actor=actor,
            version=Version.objects.select_related("repository").get(pk=ready[number].pk),
        )
        if number % 2:
            versions.delete_version(actor=actor, version=made)

    assert at_once(6, happen) == [None] * 6
    assert used("alice") == (0, 0)
    assert used("team") == (200 + 3 * 50, 9)


# --- Exported files ------------------------------------------------------------------------------


def asked(version, target="torchscript"):
    step = {"method": "export", "target": target}
    return {"kind": "export", "model": version.ref, "steps": [step]}


def written(content, file="torchscript.pt"):
    return Outcome(files={file: make_blob(content)}, report={"schema": 1})


def export(owner, version, content, target="torchscript", file="torchscript.pt"):
    submit(owner, asked(version, target))
    jobs.finish_job(claim(), written(content, file))


def test_an_exported_file_counts_until_it_is_deleted(alice, weights):
    actor, before = actor_of(alice), used()
    export(alice, weights, ONE)
    assert used() == (before[0] + 100, 1)
    # The same bytes count once, of whatever version they were made, and once beside a file.
    other = make_version(alice, make_model(alice, "other"))
    both = used()
    export(alice, other, ONE)
    assert used() == both
    exports.delete_export(actor=actor, version=weights, file="torchscript.pt")
    assert used() == both
    add(alice, make_model(alice, "m"), a=ONE)
    exports.delete_export(actor=actor, version=other, file="torchscript.pt")
    assert used() == (both[0], both[1] + 1)


def test_exported_files_go_and_come_back_with_their_version(alice, weights):
    actor = actor_of(alice)
    export(alice, weights, ONE)
    export(alice, weights, TWO, "pt2", "program.pt2")
    everything = used()
    versions.delete_version(actor=actor, version=weights)
    assert used() == (0, 0)
    # What is there counts, though a deleted version has it as well.
    add(alice, make_model(alice, "m"), a=ONE)
    assert used() == (100, 1)
    deletion.restore_version(actor=actor, version=weights)
    assert used() == (everything[0], 2)
    team = NamespaceFactory(slug="team")
    team.memberships.create(user=alice, role="owner")
    sharing.transfer_repository(
        actor=actor_of(alice), repository=weights.repository, namespace=team
    )
    assert (used("alice"), used("team")) == ((100, 1), (everything[0], 1))


def test_nothing_is_exported_for_which_there_is_no_room(alice, weights):
    held = used()[0]
    least = jobs.least_export_bytes(weights)
    allow(bytes=held + least - 1)
    with pytest.raises(NamespaceFull) as refused:
        submit(alice, asked(weights))
    assert refused.value.reason == "bytes_quota_exceeded"
    with pytest.raises(NamespaceFull):
        exports.request_export(actor=actor_of(alice), version=weights, file="torchscript.pt")
    # It takes no version's place.
    allow(bytes=held + least, versions=1)
    assert submit(alice, asked(weights)).state == JobState.QUEUED


def test_an_exported_file_that_does_not_fit_fails_its_job_and_leaves_nothing(alice, weights):
    submit(alice, asked(weights))
    held, before = claim(), used()
    allow(bytes=before[0] + 99)
    with pytest.raises(NamespaceFull):
        jobs.finish_job(held, written(ONE))
    assert used() == before
    assert not weights.derivatives.exists()
    allow(bytes=before[0] + 100)
    jobs.finish_job(held, written(ONE))
    assert used() == (before[0] + 100, 1)


def test_bytes_that_an_exported_file_has_take_no_more_room(alice, weights):
    export(alice, weights, ONE)
    (made,) = weights.derivatives.select_related("blob")
    space = Namespace.objects.get(slug="alice")
    assert quotas.holds_bytes(space, made.blob.sha256.upper())
    exports.delete_export(actor=actor_of(alice), version=weights, file="torchscript.pt")
    assert not quotas.holds_bytes(space, made.blob.sha256)


@pytest.mark.django_db(transaction=True)
def test_exports_and_their_deletion_at_once_are_counted_exactly(alice):
    models = [make_version(alice, make_model(alice, f"m{number}")) for number in range(4)]
    before = used()
    for one in models:
        submit(alice, asked(one))
    claims = [claim() for _ in models]
    held = {Job.objects.get(pk=one.job_id).recipe["model"]: one for one in claims}
    shared = written(TWO)

    def happen(number):
        jobs.finish_job(held[models[number].ref], shared)
        version = Version.objects.select_related("repository__namespace").get(pk=models[number].pk)
        if number % 2:
            exports.delete_export(actor=actor_of(alice), version=version, file="torchscript.pt")
        else:
            versions.delete_version(actor=actor_of(alice), version=version)

    assert at_once(4, happen) == [None] * 4
    assert used()[1] == before[1] - 2
    assert Event.objects.filter(action="export.delete").count() == 2


# --- Jobs ----------------------------------------------------------------------------------------


@pytest.fixture
def weights(alice):
    return make_version(alice, make_model(alice, "classifier"))


def test_a_job_waits_until_another_of_its_namespace_ends(alice, weights, settings):
    settings.QUOTA_JOBS = 1
    bob = UserFactory(username="bob")
    first, second = submit(alice, compress()), submit(alice, compress())
    make_version(bob, make_model(bob, "classifier"))
    theirs = submit(bob, compress(model="bob/classifier"))
    running = claim()
    assert running.job_id == first.pk
    # The next place is for the other namespace, whose job came later.
    assert claim().job_id == theirs.pk
    assert jobs.claim_job(worker="w", queues=["cpu"]) is None
    waits = quotas.why_waiting(Job.objects.select_related("namespace"))
    assert {key: text.detail for key, text in waits.items()} == {
        second.pk: "Waits: 1 of 1 jobs of alice run."
    }
    jobs.finish_job(running, result())
    assert quotas.why_waiting(Job.objects.select_related("namespace")) == {}
    assert claim().job_id == second.pk


@pytest.mark.parametrize("end", ["fail", "cancel", "release", "lose"])
def test_however_a_job_ends_its_place_is_free(alice, weights, end):
    allow(jobs=1)
    first, second = submit(alice, compress()), submit(alice, compress())
    held = claim()
    assert jobs.claim_job(worker="w", queues=["cpu"]) is None
    if end == "fail":
        jobs.fail_job(held, code="x", detail="y")
    elif end == "cancel":
        jobs.confirm_cancel(held)
    elif end == "release":
        jobs.release_job(held)
    else:
        Job.objects.filter(pk=first.pk).update(
            lease_expires_at=first.created_at - timedelta(days=1)
        )
        jobs.requeue_expired()
    expected = first if end in {"release", "lose"} else second
    assert claim().job_id == expected.pk
    assert jobs.claim_job(worker="w", queues=["cpu"]) is None


def test_a_job_that_ends_wakes_the_one_that_waits(
    alice, weights, django_capture_on_commit_callbacks
):
    """The queue that is woken is that of the waiting job, be it another one."""
    allow(jobs=1)
    submit(alice, compress())
    held = claim()
    waiting = submit(alice, compress())
    Job.objects.filter(pk=waiting.pk).update(queue="gpu")
    with redis.Redis.from_url(django_settings.REDIS_URL) as broker:
        broker.delete("cpu", "gpu")
        with django_capture_on_commit_callbacks(execute=True):
            jobs.finish_job(held, result())
        assert [str(waiting.pk).encode() in one for one in broker.lrange("gpu", 0, -1)] == [True]
        assert broker.llen("cpu") == 0


def test_no_job_is_begun_whose_result_has_no_room(alice, weights):
    allow(versions=1)
    with pytest.raises(NamespaceFull):
        submit(alice, compress())
    evaluate = {
        "kind": "evaluate",
        "schema": 1,
        "model": "alice/classifier",
        "dataset": "alice/digits",
        "steps": [{"method": "evaluate"}],
    }
    allow(versions=2)
    make_version(
        alice, make_model(alice, "digits", kind="dataset"), {"t.csv": b"text,label\na,b\n"}
    )
    # It adds a number, and no version.
    assert submit(alice, evaluate).state == JobState.QUEUED


def test_a_result_that_does_not_fit_fails_the_job_and_leaves_nothing(alice, weights):
    job = submit(alice, compress())
    held = claim()
    allow(bytes=Namespace.objects.get(slug="alice").used_bytes)
    before = used()
    with pytest.raises(NamespaceFull):
        jobs.finish_job(held, result())
    job.refresh_from_db()
    assert (job.state, job.result) == (JobState.RUNNING, None)
    assert (used(), Version.objects.count()) == (before, 1)


@pytest.mark.django_db(transaction=True)
def test_claims_at_once_never_run_more_jobs_than_allowed(alice, weights, settings):
    """Eight workers at a time take and end thirty jobs of two namespaces, three of one at once."""
    bob = UserFactory(username="bob")
    make_version(bob, make_model(bob, "classifier"))
    for number in range(30):
        owner = bob if number % 3 == 0 else alice
        submit(owner, compress(model=f"{owner.username}/classifier"))
    allow(jobs=3)
    most, guard = [0], threading.Lock()

    def work(number):
        claimed = 0
        while Job.objects.filter(state=JobState.QUEUED).exists():
            held = jobs.claim_job(worker=f"w{number}", queues=["cpu"])
            if held is None:
                continue
            claimed += 1
            with guard:
                running = Job.objects.filter(namespace__slug="alice", state=JobState.RUNNING)
                most[0] = max(most[0], running.count())
            jobs.fail_job(held, code="x", detail="y")
        return claimed

    assert sum(at_once(8, work)) == 30
    assert 1 <= most[0] <= 3
    assert Job.objects.filter(state=JobState.FAILED).count() == 30
