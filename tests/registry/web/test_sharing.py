"""The pages of sharing: organisations, access, requests, proposals."""

import json

import pytest
from django.test import Client

from registry.models import (
    AccessRequest,
    Alias,
    Grant,
    LineageEdge,
    LineageRole,
    Membership,
    Namespace,
    Role,
)
from registry.services import jobs, proposals, requests
from registry.services.uploads import begin_upload, complete_upload
from registry.storage import default_storage
from tests.factories import NamespaceFactory, actor_of, make_admin, make_model, make_version
from tests.registry.web.conftest import measure

pytestmark = pytest.mark.django_db
MODEL = "/models/team/plan"
SIGNATURE = {
    "inputs": [{"name": "image", "dtype": "float32", "shape": [None, 1, 28, 28]}],
    "outputs": [{"name": "logits", "dtype": "float32", "shape": [None, 2]}],
}


@pytest.fixture
def team(owner):
    space = NamespaceFactory(slug="team")
    Membership.objects.create(namespace=space, user=owner, role=Role.OWNER)
    return space


@pytest.fixture
def plan(owner, team):
    repository = make_model(owner, "plan", namespace="team", visibility="private")
    for _ in range(2):
        make_version(owner, repository)
    return repository


def page_after(client, response):
    assert response.status_code == 302, response.content.decode()[:2000]
    return client.get(response["Location"]).content.decode()


def test_an_organisation_is_made_filled_and_deleted(as_owner, as_stranger, stranger):
    made = as_owner.post("/namespaces/new", {"slug": "acme", "display_name": "Acme Research"})
    assert "Acme Research" in page_after(as_owner, made)
    change = "/namespaces/acme/change"
    added = as_owner.post(change, {"change": "set", "username": "stan", "role": "reader"})
    assert "stan" in page_after(as_owner, added)
    # Who is no owner reads the list and changes nothing.
    assert "olga" in as_stranger.get("/namespaces/acme").content.decode()
    refused = as_stranger.post(change, {"change": "set", "username": "stan", "role": "owner"})
    assert refused.status_code == 302
    assert Membership.objects.get(user=stranger, namespace__slug="acme").role == "reader"
    as_stranger.post(change, {"change": "remove", "username": "stan"})
    assert as_stranger.get("/namespaces/acme").status_code == 404
    as_owner.post(change, {"change": "delete", "confirm": "wrong"})
    assert Namespace.objects.get(slug="acme").deleted_at is None
    as_owner.post(change, {"change": "delete", "confirm": "acme"})
    assert as_owner.get("/namespaces/acme").status_code == 404
    taken = as_stranger.post("/namespaces/new", {"slug": "ACME"})
    assert "already exists" in taken.content.decode()


def test_the_page_of_an_organisation_leads_on_and_is_found_in_the_settings(as_owner, team):
    page = as_owner.get("/namespaces/team").content.decode()
    for address in (
        "/settings/audit?namespace=team",
        "/settings/webhooks?about=team",
        "/namespaces/team/deleted",
    ):
        assert f'href="{address}"' in page
        assert as_owner.get(address).status_code == 200
    assert 'href="/namespaces/team"' in as_owner.get("/settings").content.decode()


def test_what_a_proposal_gets_wrong_is_an_error_of_its_form(as_owner, plan):
    for form, words in (
        ({"alias": "production", "version": "7"}, "has no version &#x27;7&#x27;"),
        ({"alias": "production", "version": "x"}, "Enter a whole number."),
        ({"alias": "", "version": "1"}, "This field is required."),
        ({"alias": "latest", "version": "1"}, "latest"),
    ):
        sent = {**form, "message": "Typed with care."}
        refused = as_owner.post(f"{MODEL}/proposals/new", sent)
        page = refused.content.decode()
        assert (refused.status_code, words in page) == (422, True), page[-3000:]
        assert "Typed with care." in page


def test_access_is_given_explained_and_taken_back(as_owner, as_stranger, plan):
    change = f"{MODEL}/access/change"
    assert as_stranger.get(MODEL).status_code == 404
    given = as_owner.post(change, {"change": "grant", "username": "stan", "role": "reader"})
    page = page_after(as_owner, given)
    assert "It is private" in page
    assert page.index("stan") < page.index("reader", page.index("stan"))
    assert as_stranger.get(MODEL).status_code == 200
    assert as_stranger.get(f"{MODEL}/access").status_code == 403
    page_after(as_owner, as_owner.post(change, {"change": "remove", "username": "stan"}))
    assert as_stranger.get(MODEL).status_code == 404


