"""Routes: who may call what, what is served, in how many queries; tokens in one query."""

import pickle
import threading
from dataclasses import replace
from datetime import timedelta

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import queue
from registry.authenticate import Visit, actor_from_token, actors_of, digest_of
from registry.models import (
    ANONYMOUS,
    Alias,
    Artifact,
    Deployment,
    Endpoint,
    LineageEdge,
    Repository,
    Token,
    Tuning,
    Version,
    VersionState,
)
from registry.routes import find_deployed, find_withdrawn, read_options, read_routes
from registry.serving_options import ServingOptions, SettledOptions, Tuned
from tests.factories import UserFactory, make_model, make_token, make_version

pytestmark = pytest.mark.django_db


def endpoint_of(repository, **facts):
    return Endpoint.objects.create(
        namespace=repository.namespace, name=repository.name, repository=repository, **facts
    )


def deployed(owner, name="classifier", **facts):
    repository = make_model(owner, name, **facts)
    version = make_version(owner, repository)
    endpoint = endpoint_of(repository)
    Deployment.objects.create(endpoint=endpoint, version=version, weight=100)
    return repository, version


PLACES = st.sampled_from(["here", "other"])
ROLES = st.sampled_from(["reader", "contributor", "maintainer", "owner"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    visibility=st.sampled_from(["public", "internal", "private"]),
    signed_in=st.booleans(),
    is_admin=st.booleans(),
    roles=st.dictionaries(PLACES, ROLES),
    grants=st.dictionaries(PLACES, ROLES),
    scopes=st.frozensets(st.sampled_from(["read", "write", "jobs", "admin"])),
    limited=st.tuples(st.none() | PLACES, st.none() | PLACES),
)
def test_who_may_call_is_who_sees_the_model(
    world, *, visibility, signed_in, is_admin, roles, grants, scopes, limited
):
    repository, other = world
    Repository.objects.filter(pk=repository.pk).update(visibility=visibility)
    spaces = {"here": repository.namespace_id, "other": other.namespace_id, None: None}
    models = {"here": repository.pk, "other": other.pk, None: None}
    actor = replace(
        ANONYMOUS,
        scopes=scopes,
        limited_namespace_id=spaces[limited[0]],
        limited_repository_id=models[limited[1]],
    )
    if signed_in:
        actor = replace(
            actor,
            user_id=1,
            is_admin=is_admin,
            roles={spaces[place]: role for place, role in roles.items()},
            grants={models[place]: role for place, role in grants.items()},
        )
    route = next(one for one in read_routes() if one.repository_id == repository.pk)
    seen = Repository.objects.visible_to(actor).filter(pk=repository.pk).exists()
    assert route.may_be_called_by(actor) == seen


@pytest.fixture
def world():
    here, _ = deployed(UserFactory())
    other, _ = deployed(UserFactory())
    return here, other


def test_a_route_names_what_is_served(db):
    owner = UserFactory()
    repository, version = deployed(owner)
    (route,) = read_routes()
    assert (route.name, route.sticky) == (repository.full_name, False)
    (one,) = route.deployments
    assert (one.number, one.weight, one.role) == (version.number, 100, "live")
    assert [file.path for file in one.files] == ["README.md", "config.json", "model.safetensors"]
    weights = next(file for file in one.files if file.path == "model.safetensors")
    assert one.weights_sha256 == weights.sha256
    assert one.options == SettledOptions()
    assert (one.options.threads, one.options.max_batch_size) == (1, 32)


def test_many_routes_cost_as_many_queries_as_one(django_assert_num_queries):
    owner = UserFactory()
    for name in ("a", "b", "c"):
        deployed(owner, name)
    read_routes()
    with django_assert_num_queries(2):
        assert len(read_routes()) == 3


def test_a_deployment_follows_its_alias():
    owner = UserFactory()
    repository = make_model(owner)
    first, second = make_version(owner, repository), make_version(owner, repository, message="2")
    Alias.objects.create(repository=repository, name="champion", version=first)
    Deployment.objects.create(endpoint=endpoint_of(repository), alias="champion", weight=100)
    assert read_routes()[0].deployments[0].number == first.number
    Alias.objects.filter(repository=repository).update(version=second)
    assert read_routes()[0].deployments[0].number == second.number
    Alias.objects.all().delete()
    assert read_routes()[0].deployments == ()


@pytest.mark.parametrize("state", ["pending", "quarantined", "failed", "archived"])
def test_what_must_not_run_is_not_routed(state):
    _, version = deployed(UserFactory())
    version.state = state
    version.save()
    assert read_routes()[0].deployments == ()
    assert find_deployed(read_routes()[0], str(version.number)) is None


def test_what_must_not_run_is_withdrawn(django_assert_num_queries):
    owner = UserFactory()
    versions = [deployed(owner, name)[1] for name in ("good", "bad", "deleted", "lost", "old")]
    good, bad, deleted, lost, old = versions
    Version.objects.filter(pk=bad.pk).update(state="quarantined")
    Version.objects.filter(pk=deleted.pk).update(deleted_at=timezone.now())
    Repository.objects.filter(pk=lost.repository_id).update(deleted_at=timezone.now())
    Version.objects.filter(pk=old.pk).update(state="deprecated")
    asked = {one.pk for one in versions} | {0}
    with django_assert_num_queries(1):
        assert find_withdrawn(asked) == asked - {good.pk, old.pk}
    with django_assert_num_queries(0):
        assert find_withdrawn(()) == frozenset()


def test_a_file_that_can_run_code_is_not_served():
    owner = UserFactory()
    repository = make_model(owner)
    version = make_version(
        owner, repository, {"weights.pt": pickle.dumps({"weight": [1.0]}), "notes.txt": b"hello"}
    )
    version.state = VersionState.READY
    version.save()
    Deployment.objects.create(endpoint=endpoint_of(repository), version=version, weight=100)
    (one,) = read_routes()[0].deployments
    assert [file.path for file in one.files] == ["notes.txt"]


def test_other_versions_are_found_on_demand():
    owner = UserFactory()
    repository, first = deployed(owner)
    second = make_version(owner, repository, message="another")
    Alias.objects.create(repository=repository, name="next", version=second)
    (route,) = read_routes()
    for asked in (str(second.number), "@next", "latest"):
        found = find_deployed(route, asked)
        assert (found.id, found.number) == (0, second.number)
    assert find_deployed(route, str(first.number)).number == first.number
    for unknown in ("99", "@nobody", "nonsense", "@\0", "0"):
        assert find_deployed(route, unknown) is None


def test_options_of_another_release_are_read_as_far_as_they_hold():
    stored = {"threads": 2, "max_batch_size": -1, "of_tomorrow": True}
    assert read_options(stored) == ServingOptions(threads=2)


def test_live_tokens_become_actors_in_one_query(django_assert_num_queries):
    people = [UserFactory(), UserFactory(), UserFactory()]
    secrets = [make_token(person) for person in people]
    Token.objects.filter(user=people[0]).delete()
    people[1].is_active = False
    people[1].save()
    visit = Visit(door="serving")
    with django_assert_num_queries(1):
        found = actors_of([digest_of(secret) for secret in secrets], visit)
    assert found == {digest_of(secrets[2]): actor_from_token(secrets[2], visit)}


def test_announced_routes_are_heard():
    listener = queue.RouteListener()
    assert not listener.wait(0.01)
    heard = []
    waiting = threading.Thread(target=lambda: heard.append(listener.wait(10)))
    waiting.start()
    queue.announce_routes()
    waiting.join()
    listener.close()
    assert heard == [True]


def test_replicas_say_how_they_are_until_they_fall_silent():
    queue.report_replica("one", {"id": "one", "models": 2}, 30)
    queue.report_replica("two", {"id": "two"}, 30)
    said = {replica["id"]: replica for replica in queue.read_replicas()}
    assert said["one"]["models"] == 2
    queue.report_replica("two", {"id": "two"}, 0.001)
    queue.report_replica("one", {"id": "one", "models": 3}, 30)
    while "two" in (said := {replica["id"]: replica for replica in queue.read_replicas()}):
        pass
    assert said["one"]["models"] == 3
    # Nobody who reads what replicas say after this finds one that says no models.
    queue.report_replica("one", {"id": "one"}, 0.001)


# --- Siblings ------------------------------------------------------------------------------------


def make_variant(owner, parent, variant="int8", **facts):
    made = make_version(owner, parent.repository)
    changes = {"variant": variant, "size_bytes": parent.size_bytes - 1, **facts}
    Version.objects.filter(pk=made.pk).update(**changes)
    LineageEdge.objects.create(child=made, parent=parent, role="weights")
    return made


def ports(name="x", size=-1):
    return {"inputs": [{"name": name, "dtype": "uint8", "shape": [size, 4]}], "outputs": []}


@pytest.fixture
def asking(db):
    """Deploy a version whose smaller variant may answer meanwhile; give it and its owner."""
    owner = UserFactory()
    _, version = deployed(owner)
    Version.objects.filter(pk=version.pk).update(size_bytes=1000, signature=ports())
    Deployment.objects.update(options={"sibling_meanwhile": True})
    version.refresh_from_db()
    return owner, version


def sibling():
    (route,) = read_routes()
    found = next(one for one in route.deployments if one.role == "live").sibling
    return found.number if found else None


def test_the_smallest_variant_with_the_same_signature_is_a_sibling(asking):
    owner, version = asking
    assert sibling() is None
    make_variant(owner, version, size_bytes=500, signature=ports(size="batch"))
    smaller = make_variant(owner, version, size_bytes=300, signature=ports())
    # Not one that takes something else, is larger, is no variant, or is not ready.
    make_variant(owner, version, size_bytes=200, signature=ports("y"))
    make_variant(owner, version, size_bytes=2000, signature=ports())
    make_variant(owner, version, "", size_bytes=200, signature=ports())
    held = make_variant(owner, version, size_bytes=200, signature=ports(), state="archived")
    assert held.number == 7
    assert sibling() == smaller.number == 3
    (route,) = read_routes()
    one = route.deployments[0].sibling
    assert (one.weight, one.options.sibling_meanwhile, bool(one.files)) == (0, False, True)
    Deployment.objects.update(options={})
    assert sibling() is None


def test_variants_of_one_version_are_siblings(asking):
    owner, version = asking
    large = make_variant(owner, version, size_bytes=500, signature=ports())
    small = make_variant(owner, version, size_bytes=300, signature=ports())
    Deployment.objects.update(version=large)
    assert sibling() == small.number
    Deployment.objects.update(version=small)
    assert sibling() is None


def test_siblings_of_many_cost_as_many_queries_as_of_one(asking, django_assert_num_queries):
    owner, version = asking
    make_variant(owner, version, size_bytes=500, signature=ports())
    read_routes()
    with django_assert_num_queries(4):
        read_routes()
    for name in ("a", "b"):
        _, other = deployed(owner, name)
        Version.objects.filter(pk=other.pk).update(size_bytes=1000)
        other.refresh_from_db()
        make_variant(owner, other, size_bytes=500)
    Deployment.objects.update(options={"sibling_meanwhile": True})
    read_routes()
    with django_assert_num_queries(4):
        assert sum(one.deployments[0].sibling is not None for one in read_routes()) == 3


# --- What tunings found ---------------------------------------------------------------------------


def tune(version, device_class="here", **found):
    given = {"runtime": "onnxruntime", "threads": 2, "max_batch_size": 16, **found}
    return Tuning.objects.create(version=version, device_class=device_class, **given)


def served_with(device_class="here"):
    ((one,),) = [route.deployments for route in read_routes(device_class)]
    return one.options.threads, one.options.max_batch_size, one.options.runtime


def test_what_is_left_open_is_as_was_measured_on_such_a_machine():
    repository, version = deployed(UserFactory())
    tune(version)
    tune(version, "there", threads=4, max_batch_size=64, runtime="torch")
    assert served_with("here") == (2, 16, "auto")
    assert served_with("there") == (4, 64, "torch")
    assert served_with("elsewhere") == served_with("") == (1, 32, "auto")
    # Also of a version that somebody calls by its number.
    second = make_version(repository.created_by, repository, message="another")
    tune(second, threads=8)
    (route,) = read_routes("here")
    found = find_deployed(route, str(second.number), "here")
    assert found.options.threads == 8


def test_what_was_compiled_leaves_a_way_where_a_machine_cannot():
    _, version = deployed(UserFactory())
    tune(version, runtime="aotinductor")
    ((one,),) = [route.deployments for route in read_routes("here")]
    assert (one.options.runtime, one.options.is_compiled) == ("auto", True)
    Deployment.objects.update(options={"runtime": "onnxruntime"})
    ((one,),) = [route.deployments for route in read_routes("here")]
    assert (one.options.threads, one.options.is_compiled) == (1, False)


def test_what_is_said_wins_over_what_was_measured():
    _, version = deployed(UserFactory())
    tune(version)
    Deployment.objects.update(options={"threads": 1})
    assert served_with() == (1, 16, "auto")
    Deployment.objects.update(options={"max_batch_size": 32})
    assert served_with() == (2, 32, "auto")
    # What was measured of one runtime says nothing of the other.
    Deployment.objects.update(options={"runtime": "torch"})
    assert served_with() == (1, 32, "torch")


def test_files_are_not_those_of_another_version_that_had_the_key():
    """As after a database was put back to what it was before."""
    _, version = deployed(UserFactory())
    ((one,),) = [route.deployments for route in read_routes()]
    Version.objects.filter(pk=version.pk).update(created_at=version.created_at - timedelta(1))
    weights = Artifact.objects.get(revision=version.revision, path="model.safetensors")
    Artifact.objects.filter(revision=version.revision).exclude(pk=weights.pk).delete()
    ((other,),) = [route.deployments for route in read_routes()]
    assert len(one.files) > len(other.files) == 1


def test_tuned_routes_cost_one_query_more(django_assert_num_queries):
    owner = UserFactory()
    for name in ("a", "b", "c"):
        tune(deployed(owner, name)[1])
    read_routes("here")
    with django_assert_num_queries(3):
        assert len(read_routes("here")) == 3


def test_nothing_stays_open():
    for options in (ServingOptions(), ServingOptions(threads=3), ServingOptions(runtime="torch")):
        for tuned in (None, Tuned(2, 16, "onnxruntime"), Tuned(2, 16, "torch")):
            settled = options.settled(tuned)
            assert isinstance(settled, SettledOptions)
            assert settled.threads == (options.threads or settled.threads)
