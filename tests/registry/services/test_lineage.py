"""Where versions came from across models: how, by which recipe, and whether it holds."""

from importlib import import_module

import pytest
from django.apps import apps
from django.test import Client

from registry.models import Job, JobState, LineageEdge, Namespace, Repository
from registry.services import lineage
from registry.services.lineage import data_of, trace
from registry.services.versions import (
    EvaluationSpec,
    ParentSpec,
    add_evaluations,
    restore_as_new,
)
from tests.factories import UserFactory, actor_of, make_model, make_version
from tests.registry.api.conftest import api_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


def job_of(user, kind, *methods, **more):
    return Job.objects.create(
        kind=kind,
        recipe={"kind": kind, "steps": [{"method": method} for method in methods]},
        namespace=Namespace.objects.get(slug=user.username),
        queue="cpu",
        state=JobState.SUCCEEDED,
        created_by=user,
        **more,
    )


def made(user, repository, *parents, job=None, **more):
    specs = [ParentSpec(version=version, role=role) for version, role in parents]
    return make_version(user, repository, {}, parents=specs, job=job, **more)


@pytest.fixture
def family(alice):
    """Give data, a base trained on it, a fine-tune elsewhere, and two variants of that."""
    data = make_version(alice, make_model(alice, "rows", kind="dataset"), {"a.csv": b"1"})
    base = made(alice, make_model(alice, "base"), (data, "data"), job=job_of(alice, "train"))
    tuned_in = make_model(alice, "tuned")
    tuned = made(alice, tuned_in, (base, "weights"), job=job_of(alice, "train"))
    pruning = job_of(alice, "compress", "prune_magnitude")
    pruned = made(alice, tuned_in, (tuned, "weights"), job=pruning, variant="pruned")
    distilling = job_of(alice, "compress", "distill")
    student = made(
        alice, tuned_in, (pruned, "weights"), (base, "merged"), job=distilling, variant="student"
    )
    return {
        "data": data,
        "base": base,
        "tuned": tuned,
        "pruned": pruned,
        "student": student,
        "pruning": pruning,
    }


def said(graph):
    return {
        (graph.nodes[edge.child].ref, edge.relation, graph.nodes[edge.parent].ref)
        for edge in graph.edges
    }


ALL = {
    ("alice/base@1", "trained_on", "alice/rows@1"),
    ("alice/tuned@1", "fine_tuned_from", "alice/base@1"),
    ("alice/tuned@2", "compressed_from", "alice/tuned@1"),
    ("alice/tuned@3", "distilled_from", "alice/tuned@2"),
    ("alice/tuned@3", "merged_from", "alice/base@1"),
}


def test_origins_and_offspring_are_followed_across_models(alice, family):
    graph = trace(actor_of(alice), family["student"])
    assert said(graph) == ALL
    assert graph.steps[family["data"].pk] == -2
    assert said(trace(actor_of(alice), family["data"])) == ALL
    near = trace(actor_of(alice), family["student"], depth=1)
    assert near.is_cut
    assert {version.ref for version in near.nodes.values()} == {
        "alice/tuned@3",
        "alice/tuned@2",
        "alice/base@1",
    }


def test_each_edge_has_its_recipe_for_those_who_see_the_job(alice, family):
    graph = trace(actor_of(alice), family["pruned"])
    edge = next(edge for edge in graph.edges if edge.child == family["pruned"].pk)
    assert (edge.job, edge.methods) == (family["pruning"], ["prune_magnitude"])
    edges = trace(actor_of(UserFactory()), family["pruned"]).edges
    assert {(edge.job, tuple(edge.methods)) for edge in edges} == {(None, ())}
    assert "compressed_from" in {edge.relation for edge in edges}


def test_what_is_hidden_ends_the_chain(alice, family):
    Repository.objects.filter(name="tuned").update(visibility="private")
    stranger = actor_of(UserFactory())
    assert said(trace(stranger, family["base"])) == {("alice/base@1", "trained_on", "alice/rows@1")}


@pytest.mark.parametrize("same", [True, False])
def test_running_a_recipe_again_marks_its_edge(alice, family, same):
    assert {edge.verified for edge in trace(actor_of(alice), family["pruned"]).edges} == {None}
    again = job_of(
        alice,
        "compress",
        reproduces=family["pruning"],
        report={"reproduction": {"same": same}},
    )
    marks = {
        edge.child: (edge.verified, edge.reproduction)
        for edge in trace(actor_of(alice), family["pruned"]).edges
        if edge.relation == "compressed_from"
    }
    assert marks == {family["pruned"].pk: (same, again)}


def test_what_was_measured_and_restored_is_there_too(alice, family):
    test = make_version(alice, make_model(alice, "test", kind="dataset"), {"a.csv": b"2"})
    numbers = [EvaluationSpec(metric="accuracy", value=0.5, dataset=test)]
    add_evaluations(actor=actor_of(alice), version=family["base"], evaluations=numbers)
    assert ("alice/base@1", "evaluated_on", "alice/test@1") in said(
        trace(actor_of(alice), family["base"])
    )
    assert said(trace(actor_of(alice), test)) == {("alice/base@1", "evaluated_on", "alice/test@1")}
    made(alice, family["base"].repository)
    again = restore_as_new(actor=actor_of(alice), version=family["base"])
    assert (again.ref, "restored_from", "alice/base@1") in said(trace(actor_of(alice), again))


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_restored_is_no_matter_of_words(alice, kind):
    api, repository = api_of(alice), make_model(alice, "net", kind=kind)
    old = make_version(alice, repository, {"a.txt": b"1"})
    make_version(alice, repository, {"a.txt": b"2"})
    again = restore_as_new(actor=actor_of(alice), version=old)
    address = f"{kind}s/alice/net/versions"
    assert api.patch(f"{address}/{again.number}", {"message": "Better"}).status_code == 200
    role = "weights" if kind == "model" else "data"
    body = {
        "message": "Restores version 1.",
        "parents": [{"kind": kind, "version": "alice/net@1", "role": role}],
    }
    told = api.post(address, body).json()["number"]
    graph = trace(actor_of(alice), old)
    found = {graph.nodes[edge.child].number: edge.relation for edge in graph.edges}
    assert found[again.number] == "restored_from"
    assert found[told] != "restored_from"


