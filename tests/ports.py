"""A port for a server that a test starts."""

import random
import socket

# Below those that systems give to connections: one of another test may take such a port between
# our look at it and the start of the server.
_PORTS = range(20_000, 32_000)
_TRIES = 100


def free_port():
    chance = random.SystemRandom()
    for _ in range(_TRIES):
        port = chance.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port is free")
