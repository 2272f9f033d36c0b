"""`manage.py encrypt_blobs`: encrypt what was stored before there was a master key."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from registry.errors import RegistryError
from registry.services.custody import encrypt_blobs

_EVERY = 100


class Command(BaseCommand):
    help = (
        "Encrypt blobs that are stored plain, one after the other, and remove the plain copies. "
        "Safe beside a running installation whose processes all have MODELYARD_MASTER_KEY; can be "
        "broken off and run again."
    )

    def handle(self, *_: Any, **__: Any) -> None:
        seen = changed = wrong = 0
        try:
            for blob in encrypt_blobs():
                seen += 1
                changed += blob.changed
                if blob.problem:
                    wrong += 1
                    self.stdout.write(f"{blob.sha256}: {blob.problem}")
                if seen % _EVERY == 0:
                    self.stdout.write(f"{seen} blobs seen, {changed} encrypted")
        except RegistryError as error:
            raise CommandError(error.detail) from error
        if wrong:
            raise CommandError(
                f"{wrong} of {seen} blobs could not be encrypted; they are named above. "
                f"{changed} were."
            )
        self.stdout.write(f"Done: {changed} blobs encrypted.")
