#!/usr/bin/env python3
"""The command line: up, down, prepare and seed are `config.local`; the rest is Django's."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb in {"up", "down"}:
        from config.local import supervisor  # noqa: PLC0415 - reads no settings before its time

        sys.exit(supervisor.main(verb))
    from config.local.addresses import fill_environment  # noqa: PLC0415 - before the settings

    fill_environment()
    if verb in {"prepare", "seed"}:
        run_own(verb)
        return
    from django.core.management import execute_from_command_line  # noqa: PLC0415 - as above

    execute_from_command_line(sys.argv)


def run_own(verb: str) -> None:
    import django  # noqa: PLC0415 - the environment is complete only now
    from django.db import OperationalError  # noqa: PLC0415 - as above

    django.setup()
    try:
        if verb == "prepare":
            from config.local.prepare import prepare  # noqa: PLC0415 - needs the tables' classes

            prepare()
        else:
            from config.local.samples import seed  # noqa: PLC0415 - as above

            seed()
    except OperationalError as error:
        sys.exit(f"modelyard: the database does not answer (is ./dev up running?): {error}")


if __name__ == "__main__":
    main()
