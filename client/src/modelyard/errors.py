"""What can go wrong, each with words for people and an exit status for scripts."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple


class FieldProblem(NamedTuple):
    """One wrong field of what was sent: where, a stable code, and what to do about it."""

    field: str
    code: str
    detail: str


class ModelyardError(Exception):
    """Something that the client expects to go wrong; `detail` says what, and the way out."""

    exit_status: ClassVar[int] = 1

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadName(ModelyardError):
    """A name that cannot be one, or a path that must not be laid out on a disk."""


class BadFolder(ModelyardError):
    """A folder of this machine that cannot be pushed from or pulled into."""


class BadAnswer(ModelyardError):
    """The server said something that does not fit its own documents."""


class Busy(ModelyardError):
    """Another process is doing the same thing to the same folder."""


class UnsafeFiles(ModelyardError):
    """What was asked for can execute code, and nobody said that this is wanted."""


class NotConfigured(ModelyardError):
    """No server was named."""

    exit_status = 4


class JobFailed(ModelyardError):
    """A job that was waited for failed, or was cancelled."""


class Unreachable(ModelyardError):
    """The server did not answer, or only that it is away, for longer than was waited."""

    exit_status = 5


class Interrupted(ModelyardError):
    """A transfer was told to stop; what was done is kept for the next run."""

    exit_status = 130


class Refused(ModelyardError):
    """The server refused; `code` is stable, `request_id` is in its log."""

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        code: str,
        errors: Sequence[FieldProblem] = (),
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after = retry_after


class NotSignedIn(Refused):
    """There is no token, or it is wrong, expired or revoked."""

    exit_status = 4


class Denied(Refused):
    """The token or the role does not reach that far."""

    exit_status = 4


class NotFound(Refused):
    """Nothing there that this token may see."""

    exit_status = 3


_CLASSES: Mapping[int, type[Refused]] = {401: NotSignedIn, 403: Denied, 404: NotFound}
_MAX_ERRORS = 100


def refusal_of(
    status: int,
    problem: Any,
    *,
    words: str = "",
    request_id: str = "",
    retry_after: float | None = None,
) -> Refused:
    """Make the exception of an answer; `problem` is its JSON, if it had some (RFC 9457)."""
    given = problem if isinstance(problem, dict) else {}
    detail = given.get("detail") or words or f"The server answered {status}."
    listed = given.get("errors")
    errors = [
        FieldProblem(*(str(one.get(key, "")) for key in FieldProblem._fields))
        for one in (listed if isinstance(listed, list) else [])[:_MAX_ERRORS]
        if isinstance(one, dict)
    ]
    return _CLASSES.get(status, Refused)(
        str(detail),
        status=status,
        code=str(given.get("code") or f"http_{status}"),
        errors=errors,
        request_id=str(given.get("request_id") or request_id),
        retry_after=retry_after,
    )
