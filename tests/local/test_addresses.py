"""Where the embedded servers listen, and the secrets that are kept in the data folder."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from config.environment import env_database
from config.local.addresses import Addresses, fill_environment, kept_secret
from registry.queue import broker_url


def test_a_secret_is_made_once_and_only_we_can_read_it(tmp_path):
    path = tmp_path / "new" / "secret"
    first = kept_secret(path)
    assert len(first) >= 32
    assert kept_secret(path) == first
    assert kept_secret(path, "other") == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["secret"]


def test_a_secret_may_be_chosen(tmp_path):
    assert kept_secret(tmp_path / "secret", "chosen") == "chosen"


def test_readers_that_come_first_together_agree(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: kept_secret(tmp_path / "secret"), range(40)))
    assert len(found) == 1


@pytest.mark.parametrize("depth", [0, 150])
def test_socket_paths_fit_into_a_socket_address(tmp_path, depth):
    addresses = Addresses(tmp_path / ("x" * depth))
    assert len(str(addresses.postgres_sockets / ".s.PGSQL.5432.lock")) < 107
    assert len(str(addresses.valkey_socket)) < 107


def test_two_long_homes_have_different_sockets(tmp_path):
    one, other = (Addresses(tmp_path / (letter * 150)) for letter in "ab")
    assert one.run != other.run


def test_urls_are_understood_by_the_settings_and_by_celery(tmp_path, monkeypatch):
    addresses = Addresses(tmp_path / "a b")
    monkeypatch.setenv("DATABASE_URL", addresses.database_url)
    database = env_database("DATABASE_URL", "")
    assert database["NAME"] == "modelyard"
    assert database["PASSWORD"] == addresses.password("postgres")
    assert database["HOST"] == str(addresses.postgres_sockets)

    celery = urlsplit(broker_url(addresses.redis(7)))
    assert celery.scheme == "redis+socket"
    assert celery.password == addresses.password("valkey")
    assert celery.query == "virtual_host=7"
    assert broker_url("redis://host:6379/1") == "redis://host:6379/1"


def test_commands_find_the_embedded_servers_unless_others_are_named(tmp_path, monkeypatch):
    addresses = Addresses(tmp_path)
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    for name in ("postgres", "valkey"):
        (tmp_path / name).mkdir()
    fill_environment()
    assert os.environ["DATABASE_URL"] == addresses.database_url
    assert os.environ["REDIS_URL"] == "redis://elsewhere"
