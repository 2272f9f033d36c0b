"""The embedded servers: made, started, killed and started again with everything in place."""

import os
import stat
import subprocess
from pathlib import Path

import psycopg
import pytest
import redis

from config.local.account import OWN, Account, ServerError, server_account, spawn
from config.local.addresses import Addresses
from config.local.process import Child
from config.local.servers import (
    broker_problem,
    buffers_mib,
    database_problem,
    make_database,
    prepare_postgres,
    prepare_valkey,
)
from tests.local.waiting import wait_until

# These start servers of their own.
pytestmark = pytest.mark.slow

SHELL = Path("/bin/sh")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a server to others")


@pytest.fixture
def run_server(tmp_path):
    children = []

    def run(server):
        child = Child(
            name=server.name,
            command=server.command,
            log=tmp_path / f"{server.name}.log",
            account=server.account,
            stop_signal=server.stop_signal,
        )
        children.append(child)
        child.start()
        return child

    yield run
    for child in children:
        child.stop()


def test_postgres_keeps_its_rows_when_it_is_killed(tmp_path, run_server):
    addresses = Addresses(tmp_path / "home")
    child = run_server(prepare_postgres(addresses))
    postgres_answers(addresses)
    make_database(addresses)
    make_database(addresses)
    with psycopg.connect(addresses.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'yes' AS answer")
    child.kill()
    child.process.wait()

    run_server(prepare_postgres(addresses))
    postgres_answers(addresses)
    with psycopg.connect(addresses.database_url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == ("yes",)
        for extension in ("pg_trgm", "unaccent", "btree_gin"):
            connection.execute(f"CREATE EXTENSION {extension}")


def test_postgres_is_open_to_nobody_without_the_password(tmp_path, run_server):
    addresses = Addresses(tmp_path / "home")
    run_server(prepare_postgres(addresses))
    postgres_answers(addresses)
    url = addresses.database("postgres")
    wrong = url.replace(addresses.password("postgres"), "wrong")
    assert "password authentication failed" in database_problem(wrong)
    assert stat.S_IMODE(addresses.postgres_sockets.stat().st_mode) == 0o700
    assert not list(addresses.postgres_sockets.glob("initial-password"))


@pytest.mark.parametrize(("memory", "buffers"), [(1 << 29, 128), (8 << 30, 1024), (1 << 40, 4096)])
def test_postgres_keeps_pages_in_a_part_of_the_memory(memory, buffers):
    assert buffers_mib(memory) == buffers


def test_a_cluster_whose_making_was_killed_is_made_again(tmp_path, run_server):
    addresses = Addresses(tmp_path / "home")
    draft = addresses.home / "postgres-draft"
    draft.mkdir(parents=True)
    (draft / "PG_VERSION").write_text("18\n")
    run_server(prepare_postgres(addresses))
    postgres_answers(addresses)
    assert not draft.exists()


def test_valkey_keeps_its_keys_and_asks_for_the_password(tmp_path, run_server):
    addresses = Addresses(tmp_path / "home")
    child = run_server(prepare_valkey(addresses))
    valkey_answers(addresses)
    with redis.Redis.from_url(addresses.redis_url) as broker:
        broker.set("kept", "yes")
    child.stop()

    run_server(prepare_valkey(addresses))
    valkey_answers(addresses)
    with redis.Redis.from_url(addresses.redis_url) as broker:
        assert broker.get("kept") == b"yes"
        assert broker.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    wrong = addresses.redis_url.replace(addresses.password("valkey"), "wrong")
    assert "invalid username-password pair" in broker_problem(wrong)
    assert addresses.password("valkey") not in " ".join(child.command)


@as_root
def test_root_hands_a_server_to_a_user_who_can_reach_it():
    account = server_account(Path("/modelyard-data"), SHELL)
    assert not account.passes
    assert account.uid != 0
    assert run_as(account, "id -u; id -G").split() == [str(account.uid), str(account.gid)]


@as_root
def test_root_hands_a_server_to_a_user_who_may_only_pass(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "program").write_text(
        "#!/bin/sh\nid -u; id -G; test -x $0 && echo found; touch $1 || echo refused\n"
    )
    (closed / "program").chmod(0o755)
    account = server_account(closed / "data", closed / "program")
    assert account.passes
    said = run_as(account, f"{closed}/program {closed}/file").splitlines()
    assert said[:3] == [str(account.uid), str(account.gid), "found"]
    assert said[-1] == "refused"
    assert run_as(account, "grep CapEff /proc/self/status").split()[1] == f"{1 << 2:016x}"


@as_root
def test_a_machine_that_does_not_let_root_go_says_what_to_do_instead(monkeypatch):
    monkeypatch.setattr("config.local.account._CAPABILITY_VERSION", 0)
    with pytest.raises(ServerError, match="start as an ordinary user"):
        spawn([SHELL], account=Account(65534, 65534, passes=True))


@as_root
def test_data_stays_with_the_account_that_made_it(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    assert server_account(data, SHELL).uid != 0
    os.chown(data, 12345, 54321)
    assert server_account(data, SHELL) == Account(12345, 54321, passes=True)


def run_as(account, script):
    child = spawn([SHELL, "-c", script], account=account, output=subprocess.PIPE)
    return child.communicate(timeout=30)[0].decode()


def test_an_ordinary_user_runs_the_servers_himself(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert server_account(tmp_path / "data", SHELL) == OWN


def postgres_answers(addresses):
    wait_until(lambda: not database_problem(addresses.database("postgres")), "Postgres")


def valkey_answers(addresses):
    wait_until(lambda: not broker_problem(addresses.redis_url), "Valkey")
