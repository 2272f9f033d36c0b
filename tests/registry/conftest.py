"""What several parts of the registry are tested against."""

import pytest
from moto.server import ThreadedMotoServer

from registry import encoder
from tests.registry.encoders import encoding


@pytest.fixture(scope="session")
def s3_endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def encoder_socket():
    with encoding() as path:
        yield path


@pytest.fixture
def at_hand(encoder_socket, settings):
    settings.ENCODER_SOCKET = encoder_socket
    # Long: the machine may be busy, and what is tested here is not how long it takes.
    settings.ENCODER_MILLISECONDS = 60_000
    encoder.forget_queries()
