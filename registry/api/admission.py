"""Who may come in at a machine door, and how often: found out together, said in headers."""

from collections.abc import Callable, Mapping

from registry import rates
from registry.errors import Unauthenticated
from registry.models import Actor


def admit(
    identify: Callable[[], Actor],
    *,
    ip: str | None,
    writes: bool,
    tell: Callable[[Mapping[str, str]], None],
    counted: bool = True,
) -> Actor:
    """Identify a caller and count the request for its token, or else for its address.

    `tell` gets the headers that every answer is to carry, a refusal too. A request that is not
    counted still is where its token is not good.

    Raises:
        Unauthenticated: the token is not good.
        RateLimited: the caller asks too often.

    """
    try:
        actor = identify()
    except Unauthenticated:
        _count(rates.count_address(ip), tell)
        raise
    if not counted:
        return actor
    if actor.token_id is None:
        _count(rates.count_address(ip), tell)
    else:
        _count(rates.count_token(actor.token_id, writes=writes), tell)
    return actor


def _count(standing: rates.Standing, tell: Callable[[Mapping[str, str]], None]) -> None:
    tell(standing.headers)
    standing.require()
