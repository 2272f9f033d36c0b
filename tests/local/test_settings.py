"""Settings as a process reads them from its environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READ = "import json; from config import settings; print(json.dumps(settings.{name}))"


def read(name, tmp_path, **variables):
    done = subprocess.run(
        [sys.executable, "-c", READ.format(name=name)],
        cwd=ROOT,
        env={**os.environ, "MODELYARD_HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("own", ["127.0.0.1", "localhost", "[::1]"])
def test_a_machine_always_answers_itself(own, tmp_path):
    hosts = read("ALLOWED_HOSTS", tmp_path, MODELYARD_ALLOWED_HOSTS="models.example.org")
    assert "models.example.org" in hosts
    assert own in hosts
    assert "*" not in hosts


@pytest.mark.parametrize(
    ("https", "believed"), [("1", ["HTTP_X_FORWARDED_PROTO", "https"]), ("0", None)]
)
def test_a_proxy_is_believed_only_where_one_is_announced(https, believed, tmp_path):
    assert read("SECURE_PROXY_SSL_HEADER", tmp_path, MODELYARD_HTTPS=https) == believed


OIDC = {"MODELYARD_OIDC_ISSUER": "https://login.example.org", "MODELYARD_OIDC_CLIENT_ID": "yard"}


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("MODELYARD_OIDC_ISSUER", {**OIDC, "MODELYARD_OIDC_ISSUER": "login.example.org"}),
        ("MODELYARD_OIDC_ISSUER", {**OIDC, "MODELYARD_OIDC_ISSUER": "http://login.example.org"}),
        ("MODELYARD_OIDC_ISSUER", {**OIDC, "MODELYARD_OIDC_ISSUER": "https://a:b@example.org"}),
        ("MODELYARD_OIDC_ISSUER", {**OIDC, "MODELYARD_OIDC_ISSUER": "https://example.org/?a=b"}),
        ("MODELYARD_OIDC_ISSUER", {**OIDC, "MODELYARD_OIDC_ISSUER": ""}),
        ("MODELYARD_OIDC_CLIENT_ID", {**OIDC, "MODELYARD_OIDC_CLIENT_ID": ""}),
        ("MODELYARD_OIDC_SIGNUP", {"MODELYARD_OIDC_SIGNUP": "perhaps"}),
        ("MODELYARD_REQUIRE_MFA", {"MODELYARD_REQUIRE_MFA": "some"}),
        ("MODELYARD_TRUSTED_PROXIES", {"MODELYARD_TRUSTED_PROXIES": "10.0.0.1/8, proxy"}),
        ("MODELYARD_SIGNUP", {"MODELYARD_SIGNUP": "yes please"}),
        ("MODELYARD_QUOTA_BYTES", {"MODELYARD_QUOTA_BYTES": "10 GB"}),
        ("MODELYARD_QUOTA_VERSIONS", {"MODELYARD_QUOTA_VERSIONS": "-1"}),
        ("MODELYARD_QUOTA_JOBS", {"MODELYARD_QUOTA_JOBS": "many"}),
        ("MODELYARD_RATE_REQUESTS", {"MODELYARD_RATE_REQUESTS": "1.5"}),
        ("MODELYARD_RATE_WRITES", {"MODELYARD_RATE_WRITES": "-1"}),
        ("MODELYARD_GRPC_ADDRESS", {"MODELYARD_GRPC_ADDRESS": "https://models.example.org:443"}),
        ("MODELYARD_GRPC_ADDRESS", {"MODELYARD_GRPC_ADDRESS": "models.example.org"}),
        ("MODELYARD_GRPC_ADDRESS", {"MODELYARD_GRPC_ADDRESS": "grpcs://models.example.org:many"}),
        ("MODELYARD_GRPC_ADDRESS", {"MODELYARD_GRPC_ADDRESS": "grpcs://:443"}),
        ("MODELYARD_GRPC_ADDRESS", {"MODELYARD_GRPC_ADDRESS": "grpc://models.example.org:1/ml"}),
        ("MODELYARD_GRPC_ADDRESS", {"MODELYARD_GRPC_ADDRESS": "grpcs://[::1:443"}),
    ],
)
def test_a_bad_value_stops_the_start_and_is_named(name, variables, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import config.settings"],
        cwd=ROOT,
        env={**os.environ, "MODELYARD_HOME": str(tmp_path), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"modelyard: {name}: ")


@pytest.mark.parametrize(("https", "secure"), [("1", True), ("0", False)])
def test_cookies_are_marked_for_https(https, secure, tmp_path):
    for name in ("SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE"):
        assert read(name, tmp_path, MODELYARD_HTTPS=https) is secure
    assert read("SESSION_COOKIE_HTTPONLY", tmp_path) is True


def test_older_secret_keys_come_from_a_variable_or_a_file(tmp_path):
    old, older = "a" * 40, "b" * 40
    (tmp_path / "keys").write_text(f"{old}\n{older}\n")
    by_file = {"MODELYARD_SECRET_KEY_FALLBACKS_FILE": str(tmp_path / "keys")}
    assert read("SECRET_KEY_FALLBACKS", tmp_path, **by_file) == [old, older]
    by_name = {"MODELYARD_SECRET_KEY_FALLBACKS": f"{old} {older}"}
    assert read("SECRET_KEY_FALLBACKS", tmp_path, **by_name) == [old, older]
    assert read("SECRET_KEY_FALLBACKS", tmp_path) == []


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("", ""),
        ("models.example.org:8081", "grpc://models.example.org:8081"),
        ("grpc://[::1]:8081", "grpc://[::1]:8081"),
        ("grpcs://models.example.org:443/", "grpcs://models.example.org:443"),
    ],
)
def test_where_grpc_is_may_be_said_with_tls_or_without(said, found, tmp_path):
    assert read("GRPC_ADDRESS", tmp_path, MODELYARD_GRPC_ADDRESS=said) == found