def test_a_transfer_by_page(as_owner, plan):
    sent = {"change": "transfer", "namespace": "olga"}
    moved = as_owner.post(f"{MODEL}/access/change", sent)
    assert moved["Location"] == "/models/olga/plan/access"
    assert as_owner.get(MODEL)["Location"] == "/models/olga/plan"


def test_a_request_is_asked_decided_and_told(as_owner, as_stranger, plan):
    for name in ("team/plan", "team/nothing"):
        asked = as_stranger.post(
            "/requests", {"kind": "model", "name": name, "role": "reader", "message": "For tests."}
        )
        assert "Your request is kept" in page_after(as_stranger, asked)
    page = as_owner.get("/requests").content.decode()
    assert "For tests." in page
    assert "team/nothing" not in page
    assert "For tests." in as_owner.get(f"{MODEL}/access").content.decode()
    number = AccessRequest.objects.get(repository=plan).pk
    address = f"/requests/{number}/decide"
    as_owner.post(address, {"decision": "approve", "expected_role": "reader", "note": "Welcome."})
    page = as_stranger.get("/requests").content.decode()
    assert "Approved" in page
    assert "Welcome." in page
    assert as_stranger.get(MODEL).status_code == 200
    assert Grant.objects.get(repository=plan).role == "reader"


def test_what_is_ignored_stays_open_on_the_page_of_its_asker(as_owner, as_stranger, plan, stranger):
    row = requests.request_access(
        actor=actor_of(stranger), kind="model", namespace="team", name="plan"
    )
    before = as_stranger.get("/requests").content.decode()
    as_owner.post(f"/requests/{row.pk}/decide", {"decision": "ignore"})
    after = as_stranger.get("/requests").content.decode()
    assert before.count(">Open<") == after.count(">Open<") == 1
    assert "For you to decide" not in as_owner.get("/requests").content.decode()
    as_stranger.post(f"/requests/{row.pk}/decide", {"decision": "withdraw"})
    row.refresh_from_db()
    assert row.state == "withdrawn"


def test_a_proposal_is_made_compared_and_approved(as_owner, as_stranger, owner, stranger, plan):
    Grant.objects.create(repository=plan, user=stranger, role=Role.CONTRIBUTOR)
    refused = as_stranger.post(f"{MODEL}/aliases", {"alias": "production", "version": "1"})
    assert "is protected" in page_after(as_stranger, refused)
    sent = {"alias": "@production", "version": "2", "message": "Two points better."}
    page = page_after(as_stranger, as_stranger.post(f"{MODEL}/proposals/new", sent))
    assert "Two points better." in page
    one = f"{MODEL}/proposals/1"
    assert "Approve" not in as_stranger.get(one).content.decode()
    assert "Nothing was measured yet" in as_owner.get(one).content.decode()
    as_owner.post(f"{MODEL}/aliases", {"alias": "production", "version": "1"})
    for version, accuracy in zip(plan.versions.order_by("number"), (0.9, 0.95), strict=True):
        measure(owner, version, accuracy=accuracy, latency=3.0)
        version.evaluations.update(measured=True)
    page = as_owner.get(one).content.decode()
    assert 'name="expected_version" value="1"' in page
    assert "better" in page
    # Whoever saw the alias elsewhere approves nothing.
    stale = as_owner.post(f"{one}/decide", {"decision": "approve", "expected_version": ""})
    assert stale.status_code == 422
    assert "exists by now" in stale.content.decode()
    done = as_owner.post(f"{one}/decide", {"decision": "approve", "expected_version": "1"})
    assert "Approved" in page_after(as_owner, done)
    assert Alias.objects.get(name="production").version.number == 2


