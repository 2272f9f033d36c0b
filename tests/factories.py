"""Rows for tests, made through the services wherever a service exists."""

import json
import struct
from array import array

import factory

from registry.authenticate import Visit, actor_for_user
from registry.models import Actor, Blob, Membership, Namespace, Repository, Role, User, Version
from registry.services import catalog, tokens, versions
from registry.services.blobs import record_blob
from registry.storage import default_storage

PASSWORD = "correct horse battery"


class UserFactory(factory.django.DjangoModelFactory):
    """A person with the namespace of their name."""

    class Meta:
        model = User
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"person{n}")
    password = factory.django.Password(PASSWORD)

    @factory.post_generation
    def namespace(self, create, extracted, **kwargs):
        space = Namespace.objects.create(slug=self.username, kind=Namespace.Kind.PERSON)
        Membership.objects.create(namespace=space, user=self, role=Role.OWNER)


class NamespaceFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = Namespace

    slug = factory.Sequence(lambda n: f"team{n}")


def actor_of(user: User, *, door: str = "test") -> Actor:
    return actor_for_user(user, Visit(door=door))


def make_admin() -> User:
    return UserFactory(is_superuser=True, is_staff=True)


def make_member(namespace: Namespace, role: str) -> User:
    user = UserFactory()
    Membership.objects.create(namespace=namespace, user=user, role=role)
    return user


def make_token(user: User, scopes=("read", "write", "jobs")) -> str:
    return tokens.create_token(actor=actor_of(user), name="test", scopes=scopes)[1]


def make_blob(content: bytes) -> Blob:
    return record_blob(default_storage().put([content]))


def safetensors_bytes(**tensors: list[float]) -> bytes:
    """Write a safetensors file of one-dimensional float32 tensors."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = array("f", values).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": [len(values)],
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


CARD = """---
license: apache-2.0
pipeline_tag: image-classification
library_name: pytorch
tags: [digits, vision]
---
# A classifier

It tells digits apart.
"""


def make_model(
    owner: User, name: str = "classifier", *, visibility: str = "public", **facts
) -> Repository:
    return catalog.register_repository(
        actor=actor_of(owner),
        kind=facts.pop("kind", "model"),
        namespace=facts.pop("namespace", owner.username),
        name=name,
        visibility=visibility,
        **facts,
    )


def make_version(
    owner: User, repository: Repository, files: dict[str, bytes] | None = None, **details
) -> Version:
    if files is None:
        files = {
            "README.md": CARD.encode(),
            "config.json": b'{"task": "image-classification"}',
            "model.safetensors": safetensors_bytes(weight=[1.0, 2.0, 3.0]),
        }
    return versions.create_version(
        actor=actor_of(owner),
        repository=repository,
        files={path: make_blob(content) for path, content in files.items()},
        **details,
    )
