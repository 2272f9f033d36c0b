"""Who is asking: login, logout, whoami; and the shell's completion."""

import sys

import click
from click.shell_completion import get_completion_class

from modelyard.cli.output import (
    Session,
    plain,
    print_facts,
    print_json,
    say,
    shared_options,
)
from modelyard.configuration import (
    Server,
    check_token,
    find_server,
    forget,
    is_on_this_machine,
    remember,
)


@click.command()
@click.option("--token-stdin", is_flag=True, help="Read the token from the standard input.")
@shared_options
def login(session: Session, *, token_stdin: bool) -> None:
    """Keep a server and a token for it.

    The token is asked for, or read from the standard input; it is never an argument, which every
    process of the machine could read. It is tried, then kept in a file that only you can read.

    \b
    modelyard login --url https://models.example.org
    modelyard login --url https://models.example.org --token-stdin < token.txt
    """  # noqa: D301
    server = find_server(session.url, "")
    if token_stdin:
        token = sys.stdin.readline(2000).strip()
    elif sys.stdin.isatty():
        say(f"Make a token in the browser: {server.url}/settings/tokens")
        token = click.prompt("Token", hide_input=True, err=True)
    else:
        raise click.UsageError("There is no terminal to ask on; use --token-stdin.")
    if not token:
        raise click.UsageError("The token is empty.")
    if server.url.startswith("http:") and not is_on_this_machine(server.url):
        say("Warning: without https, everybody on the way can read the token.")
    session.url = server.url
    with session.client(check_token(token.strip())) as client:
        me = client.whoami()
    place = remember(Server(server.url, token.strip()))
    if session.as_json:
        print_json(me)
    elif not session.quiet:
        say(f"Logged in to {server.url} as {plain(me['username'])}; the token is in {place}.")


@click.command()
@shared_options
def logout(session: Session) -> None:
    """Forget the token of a server; it stays valid until it is revoked there."""
    server = find_server(session.url, "")
    known = forget(server.url)
    if session.as_json:
        print_json({"url": server.url, "forgotten": known})
    elif not session.quiet:
        say(f"{'Forgot' if known else 'There was no'} token for {server.url}.")


@click.command()
@shared_options
def whoami(session: Session) -> None:
    """Say who the token belongs to, and what it reaches."""
    with session.client() as client:
        me = client.whoami()
    if session.as_json:
        print_json(me)
        return
    token = me["token"]
    print_facts(
        [
            ("user", me["username"] or "nobody (no token)"),
            ("server", client.url),
            ("token", f"{token['name']} ({token['prefix']}...)" if token else ""),
            ("expires", token["expires_at"] if token else ""),
            ("scopes", ", ".join(me["scopes"])),
            ("admin", "yes" if me["is_admin"] else ""),
            *((f"in {plain(place['slug'])}", place["role"]) for place in me["namespaces"]),
        ]
    )


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands in your shell.

    \b
    modelyard completion bash >> ~/.bashrc
    modelyard completion zsh >> ~/.zshrc
    modelyard completion fish > ~/.config/fish/completions/modelyard.fish
    """  # noqa: D301
    root = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root.command, {}, "modelyard", "_MODELYARD_COMPLETE").source())
