"""`manage.py collect_garbage`: remove what nobody can bring back, and unused bytes."""

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.template.defaultfilters import filesizeformat

from registry.services.collection import collect_garbage


class Command(BaseCommand):
    help = (
        "Purge what was deleted longer than MODELYARD_UNDO_DAYS ago, then remove bytes that "
        "nothing has referred to for MODELYARD_COLLECT_AFTER seconds. Safe beside running uploads."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only list what would go")
        parser.add_argument("--undo-days", type=float, help="instead of MODELYARD_UNDO_DAYS")
        parser.add_argument("--keep-hours", type=float, help="instead of MODELYARD_COLLECT_AFTER")

    def handle(self, *_: Any, **options: Any) -> None:
        undo, keep = options["undo_days"], options["keep_hours"]
        count = freed = 0
        for garbage in collect_garbage(
            dry_run=options["dry_run"],
            undo=None if undo is None else timedelta(days=undo),
            keep=None if keep is None else timedelta(hours=keep),
        ):
            size = garbage.size_bytes
            shown = "?" if size is None else filesizeformat(size).replace("\xa0", " ")
            self.stdout.write(
                f"{garbage.kind:10} {garbage.name}  {shown}  since {garbage.since:%Y-%m-%d %H:%M}"
            )
            count += 1
            freed += size or 0 if garbage.kind == "blob" else 0
        verb = "would go" if options["dry_run"] else "went"
        total = filesizeformat(freed).replace("\xa0", " ")
        self.stdout.write(f"{count} things {verb}, {total} of bytes with a row among them")