def test_messages_of_older_rows_are_believed_once(alice):
    repository = make_model(alice, "net")
    old, other = (make_version(alice, repository, {"a.txt": b"1"}) for _ in range(2))
    messages = ["Restores version 1.", "Restores version 1: two is worse", "Restores version 2."]
    messages += ["Restores version 11.", "I restore: Restores version 1."]
    for message in messages:
        made(alice, repository, (old, "weights"), message=message)
    made(alice, repository, (old, "weights"), message="Restores version 1.", variant="x")
    elsewhere = make_model(alice, "elsewhere")
    made(alice, elsewhere, (old, "weights"), message="Restores version 1.")
    import_module("registry.migrations.0039_restored_edges").mark(apps, None)
    marked = LineageEdge.objects.filter(restores=True).order_by("pk")
    assert [edge.child.message for edge in marked] == messages[:2]
    assert other.child_edges.count() == 0


def test_names_that_go_in_circles_end(alice):
    names = ("a", "b", "c")
    for name, base in zip(names, ("alice/b", "ALICE/C", "alice/a"), strict=True):
        make_version(alice, make_model(alice, name, base_model=base), {})
    version = Repository.objects.get(name="a").versions.get()
    graph = trace(actor_of(alice), version)
    assert [name for name, _base in graph.bases] == ["alice/b", "ALICE/C"]
    Repository.objects.filter(name="b").update(visibility="private")
    graph = trace(actor_of(UserFactory()), version)
    assert [(name, base) for name, base in graph.bases] == [("alice/b", None)]


def test_a_large_family_is_cut(alice, family, monkeypatch):
    monkeypatch.setattr(lineage, "MOST", 4)
    graph = trace(actor_of(alice), family["data"])
    assert graph.is_cut
    assert len(graph.nodes) <= 4


def test_the_graph_over_rest_and_on_the_page(alice, family):
    graph = api_of(alice).get("models/alice/tuned/versions/2/lineage/graph").json()
    assert {(one["child"], one["relation"], one["parent"]) for one in graph["edges"]} == ALL
    (edge,) = [one for one in graph["edges"] if one["child"] == "alice/tuned@2"]
    assert edge["recipe"]["steps"] == [{"method": "prune_magnitude"}]
    assert (
        api_of(alice)
        .get("models/alice/tuned/versions/2/lineage/graph", query={"depth": 99})
        .status_code
        == 400
    )
    client = Client()
    client.force_login(alice)
    page = client.get("/models/alice/tuned?tab=lineage&version=2").content.decode()
    assert "compressed from" in page
    assert 'class="family"' in page
    assert f"/jobs/{family['pruning'].pk}/reproduce" in page


def test_the_data_that_a_model_is_about(alice, family):
    actor = actor_of(alice)
    for name in ("base", "tuned", "pruned", "student"):
        assert data_of(actor, family[name]) == family["data"], name
    bare = make_version(alice, make_model(alice, "bare"), {})
    assert data_of(actor, bare) is None
    rows, later = (
        make_version(alice, make_model(alice, name, kind="dataset"), {"a.csv": name.encode()})
        for name in ("beside", "measured")
    )
    smaller = made(alice, bare.repository, (bare, "weights"), (rows, "calibration"), variant="int8")
    assert data_of(actor, bare) == rows
    measured = EvaluationSpec(metric="accuracy", value=0.5, dataset=later)
    add_evaluations(actor=actor, version=smaller, evaluations=[measured])
    assert (data_of(actor, smaller), data_of(actor, bare)) == (rows, later)
    of_bare = EvaluationSpec(metric="loss", value=1, dataset=rows)
    add_evaluations(actor=actor, version=bare, evaluations=[of_bare])
    assert data_of(actor, bare) == rows


def test_data_that_somebody_may_not_see_is_not_named(alice, family):
    Repository.objects.filter(pk=family["data"].repository_id).update(visibility="private")
    Repository.objects.exclude(pk=family["data"].repository_id).update(visibility="public")
    bob = actor_of(UserFactory(username="bob"))
    assert data_of(bob, family["student"]) is None
    # Nor what somebody made of a model that everybody sees, and with which data.
    bare = make_version(alice, make_model(alice, "bare", visibility="public"), {})
    rows = make_version(
        alice, make_model(alice, "open-rows", kind="dataset", visibility="public"), {"a.csv": b"2"}
    )
    secret = make_model(alice, "secret", visibility="private")
    made(alice, secret, (bare, "weights"), (rows, "data"), job=job_of(alice, "train"))
    assert data_of(actor_of(alice), bare) == rows
    assert data_of(bob, bare) is None


def test_rows_that_a_model_computed_are_not_its_data(alice):
    bare = make_version(alice, make_model(alice, "bare"), {})
    rows = make_version(alice, make_model(alice, "rows", kind="dataset"), {"a.csv": b"1"})
    answers = make_model(alice, "answers", kind="dataset")
    made(alice, answers, (bare, "weights"), (rows, "data"), job=job_of(alice, "infer"))
    assert data_of(actor_of(alice), bare) is None
