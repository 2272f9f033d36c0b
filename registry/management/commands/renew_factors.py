"""`manage.py renew_factors`: encrypt second factors under the present secret key."""

from typing import Any

from django.core.management.base import BaseCommand

from registry.services.factors import renew_factors


class Command(BaseCommand):
    help = (
        "Encrypt all second factors under MODELYARD_SECRET_KEY. Can be broken off and run again. "
        "Afterwards they need none of the keys in MODELYARD_SECRET_KEY_FALLBACKS any more."
    )

    def handle(self, *_: Any, **__: Any) -> None:
        renewed, unreadable = renew_factors()
        self.stdout.write(f"Done: {renewed} second factors encrypted anew.")
        if unreadable:
            self.stdout.write(f"{unreadable} are under a key that is not known here; reset those.")
