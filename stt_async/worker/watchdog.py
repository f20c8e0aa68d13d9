"""What systemd hears from us (sd_notify): ready, stopping, alive; the last only while everything makes progress."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from stt_async.worker.stop import Stop

_log = structlog.get_logger()

STATUS_INTERVAL_S = 10.0
EXTRA_STOP_S = 30.0
"""Beyond the deadline of a drain: giving back, ending the pool, a lifecycle hook."""


def notify(address: str, *lines: str) -> None:
    """Tell systemd, if it listens: one datagram, never waited for.

    https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
    """
    if not address:
        return
    # A leading @ is how an abstract socket is written.
    target = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto("\n".join(lines).encode(), target)
    except OSError as error:
        _log.warning("notify_failed", socket=address, lines=lines, error=str(error))


@dataclass(frozen=True, slots=True)
class Activity:
    """A part of the worker that has to make progress."""

    name: str
    last_s: Callable[[], float | None]
    """When it last did (monotonic clock); None while there is nothing for it to do."""
    stall_timeout_s: float


def stalled(activities: Sequence[Activity], now_s: float) -> list[str]:
    """Return the names of the activities that have not made progress for too long."""
    return [
        each.name
        for each in activities
        if (last_s := each.last_s()) is not None and now_s - last_s > each.stall_timeout_s
    ]


class Watchdog:
    """Keeps systemd informed from the first receive on.

    It runs on the event loop: a loop that is blocked sends nothing, and systemd ends and restarts the worker.

    Args:
        address: systemd's socket; empty: nobody listens.
        timeout_s: systemd restarts us after this long without a sign of life; 0: it does not watch.
        activities: Must all make progress for a sign of life.
        status: A sentence for `systemctl status`.
    """

    def __init__(
        self, address: str, timeout_s: float, activities: Sequence[Activity], status: Callable[[], str]
    ) -> None:
        self._address = address
        self._interval_s = timeout_s / 2 if timeout_s else STATUS_INTERVAL_S
        self._activities = activities
        self._status = status
        self._was_stalled: list[str] = []

    async def run(self) -> None:
        """Send a sign of life twice in each timeout, until cancelled."""
        while self._address:
            self.check()
            await asyncio.sleep(self._interval_s)

    async def announce(self, stop: Stop) -> None:
        """Tell once that we stop, and how much longer than `TimeoutStopSec=` that may take."""
        await stop.wait()
        if stop.signal is not None:
            left_s = max(0.0, stop.signal.deadline_s - time.monotonic()) + EXTRA_STOP_S
            notify(self._address, "STOPPING=1", f"EXTEND_TIMEOUT_USEC={left_s * 1e6:.0f}")

    def check(self) -> None:
        """Send one sign of life, if we live."""
        names = stalled(self._activities, time.monotonic())
        if names != self._was_stalled:
            _log.error("watchdog_withheld", stalled=names) if names else _log.info("watchdog_resumed")
            self._was_stalled = names
        signs = [f"STATUS={self._status()}"] + ([] if names else ["WATCHDOG=1"])
        notify(self._address, *signs)
