"""Whatever arrives at whatever address, the answer is documented and never a 500."""

import re
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.api.v1.openapi import openapi_document
from tests.attacks.authorization import API, SLOTS
from tests.attacks.test_authorization import World, each_kind, undone
from tests.registry.api.conftest import Api

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
LINES = dict(each_kind(API))
OPERATIONS = [(address, method) for address, line in LINES.items() for method in line]
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
def _fuzz(world, api, data):
    template, method = data.draw(st.sampled_from(OPERATIONS))
    address = template
    for slot, good in SLOTS.items():
        if f"{{{slot}}}" in address:
            part = data.draw(st.just(good) | st.just(good) | TEXTS)
            address = address.replace(f"{{{slot}}}", quote(part, safe="") or "-")
    for slot in set(re.findall(r"{(\w+)}", address)):
        number = data.draw(st.just(world.slots.get(slot, "1")) | st.integers(0, 2**70).map(str))
        address = address.replace(f"{{{slot}}}", number)
    body = LINES[template][method][2:]
    changes = data.draw(st.dictionaries(st.sampled_from(FIELDS) | TEXTS, VALUES, max_size=4))
    sent = data.draw(VALUES | st.just(_mutated(body[0] if body else None, changes)))
    query = data.draw(
        st.dictionaries(
            st.sampled_from(PARAMETERS) | TEXTS, TEXTS | st.lists(TEXTS, max_size=2), max_size=3
        )
    )
    with undone():
        answer = api.send(
            method, address, None if method in {"get", "delete"} else sent, query=query
        )
    assert answer.status_code < 500, (method, address, sent, query, answer.content)


def test_nothing_makes_it_fall_over():
    world = World("private")
    _fuzz(world, Api(world.secrets["owner"]))
