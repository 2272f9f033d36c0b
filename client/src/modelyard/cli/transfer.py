"""Files: push and pull."""

import time
from pathlib import Path

import click

from modelyard.cli.catalogue import read_pair
from modelyard.cli.drawing import drawn
from modelyard.cli.jobs import Teller
from modelyard.cli.output import (
    Session,
    dataset_option,
    echo,
    print_json,
    say,
    shared_options,
    size_text,
)
from modelyard.client import Kind, Visibility
from modelyard.take import TARGETS, Target

_workers = click.option(
    "--workers",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    help="How much to move at the same time.",
)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("-m", "--message", default="", help="What is new in this version.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="May be repeated.")
@click.option("--alias", "aliases", multiple=True, metavar="ALIAS", help="May be repeated.")
@click.option(
    "--exclude", multiple=True, metavar="PATTERN", help="Leave out, such as '*.tmp' or 'logs/'."
)
@click.option("--create", is_flag=True, help="Make the model if there is none of this name.")
@click.option(
    "--visibility",
    type=click.Choice(["private", "internal", "public"]),
    default="private",
    show_default=True,
    help="With --create: who is to see it.",
)
@_workers
@dataset_option
@shared_options
def push(  # noqa: PLR0913 - one for each option
    session: Session,
    *,
    folder: Path,
    name: str,
    message: str,
    tags: tuple[str, ...],
    aliases: tuple[str, ...],
    exclude: tuple[str, ...],
    create: bool,
    visibility: Visibility,
    workers: int,
    kind: Kind,
) -> None:
    """Make the files of a folder the next version of a model.

    NAME is namespace/name; :alias behind it names the version. However it is interrupted, the
    same command goes on where it stopped. Files that the version before has are not sent again,
    and when nothing changed, no version is made. Prints namespace/name@number.

    \b
    modelyard push ./model team/classifier --message "Trained on more data"
    modelyard push ./model team/classifier:candidate --create --tag seed=7
    """  # noqa: D301
    began = time.monotonic()
    with session.client() as client, drawn(session) as progress:
        pushed = client.push(
            folder,
            name,
            kind=kind,
            message=message,
            tags=dict(read_pair("--tag", tag) for tag in tags),
            aliases=aliases,
            exclude=exclude,
            create=create,
            visibility=visibility,
            workers=workers,
            progress=progress,
        )
    version = pushed.version
    if session.as_json:
        print_json(
            {
                "version": version,
                "created": pushed.created,
                "files": pushed.files,
                "bytes_total": pushed.bytes_total,
                "bytes_sent": pushed.bytes_sent,
            }
        )
        return
    if not session.quiet:
        say(
            f"{pushed.files} files, {size_text(pushed.bytes_total)}: sent "
            f"{size_text(pushed.bytes_sent)} in {time.monotonic() - began:.1f} s."
        )
    echo(f"{version['namespace']}/{version['name']}@{version['number']}")


@click.command()
@click.argument("name")
@click.option(
    "--to", type=click.Path(path_type=Path), metavar="FOLDER", help="Otherwise ./ and the name."
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Only these, such as '*.json'.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave these out.")
@click.option(
    "--allow-unsafe",
    is_flag=True,
    help="Take files too that can execute code when they are loaded.",
)
@_workers
@dataset_option
@shared_options
def pull(
    session: Session,
    *,
    name: str,
    to: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    allow_unsafe: bool,
    workers: int,
    kind: Kind,
) -> None:
    """Lay the files of a version out in a folder, each verified against its SHA-256.

    NAME is namespace/name, or namespace/name@version with a number, an alias or 'latest'. However
    it is interrupted, the same command goes on where it stopped. Files that are right already are
    left alone, others of the same name are replaced. Prints the folder.

    \b
    modelyard pull team/classifier@production
    modelyard pull team/classifier@3 --to ./model --include '*.safetensors' --include config.json
    """  # noqa: D301
    began = time.monotonic()
    with session.client() as client, drawn(session) as progress:
        pulled = client.pull(
            name,
            to,
            kind=kind,
            include=include,
            exclude=exclude,
            allow_unsafe=allow_unsafe,
            workers=workers,
            progress=progress,
        )
    if session.as_json:
        print_json(
            {
                "version": pulled.version,
                "folder": str(pulled.folder),
                "files": pulled.files,
                "converted": pulled.converted,
                "left_out": pulled.left_out,
                "bytes_total": pulled.bytes_total,
                "bytes_received": pulled.bytes_received,
            }
        )
        return
    if not session.quiet:
        say(
            f"{len(pulled.files)} files, {size_text(pulled.bytes_total)}: received "
            f"{size_text(pulled.bytes_received)} in {time.monotonic() - began:.1f} s."
        )
    echo(str(pulled.folder))


@click.command()
@click.argument("name")
@click.argument("target", type=click.Choice(TARGETS))
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="A new folder; otherwise ./ and the name and the target.",
)
@click.option("--delete", is_flag=True, help="Delete the file that a job made, and fetch nothing.")
@shared_options
def export(session: Session, *, name: str, target: Target, to: Path | None, delete: bool) -> None:
    """Lay a version out as another server or library wants it, in a new folder.

    NAME is namespace/name, or namespace/name@version with a number, an alias or 'latest'. Prints
    the folder. Torch and JAX files take a job, which is waited for where nobody has had it made.

    \b
    modelyard export team/classifier@production triton --to ./repository
    modelyard export team/classifier@3 kserve
    modelyard export team/classifier@3 torchscript
    modelyard export team/classifier@3 torchscript --delete
    """  # noqa: D301
    if delete:
        if to is not None:
            raise click.UsageError("--delete fetches nothing, so --to has no use.")
        with session.client() as client:
            client.delete_export(name, target)
        if session.as_json:
            print_json({"deleted": target})
        elif not session.quiet:
            say(f"Deleted the {target} file of {name}; it can be made again.")
        return
    with session.client() as client:
        told = Teller(session)
        # JSON is one document: how the job goes is for people.
        tell = (lambda _event: None) if session.as_json or session.quiet else told.tell
        folder = client.take(name, target, to, tell=tell)
    if session.as_json:
        print_json({"folder": str(folder)})
    else:
        echo(str(folder))
