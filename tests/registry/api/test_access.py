"""Who may do what: every address and method, by everybody, over what is public and private."""

import hashlib

import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.db import transaction

from registry import signing
from registry.api.urls import urlpatterns as doors
from registry.api.v1.urls import urlpatterns
from registry.models import LineageRole, Role
from registry.services import jobs, signatures, versions
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_admin,
    make_blob,
    make_member,
    make_model,
    safetensors_bytes,
)
from tests.registry.api.conftest import Api, api_of

FILES = {"model.safetensors": safetensors_bytes(weight=[1.0])}
SIGNED = {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}


def _signature():
    """Sign the files of every version here with a key of somebody's own."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key = signing.SigningKey(private=private, public_pem=public.decode())
    bundle = orjson.loads(signing.sign("mine", SIGNED, key))
    return {"bundle": bundle, "public_key": key.public_pem}


METHODS = ("get", "post", "put", "patch", "delete")
CALLERS = ("anonymous", "stranger", "reader", "contributor", "maintainer", "owner", "admin")

# What each caller gets, in the order of CALLERS; None stands for the answer of success.
PUBLIC = {
    "see": (None,) * 7,
    "write": (401, 403, 403, None, None, None, None),
    "maintain": (401, 403, 403, 403, None, None, None),
    "own": (401, 403, 403, 403, 403, None, None),
}
PRIVATE = {
    "see": (404, 404, None, None, None, None, None),
    "write": (404, 404, 403, None, None, None, None),
    "maintain": (404, 404, 403, 403, None, None, None),
    "own": (404, 404, 403, 403, 403, None, None),
}
# Addresses that do not depend on a repository's visibility.
ALIKE = {
    "everybody": (None,) * 7,
    "signed in": (401, None, None, None, None, None, None),
    "in namespace: write": (401, 403, 403, None, None, None, None),
    "in namespace: own": (401, 403, 403, 403, 403, None, None),
    "in namespace: read": (401, 403, None, None, None, None, None),
    "see the job": (401, 404, None, None, None, None, None),
    "move the job": (401, 404, 403, None, None, None, None),
    "of contributor": (401, 404, 404, None, 404, 404, None),
}

NEW = {"namespace": "team", "name": "another"}
COMPRESS = {
    "kind": "compress",
    "schema": 1,
    "model": "team/thing@1",
    "steps": [{"method": "quantize_dynamic"}],
}


def _repository(kind):
    """Declare the addresses of one kind: method -> rule, success, body."""
    return {
        f"{kind}s": {"get": ("everybody", 200), "post": ("in namespace: write", 201, NEW)},
        kind: {
            "get": ("see", 200),
            "patch": ("write", 200, {"summary": "x"}),
            "delete": ("own", 204),
        },
        f"{kind}-tag": {"put": ("write", 200, {"value": "x"}), "delete": ("write", 204)},
        f"{kind}-aliases": {"get": ("see", 200)},
        f"{kind}-alias": {
            "get": ("see", 200),
            "put": ("write", 200, {"version": 1}),
            "delete": ("write", 204),
        },
        f"{kind}-lineage": {"get": ("see", 200)},
        f"{kind}-versions": {"get": ("see", 200), "post": ("write", 201, {"message": "x"})},
        f"{kind}-version": {
            "get": ("see", 200),
            "patch": ("write", 200, {"message": "x"}),
            "delete": ("maintain", 204),
        },
        f"{kind}-files": {"get": ("see", 200)},
        f"{kind}-version-tag": {"put": ("write", 200, {"value": "x"}), "delete": ("write", 204)},
        f"{kind}-version-lineage": {"get": ("see", 200)},
        f"{kind}-diff": {"get": ("see", 200)},
        f"{kind}-evaluations": {
            "get": ("see", 200),
            "post": ("write", 201, {"metric": "accuracy", "value": 0.5}),
        },
        f"{kind}-signatures": {"get": ("see", 200), "post": ("write", 201, _signature())},
        # The one there was added by the contributor.
        f"{kind}-signature": {"get": ("see", 200), "delete": ("write", 204)},
    }


TABLE = {
    **_repository("model"),
    **_repository("dataset"),
    # Submitting is a write in the model's repository, whose visibility therefore matters.
    "jobs": {"get": ("signed in", 200), "post": ("submit", 202, {"recipe": COMPRESS})},
    "job": {"get": ("see the job", 200)},
    "job-log": {"get": ("see the job", 200)},
    "job-cancel": {"post": ("move the job", 202)},
    "job-resume": {"post": ("move the job", 202)},
    "recipes": {"get": ("everybody", 200)},
    "recipe": {"get": ("everybody", 200)},
    "workers": {"get": ("signed in", 200)},
    "whoami": {"get": ("signed in", 200)},
    "tokens": {"get": ("signed in", 200), "post": ("signed in", 201, {"name": "x"})},
    "token": {"delete": ("of contributor", 204)},
    "namespaces": {"get": ("signed in", 200), "post": ("signed in", 201, {"slug": "new-team"})},
    "namespace": {"get": ("everybody", 200)},
    "members": {"get": ("in namespace: read", 200)},
    "member": {
        "put": ("in namespace: own", 200, {"role": "reader"}),
        "delete": ("in namespace: own", 204),
    },
    "events": {"get": ("signed in", 200)},
    "signing-key": {"get": ("everybody", 200)},
    "openapi": {"get": ("everybody", 200)},
}
PUBLIC["submit"] = (401, 403, 403, None, None, None, None)
PRIVATE["submit"] = (401, 404, 403, None, None, None, None)

SLOTS = {
    "<str:namespace>": "team",
    "<str:name>": "thing",
    "<str:version>": "2",
    "<str:other>": "1",
    "<str:key>": "stage",
    "<str:alias>": "champion",
    "<str:kind>": "compress",
    "<str:username>": "extra",
}


class World:
    """A team with everybody in it, a thing of each kind, and jobs in each state."""

    def __init__(self, visibility):
        team = NamespaceFactory(slug="team")
        people = {
            "stranger": UserFactory(),
            "admin": make_admin(),
            **{role.value: make_member(team, role) for role in Role},
        }
        owner = people["owner"]
        self.callers = {name: api_of(user) for name, user in people.items()}
        self.callers["anonymous"] = Api()
        team.memberships.create(user=UserFactory(username="extra"), role=Role.READER)
        self.signatures = {}
        for kind in ("model", "dataset"):
            thing = make_model(
                owner,
                "thing",
                kind=kind,
                namespace="team",
                visibility=visibility,
                tags={"stage": "lab"},
            )
            signature = _signature()
            self.signatures[kind] = signatures.add_signature(
                actor=actor_of(people["contributor"]),
                version=self._fill(owner, thing),
                bundle=orjson.dumps(signature["bundle"]),
                public_key=signature["public_key"],
            )
        # Jobs read a model of their own: what a job reads cannot be deleted.
        source = make_model(owner, "source", namespace="team", visibility=visibility)
        self._fill(owner, source)
        recipe = {**COMPRESS, "model": "team/source@1"}
        contributor = actor_of(people["contributor"])
        self.jobs = {
            name: jobs.submit_job(actor=contributor, recipe=recipe)
            for name in ("job", "job-log", "job-cancel", "job-resume")
        }
        jobs.cancel_job(actor=contributor, job=self.jobs["job-resume"])
        self.token = people["contributor"].tokens.create(
            name="another", prefix="my_", digest="x", scopes=["read"]
        )

    def _fill(self, owner, thing):
        content = {path: make_blob(content) for path, content in FILES.items()}
        actor = actor_of(owner)
        first = versions.create_version(actor=actor, repository=thing, files=content)
        parent = versions.ParentSpec(version=first, role=LineageRole.WEIGHTS)
        second = versions.create_version(
            actor=actor, repository=thing, files=content, parents=[parent], tags={"stage": "lab"}
        )
        thing.aliases.create(name="champion", version=first)
        assert second.number == 2
        return second

    def address(self, pattern):
        path = str(pattern.pattern)
        signature = self.signatures["dataset" if path.startswith("datasets") else "model"]
        path = path.replace("<int:signature>", str(signature.pk))
        for slot, value in SLOTS.items():
            path = path.replace(slot, value)
        job = self.jobs.get(pattern.name)
        return path.replace("<str:job>", str(job.pk) if job else "").replace(
            "<int:token>", str(self.token.pk)
        )


def _differences(world, rules):
    for pattern in urlpatterns:
        for method, (rule, success, *body) in TABLE[pattern.name].items():
            for caller, refusal in zip(CALLERS, rules[rule], strict=True):
                before = transaction.savepoint()
                answer = world.callers[caller].send(method, world.address(pattern), *body)
                transaction.savepoint_rollback(before)
                expected = success if refusal is None else refusal
                if answer.status_code != expected:
                    yield pattern.name, method, caller, answer.status_code, expected


@pytest.mark.parametrize(
    ("visibility", "rules"), [("public", PUBLIC), ("private", PRIVATE)], ids=["public", "private"]
)
def test_each_caller_gets_what_the_table_says(db, visibility, rules):
    assert list(_differences(World(visibility), {**ALIKE, **rules})) == []


def test_internal_things_are_seen_by_everybody_who_signed_in(db):
    world = World("internal")
    answers = {
        caller: world.callers[caller].get("models/team/thing").status_code for caller in CALLERS
    }
    assert answers == {**dict.fromkeys(CALLERS, 200), "anonymous": 404}


def test_every_address_and_method_is_declared():
    routed = {
        (pattern.name, method)
        for pattern in urlpatterns
        for method in METHODS
        if hasattr(pattern.callback.view_class, method)
    }
    assert routed == {(name, method) for name, methods in TABLE.items() for method in methods}


def test_no_address_takes_another_method(db):
    world = World("public")
    for pattern in urlpatterns:
        for method in set(METHODS) - TABLE[pattern.name].keys():
            answer = world.callers["admin"].send(method, world.address(pattern))
            assert answer.status_code == 405, (pattern.name, method)


def test_the_doors_beside_v1_are_declared():
    names = {str(door.pattern) for door in doors}
    assert names == {"api/v1/", "api/docs", "healthz", "readyz", "metrics", "^api(?:/.*)?$"}


def test_what_is_hidden_answers_like_what_is_not_there(db):
    world = World("private")
    stranger = world.callers["stranger"]
    for pattern in urlpatterns:
        for method, (rule, _, *body) in TABLE[pattern.name].items():
            if rule not in {"see", "write", "maintain", "own"}:
                continue
            hidden = world.address(pattern)
            absent = hidden.replace("team/thing", "team/thong")
            answers = [
                stranger.send(method, address, *body).content.decode()
                for address in (hidden, absent)
            ]
            same = [
                _without_request_id(text).replace("thong", "thing").replace("\n", "")
                for text in answers
            ]
            assert same[0] == same[1], (pattern.name, method)


def _without_request_id(text):
    head, _, _ = text.partition('"request_id"')
    return head
