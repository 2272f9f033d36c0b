"""Where versions stand: every move by hand, who makes it, and what it takes."""

import itertools

import pytest

from registry.errors import Conflict, Denied, Invalid, NotFound, Saying
from registry.models import ANONYMOUS, JobEvent, Role, VersionState
from registry.search import SearchQuery, search_repositories
from registry.services import blobs, catalog, diffs, jobs, lifecycle, transfers, versions
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_admin,
    make_member,
    make_model,
    make_version,
    safetensors_bytes,
)

pytestmark = pytest.mark.django_db
PICKLE = b"\x80\x04cos\nsystem\n\x85R."
SAFE = safetensors_bytes(weight=[4.0, 5.0])


@pytest.fixture
def team():
    return NamespaceFactory(slug="team")


@pytest.fixture
def people(team):
    return {role.value: make_member(team, role) for role in Role}


@pytest.fixture
def model(people):
    return make_model(people["owner"], namespace="team")


def moved(user, version, state, **changes):
    version.refresh_from_db()
    return versions.describe_version(
        actor=actor_of(user), version=version, changes={"state": state, **changes}
    )


def deprecated(user, version):
    return moved(user, version, "deprecated", state_reason="It drifts; use 2.")


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.product(VersionState.values, VersionState.values))
)
def test_every_move_by_hand_is_in_the_table_or_refused(people, model, before, after):
    version = make_version(people["owner"], model)
    type(version).objects.filter(pk=version.pk).update(state=before, state_reason="why")
    may = after in lifecycle.BY_HAND.get(before, ()) or (
        after == before and after in lifecycle.CHOICES
    )
    try:
        row = moved(people["owner"], version, after, state_reason="because")
    except (Invalid, Conflict):
        version.refresh_from_db()
        assert (may, version.state) == (before == after == "ready" and may, before)
    else:
        assert (may, row.state) == (True, after)


def test_a_deprecation_needs_a_reason_and_keeps_it(people, model):
    version = make_version(people["owner"], model)
    with pytest.raises(Invalid) as refused:
        moved(people["contributor"], version, "deprecated")
    assert refused.value.errors[0].field == "state_reason"
    row = deprecated(people["contributor"], version)
    assert (row.state, row.state_reason) == ("deprecated", "It drifts; use 2.")
    assert row.state_changed_at is not None
    with pytest.raises(Invalid):
        moved(people["contributor"], version, "deprecated", state_reason=" ")
    again = moved(people["contributor"], version, "ready")
    assert (again.state, again.state_reason) == ("ready", "")


def test_only_maintainers_use_the_archive(people, model):
    version = make_version(people["owner"], model)
    with pytest.raises(Denied):
        moved(people["contributor"], version, "archived")
    moved(people["maintainer"], version, "archived")
    with pytest.raises(Denied):
        moved(people["contributor"], version, "ready")
    assert moved(people["maintainer"], version, "ready").state == "ready"


def test_an_archived_version_is_not_the_latest_and_its_files_are_for_maintainers(people, model):
    first = make_version(people["owner"], model)
    second = make_version(people["owner"], model, {"model.safetensors": SAFE})
    moved(people["owner"], second, "archived")
    model.refresh_from_db()
    assert model.latest_number == first.number

    def download(actor, number):
        return transfers.find_download(
            actor=actor,
            kind="model",
            namespace="team",
            name="classifier",
            version=str(number),
            path="model.safetensors",
        )

    assert download(actor_of(people["maintainer"]), 2).state == "archived"
    for actor in (ANONYMOUS, actor_of(people["contributor"])):
        with pytest.raises(Denied) as refused:
            download(actor, 2)
        assert refused.value.reason == "version_archived"
        assert download(actor, 1).state == "ready"
    # Nor does the digest of such a file say that it is here.
    sha256 = download(actor_of(make_admin()), 2).sha256
    with pytest.raises(NotFound):
        blobs.find_readable_blob(actor_of(people["contributor"]), sha256)
    assert blobs.find_readable_blob(actor_of(people["maintainer"]), sha256).sha256 == sha256


