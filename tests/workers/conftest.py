"""People and datasets of the jobs in these tests."""

import json

import pytest
from django.db import connections

from tests import factories
from tests.workers import tiny


@pytest.fixture
def owner(transactional_db):
    yield factories.UserFactory(username="alice")
    connections.close_all()


@pytest.fixture
def digits_dataset(owner):
    repository = factories.make_model(owner, "digits", kind="dataset")
    return factories.make_version(
        owner,
        repository,
        {
            "dataset.json": json.dumps(tiny.DESCRIBED).encode(),
            "train.safetensors": tiny.digits(120),
            "test.safetensors": tiny.digits(40, seed=1),
        },
    )
