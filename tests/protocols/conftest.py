import pytest

from tests.protocols.doubling import serving


@pytest.fixture(scope="session")
def served():
    with serving() as one:
        yield one