def test_a_proposal_says_whether_it_fits_and_what_would_change(as_owner, owner, plan):
    for labels in (["a", "b"], ["a", "b"], ["b", "a"]):
        config = json.dumps({"labels": labels, "signature": SIGNATURE}).encode()
        make_version(owner, plan, {"config.json": config})
    number = plan.versions.order_by("-number").first().number
    same, other = number - 1, number
    sent = {"alias": "production", "message": ""}
    as_owner.post(f"{MODEL}/proposals/new", {**sent, "version": str(number - 2)})
    page = as_owner.get(f"{MODEL}/proposals/1").content.decode()
    assert "Callers of" not in page
    assert "/diff/" not in page
    as_owner.post(f"{MODEL}/aliases", {"alias": "production", "version": str(number - 2)})
    for version in (same, other):
        as_owner.post(f"{MODEL}/proposals/new", {**sent, "version": str(version)})
    fits = as_owner.get(f"{MODEL}/proposals/2").content.decode()
    assert f"Callers of v{number - 2} can be given v{same}" in fits
    assert f'href="{MODEL}/versions/{number - 2}/diff/{same}"' in fits
    assert as_owner.get(f"{MODEL}/versions/{number - 2}/diff/{same}").status_code == 200
    page = as_owner.get(f"{MODEL}/proposals/3").content.decode()
    assert f"Callers of v{number - 2} cannot simply be given v{other}: its label 0 is" in page
    assert "takes a reason" in page
    chinese = as_owner.get(f"/zh-hans{MODEL}/proposals/3").content.decode()
    assert f"不能直接将 v{other} 提供给 v{number - 2} 的调用方" in chinese
    refused = as_owner.post(
        f"{MODEL}/proposals/3/decide",
        {"decision": "approve", "expected_version": str(number - 2), "note": "Fine by me."},
    )
    assert refused.status_code == 422
    assert "does not fit callers" in refused.content.decode()
    assert 'value="Fine by me."' in refused.content.decode()
    assert Alias.objects.get(name="production").version.number == number - 2


def test_protected_names_are_edited_by_maintainers(as_owner, plan):
    sent = {"change": "protect", "aliases": "production prod-*", "second_approver": "on"}
    assert "prod-*" in page_after(as_owner, as_owner.post(f"{MODEL}/proposals/new", sent))
    plan.refresh_from_db()
    assert (plan.protected_aliases, plan.second_approver) == (["prod-*", "production"], True)
    made = proposals.propose_alias(
        actor=actor_of(plan.created_by),
        repository=plan,
        alias="prod-eu",
        version=plan.versions.get(number=1),
    )
    own = as_owner.post(f"{MODEL}/proposals/{made.number}/decide", {"decision": "approve"})
    assert "Somebody other than" in own.content.decode()


def test_a_form_of_protected_names_takes_back_nothing_of_others(as_owner, plan):
    type(plan).objects.filter(pk=plan.pk).update(
        protected_aliases=["eu", "us"], second_approver=True
    )
    page = as_owner.get(f"{MODEL}/proposals").content.decode()
    assert 'name="shown_aliases"' in page
    assert 'value="eu us"' in page
    assert 'name="shown_second_approver" value="on"' in page
    # Meanwhile another maintainer protects one more, and a second approver is needed no longer.
    type(plan).objects.filter(pk=plan.pk).update(
        protected_aliases=["asia", "eu", "us"], second_approver=False
    )
    sent = {
        "change": "protect",
        "shown_aliases": "eu us",
        "aliases": "eu africa",
        "shown_second_approver": "on",
        "second_approver": "on",
    }
    page_after(as_owner, as_owner.post(f"{MODEL}/proposals/new", sent))
    plan.refresh_from_db()
    assert plan.protected_aliases == ["africa", "asia", "eu"]
    assert plan.second_approver is False


def test_a_request_that_is_refused_keeps_what_was_typed(as_stranger):
    sent = {"kind": "model", "name": "team", "role": "owner", "message": "For the demo."}
    refused = as_stranger.post("/requests", sent)
    assert refused.status_code == 422
    page = refused.content.decode()
    assert "Name what you ask for." in page
    for typed in ('value="For the demo."', 'value="team"', '<option value="owner" selected>'):
        assert typed in page


def test_archived_versions_are_hidden_until_asked_for(as_owner, plan):
    as_owner.post(f"{MODEL}/versions/1/edit", {"state": "archived", "state_reason": "Old."})
    assert f"{MODEL}/versions/1" not in as_owner.get(f"{MODEL}?tab=versions").content.decode()
    shown = as_owner.get(f"{MODEL}?tab=versions&archived=1").content.decode()
    assert f"{MODEL}/versions/1" in shown


@pytest.mark.parametrize("gone", ["archived", "deleted"])
def test_a_variant_outlives_what_it_was_made_from(as_owner, owner, plan, gone):
    origin = plan.versions.get(number=1)
    made = make_version(owner, plan, variant="int8", message="Rounded.")
    LineageEdge.objects.create(child=made, parent=origin, role=LineageRole.WEIGHTS)
    if gone == "archived":
        as_owner.post(f"{MODEL}/versions/1/edit", {"state": "archived", "state_reason": "Old."})
    else:
        as_owner.post(f"{MODEL}/versions/1/delete", {"confirm": origin.ref})
    page = as_owner.get(f"{MODEL}?tab=versions").content.decode()
    assert f'href="{MODEL}/versions/1"' not in page
    assert page.count("Rounded.") == 1


