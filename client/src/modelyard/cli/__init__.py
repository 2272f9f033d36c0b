"""The command line: its list of commands, each loaded when it is called, and how it ends."""

import errno
import os
import sys
from importlib import import_module
from typing import Any

import click

import modelyard
from modelyard.cli.output import say_error

# Shown by `modelyard --help`, which must not wait for the commands to load.
COMMANDS = {
    "login": ("account", "Keep a server and a token for it."),
    "logout": ("account", "Forget the token of a server."),
    "whoami": ("account", "Say who the token belongs to, and what it reaches."),
    "search": ("catalogue", "Find models or datasets."),
    "info": ("catalogue", "Show what is known about a model."),
    "versions": ("catalogue", "List the versions of a model, newest first."),
    "diff": ("history", "Say what changed from one version to another."),
    "compare": ("history", "Set up to six versions beside each other."),
    "restore": ("history", "Make an old version the newest again."),
    "push": ("transfer", "Make the files of a folder the next version of a model."),
    "pull": ("transfer", "Lay the files of a version out in a folder."),
    "export": ("transfer", "Lay a version out as another server wants it."),
    "jobs": ("jobs", "Submit, list, follow and cancel jobs."),
    "deploy": ("serving", "Let a version answer at an endpoint of its model."),
    "endpoint": ("serving", "List endpoints; split their traffic, promote, roll back, undeploy."),
    "completion": ("account", "Print the script that completes commands in your shell."),
}
_EPILOG = """\b
Environment:
  MODELYARD_URL      the server, such as https://models.example.org
  MODELYARD_TOKEN    the token; without it, what `modelyard login` kept
  NO_COLOR           no colours

\b
Exit status:
  0  done                                 4  no good token, or no right
  1  refused, or failed                   5  the server is away; try again
  2  called in a wrong way                130  interrupted; run it again to go on
  3  there is no such thing"""


class Lazy(click.Group):
    """A group that loads a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__name__}.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in COMMANDS.items()])


@click.group(
    cls=Lazy,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(modelyard.__version__, prog_name="modelyard")
def cli() -> None:
    """Find, push and pull models and datasets of a Modelyard server.

    \b
    modelyard login --url https://models.example.org
    modelyard search digits --task image-classification
    modelyard push ./model team/classifier:candidate --create
    modelyard pull team/classifier@production
    """  # noqa: D301 - \b keeps lines apart, for click


def main(arguments: list[str] | None = None) -> None:
    """Run a command and leave with its exit status."""
    try:
        status = cli.main(arguments, prog_name="modelyard", standalone_mode=False)
    except click.ClickException as problem:
        problem.show()
        _leave(problem.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        _leave(130)
    except modelyard.ModelyardError as problem:
        say_error(problem)
        _leave(problem.exit_status)
    except BrokenPipeError:
        # Whoever read the output has had enough.
        _leave(0)
    except OSError as problem:
        if problem.errno not in {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        place = f" ({problem.filename})" if problem.filename else ""
        click.echo(f"modelyard: {problem.strerror}{place}.", err=True)
        _leave(1)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def _leave(status: int) -> Any:
    """End now: a thread of a transfer may still be waiting for a server that is silent."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Nobody reads it any more; there is nothing left to say.
            continue
    os._exit(status)
