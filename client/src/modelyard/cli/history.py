"""What became of a model over its versions: diff, compare, restore."""

import json
from collections.abc import Iterator
from typing import Any

import click

from modelyard.cli.jobs import Teller
from modelyard.cli.output import (
    Session,
    dataset_option,
    echo,
    plain,
    print_json,
    print_table,
    shared_options,
    size_text,
)
from modelyard.client import Kind

_SHOWN_TENSORS = 50


@click.command()
@click.argument("before")
@click.argument("after")
@click.option("--weights", is_flag=True, help="Have the weights compared, and wait for it.")
@dataset_option
@shared_options
def diff(session: Session, *, before: str, after: str, weights: bool, kind: Kind) -> None:
    """Say what changed from one version to another, which may be of another model.

    \b
    modelyard diff team/classifier@1 team/classifier@2
    modelyard diff team/classifier@1 other/classifier@champion --weights
    """  # noqa: D301
    with session.client() as client:
        if weights:
            told = Teller(session)
            # JSON is one document: how the job goes is for people.
            tell = (lambda _event: None) if session.as_json else told.tell
            found = client.diff_weights(before, after, tell=tell)
            if session.as_json:
                print_json(found)
            else:
                _print_weights(found)
            return
        changed = client.diff(before, after, kind=kind)
    if session.as_json:
        print_json(changed)
        return
    for line in _lines(changed):
        echo(plain(line))


def _lines(changed: Any) -> Iterator[str]:
    """Say everything that changed, a line each; texts as a unified diff."""
    yield from _files(changed["files"])
    for text in changed["texts"]:
        yield f"--- {text['path']}"
        yield from text["lines"] or [text["why"] or ""]
    for setting in changed["config"]:
        yield f"config  {setting['name']}: {setting['before']} -> {setting['after']}"
    yield from _tags(changed["tags"])
    for row in changed["metrics"]:
        yield f"metric  {row['metric']}: {row['before']} -> {row['after']} {row['unit']}".rstrip()
    if changed["signature"]["accepts"] is False:
        yield f"It does not take what callers send: {changed['signature']['why']}"
    known = changed["weights"]
    if known["state"] == "equal":
        yield _same_weights(known)
    elif known["summary"]:
        yield f"weights: {_counts(known['summary'])}"
    elif known["state"] == "unknown":
        yield "Nobody has compared the weights yet: --weights does."


def _files(files: Any) -> Iterator[str]:
    for file in files["added"]:
        yield f"new file      {file['path']} ({size_text(file['size_bytes'])})"
    for file in files["removed"]:
        yield f"gone file     {file['path']}"
    for change in files["changed"]:
        sizes = [size_text(change[side]["size_bytes"]) for side in ("before", "after")]
        yield f"changed file  {change['path']} ({sizes[0]} -> {sizes[1]})"


def _tags(tags: Any) -> Iterator[str]:
    for key, value in tags["added"].items():
        yield f"new tag   {key}={value}"
    for key, value in tags["removed"].items():
        yield f"gone tag  {key}={value}"
    for key, sides in tags["changed"].items():
        yield f"tag       {key}: {sides['before']} -> {sides['after']}"


def _counts(summary: Any) -> str:
    return ", ".join(f"{count} {state}" for state, count in summary["counts"].items())


def _same_weights(known: Any) -> str:
    beside = _left_out(known)
    said = "The weights are the same, byte for byte"
    return f"{said}; left out: {beside}." if beside else f"{said}."


def _left_out(known: Any) -> str:
    """Name the files of weights that were not compared."""
    # Older servers do not say it.
    beside = known.get("left_out") or {"before": [], "after": []}
    return ", ".join(sorted({*beside["before"], *beside["after"]}))


def _print_weights(found: Any) -> None:
    if found["state"] == "equal":
        echo(plain(_same_weights(found)))
    elif found["state"] != "known":
        echo(plain(found["why"] or f"{found['state']}: job {found['job']}"))
    else:
        changed = [row for row in found["tensors"] if row["state"] != "equal"]
        echo(plain(_counts(found["summary"])))
        if beside := _left_out(found):
            echo(plain(f"left out: {beside}"))
        print_table(
            ("tensor", "state", "relative", "largest", "cosine", "changed", "zeros"),
            (_row(row) for row in changed[:_SHOWN_TENSORS]),
        )
        if len(changed) > _SHOWN_TENSORS:
            echo(f"and {len(changed) - _SHOWN_TENSORS} more; --format json has them all")


def _row(row: Any) -> tuple[object, ...]:
    zeros = [row["zeros_before"], row["zeros_after"]]
    return (
        row["name"],
        row["state"],
        _number(row["relative"]),
        _number(row["max_change"]),
        _number(row["cosine"]),
        "" if row["changed"] is None else f"{row['changed']} of {row['elements']}",
        " -> ".join(str(count) for count in zeros if count is not None),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--differences-only", is_flag=True, help="Leave out what is alike.")
@dataset_option
@shared_options
def compare(
    session: Session, *, names: tuple[str, ...], differences_only: bool, kind: Kind
) -> None:
    """Set two to six versions beside each other, which may be of several models.

    \b
    modelyard compare team/classifier@1 team/classifier@2 team/classifier@champion
    modelyard compare team/classifier@1 other/classifier@3 --differences-only
    """  # noqa: D301
    with session.client() as client:
        found = client.compare(*names, differences_only=differences_only, kind=kind)
    if session.as_json:
        print_json(found)
        return
    named = [f"{one['namespace']}/{one['name']}@{one['number']}" for one in found["versions"]]
    print_table(("kind", "name", *named), _beside(found["sections"]))
    if cut := sum(section["cut_count"] for section in found["sections"]):
        echo(f"and {cut} more lines that are not shown")


def _beside(sections: Any) -> Iterator[tuple[object, ...]]:
    for section in sections:
        for line in section["lines"]:
            on = [line[part] for part in ("dataset", "split", "unit") if line[part]]
            name = f"{line['name']} ({', '.join(on)})" if on else line["name"]
            yield section["name"], name, *map(_value, line["values"])


def _value(value: Any) -> str:
    """Write a value whole, so that two that differ do not read alike."""
    if isinstance(value, dict) and "sha256" in value:
        return f"{size_text(value['size_bytes'])} {value['sha256']}"
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


@click.command()
@click.argument("name")
@click.option("--message", default="", metavar="TEXT", help="Why.")
@dataset_option
@shared_options
def restore(session: Session, *, name: str, message: str, kind: Kind) -> None:
    """Make the files and tags of an old version the newest version; the bytes are kept once.

    \b
    modelyard restore team/classifier@3 --message "The fourth forgets the sevens"
    """  # noqa: D301
    with session.client() as client:
        made = client.restore(name, message=message, kind=kind)
    if session.as_json:
        print_json(made)
    else:
        echo(plain(f"{made['namespace']}/{made['name']}@{made['number']}"))
