"""`manage.py rotate_keys`: wrap the key of every encrypted blob with the newest master key."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from registry.errors import RegistryError
from registry.storage import default_storage

_EVERY = 1000


class Command(BaseCommand):
    help = (
        "Wrap the key of every encrypted blob with the first master key of MODELYARD_MASTER_KEY; "
        "no blob is rewritten. Can be broken off and run again. Afterwards the older master keys "
        "can be taken out of the setting."
    )

    def handle(self, *_: Any, **__: Any) -> None:
        seen = changed = wrong = 0
        try:
            for blob in default_storage().rotate_keys():
                seen += 1
                changed += blob.changed
                if blob.problem:
                    wrong += 1
                    self.stdout.write(f"{blob.sha256}: {blob.problem}")
                if seen % _EVERY == 0:
                    self.stdout.write(f"{seen} keys seen, {changed} of them wrapped anew")
        except RegistryError as error:
            raise CommandError(error.detail) from error
        if wrong:
            raise CommandError(
                f"{wrong} of {seen} keys could not be wrapped anew; the blobs are named above. "
                f"{changed} were."
            )
        self.stdout.write(f"Done: {seen} keys, {changed} of them wrapped anew.")
