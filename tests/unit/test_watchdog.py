"""Notifications to systemd, the watchdog, and the lag of the loop."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from stt_async.worker import lag
from stt_async.worker.lag import REPORT_INTERVAL_S, THRESHOLD_S, LagMeter
from stt_async.worker.stop import Stop
from stt_async.worker.watchdog import Activity, Watchdog, notify, stalled
from tests.unit.fakes import background, wait_until


class Listener:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(address)

    def datagrams(self) -> list[str]:
        """Return all datagrams since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    listening = Listener(str(tmp_path / "notify"))
    yield listening
    listening.socket.close()


def _address(listener: Listener) -> str:
    return str(listener.socket.getsockname())


def _polls(last_s: float | None) -> Activity:
    return Activity("polls", lambda: last_s, 10.0)


class TestNotify:
    def test_one_datagram_has_all_lines(self, listener: Listener) -> None:
        notify(_address(listener), "READY=1", "STATUS=fine")
        assert listener.datagrams() == ["READY=1\nSTATUS=fine"]

    def test_abstract_socket_is_reached(self) -> None:
        listening = Listener("\0stt-async-test")
        notify("@stt-async-test", "READY=1")
        assert listening.datagrams() == ["READY=1"]
        listening.socket.close()

    def test_without_an_address_nothing_is_sent(self) -> None:
        with structlog.testing.capture_logs() as logs:
            notify("", "READY=1")
        assert logs == []

    def test_missing_socket_is_logged_only(self, tmp_path: Path) -> None:
        with structlog.testing.capture_logs() as logs:
            notify(str(tmp_path / "gone"), "READY=1")
        assert [line["event"] for line in logs] == ["notify_failed"]


class TestStalled:
    @given(st.floats(0, 100))
    def test_activity_is_stalled_after_its_timeout(self, ago_s: float) -> None:
        assert stalled([_polls(1000.0 - ago_s)], 1000.0) == (["polls"] if 1000.0 - (1000.0 - ago_s) > 10.0 else [])

    def test_activity_with_nothing_to_do_is_not_stalled(self) -> None:
        assert stalled([_polls(None)], 1e9) == []

    def test_each_activity_has_its_own_timeout(self) -> None:
        activities = [_polls(0.0), Activity("heartbeats", lambda: 95.0, 10.0), Activity("jobs", lambda: 0.0, 1.0)]
        assert stalled(activities, 100.0) == ["polls", "jobs"]


class TestWatchdog:
    def test_keep_alive_is_sent_while_all_activities_make_progress(self, listener: Listener) -> None:
        Watchdog(_address(listener), 60.0, [_polls(time.monotonic())], lambda: "2 jobs").check()
        assert listener.datagrams() == ["STATUS=2 jobs\nWATCHDOG=1"]

    def test_keep_alive_is_withheld_while_one_activity_is_stalled(self, listener: Listener) -> None:
        last_s = [0.0]
        activities = [_polls(time.monotonic()), Activity("heartbeats", lambda: last_s[0], 10.0)]
        watchdog = Watchdog(_address(listener), 60.0, activities, lambda: "2 jobs")
        with structlog.testing.capture_logs() as logs:
            watchdog.check()
            watchdog.check()
            assert listener.datagrams() == ["STATUS=2 jobs"] * 2
            last_s[0] = time.monotonic()
            watchdog.check()
        assert listener.datagrams() == ["STATUS=2 jobs\nWATCHDOG=1"]
        assert [line["event"] for line in logs] == ["watchdog_withheld", "watchdog_resumed"]
        assert logs[0]["stalled"] == ["heartbeats"]

    async def test_checks_come_twice_in_each_timeout(self, listener: Listener) -> None:
        slept: asyncio.Future[float] = asyncio.Future()

        async def sleep(delay_s: float) -> None:
            slept.set_result(delay_s)
            await asyncio.Event().wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            running = asyncio.create_task(Watchdog(_address(listener), 60.0, [], lambda: "").run())
            assert await slept == 30.0
            running.cancel()

    async def test_stop_is_announced_with_the_time_it_may_take(self, listener: Listener) -> None:
        stop = Stop()
        async with background(Watchdog(_address(listener), 0.0, [], lambda: "").announce(stop)) as [announcing]:
            stop.request("test", within_s=100)
            await wait_until(announcing.done)
        [datagram] = listener.datagrams()
        stopping, extend = datagram.split("\n")
        assert stopping == "STOPPING=1"
        assert 129e6 < int(extend.removeprefix("EXTEND_TIMEOUT_USEC=")) <= 130e6


class TestLag:
    def test_short_lag_is_not_reported(self) -> None:
        meter = LagMeter(THRESHOLD_S)
        assert meter.add(THRESHOLD_S * 0.9, 0.0) is None

    def test_maximum_lag_is_reported_once_a_minute(self) -> None:
        meter = LagMeter(THRESHOLD_S)
        assert meter.add(2.0, 100.0) == 2.0
        assert meter.add(7.0, 101.0) is None
        assert meter.add(3.0, 102.0) is None
        assert meter.add(0.0, 100.0 + REPORT_INTERVAL_S) == 7.0
        assert meter.add(0.0, 100.0 + 2 * REPORT_INTERVAL_S) is None

    async def test_blocked_loop_is_logged(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lag, "TICK_S", 0.001)
        monkeypatch.setattr(lag, "THRESHOLD_S", 0.05)
        with structlog.testing.capture_logs() as logs:
            async with background(lag.watch_lag()):
                await asyncio.sleep(0)
                time.sleep(0.1)  # noqa: ASYNC251 - blocks the loop on purpose
                await wait_until(lambda: logs)
        assert logs[0]["event"] == "loop_lagged"
        assert logs[0]["max_s"] >= 0.05
