"""Notifications to systemd (sd_notify): ready, stopping, and alive while every activity makes progress."""

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
"""After the deadline of a drain: release messages, end the pool, complete a lifecycle hook."""


def notify(address: str, *lines: str) -> None:
    """Send one datagram to systemd, without blocking; nothing if `address` is empty.

    https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
    """
    if not address:
        return
    # A leading @ denotes an abstract socket.
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
    """When it last made progress (monotonic clock); None: it has nothing to do."""
    stall_timeout_s: float


def stalled(activities: Sequence[Activity], now_s: float) -> list[str]:
    """Return the names of the activities that have not made progress for too long."""
    return [
        each.name
        for each in activities
        if (last_s := each.last_s()) is not None and now_s - last_s > each.stall_timeout_s
    ]


class Watchdog:
    """Reports to systemd from the first receive on.

    It runs on the event loop: a blocked loop sends nothing, so systemd kills and restarts the worker.

    Args:
        address: systemd's socket; empty: the worker does not run under systemd.
        timeout_s: systemd restarts the worker after this long without a keep-alive; 0: systemd does not watch.
        activities: All must make progress, or no keep-alive is sent.
        status: Returns the text for `systemctl status`.
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
        """Check twice in each timeout, until cancelled."""
        while self._address:
            self.check()
            await asyncio.sleep(self._interval_s)

    async def announce(self, stop: Stop) -> None:
        """Once a stop is requested, report it, and extend `TimeoutStopSec=` to the end of the drain."""
        await stop.wait()
        if stop.signal is not None:
            left_s = max(0.0, stop.signal.deadline_s - time.monotonic()) + EXTRA_STOP_S
            notify(self._address, "STOPPING=1", f"EXTEND_TIMEOUT_USEC={left_s * 1e6:.0f}")

    def check(self) -> None:
        """Send the status, and a keep-alive unless an activity is stalled."""
        names = stalled(self._activities, time.monotonic())
        if names != self._was_stalled:
            _log.error("watchdog_withheld", stalled=names) if names else _log.info("watchdog_resumed")
            self._was_stalled = names
        notify(self._address, f"STATUS={self._status()}", *([] if names else ["WATCHDOG=1"]))
