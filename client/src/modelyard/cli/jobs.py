"""Background jobs: list, show, submit, follow, cancel, resume, log."""

import json
import sys
from typing import Any

import click

from modelyard.answers import Event, Job
from modelyard.cli.output import (
    Session,
    echo,
    plain,
    plain_lines,
    print_facts,
    print_json,
    print_table,
    say,
    shared_options,
    time_text,
)
from modelyard.client import Client
from modelyard.following import FINISHED

_MAX_RECIPE_BYTES = 10 << 20


@click.group()
def jobs() -> None:
    """Submit, list, follow and cancel jobs.

    \b
    modelyard jobs submit recipe.json --follow
    modelyard jobs list --state running
    """  # noqa: D301


@jobs.command("list")
@click.option("--state", type=click.Choice(["queued", "running", *sorted(FINISHED)]))
@click.option("--kind", metavar="KIND", help="A kind of recipe, such as compress.")
@click.option("--namespace", metavar="NAMESPACE")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@shared_options
def list_jobs(session: Session, *, limit: int, **filters: Any) -> None:
    """List the jobs you may see, newest first."""
    with session.client() as client:
        found = list(client.jobs(limit=limit, **filters))
    if session.as_json:
        print_json(found)
        return
    print_table(
        ("id", "kind", "state", "namespace", "step", "made", "result"),
        (
            (
                job["id"],
                job["kind"],
                job["state"],
                job["namespace"],
                job["progress"]["step"],
                time_text(job["created_at"]),
                _result_text(job),
            )
            for job in found
        ),
    )


@jobs.command()
@click.argument("job")
@shared_options
def show(session: Session, *, job: str) -> None:
    """Show one job."""
    with session.client() as client:
        _print_job(session, client.job(job))


@jobs.command()
@click.argument("recipe", type=click.File("rb"))
@click.option("--follow", "following", is_flag=True, help="Follow it until it ends.")
@shared_options
def submit(session: Session, *, recipe: Any, following: bool) -> None:
    """Queue a job; RECIPE is a file of JSON, or - for the standard input.

    Prints the job's id.

    \b
    modelyard jobs submit recipe.json
    echo '{"kind": "evaluate", ...}' | modelyard jobs submit - --follow
    """  # noqa: D301
    text = recipe.read(_MAX_RECIPE_BYTES + 1)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"The recipe is no JSON: {error}.") from None
    if not isinstance(content, dict) or len(text) > _MAX_RECIPE_BYTES:
        raise click.UsageError("The recipe is no JSON object of at most 10 MiB.")
    with session.client() as client:
        made = client.submit_job(content)
        if following:
            if not session.quiet:
                say(f"job {plain(made['id'])}")
            _follow(session, client, made["id"])
        elif session.as_json:
            print_json(made)
        else:
            echo(plain(made["id"]))


@jobs.command()
@click.argument("job")
@shared_options
def follow(session: Session, *, job: str) -> None:
    """Follow a job until it ends; Ctrl-C leaves it running.

    Ends with 0 when the job succeeded, and with 1 when it failed or was cancelled.
    """
    with session.client() as client:
        _follow(session, client, job)


@jobs.command()
@click.argument("job")
@shared_options
def cancel(session: Session, *, job: str) -> None:
    """Cancel a job."""
    with session.client() as client:
        _print_job(session, client.cancel_job(job))


@jobs.command()
@click.argument("job")
@shared_options
def resume(session: Session, *, job: str) -> None:
    """Queue a failed or cancelled job once more, from its last checkpoint."""
    with session.client() as client:
        _print_job(session, client.resume_job(job))


@jobs.command()
@click.argument("job")
@shared_options
def log(session: Session, *, job: str) -> None:
    """Print what a job has said."""
    with session.client() as client:
        text = client.job_log(job)
    if session.as_json:
        print_json({"log": text.splitlines()})
    elif text:
        echo(plain_lines(text))


def _follow(session: Session, client: Client, job: str) -> None:
    told = Teller(session)
    try:
        for event in client.follow_job(job):
            told.tell(event)
    except KeyboardInterrupt:
        say(f"\nLeft it running; go on with `modelyard jobs follow {plain(job)}`.")
        raise
    finished = client.job(job)
    if not session.as_json:
        if error := finished["error"]:
            say(f"{plain(error['code'])}: {plain(error['detail'])}")
        echo(_result_text(finished) or finished["state"])
    if finished["state"] != "succeeded":
        # What the job said is on the screen already.
        sys.exit(1)


class Teller:
    """Says what happens to a job, once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._said = ""

    def tell(self, event: Event) -> None:
        if self._session.as_json:
            print_json(event, lines=True)
            return
        words = self._words(event)
        if words and words != self._said and not self._session.quiet:
            say(words)
        self._said = words or self._said

    def _words(self, event: Event) -> str:
        data = event["data"]
        if event["id"] is None:
            # Where the job stands; its history says the same, and follows.
            return ""
        if event["type"] == "log":
            return plain(data.get("message", ""))
        if event["type"] == "progress":
            return _progress_text(data)
        if event["type"] == "state":
            return f"state: {plain(data.get('state', ''))}"
        pairs = (f"{key} {value}" for key, value in data.items())
        return plain(f"{event['type']}: {', '.join(pairs)}"[:500])


def _progress_text(data: dict[str, Any]) -> str:
    done, total = data.get("done"), data.get("total")
    whole = f" of {total:g}" if isinstance(total, int | float) else ""
    far = f"{done:g}{whole} {data.get('unit', '')}" if isinstance(done, int | float) else ""
    return plain(f"{data.get('step', '')} {far}".strip())


def _print_job(session: Session, job: Job) -> None:
    if session.as_json:
        print_json(job)
        return
    error = job["error"]
    print_facts(
        [
            ("id", job["id"]),
            ("kind", job["kind"]),
            ("state", job["state"]),
            # What a job waits for, where the server says so.
            ("waits", str(dict(job).get("waits") or "")),
            ("namespace", job["namespace"]),
            ("progress", _progress_text(dict(job["progress"]))),
            ("result", _result_text(job)),
            ("error", f"{error['code']}: {error['detail']}" if error else ""),
            ("attempts", f"{job['attempts']} of {job['max_attempts']}"),
            ("worker", job["worker"]),
            ("by", job["created_by"]),
            ("made", time_text(job["created_at"])),
            ("started", time_text(job["started_at"])),
            ("finished", time_text(job["finished_at"])),
        ]
    )


def _result_text(job: Job) -> str:
    result = job["result"]
    return f"{result['namespace']}/{result['name']}@{result['number']}" if result else ""
