"""`manage.py verify_storage`: read stored bytes and compare them with their digests."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from registry.services.custody import verify_blobs

_EVERY = 1000


class Command(BaseCommand):
    help = "Hash all stored blobs, or a sample, and name those that are missing or damaged."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--sample", type=int, help="only so many blobs, picked at random")

    def handle(self, *_: Any, **options: Any) -> None:
        seen = wrong = 0
        for checked in verify_blobs(sample=options["sample"]):
            seen += 1
            if checked.problem:
                wrong += 1
                self.stdout.write(f"{checked.sha256}: {checked.problem}")
                for file in checked.files:
                    self.stdout.write(f"    {file}")
            if seen % _EVERY == 0:
                self.stdout.write(f"{seen} blobs read, {wrong} of them wrong")
        if wrong:
            raise CommandError(f"{wrong} of {seen} blobs are wrong.")
        self.stdout.write(f"{seen} blobs read, all as they should be.")
