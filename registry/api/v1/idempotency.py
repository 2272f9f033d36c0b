"""`Idempotency-Key`: a POST that is sent again gives the first answer, and writes nothing.

Answers are kept in the cache for a day. Without the broker requests go through as if they had no
key: a registration must not wait for the cache (docs/api).
"""

import hashlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.core.cache import cache
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils.crypto import salted_hmac
from redis.exceptions import RedisError
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.v1.renderers import JSONRenderer
from registry.errors import Conflict, FieldError, Invalid, Text
from registry.models import Actor

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
_KEPT_SECONDS = 24 * 3600
# How long a request may run before its key is free again should its process have died.
_RUNNING_SECONDS = 120
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_KEPT_HEADERS = ("Location", "ETag")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One actor's use of one key at one address, and the digest of what was sent with it."""

    slot: str
    digest: str

    @classmethod
    def of(cls, request: Request, actor: Actor) -> "Claim | None":
        """Read the header; no header, or nobody to keep an answer for, is no claim."""
        return cls.make(
            request.headers.get(HEADER),
            actor,
            request.get_full_path(),
            request._request.body,  # noqa: SLF001 - the raw bytes
        )

    @classmethod
    def make(cls, key: str | None, actor: Actor, address: str, content: bytes) -> "Claim | None":
        """Claim `key` for what was sent to `address`."""
        if key is None or actor.is_anonymous:
            return None
        if not _KEY.fullmatch(key):
            wanted = Text("Use 1 to 255 printable ASCII characters, such as a UUID.")
            raise Invalid(
                "The {header} is not valid. {wanted}",
                code="bad_idempotency_key",
                errors=[FieldError(HEADER, "bad_format", wanted.template)],
                header=HEADER,
                wanted=wanted,
            )
        where = f"{actor.user_id}\n{actor.token_id}\n{address}\n{key}"
        return cls(
            slot=f"idempotency:{hashlib.sha256(where.encode()).hexdigest()}",
            # With the key of the installation: a body may hold a password, and this is kept.
            digest=salted_hmac("modelyard.idempotency", content, algorithm="sha256").hexdigest(),
        )


def answer_once(
    claim: Claim, answer: Callable[[], Response], *, keep_body: bool
) -> HttpResponseBase:
    """Run `answer` for the first request of a claim; give later ones what it answered.

    A refusal frees the key, for a retry may fare better. `keep_body` is false where the answer
    holds a secret: then only the fact is kept, and a repetition is refused.

    Raises:
        Conflict: the key was used for another body, or its first request is still running.

    """
    try:
        first = cache.add(claim.slot, {"digest": claim.digest}, _RUNNING_SECONDS)
        known = None if first else cache.get(claim.slot)
    except (RedisError, OSError):
        logger.warning("no cache for an %s; going on without it", HEADER)
        return answer()
    if known is not None:
        return _replay(claim, known)
    try:
        with _held(claim):
            response = answer()
    except Exception:
        _store(claim, None)
        raise
    content = JSONRenderer().render(response.data) if keep_body else None
    headers = {name: response[name] for name in _KEPT_HEADERS if name in response}
    _store(claim, {"status": response.status_code, "headers": headers, "content": content})
    return response


@contextmanager
def _held(claim: Claim) -> Iterator[None]:
    """Keep the key from becoming free for as long as its first request runs."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_RUNNING_SECONDS / 4):
            try:
                cache.touch(claim.slot, _RUNNING_SECONDS)
            except (RedisError, OSError):
                logger.warning("could not hold an %s for a request that still runs", HEADER)

    thread = threading.Thread(target=renew, name="idempotency", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # Or it might renew, as the one of a request that is running, the answer that is kept now.
        thread.join()


def _replay(claim: Claim, known: Mapping[str, Any]) -> HttpResponse:
    if known["digest"] != claim.digest:
        raise Conflict(
            "This {header} was used with another body; use a new one.",
            code="idempotency_key_reused",
            header=HEADER,
        )
    if "status" not in known:
        raise Conflict(
            "The first request with this {header} is still running; try again shortly.",
            code="idempotency_in_progress",
            header=HEADER,
        )
    if known["content"] is None:
        raise Conflict(
            "This was done before, and its answer held a secret that is shown only once.",
            code="already_done",
        )
    return HttpResponse(
        known["content"],
        status=known["status"],
        content_type=JSONRenderer.media_type,
        headers={**known["headers"], REPLAYED: "true"},
    )


def _store(claim: Claim, answer: Mapping[str, Any] | None) -> None:
    try:
        if answer is None:
            cache.delete(claim.slot)
        else:
            cache.set(claim.slot, {"digest": claim.digest, **answer}, _KEPT_SECONDS)
    except (RedisError, OSError):
        logger.warning("could not keep the answer for an %s", HEADER)
