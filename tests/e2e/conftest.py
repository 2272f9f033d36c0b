"""The web server and the workers of the other tests, together."""

from tests.registry.stream.conftest import alice, bob, client, running_server, server, stranger
from tests.workers.test_chaos import start_worker

__all__ = ["alice", "bob", "client", "running_server", "server", "start_worker", "stranger"]
