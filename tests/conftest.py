"""The fixtures of tests/support for all tests. Unit tests open no socket; other tests connect to loopback only."""

from pathlib import Path

import pytest
from pytest_socket import disable_socket, socket_allow_hosts

# A plugin comes after those that it imports: pytest rewrites the asserts of a module before its first import.
pytest_plugins = [
    "tests.support.recordings",
    "tests.support.evidence.leftovers",
    "tests.support.site",
    "tests.support.commands",
    "tests.support.faults.proxy",
    "tests.support.stages",
    "tests.support.fakes.imds",
    "tests.support.fakes.autoscaling",
    "tests.support.machines.systemd",
    "tests.support.stack.template",
    "tests.support.fakes.moto",
    "tests.support.fakes.clouds",
    "tests.support.faults.clock",
    "tests.support.faults.names",
    "tests.support.fakes.ministack",
    "tests.support.fakes.sqs",
]

_UNIT = Path(__file__).parent / "unit"


@pytest.fixture(autouse=True)
def _no_network(request: pytest.FixtureRequest) -> None:
    # pytest-socket lifts both after each test. An event loop and a fork server need Unix sockets.
    if request.path.is_relative_to(_UNIT):
        disable_socket(allow_unix_socket=True)
    else:
        socket_allow_hosts(["127.0.0.1"], allow_unix_socket=True)
