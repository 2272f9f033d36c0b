"""What goes to the screen: JSON for programs, tables for people, nothing that moves a cursor."""

import functools
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

import modelyard
from modelyard.errors import ModelyardError, NotSignedIn, Refused

_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNITS = ("kB", "MB", "GB", "TB", "PB")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Session:
    """How a command was called: with which server, and in which form it is to answer."""

    def __init__(self, url: str | None, form: str, *, quiet: bool) -> None:
        self.url = url
        self.as_json = form == "json"
        self.quiet = quiet

    def client(self, token: str | None = None) -> "modelyard.Client":
        return modelyard.Client(self.url, token)


def shared_options(function: _Function) -> _Function:
    """Give a command the options that all have, gathered in a `session`."""

    @click.option("--url", metavar="URL", help="The server; otherwise MODELYARD_URL or the login.")
    @click.option(
        "--format",
        "form",
        type=click.Choice(["text", "json"]),
        default="text",
        help="How to answer; json is one document, or a line for each event.",
    )
    @click.option("-q", "--quiet", is_flag=True, help="Say only what went wrong.")
    @functools.wraps(function)
    def called(*args: Any, url: str | None, form: str, quiet: bool, **more: Any) -> Any:
        return function(Session(url, form, quiet=quiet), *args, **more)

    return called  # type: ignore[return-value]


dataset_option = click.option(
    "--dataset", "kind", flag_value="dataset", default="model", help="A dataset, not a model."
)


# --- For programs ------------------------------------------------------------------------------


def print_json(value: Any, *, lines: bool = False) -> None:
    """Print one document; with `lines` in one line."""
    text = json.dumps(value, ensure_ascii=False, indent=None if lines else 2)
    text = _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()


# --- For people --------------------------------------------------------------------------------


def plain(value: object) -> str:
    """Make a text of the server safe for a terminal: nothing in it moves the cursor."""
    return "".join(
        character if unicodedata.category(character)[0] != "C" else "\N{REPLACEMENT CHARACTER}"
        for character in str(value).replace("\n", " ").replace("\t", " ")
    )


def plain_lines(text: str) -> str:
    return "\n".join(plain(line.expandtabs(4)) for line in text.splitlines())


def echo(text: str) -> None:
    click.echo(text)


def say(text: str) -> None:
    """Say something beside the answer."""
    click.echo(text, err=True)


def say_error(problem: ModelyardError) -> None:
    say(f"modelyard: {plain(problem.detail)}")
    if not isinstance(problem, Refused):
        return
    for one in problem.errors[:20]:
        if one.detail not in problem.detail:
            say(f"  {plain(one.field)}: {plain(one.detail)}")
    where = f", request {plain(problem.request_id)}" if problem.request_id else ""
    say(f"  ({plain(problem.code)}{where})")
    if isinstance(problem, NotSignedIn):
        say("  Run `modelyard login`, or set MODELYARD_TOKEN.")


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows: a table on a terminal, columns between tabs for other programs."""
    texts = [[plain("" if cell is None else cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for text in texts:
            click.echo("\t".join(text))
        return
    from rich import box, console, table  # noqa: PLC0415 - slow to load, and only for this
    from rich.text import Text  # noqa: PLC0415

    drawn = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        drawn.add_column(title, overflow="fold" if title == "name" else "ellipsis")
    for text in texts:
        drawn.add_row(*map(Text, text))
    console.Console().print(drawn)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, without those that are empty."""
    kept = [(name, plain(value)) for name, value in facts if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        click.echo(f"{name:{width}}  {value}")


def size_text(count: int | None) -> str:
    if count is None:
        return ""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in _UNITS:
        size /= 1000
        if size < 999.95 or unit == _UNITS[-1]:
            break
    return f"{size:.1f} {unit}"


def count_text(count: int | None) -> str:
    """Write a number of parameters as people say it: 22.7M."""
    if count is None:
        return ""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= limit:
            return f"{count / limit:.1f}{unit}"
    return str(count)


def time_text(stamp: str | None) -> str:
    return (stamp or "")[:16].replace("T", " ")
