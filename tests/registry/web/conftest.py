"""People, models and a browser without a screen for the page tests."""

import pytest
from django.conf import settings
from django.core.cache import cache
from django.test import Client
from django.utils import translation

from registry.models import Kind
from registry.services import catalog
from registry.services.versions import EvaluationSpec, ParentSpec, add_evaluations
from tests.factories import CARD, UserFactory, actor_of, make_blob, make_model, make_version
from tests.factories import safetensors_bytes as weights


@pytest.fixture(autouse=True)
def english_again():
    """Undo what a request for a Chinese page leaves behind in this thread."""
    yield
    translation.activate(settings.LANGUAGE_CODE)


@pytest.fixture(autouse=True)
def no_attempts_counted():
    """Forget the failed sign-ins of other tests, which come from the same address."""
    cache.clear()


@pytest.fixture
def owner(db):
    return UserFactory(username="olga")


@pytest.fixture
def stranger(db):
    return UserFactory(username="stan")


def signed_in(user):
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def as_owner(owner):
    return signed_in(owner)


@pytest.fixture
def as_stranger(stranger):
    return signed_in(stranger)


def measure(owner, version, *, accuracy, latency):
    add_evaluations(
        actor=actor_of(owner),
        version=version,
        evaluations=[
            EvaluationSpec(
                metric="accuracy",
                value=accuracy,
                unit="share",
                n=1000,
                low=accuracy - 0.01,
                high=min(1.0, accuracy + 0.01),
                split="test",
                device="cpu",
            ),
            EvaluationSpec(metric="latency_p50_batch1", value=latency, unit="ms", device="cpu"),
        ],
    )


def variant_of(owner, parent, name, size):
    return make_version(
        owner,
        parent.repository,
        {"model.safetensors": weights(weight=[0.5] * size)},
        variant=name,
        message=f"{name} of version {parent.number}",
        parents=[ParentSpec(version=parent, role="weights")],
    )


@pytest.fixture
def model(owner):
    """Give a model with two main-line versions, a variant, an alias, a tag and numbers."""
    repository = make_model(owner, "digits-cnn", summary="Reads handwritten digits.")
    make_version(owner, repository, message="First.")
    second = make_version(
        owner,
        repository,
        {
            "README.md": CARD.encode(),
            "config.json": b'{"signature": {"inputs": [{"name": "image", "dtype": "float32",'
            b' "shape": [null, 1, 28, 28]}], "outputs": [{"name": "logits", "dtype": "float32",'
            b' "shape": [null, 10]}]}}',
            "model.safetensors": weights(weight=[1.0] * 4000),
        },
        message="Trained longer.",
    )
    variant = variant_of(owner, second, "int8", 1000)
    measure(owner, second, accuracy=0.98, latency=2.3)
    measure(owner, variant, accuracy=0.975, latency=1.1)
    actor = actor_of(owner)
    catalog.set_alias(actor=actor, repository=repository, alias="champion", version=second)
    catalog.set_tag(actor=actor, repository=repository, key="team", value="vision")
    repository.refresh_from_db()
    return repository


@pytest.fixture
def private_model(owner):
    repository = make_model(owner, "secret-plan", visibility="private")
    make_version(owner, repository)
    return repository


@pytest.fixture
def dataset(owner):
    repository = make_model(owner, "digits", kind=Kind.DATASET, summary="Drawn by hand.")
    files = {"train.csv": b"text,label\na,0\n", "dataset.json": b'{"labels": ["0"]}'}
    make_version(owner, repository, files)
    return repository


@pytest.fixture
def blob(db):
    return make_blob(b"bytes")
