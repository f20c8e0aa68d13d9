"""A notify socket that records what a worker reports to systemd."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

WATCHDOG_S = 2.0
STARTING = ["STATUS=preflight", "EXTEND_TIMEOUT_USEC=300000000"]
"""What a worker sends before its preflight."""


class Systemd:
    """Systemd's end of a notify socket."""

    def __init__(self, address: Path) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(address))
        self._lines: list[str] = []

    def environment(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": str(self.address), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}

    def lines(self) -> list[str]:
        """Return all lines received so far."""
        while True:
            try:
                self._lines += self.socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self._lines

    async def wait_for(self, line: str, *, count: int = 1) -> None:
        await wait_until(lambda: self.lines().count(line) >= count, what=f"{count} x {line} from the worker")

    def signs_of_life(self) -> int:
        return self.lines().count("WATCHDOG=1")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify")
    yield listening
    listening.socket.close()
