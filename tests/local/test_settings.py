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
