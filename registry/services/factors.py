"""Second factors as they lie in the database: encrypted under the secret key of the installation.

An older key (`MODELYARD_SECRET_KEY_FALLBACKS`) still opens what it closed, until all of it is
closed anew.
"""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.db import transaction

from registry.errors import Conflict

# The fields of a factor that hold a secret, or a list of them.
_SECRETS = ("secret", "seed", "migrated_codes")


def encrypt(text: str) -> str:
    return str(_fernet().encrypt(text.encode()), "ascii")


def decrypt(encrypted: str) -> str:
    """Open what `encrypt` closed, under this key or an older one.

    Raises:
        Conflict: it was closed under a key that is not known any more.

    """
    from cryptography.fernet import InvalidToken  # noqa: PLC0415 - 30 ms for every start

    try:
        return str(_fernet().decrypt(encrypted.encode("ascii")), "utf-8")
    except InvalidToken as error:
        raise Conflict(
            "Your second factor cannot be read with this installation's secret key; "
            "an administrator can reset it.",
            code="second_factor_unreadable",
        ) from error


def renew_factors() -> tuple[int, int]:
    """Close all second factors anew under the present key; give how many were, and were not.

    Those that no known key opens stay as they are.
    """
    renewed = unreadable = 0
    for key in Authenticator.objects.order_by("pk").values_list("pk", flat=True):
        with transaction.atomic():
            row = Authenticator.objects.select_for_update().filter(pk=key).first()
            if row is None:
                continue
            try:
                changed = {
                    name: _each(row.data[name], lambda text: encrypt(decrypt(text)))
                    for name in _SECRETS
                    if name in row.data
                }
            except Conflict:
                unreadable += 1
                continue
            if changed:
                row.data = {**row.data, **changed}
                row.save(update_fields=["data"])
                renewed += 1
    return renewed, unreadable


def _each(value: Any, change: Callable[[str], str]) -> Any:
    return [change(one) for one in value] if isinstance(value, list) else change(value)


def _fernet() -> Any:
    from cryptography.fernet import Fernet, MultiFernet  # noqa: PLC0415 - 30 ms for every start

    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return MultiFernet([Fernet(_key_of(str(key))) for key in keys])


def _key_of(secret: str) -> bytes:
    digest = hashlib.sha256(b"modelyard second factors\0" + secret.encode()).digest()
    return base64.urlsafe_b64encode(digest)