def test_an_archived_card_is_read_and_found_by_maintainers_alone(people, model):
    first = make_version(people["owner"], model)
    card = b"---\ntags: [seagulls]\n---\nTrained on albatrosses.\n"
    second = make_version(people["owner"], model, {"model.safetensors": SAFE, "README.md": card})

    def found(word):
        page = search_repositories(ANONYMOUS, "model", SearchQuery(q=word))
        return [row["name"] for row in page.items]

    assert found("albatrosses") == found("label:seagulls") == ["classifier"]
    moved(people["owner"], second, "archived")
    second.refresh_from_db()
    assert found("albatrosses") == found("label:seagulls") == found("seagulls") == []
    assert versions.read_card(ANONYMOUS, second) is None
    assert versions.read_card(actor_of(people["contributor"]), second) is None
    assert "albatrosses" in versions.read_card(actor_of(people["maintainer"]), second).body
    assert diffs.compare_config(ANONYMOUS, first, second) == []
    moved(people["owner"], second, "ready")
    assert found("albatrosses") == found("seagulls") == ["classifier"]


def test_bytes_of_a_deleted_version_are_not_there_any_more(people, model):
    version = make_version(people["owner"], model, {"model.safetensors": SAFE})
    sha256 = version.revision.artifacts.get().blob.sha256
    reader = actor_of(people["reader"])
    assert blobs.find_readable_blob(reader, sha256).sha256 == sha256
    versions.delete_version(actor=actor_of(people["owner"]), version=version)
    with pytest.raises(NotFound):
        blobs.find_readable_blob(reader, sha256)


def test_nobody_gets_out_of_quarantine_through_the_archive(people, model):
    version = make_version(people["owner"], model, {"model.pkl": PICKLE})
    assert version.state == VersionState.QUARANTINED
    moved(people["owner"], version, "archived", state_reason="Nobody wants it.")
    row = moved(people["owner"], version, "ready")
    assert row.state == VersionState.QUARANTINED
    assert "model.pkl" in row.state_reason


def test_what_is_still_used_cannot_be_archived(people, model):
    version = make_version(people["owner"], model)
    owner = actor_of(people["owner"])
    catalog.set_alias(actor=owner, repository=model, alias="champion", version=version)
    with pytest.raises(Conflict) as refused:
        moved(people["owner"], version, "archived")
    assert refused.value.reason == "version_aliased"
    catalog.delete_alias(actor=owner, repository=model, alias="champion")
    recipe = {"kind": "compress", "model": "team/classifier@1", "schema": 1}
    recipe["steps"] = [{"method": "quantize_dynamic"}]
    job = jobs.submit_job(actor=owner, recipe=recipe)
    with pytest.raises(Conflict) as refused:
        moved(people["owner"], version, "archived")
    assert refused.value.reason == "version_in_use"
    jobs.cancel_job(actor=owner, job=job)
    moved(people["owner"], version, "archived")
    with pytest.raises(Conflict) as refused:
        jobs.submit_job(actor=owner, recipe=recipe)
    assert refused.value.reason == "version_not_ready"
    with pytest.raises(NotFound):
        jobs.resume_job(actor=owner, job=job)


def test_a_job_on_a_deprecated_version_runs_and_says_so(people, model):
    version = make_version(people["owner"], model)
    deprecated(people["owner"], version)
    recipe = {"kind": "compress", "model": "team/classifier@1", "schema": 1}
    recipe["steps"] = [{"method": "quantize_dynamic"}]
    job = jobs.submit_job(actor=actor_of(people["contributor"]), recipe=recipe)
    (said,) = JobEvent.objects.filter(job=job, type="log")
    assert said.data["message"] == "team/classifier@1 is deprecated: It drifts; use 2."
    assert said.data["level"] == "warning"


def test_what_an_inspection_says_moves_only_what_it_may():
    stranger = UserFactory()
    version = make_version(stranger, make_model(stranger))
    verdict = lifecycle.Verdict("quarantined", Saying("It can run code."))
    for state in VersionState.values:
        version.state = state
        expected = state in {"pending", "ready", "deprecated"}
        assert lifecycle.settle(version, verdict) == expected
        assert version.state == ("quarantined" if expected else state)
