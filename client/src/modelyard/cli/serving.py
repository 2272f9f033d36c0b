"""Where models are served: deploy, and what may be done to an endpoint."""

import json
from typing import Any

import click

from modelyard.answers import Deployment, Endpoint
from modelyard.cli.output import (
    Session,
    echo,
    plain,
    print_facts,
    print_json,
    print_table,
    shared_options,
    time_text,
)
from modelyard.client import Role


@click.command()
@click.argument("name")
@click.option("--endpoint", default="", metavar="NAME", help="Unless told, the model's own name.")
@click.option(
    "--role", type=click.Choice(["live", "canary", "shadow"]), default="live", show_default=True
)
@click.option(
    "--weight",
    type=click.IntRange(0, 100),
    help="Percent of the requests; all for the first, 1 for a canary, 0 for others.",
)
@click.option("--widen", "widens", is_flag=True, help="Let a canary get more by itself.")
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="Such as max_batch_size=16.")
@click.option("--reason", default="", help="Why, though it does not take what callers send.")
@shared_options
def deploy(
    session: Session,
    *,
    name: str,
    role: Role,
    option: tuple[str, ...],
    **asked: Any,
) -> None:
    """Let a version answer at an endpoint of its model, which is made where there is none.

    NAME is namespace/name@version with a number, 'latest', or an alias, which it then follows.

    \b
    modelyard deploy team/classifier@production
    modelyard deploy team/classifier@4 --role canary --weight 5
    """  # noqa: D301
    options = dict(_read_option(one) for one in option)
    with session.client() as client:
        made = client.deploy(name, role=role, options=options, **asked)
    if session.as_json:
        print_json(made)
        return
    print_facts(
        [
            ("deployment", made["id"]),
            ("version", _served(made)),
            ("role", made["role"]),
            ("percent", made["weight"]),
        ]
    )


def _read_option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.UsageError(f"--option is KEY=VALUE, not {text!r}.")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


@click.group()
def endpoint() -> None:
    """List endpoints; split their traffic, promote, roll back, undeploy.

    A deployment is named by what it serves: 3, or @production where it follows an alias.

    \b
    modelyard endpoint show team/classifier
    modelyard endpoint split team/classifier 3=90 4=10
    """  # noqa: D301


@endpoint.command("list")
@click.option("--namespace", metavar="NAMESPACE")
@click.option("--model", metavar="NAME")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@shared_options
def list_endpoints(session: Session, *, limit: int, **filters: Any) -> None:
    """List where models are served, newest first."""
    with session.client() as client:
        found = list(client.endpoints(limit=limit, **filters))
    if session.as_json:
        print_json(found)
        return
    print_table(
        ("endpoint", "model", "deployments", "changed"),
        (
            (
                f"{row['namespace']}/{row['name']}",
                row["model"],
                ", ".join(f"{_served(one)} {one['weight']}%" for one in row["deployments"]),
                time_text(row["updated_at"]),
            )
            for row in found
        ),
    )


@endpoint.command()
@click.argument("name")
@shared_options
def show(session: Session, *, name: str) -> None:
    """Show what is deployed at an endpoint, and how serving processes say that it is."""
    with session.client() as client:
        found = client.endpoint(name)
        standing = client.standing(name)
    if session.as_json:
        print_json({**found, **standing})
        return
    _print_endpoint(found)
    names = {one["id"]: _served(one) for one in found["deployments"]}
    rows = [
        (
            replica["id"],
            names.get(one["deployment"], ""),
            one["state"],
            one["requests"],
            one["failures"],
            "" if one["mean_ms"] is None else one["mean_ms"],
        )
        for replica in standing["replicas"]
        for one in replica["deployments"]
    ]
    if rows:
        echo("")
        print_table(("process", "version", "state", "requests", "failed", "mean ms"), rows)


@endpoint.command()
@click.argument("name")
@click.argument("parts", nargs=-1, required=True, metavar="VERSION=PERCENT...")
@click.option("--reason", default="", help="Why, though one that begins may not by itself.")
@shared_options
def split(session: Session, *, name: str, parts: tuple[str, ...], reason: str) -> None:
    """Say how many percent of the requests each deployment answers; others get none."""
    with session.client() as client:
        present = client.endpoint(name)
        weights = {}
        for part in parts:
            served, equals, percent = part.rpartition("=")
            if not equals or not percent.isdecimal():
                raise click.UsageError(f"Write VERSION=PERCENT, not {part!r}.")
            weights[_number_of(present, served)] = int(percent)
        _answer(session, client.split_traffic(name, weights, reason=reason))


@endpoint.command()
@click.argument("name")
@click.argument("version")
@click.option("--reason", default="", help="Why, though a shadow's evidence does not allow it.")
@shared_options
def promote(session: Session, *, name: str, version: str, reason: str) -> None:
    """Let a deployment answer everything; the others stay, for a roll-back."""
    with session.client() as client:
        number = _number_of(client.endpoint(name), version)
        _answer(session, client.promote(name, number, reason=reason))


@endpoint.command("roll-back")
@click.argument("name")
@click.option(
    "--reason", default="", help="Why; needed where an alias moved to what may not by itself."
)
@shared_options
def roll_back(session: Session, *, name: str, reason: str) -> None:
    """Split the traffic as it was before it last changed."""
    with session.client() as client:
        _answer(session, client.roll_back(name, reason=reason))


@endpoint.command()
@click.argument("name")
@click.argument("version")
@shared_options
def undeploy(session: Session, *, name: str, version: str) -> None:
    """Take a deployment down."""
    with session.client() as client:
        client.undeploy(name, _number_of(client.endpoint(name), version))
        _answer(session, client.endpoint(name))


@endpoint.command()
@click.argument("name")
@shared_options
def delete(session: Session, *, name: str) -> None:
    """Delete an endpoint and what is deployed there."""
    with session.client() as client:
        client.delete_endpoint(name)
    if session.as_json:
        print_json(None)


def _number_of(present: Endpoint, served: str) -> int:
    """Find a deployment by what it serves."""
    for one in present["deployments"]:
        if served == _served(one):
            return one["id"]
    known = ", ".join(_served(one) for one in present["deployments"]) or "nothing"
    raise click.UsageError(f"{served!r} is not deployed there; {known} is.")


def _served(one: Deployment) -> str:
    return f"@{one['alias']}" if one["alias"] else f"{one['version']}"


def _answer(session: Session, found: Endpoint) -> None:
    if session.as_json:
        print_json(found)
    else:
        _print_endpoint(found)


def _print_endpoint(found: Endpoint) -> None:
    print_facts(
        [
            ("endpoint", f"{found['namespace']}/{found['name']}"),
            ("model", found["model"]),
            ("sticky", "yes" if found["sticky"] else "no"),
        ]
    )
    echo("")
    print_table(
        ("serves", "version", "role", "percent", "by", "since"),
        (
            (
                plain(_served(one)),
                one["version"],
                one["role"],
                one["weight"],
                one["created_by"] or "",
                time_text(one["created_at"]),
            )
            for one in found["deployments"]
        ),
    )
