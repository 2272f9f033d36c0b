"""What can go wrong in the registry, said once and rendered by every door in its own shape."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class FieldError(NamedTuple):
    """One wrong field of a request: where it is, a stable code, and what to do about it."""

    field: str
    code: str
    detail: str


class RegistryError(Exception):
    """An expected refusal.

    `code` is stable and part of the API; `detail` is written for people and names the thing and
    the way out.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = code or self.code
        self.errors = tuple(errors)


class Invalid(RegistryError):
    code = "invalid"
    status = 400
    title = "The request is not valid"


class Unauthenticated(RegistryError):
    code = "unauthenticated"
    status = 401
    title = "Sign in or send a token"


class Denied(RegistryError):
    code = "denied"
    status = 403
    title = "Not allowed"


class NotFound(RegistryError):
    code = "not_found"
    status = 404
    title = "Not found"


class AlreadyExists(RegistryError):
    code = "already_exists"
    status = 409
    title = "Already exists"


class Conflict(RegistryError):
    code = "conflict"
    status = 409
    title = "In conflict with the present state"


class PreconditionFailed(RegistryError):
    code = "precondition_failed"
    status = 412
    title = "Changed by somebody else in the meantime"


class TooLarge(RegistryError):
    code = "too_large"
    status = 413
    title = "Too large"


class QuotaExceeded(RegistryError):
    code = "quota_exceeded"
    status = 429
    title = "Over the limit"


class Unavailable(RegistryError):
    code = "unavailable"
    status = 503
    title = "Not available right now"


class StorageFull(RegistryError):
    code = "storage_full"
    status = 507
    title = "No space left for the file"
