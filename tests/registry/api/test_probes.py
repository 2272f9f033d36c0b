"""Liveness, readiness, numbers, and the page that shows the document."""

import re

import redis
from django.contrib.staticfiles import finders
from django.db import OperationalError

from registry.api import probes
from registry.errors import Unavailable
from registry.models import Worker
from registry.storage import default_storage
from tests.factories import make_model
from tests.registry.api.conftest import api_of

BAD_WORDS = re.compile("alice|classifier|my_")


def test_liveness_asks_nobody(client, django_assert_num_queries, db):
    with django_assert_num_queries(0):
        answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert client.head("/healthz").status_code == 200
    assert client.post("/healthz").status_code == 405


def test_readiness_names_each_part(client, db):
    body = client.get("/readyz").json()
    assert body["status"] == "degraded"
    assert {name: part["ok"] for name, part in body["parts"].items()} == {
        "database": True,
        "storage": True,
        "broker": True,
        "workers": False,
        "sandbox": True,
    }
    lacking = {"level": "insufficient", "lacks": "Landlock"}
    weak = Worker.objects.create(name="weak", queues=["default"], sandbox=lacking)
    body = client.get("/readyz").json()
    assert body["status"] == "degraded"
    assert body["parts"]["sandbox"]["detail"] == "insufficient: lacks Landlock"
    weak.delete()
    sandbox = {"level": "full", "landlock": 6, "seccomp": True, "user": True, "network": True}
    Worker.objects.create(name="w", queues=["cpu", "default"], sandbox=sandbox)
    body = client.get("/readyz").json()
    assert body["status"] == "ready"
    assert body["parts"]["workers"]["detail"] == "1 alive, serving cpu, default"
    level = "full: Landlock 6, seccomp, own user, own network"
    assert body["parts"]["sandbox"]["detail"] == level


def test_readiness_without_the_database(client, db, monkeypatch):
    def away():
        raise OperationalError("connection to 10.0.0.1 refused")

    monkeypatch.setattr(probes, "_ask_database", away)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    assert "10.0.0.1" not in answer.content.decode()


def test_readiness_without_storage(client, db, monkeypatch):
    def away(*args):
        raise Unavailable("The storage folder /secret/place cannot be written.")

    monkeypatch.setattr(type(default_storage()), "check", away)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "/secret/place" not in answer.content.decode()


def test_without_the_broker_the_site_stays_ready(client, db, monkeypatch):
    def away():
        raise redis.ConnectionError("no socket")

    monkeypatch.setattr(probes, "_ask_broker", away)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")


def test_numbers_carry_routes_and_no_names(client, alice):
    make_model(alice)
    api_of(alice).get("models/alice/classifier")
    answer = client.get("/metrics")
    assert answer["Content-Type"].startswith("text/plain")
    text = answer.content.decode()
    route = "api/v1/models/<str:namespace>/<str:name>"
    assert f'modelyard_http_requests_total{{method="GET",route="{route}",status="200"}}' in text
    assert f'modelyard_http_request_seconds_bucket{{le="0.1",method="GET",route="{route}"}}' in text
    assert "modelyard_workers 0.0" in text
    assert not BAD_WORDS.search(text)


def test_numbers_survive_a_database_that_is_away(client, db, monkeypatch):
    def away(self):
        raise OperationalError("gone")

    monkeypatch.setattr(probes._Gauges, "collect", away)
    assert "modelyard_http_requests_total" in client.get("/metrics").content.decode()


def test_several_processes_add_up_their_numbers(client, db, settings, tmp_path):
    settings.METRICS_DIR = str(tmp_path)
    assert client.get("/metrics").status_code == 200


def test_the_document_is_shown_without_inline_scripts(client, db):
    page = client.get("/api/docs")
    text = page.content.decode()
    assert 'data-document="/api/v1/openapi.json"' in text
    assert "<style" not in text
    assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
    assert "'unsafe" not in page["Content-Security-Policy"]
    addresses = re.findall(r'(?:src|href)="/static/([^"]+)"', text)
    assert len(addresses) == 4
    assert all(finders.find(address) for address in addresses)
