"""What there is: search, info, versions."""

from typing import Any

import click

from modelyard.answers import Repository, Version
from modelyard.cli.output import (
    Session,
    count_text,
    dataset_option,
    echo,
    plain_lines,
    print_facts,
    print_json,
    print_table,
    shared_options,
    size_text,
    time_text,
)
from modelyard.client import Kind
from modelyard.errors import NotFound
from modelyard.names import parse_reference


@click.command()
@click.argument("words", nargs=-1)
@click.option("--task", metavar="TASK", help="Such as image-classification.")
@click.option("--library", metavar="LIBRARY")
@click.option("--license", metavar="LICENSE")
@click.option("--with-format", "file_format", metavar="FORMAT", help="Such as safetensors.")
@click.option("--owner", metavar="NAMESPACE", help="Only what belongs to this namespace.")
@click.option("--label", metavar="LABEL", help="A tag of the card.")
@click.option("--tag", multiple=True, metavar="KEY=VALUE", help="A tag; may be repeated.")
@click.option("--min-params", type=click.IntRange(min=0), metavar="COUNT")
@click.option("--max-params", type=click.IntRange(min=0), metavar="COUNT")
@click.option("--max-bytes", type=click.IntRange(min=0), metavar="BYTES")
@click.option(
    "--sort",
    type=click.Choice(["relevance", "updated", "created", "downloads", "name", "size"]),
    help="In which order.",
)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@dataset_option
@shared_options
def search(
    session: Session,
    *,
    words: tuple[str, ...],
    file_format: str | None,
    tag: tuple[str, ...],
    limit: int,
    kind: Kind,
    **filters: Any,
) -> None:
    """Find models or datasets by words, parts of words, and what is known about them.

    \b
    modelyard search digits
    modelyard search --task text-classification --max-params 100000000 --sort downloads
    modelyard search --owner team --format json
    """  # noqa: D301
    filters["format"] = file_format
    filters["tag"] = [":".join(read_pair("--tag", one)) for one in tag]
    with session.client() as client:
        found = list(client.search(" ".join(words), kind=kind, limit=limit, **filters))
    if session.as_json:
        print_json(found)
        return
    print_table(
        ("name", "version", "task", "params", "size", "downloads", "updated"),
        (
            (
                name_of(row),
                row["latest_version"],
                row["task"],
                count_text(row["parameters_count"]),
                size_text(row["size_bytes"]),
                row["downloads"],
                time_text(row["updated_at"]),
            )
            for row in found
        ),
    )


@click.command()
@click.argument("name")
@click.option("--card", is_flag=True, help="Print the card (README.md) alone.")
@dataset_option
@shared_options
def info(session: Session, *, name: str, card: bool, kind: Kind) -> None:
    """Show what is known about a model, and about one of its versions.

    NAME is namespace/name, or namespace/name@version with a number, an alias or 'latest'.

    \b
    modelyard info team/classifier
    modelyard info team/classifier@production --format json
    """  # noqa: D301
    with session.client() as client:
        if card:
            text = client.card(name, kind=kind)
            if session.as_json:
                print_json({"card": text})
            else:
                echo(plain_lines(text))
            return
        repository = client.repository(parse_reference(name).repository, kind=kind)
        aliases = client.aliases(name, kind=kind)
        version: Version | None = None
        try:
            version = client.version(name, kind=kind)
        except NotFound:
            # A name alone may be of a model that has no version yet.
            if parse_reference(name).version:
                raise
    if session.as_json:
        print_json({"repository": repository, "version": version, "aliases": aliases})
        return
    names = ", ".join(f"{alias['alias']} -> {alias['version']}" for alias in aliases)
    print_facts([*_repository_facts(repository), ("aliases", names)])
    if version is not None:
        echo("")
        print_facts(_version_facts(version))
        echo("")
        print_table(
            ("file", "size", "sha256"),
            (
                (file["path"], size_text(file["size_bytes"]), file["sha256"][:16])
                for file in version["files"]
            ),
        )


def _repository_facts(row: Repository) -> list[tuple[str, object]]:
    return [
        ("name", name_of(row)),
        ("kind", row["kind"]),
        ("summary", row["summary"]),
        ("visibility", row["visibility"]),
        ("task", row["task"]),
        ("library", row["library"]),
        ("license", row["license"]),
        ("base model", row["base_model"]),
        ("labels", ", ".join(row["labels"])),
        ("tags", pairs_text(row["tags"])),
        ("downloads", row["downloads"]),
        ("updated", time_text(row["updated_at"])),
    ]


def _version_facts(row: Version) -> list[tuple[str, object]]:
    return [
        ("version", row["number"]),
        ("variant", row["variant"]),
        ("state", row["state"]),
        ("reason", row["state_reason"]),
        ("message", row["message"]),
        ("formats", ", ".join(row["formats"])),
        ("parameters", count_text(row["parameters_count"])),
        ("size", size_text(row["size_bytes"])),
        ("aliases", ", ".join(row["aliases"])),
        ("tags", pairs_text(row["tags"])),
        ("by", row["created_by"]),
        ("made", time_text(row["created_at"])),
    ]


@click.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--main-line", is_flag=True, help="Without variants.")
@click.option("--state", metavar="STATE", help="Such as ready or deprecated.")
@dataset_option
@shared_options
def versions(
    session: Session, *, name: str, limit: int, main_line: bool, state: str | None, kind: Kind
) -> None:
    """List the versions of a model, newest first.

    \b
    modelyard versions team/classifier
    modelyard versions team/classifier --state ready --format json
    """  # noqa: D301
    filters = {"state": state, **({"with_variants": "false"} if main_line else {})}
    with session.client() as client:
        found = list(client.versions(name, kind=kind, limit=limit, **filters))
    if session.as_json:
        print_json(found)
        return
    print_table(
        ("version", "state", "aliases", "size", "made", "by", "variant", "message"),
        (
            (
                row["number"],
                row["state"],
                ",".join(row["aliases"]),
                size_text(row["size_bytes"]),
                time_text(row["created_at"]),
                row["created_by"],
                row["variant"],
                row["message"],
            )
            for row in found
        ),
    )


def name_of(row: Repository) -> str:
    return f"{row['namespace']}/{row['name']}"


def pairs_text(tags: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in tags.items())


def read_pair(option: str, text: str) -> tuple[str, str]:
    """Read KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"{option} takes KEY=VALUE, not {text!r}.")
    return key, value
