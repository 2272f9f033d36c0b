#!/usr/bin/env python3
"""The command line: `up` and `down` go to the local supervisor, everything else to Django."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    if sys.argv[1:2] in (["up"], ["down"]):
        from config.local import supervisor  # noqa: PLC0415 - only these two verbs need it

        sys.exit(supervisor.main(sys.argv[1]))
    from config.local.addresses import fill_environment  # noqa: PLC0415 - after the settings name

    fill_environment()
    from django.core.management import execute_from_command_line  # noqa: PLC0415

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
