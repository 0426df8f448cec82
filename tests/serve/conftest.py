"""One server for many tests, and one whose steps take time."""

import pytest

from tests.serve import servers


@pytest.fixture(scope="session")
def service():
    with servers.service() as made:
        yield made


@pytest.fixture(scope="session")
def client(service):
    with servers.client(service) as made:
        yield made


@pytest.fixture(scope="session")
def slow():
    """A service of which a step takes 20 ms."""
    with servers.service(0.02) as made:
        yield made


@pytest.fixture
def slow_address(slow):
    with servers.listening(slow) as address:
        yield address
