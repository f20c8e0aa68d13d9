"""For all tests: the fixtures of tests/support, and no network: unit tests open no socket, others stay on loopback."""

from pathlib import Path

import pytest
from pytest_socket import disable_socket, socket_allow_hosts

# Each after those that it imports: pytest rewrites the asserts of a plugin before its first import.
pytest_plugins = [
    "tests.support.recordings",
    "tests.support.leftovers",
    "tests.support.site",
    "tests.support.commands",
    "tests.support.proxy",
    "tests.support.stages",
    "tests.support.imds",
    "tests.support.autoscaling",
    "tests.support.systemd",
    "tests.support.template",
    "tests.support.clouds",
    "tests.support.clock",
    "tests.support.names",
    "tests.support.ministack",
    "tests.support.sqs.fixture",
]

_UNIT = Path(__file__).parent / "unit"


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest) -> None:
    # pytest-socket lifts both after each test. Unix sockets stay: an event loop and a forkserver cannot be without.
    if request.path.is_relative_to(_UNIT):
        disable_socket(allow_unix_socket=True)
    else:
        socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)
