"""Logging in, and what the command line says of itself."""

import json
import stat
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from modelyard.cli import cli
from tests.client.conftest import Command
from tests.factories import make_token


@pytest.fixture
def bare(home):
    """Give the command line of somebody who has configured nothing."""
    return Command(home, None, None)


def test_a_login_is_kept_for_its_user_alone(bare, server, token, home):
    said = bare.run("login", "--url", server.url + "/", "--token-stdin", given=token + "\n")
    assert "alice" in said.err
    place = home / ".config/modelyard/servers.json"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert token not in said.out + said.err
    me = bare.json("whoami")
    assert (me["username"], me["namespaces"]) == ("alice", [{"slug": "alice", "role": "owner"}])
    text = bare.run("whoami").out
    assert "alice" in text
    assert token not in text


def test_a_wrong_token_is_not_kept(bare, server, home):
    wrong = "my_" + "a" * 40
    said = bare.run("login", "--url", server.url, "--token-stdin", given=wrong, status=4)
    assert "modelyard login" in said.err
    assert wrong not in said.out + said.err
    assert not (home / ".config/modelyard/servers.json").exists()


def test_a_token_that_would_forge_a_header_is_refused(bare, server):
    bare.run("whoami", status=4, MODELYARD_URL=server.url, MODELYARD_TOKEN="my_a\r\nx: y")


def test_each_server_has_its_token_and_the_environment_comes_first(bare, server, token, bob):
    bare.run("login", "--url", server.url, "--token-stdin", given=token)
    assert bare.json("whoami", MODELYARD_TOKEN=make_token(bob))["username"] == "bob"
    # The same server under another name is another server: the token stays at home.
    other = server.url.replace("127.0.0.1", "localhost")
    said = bare.run("whoami", "--url", other, status=4)
    assert "modelyard login" in said.err


def test_logout_forgets(bare, server, token):
    bare.run("login", "--url", server.url, "--token-stdin", given=token)
    assert bare.json("logout") == {"url": server.url, "forgotten": True}
    assert bare.json("logout") == {"url": server.url, "forgotten": False}
    bare.run("whoami", status=4)


def test_without_a_terminal_the_token_is_never_asked_for(bare, server):
    assert "--token-stdin" in bare.run("login", "--url", server.url, status=2).err


def test_no_server_is_a_clear_word(bare):
    assert "MODELYARD_URL" in bare.run("whoami", status=4).err


@pytest.mark.parametrize(
    "url", ["ftp://host", "host", "http://", "http://a:b@host", "http://host/?a=1", "http://[", ""]
)
def test_addresses_that_are_none(bare, url):
    assert bare.run("whoami", "--url", url, status=4).err.startswith("modelyard: ")


def test_a_torn_file_of_tokens_is_an_empty_one(bare, home):
    place = home / ".config/modelyard/servers.json"
    place.parent.mkdir(parents=True)
    place.write_text('{"default": "http://127.0.0.1:1", "tok')
    assert "MODELYARD_URL" in bare.run("whoami", status=4).err


@pytest.mark.slow
def test_a_server_that_is_away(bare):
    said = bare.run("whoami", "--url", "http://127.0.0.1:1", status=5)
    assert "cannot be reached" in said.err


def commands(group, *above):
    """List every command with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*above, name)
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)


@pytest.mark.parametrize("arguments", [(), *commands(cli)], ids=" ".join)
def test_every_command_explains_itself(arguments):
    done = CliRunner().invoke(cli, [*arguments, "--help"], prog_name="modelyard")
    assert done.exit_code == 0
    assert done.output.startswith(" ".join(["Usage: modelyard", *arguments]))


def test_help_waits_for_no_library(bare):
    code = (
        "import sys\n"
        "from modelyard.cli import main\n"
        "sys.argv = ['modelyard', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "slow = {'httpx', 'rich', 'asyncio', 'modelyard.client'} & set(sys.modules)\n"
        "print(sorted(slow), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=bare.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete(bare, shell):
    assert "_MODELYARD_COMPLETE" in bare.run("completion", shell).out


def test_completion_knows_the_commands(bare):
    said = bare.run(_MODELYARD_COMPLETE="bash_complete", COMP_WORDS="modelyard pu", COMP_CWORD="1")
    assert {line.partition(",")[2] for line in said.out.split()} == {"push", "pull"}


def test_wrong_use_is_2(bare):
    assert "No such option" in bare.run("search", "--surprise", status=2).err
    assert "No such command" in bare.run("surprise", status=2).err


def test_errors_name_the_request(command):
    said = command.run("info", "alice/nothing", status=3)
    assert "alice/nothing" in said.err
    assert "model_not_found, request " in said.err
    assert said.out == ""


def test_json_is_one_document_and_nothing_else(command):
    said = command.run("whoami", "--format", "json")
    assert json.loads(said.out)["username"] == "alice"
    assert said.err == ""
