"""When systemd hears of us, and how late the loop is."""

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

    def heard(self) -> list[str]:
        """All datagrams since the last look."""
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


def _side(last_s: float | None) -> Activity:
    return Activity("polls", lambda: last_s, 10.0)


class TestNotify:
    def test_one_datagram_with_a_line_for_each_fact(self, listener: Listener) -> None:
        notify(_address(listener), "READY=1", "STATUS=fine")
        assert listener.heard() == ["READY=1\nSTATUS=fine"]

    def test_an_abstract_socket(self) -> None:
        listening = Listener("\0stt-async-test")
        notify("@stt-async-test", "READY=1")
        assert listening.heard() == ["READY=1"]
        listening.socket.close()

    def test_without_systemd_nothing_is_said(self) -> None:
        with structlog.testing.capture_logs() as logs:
            notify("", "READY=1")
        assert logs == []

    def test_nobody_there_is_no_reason_to_stop(self, tmp_path: Path) -> None:
        with structlog.testing.capture_logs() as logs:
            notify(str(tmp_path / "gone"), "READY=1")
        assert [line["event"] for line in logs] == ["notify_failed"]


class TestStalled:
    @given(st.floats(0, 100))
    def test_a_side_is_stalled_after_its_patience(self, ago_s: float) -> None:
        assert stalled([_side(1000.0 - ago_s)], 1000.0) == (["polls"] if 1000.0 - (1000.0 - ago_s) > 10.0 else [])

    def test_a_side_with_nothing_to_do_is_not_stalled(self) -> None:
        assert stalled([_side(None)], 1e9) == []

    def test_each_side_counts_alone(self) -> None:
        sides = [_side(0.0), Activity("heartbeats", lambda: 95.0, 10.0), Activity("jobs", lambda: 0.0, 1.0)]
        assert stalled(sides, 100.0) == ["polls", "jobs"]


class TestWatchdog:
    def test_a_sign_of_life_while_all_sides_make_progress(self, listener: Listener) -> None:
        Watchdog(_address(listener), 60.0, [_side(time.monotonic())], lambda: "2 jobs").check()
        assert listener.heard() == ["STATUS=2 jobs\nWATCHDOG=1"]

    def test_none_while_one_side_is_stuck_and_again_when_it_goes_on(self, listener: Listener) -> None:
        last_s = [0.0]
        sides = [_side(time.monotonic()), Activity("heartbeats", lambda: last_s[0], 10.0)]
        dog = Watchdog(_address(listener), 60.0, sides, lambda: "2 jobs")
        with structlog.testing.capture_logs() as logs:
            dog.check()
            dog.check()
            assert listener.heard() == ["STATUS=2 jobs"] * 2
            last_s[0] = time.monotonic()
            dog.check()
        assert listener.heard() == ["STATUS=2 jobs\nWATCHDOG=1"]
        assert [line["event"] for line in logs] == ["watchdog_withheld", "watchdog_resumed"]
        assert logs[0]["stalled"] == ["heartbeats"]

    async def test_it_comes_twice_in_each_timeout(self, listener: Listener) -> None:
        slept: asyncio.Future[float] = asyncio.Future()

        async def sleep(delay_s: float) -> None:
            slept.set_result(delay_s)
            await asyncio.Event().wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "sleep", sleep)
            running = asyncio.create_task(Watchdog(_address(listener), 60.0, [], lambda: "").run())
            assert await slept == 30.0
            running.cancel()

    async def test_the_stop_is_announced_with_the_time_it_may_take(self, listener: Listener) -> None:
        stop = Stop()
        async with background(Watchdog(_address(listener), 0.0, [], lambda: "").announce(stop)) as [announcing]:
            stop.request("test", within_s=100)
            await wait_until(announcing.done)
        [datagram] = listener.heard()
        stopping, extend = datagram.split("\n")
        assert stopping == "STOPPING=1"
        assert 129e6 < int(extend.removeprefix("EXTEND_TIMEOUT_USEC=")) <= 130e6


class TestLag:
    def test_what_is_short_is_not_told(self) -> None:
        meter = LagMeter(THRESHOLD_S)
        assert meter.add(THRESHOLD_S * 0.9, 0.0) is None

    def test_the_maximum_is_told_once_a_minute(self) -> None:
        meter = LagMeter(THRESHOLD_S)
        assert meter.add(2.0, 100.0) == 2.0
        assert meter.add(7.0, 101.0) is None
        assert meter.add(3.0, 102.0) is None
        assert meter.add(0.0, 100.0 + REPORT_INTERVAL_S) == 7.0
        assert meter.add(0.0, 100.0 + 2 * REPORT_INTERVAL_S) is None

    async def test_a_blocked_loop_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lag, "TICK_S", 0.001)
        monkeypatch.setattr(lag, "THRESHOLD_S", 0.05)
        with structlog.testing.capture_logs() as logs:
            async with background(lag.watch_lag()):
                await asyncio.sleep(0)
                time.sleep(0.1)  # noqa: ASYNC251 - blocks the loop, which is what this is about
                await wait_until(lambda: logs)
        assert logs[0]["event"] == "loop_lagged"
        assert logs[0]["max_s"] >= 0.05