@pytest.mark.parametrize("prefix", ["", "/zh-hans"])
def test_every_page_is_there_in_both_languages(as_owner, plan, prefix):
    for address in (
        "/namespaces/new",
        "/namespaces/team",
        "/requests",
        f"{MODEL}/access",
        f"{MODEL}/proposals",
    ):
        assert as_owner.get(prefix + address).status_code == 200, address


def test_quotas_are_seen_by_members_and_set_by_administrators(as_owner, as_stranger, plan):
    page = as_owner.get("/namespaces/team").content.decode()
    assert "Quotas" in page
    assert "2, no limit" in page
    change = {"change": "quota", "gigabytes": "0.5", "versions": "2", "jobs": ""}
    # An owner of the organisation is no administrator.
    refused = as_owner.post("/namespaces/team/change", change)
    assert "Only an administrator of the installation may set quotas." in page_after(
        as_owner, refused
    )
    assert 'name="gigabytes"' not in page
    admin = Client()
    admin.force_login(make_admin())
    page = page_after(admin, admin.post("/namespaces/team/change", change))
    assert "Saved." in page
    assert "2 of 2" in page
    assert '<progress max="500000000" value="' in page
    assert 'value="0.5"' in page
    seen = as_owner.get("/zh-hans/namespaces/team").content.decode()
    assert "配额" in seen
    assert "2 / 2" in seen
    space = Namespace.objects.get(slug="team")
    assert (space.quota_bytes, space.quota_versions, space.quota_jobs) == (500_000_000, 2, None)
    for bad in ({"gigabytes": "-1"}, {"versions": "many"}, {"jobs": "1.5"}):
        page = page_after(admin, admin.post("/namespaces/team/change", {**change, **bad}))
        assert "A quota is a number that is not negative, or nothing." in page
    page = page_after(
        admin, admin.post("/namespaces/team/change", {**change, "gigabytes": "99999999999"})
    )
    assert "A quota is between 0 and" in page
    admin.post("/namespaces/team/change", {"change": "quota", "versions": "0"})
    space.refresh_from_db()
    assert (space.quota_bytes, space.quota_versions) == (None, 0)
    # Whoever only sees something public in it learns nothing of its size.
    make_model(plan.created_by, "open", namespace="team")
    assert "Quotas" not in as_stranger.get("/namespaces/team").content.decode()


def test_a_version_that_does_not_fit_is_refused_on_its_page(as_owner, plan):
    Namespace.objects.filter(slug="team").update(quota_versions=2)
    form = {"upload": [], "message": "x"}
    refused = as_owner.post(f"{MODEL}/versions/new", form)
    assert refused.status_code == 422
    upload = begin_upload(actor=actor_of(plan.created_by), length=1, filename="a.txt")
    complete_upload(
        actor=actor_of(plan.created_by), upload=upload, stored=default_storage().put([b"x"])
    )
    form = {"upload": [str(upload.pk)], "path": ["a.txt"]}
    page = as_owner.post(f"{MODEL}/versions/new", form).content.decode()
    assert "team has 2 of the 2 versions that it may have" in page
    assert plan.versions.count() == 2


def test_the_page_of_a_job_says_what_it_waits_for(as_owner, owner, team):
    make_version(owner, make_model(owner, "classifier", namespace="team"))
    Namespace.objects.filter(slug="team").update(quota_jobs=1)
    recipe = {"kind": "compress", "schema": 1, "model": "team/classifier"}
    recipe["steps"] = [{"method": "quantize_dynamic"}]
    _first, second = (jobs.submit_job(actor=actor_of(owner), recipe=recipe) for _ in range(2))
    address = f"/jobs/{second.pk}"
    assert "as soon as a worker is free" in as_owner.get(address).content.decode()
    jobs.claim_job(worker="w", queues=["cpu"])
    said = "Waits: 1 of 1 jobs of team run."
    assert said in as_owner.get(address).content.decode()
    assert said in as_owner.get(f"{address}?part=live").content.decode()
    assert "team 正在运行 1 个作业" in as_owner.get(f"/zh-hans{address}").content.decode()
