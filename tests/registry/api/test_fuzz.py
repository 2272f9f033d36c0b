"""Whatever arrives at whatever address, the answer is documented and never a 500."""

from urllib.parse import quote

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.api.v1.openapi import openapi_document
from registry.api.v1.urls import urlpatterns
from tests.registry.api.test_access import SLOTS, TABLE, World

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "\u202e", "team/thing@1", "team/thing", "@champion", "latest", "1", "-1", "%00", "../a"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OPERATIONS = [(pattern, method) for pattern in urlpatterns for method in TABLE[pattern.name]]
FIELDS = sorted(
    {
        name
        for schema in openapi_document()["components"]["schemas"].values()
        for name in schema.get("properties", {})
    }
)
PARAMETERS = sorted(
    {
        parameter["name"]
        for methods in openapi_document()["paths"].values()
        for operation in methods.values()
        for parameter in operation["parameters"]
        if parameter["in"] == "query"
    }
)


def _mutated(body, changes):
    if not isinstance(body, dict):
        return changes
    return {**body, **changes}


@given(data=st.data())
@settings(
    max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
def _fuzz(world, data):
    pattern, method = data.draw(st.sampled_from(OPERATIONS))
    address = str(pattern.pattern)
    for slot, good in SLOTS.items():
        if slot in address:
            part = data.draw(st.just(good) | st.just(good) | TEXTS)
            address = address.replace(slot, quote(part, safe="") or "-")
    address = address.replace("<str:job>", str(next(iter(world.jobs.values())).pk))
    for slot in ("<int:token>", "<int:signature>"):
        address = address.replace(slot, str(data.draw(st.integers(0, 2**70))))
    body = TABLE[pattern.name][method][2:]
    changes = data.draw(st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=4))
    sent = data.draw(VALUES | st.just(_mutated(body[0] if body else None, changes)))
    query = data.draw(
        st.dictionaries(
            st.sampled_from(PARAMETERS) | TEXTS, TEXTS | st.lists(TEXTS, max_size=2), max_size=3
        )
    )
    before = transaction.savepoint()
    answer = world.callers["owner"].send(
        method, address, None if method in {"get", "delete"} else sent, query=query
    )
    transaction.savepoint_rollback(before)
    assert answer.status_code < 500, (method, address, sent, query, answer.content)


def test_nothing_makes_it_fall_over():
    _fuzz(World("private"))
