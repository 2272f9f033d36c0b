"""What serving knows of routes and tokens without asking the database: read now and then.

A thread reads both every two seconds, and at once when somebody announces a change; so a token that
is revoked opens nothing two seconds later. While the database is away, routes stay as they were
last read, and tokens for a few minutes.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from django.db import DatabaseError, connections

from registry.authenticate import Visit, actor_from_token, actors_of, digest_of, is_token_shaped
from registry.errors import RegistryError, Unauthenticated, Unavailable
from registry.models import ANONYMOUS, Actor
from registry.queue import RouteListener
from registry.rates import network_of
from registry.routes import Route, find_withdrawn, read_routes

REFRESH_SECONDS = 2.0
# So long tokens are believed that could not be looked up again.
TOKENS_LAST_SECONDS = 180.0
_MAX_TOKENS = 20_000
_MAX_VISITORS = 4096
# A token that is not good is refused for so long without another question.
_REFUSED_SECONDS = 2.0
DOOR = "serving"

logger = logging.getLogger(__name__)


class Tables:
    """Routes and tokens as they were last read, and the thread that reads them."""

    def __init__(
        self,
        on_routes: Callable[[tuple[Route, ...], frozenset[int]], None],
        *,
        answering: Callable[[], frozenset[int]],
        device_class: str = "",
    ) -> None:
        """Begin with nothing; routes come with those of the versions `answering` that must not."""
        self._on_routes = on_routes
        self._answering = answering
        self._device_class = device_class
        self._lock = threading.Lock()
        # Tokens in use: the digest to its actor, and when it was used.
        self._tokens: OrderedDict[str, Actor] = OrderedDict()
        self._refused: OrderedDict[str, float] = OrderedDict()
        # One look-up in a thread must not undo what a later reading found out.
        self._reading = 0
        self._read_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tables", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    @property
    def has_routes(self) -> bool:
        return self._read_at > 0

    # --- tokens -----------------------------------------------------------------------------------

    def actor_of(self, secret: str) -> Actor | None:
        """Give who a token stands for, where that is known by now.

        Raises:
            Unauthenticated: it is none of ours, or was refused a moment ago.

        """
        digest = digest_of(secret)
        actor = self._tokens.get(digest)
        if actor is not None:
            if time.monotonic() - self._read_at < TOKENS_LAST_SECONDS:
                return actor
            self._forget(digest)
        refused_at = self._refused.get(digest)
        if not is_token_shaped(secret) or (
            refused_at is not None and time.monotonic() - refused_at < _REFUSED_SECONDS
        ):
            raise _not_good()
        return None

    def look_up(self, secret: str) -> Actor:
        """Ask the database for a token that nobody has used here yet; for a thread.

        Raises:
            Unauthenticated: it is not good; Unavailable: the database is away.

        """
        digest = digest_of(secret)
        reading = self._reading
        try:
            actor = actor_from_token(secret, Visit(door=DOOR))
        except Unauthenticated:
            self._refuse(digest)
            raise
        except DatabaseError as error:
            raise Unavailable(
                "The database cannot be reached, and this token has not been used here lately; "
                "try again.",
                code="database_unavailable",
            ) from error
        finally:
            connections.close_all()
        with self._lock:
            # A reading that began meanwhile did not ask for this token: believe it only once.
            if reading == self._reading:
                self._tokens[digest] = actor
                while len(self._tokens) > _MAX_TOKENS:
                    self._tokens.popitem(last=False)
        return actor

    def _refuse(self, digest: str) -> None:
        with self._lock:
            self._refused[digest] = time.monotonic()
            while len(self._refused) > _MAX_TOKENS:
                self._refused.popitem(last=False)

    def _forget(self, digest: str) -> None:
        with self._lock:
            self._tokens.pop(digest, None)

    # --- reading ----------------------------------------------------------------------------------

    def _run(self) -> None:
        listener = RouteListener()
        while not self._stopping.is_set():
            try:
                self.read()
            except (DatabaseError, RegistryError, OSError) as error:
                logger.warning("Routes could not be read: %s", str(error).splitlines()[:1])
            except Exception:
                logger.exception("Routes could not be read")
            finally:
                connections.close_all()
            listener.wait(REFRESH_SECONDS)
        listener.close()

    def read(self) -> None:
        """Read both tables anew."""
        answering = self._answering()
        routes = read_routes(self._device_class)
        # What answers until another version is loaded is in no route any more.
        withdrawn = find_withdrawn(answering.difference(*(one.version_ids for one in routes)))
        with self._lock:
            known = [*self._tokens]
            self._reading += 1
        found: Mapping[str, Actor] = actors_of(known, Visit(door=DOOR)) if known else {}
        with self._lock:
            self._reading += 1
            for digest in known:
                if digest in found:
                    self._tokens[digest] = found[digest]
                else:
                    self._tokens.pop(digest, None)
            self._read_at = time.monotonic()
        self._on_routes(routes, withdrawn)


def secret_of(authorization: str | None) -> str | None:
    """Take the token out of an `Authorization` header; None where nobody is said.

    Raises:
        Unauthenticated: it says it in another way.

    """
    if not authorization:
        return None
    scheme, _, secret = authorization.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret.isascii() or len(secret) > 200:
        raise Unauthenticated("Send the token as 'Authorization: Bearer my_…'.")
    return secret


def _not_good() -> Unauthenticated:
    return Unauthenticated("This token is unknown, expired or revoked; create a new one.")


class Visitors:
    """Callers without a token: an actor for each network that they come from."""

    def __init__(self) -> None:
        self._known: OrderedDict[str | None, Actor] = OrderedDict()

    def at(self, address: str | None) -> Actor:
        actor = self._known.get(address)
        if actor is None:
            actor = Actor(scopes=ANONYMOUS.scopes, door=DOOR, ip=network_of(address))
            self._known[address] = actor
            if len(self._known) > _MAX_VISITORS:
                self._known.popitem(last=False)
        return actor
