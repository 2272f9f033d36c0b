"""What can go wrong in the registry, said once and rendered by every door in its own shape."""

import math
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any, ClassVar, NamedTuple


class Text:
    """English words with named places for values, which pages say in the reader's language.

    `template` is a literal in the style of `str.format`, so that it can be looked up in a
    catalogue; what differs from case to case is a value. A value may be a text itself.
    """

    def __init__(self, template: str, /, **values: Any) -> None:
        self.template = template
        self.values = plain(values)

    @property
    def detail(self) -> str:
        """Say it in English, as the API, logs and rows do."""
        return fill(self.template, self.values)

    def __str__(self) -> str:
        return self.detail

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Text) and self.detail == other.detail

    def __hash__(self) -> int:
        return hash(self.detail)


class FieldError(Text):
    """One wrong field of a request: where it is, a stable code, and what to do about it.

    `position` is the character of its text, from 0, where what is wrong begins.
    """

    def __init__(
        self,
        field: str,
        code: str,
        template: str,
        /,
        *,
        position: int | None = None,
        **values: Any,
    ) -> None:
        super().__init__(template, **values)
        self.field = field
        self.code = code
        self.position = position


class Wording(NamedTuple):
    """The code and the words for one kind of wrong field, in the tables that translate pydantic."""

    code: str
    template: str


class Unfit(ValueError):
    """What a validator of ours raises: a ValueError, so that pydantic says which field it is."""

    def __init__(self, template: str, /, **values: Any) -> None:
        self.template = template
        self.values = plain(values)
        super().__init__(fill(template, self.values))


class RegistryError(Exception):
    """An expected refusal.

    `code` is stable and part of the API; `detail` is English, written for people, and names the
    thing and the way out. Pages translate `template` and then fill in `values`.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong"

    def __init__(
        self,
        template: str,
        /,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        **values: Any,
    ) -> None:
        self.template = template
        self.values = plain(values)
        self.detail = fill(template, self.values)
        super().__init__(self.detail)
        self.reason = code or self.code
        self.errors = tuple(errors)


def plain(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Keep numbers, texts and refusals; say everything else now, while it can still be asked."""
    kept = (str, Number, Text, RegistryError)
    return {name: one if isinstance(one, kept) else str(one) for name, one in values.items()}


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Put the values into their places; a template that lacks one is still better than nothing.

    That every template gets its values is a rule that the tests check.
    """
    try:
        return template.format_map(values)
    except (LookupError, ValueError, AttributeError, TypeError):
        return template


def pack(said: Text | RegistryError) -> dict[str, Any]:
    """Write the template and its values as plain JSON, for a row that pages show later."""
    return {
        "template": said.template,
        "values": {name: _packed(value) for name, value in said.values.items()},
    }


def _packed(value: Any) -> Any:
    if isinstance(value, Text | RegistryError):
        return pack(value)
    if isinstance(value, str | bool | int):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else str(value)


def unpack(packed: Mapping[str, Any]) -> Text:
    """Read back what `pack` wrote."""
    values = {
        name: unpack(value) if isinstance(value, dict) else value
        for name, value in packed["values"].items()
    }
    template = packed["template"]
    return Text(template, **values)


class Saying(NamedTuple):
    """A text as rows keep it: in English for programs, and packed for pages where it can be.

    What people typed, and what a process said that had read the files of strangers, may have only
    its English.
    """

    detail: str
    said: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, text: Text | RegistryError) -> "Saying":
        return cls(text.detail, pack(text))

    @property
    def text(self) -> str | Text:
        """The same as a value of another text."""
        return self.detail if self.said is None else unpack(self.said)


SILENCE = Saying("")


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


class NamespaceFull(QuotaExceeded):
    """A namespace has no room left; to try again changes nothing, as programs would do at 429."""

    code = "namespace_full"
    status = 403
    title = "No room left in the namespace"


class RateLimited(RegistryError):
    """Too often; `retry_after`, a value of the template too, is the number of seconds to wait."""

    code = "rate_limited"
    status = 429
    title = "Too many requests"

    def __init__(
        self, template: str, /, *, retry_after: int, code: str | None = None, **values: object
    ) -> None:
        super().__init__(template, code=code, errors=(), retry_after=retry_after, **values)
        self.retry_after = retry_after


class Unavailable(RegistryError):
    code = "unavailable"
    status = 503
    title = "Not available right now"


class NotLoaded(Unavailable):
    """A model that sleeps or is being loaded; `retry_after` is how many seconds that may take."""

    code = "not_loaded"
    title = "The model is not loaded yet"

    def __init__(
        self, template: str, /, *, retry_after: int, code: str | None = None, **values: object
    ) -> None:
        super().__init__(template, code=code, errors=(), retry_after=retry_after, **values)
        self.retry_after = retry_after


class DeadlineExceeded(RegistryError):
    code = "deadline_exceeded"
    status = 504
    title = "Out of time"


class StorageFull(RegistryError):
    code = "storage_full"
    status = 507
    title = "No space left for the file"
