"""Interruption notices, and the stops that follow."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TypeVar, cast

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import TransientError
from stt_async.services.imds import Imds, SpotNotice, parse_spot_notice
from stt_async.worker import interruption as module
from stt_async.worker.interruption import SPOT_MARGIN_S, SPOT_NOTICE_S, Interruptions, seconds_left
from stt_async.worker.lifecycle import Hooks, Lifecycle
from stt_async.worker.stop import Stop
from tests.unit.fakes import background, wait_until

T = TypeVar("T")
DRAIN_S = 100.0
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


class FakeImds:
    """Answers with these attributes; an error among them is raised."""

    def __init__(self) -> None:
        self.spot: SpotNotice | Exception | None = None
        self.rebalance: bool | Exception = False
        self.state: str | Exception | None = "InService"
        self.polls = 0

    async def spot_notice(self) -> SpotNotice | None:
        self.polls += 1
        return _answer(self.spot)

    async def rebalance_recommended(self) -> bool:
        return bool(_answer(self.rebalance))

    async def target_lifecycle_state(self) -> str | None:
        return _answer(self.state)


def _answer(answer: T | Exception) -> T:
    if isinstance(answer, Exception):
        raise answer
    return answer


class Watched:
    def __init__(self) -> None:
        self.imds, self.stop = FakeImds(), Stop()
        self.lifecycle = Lifecycle(None, Hooks(), self.stop, idle_timeout_s=0, drain_timeout_s=DRAIN_S)
        self.watch = Interruptions(cast("Imds", self.imds), self.stop, self.lifecycle, drain_timeout_s=DRAIN_S)

    @property
    def reason(self) -> str | None:
        return self.stop.signal.reason if self.stop.signal else None

    def left_s(self) -> float:
        assert self.stop.signal is not None
        return self.stop.signal.deadline_s - asyncio.get_running_loop().time()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(module, "POLL_INTERVAL_S", 0.001)
    return Watched()


def spot(in_s: float) -> SpotNotice:
    return SpotNotice("terminate", datetime.now(UTC) + timedelta(seconds=in_s))


class TestTime:
    def test_notice_in_the_format_of_aws_is_parsed(self) -> None:
        notice = parse_spot_notice('{"action": "terminate", "time": "2026-03-01T12:02:00Z"}')
        assert notice == SpotNotice("terminate", NOW + timedelta(minutes=2))
        assert seconds_left(notice, NOW) == 120 - SPOT_MARGIN_S

    def test_time_without_a_zone_is_utc(self) -> None:
        assert parse_spot_notice('{"action": "stop", "time": "2026-03-01T12:00:00"}').at == NOW

    @given(st.integers(-10_000, 10_000))
    def test_time_left_is_between_zero_and_the_notice_less_the_margin(self, in_s: int) -> None:
        """The wall clock may be wrong: with a clock an hour late, the worker would continue past its end."""
        left_s = seconds_left(SpotNotice("terminate", NOW + timedelta(seconds=in_s)), NOW)
        assert left_s == max(0, min(in_s, SPOT_NOTICE_S) - SPOT_MARGIN_S)

    @pytest.mark.parametrize("body", ["", "no json", "[]", "{}", '{"time": "soon", "action": "stop"}', '{"time": 7}'])
    def test_unreadable_notice_is_an_error_with_its_path(self, body: str) -> None:
        with pytest.raises(TransientError, match="instance-action"):
            parse_spot_notice(body)


async def test_without_a_notice_nothing_stops(watched: Watched) -> None:
    await watched.watch.poll_once()
    assert not watched.stop.requested


async def test_spot_notice_sets_its_deadline(watched: Watched) -> None:
    watched.imds.spot = spot(120)
    await watched.watch.poll_once()
    assert watched.reason == "spot_interruption"
    assert 95 < watched.left_s() <= 100


async def test_late_spot_notice_stops_at_once(watched: Watched) -> None:
    watched.imds.spot = spot(5)
    await watched.watch.poll_once()
    assert watched.left_s() <= 0


async def test_rebalance_recommendation_drains(watched: Watched) -> None:
    watched.imds.rebalance = True
    await watched.watch.poll_once()
    assert watched.reason == "rebalance_recommendation"
    assert 95 < watched.left_s() <= DRAIN_S


async def test_spot_notice_after_a_rebalance_shortens_the_drain(watched: Watched) -> None:
    watched.imds.rebalance = True
    await watched.watch.poll_once()
    watched.imds.spot = spot(30)
    await watched.watch.poll_once()
    assert watched.reason == "spot_interruption"
    assert watched.left_s() <= 10


async def test_scale_in_drains_and_marks_the_lifecycle_terminating(watched: Watched) -> None:
    watched.imds.state = "Terminated"
    await watched.watch.poll_once()
    assert watched.reason == "scale_in"
    assert watched.lifecycle._terminating.is_set()


async def test_lasting_notice_is_logged_once(watched: Watched) -> None:
    watched.imds.spot = spot(120)
    with structlog.testing.capture_logs() as logs:
        async with background(watched.watch.run()):
            await wait_until(lambda: watched.imds.polls > 5)
    assert [line["event"] for line in logs] == ["spot_interruption", "stop_requested"]


async def test_errors_stop_nothing_and_are_logged_once(watched: Watched) -> None:
    imds = watched.imds
    imds.spot = imds.rebalance = imds.state = TransientError("imds_500", "IMDS answered 500")
    with structlog.testing.capture_logs() as logs:
        async with background(watched.watch.run()):
            await wait_until(lambda: imds.polls > 5)
            imds.rebalance, imds.state = False, None
            seen = imds.polls
            await wait_until(lambda: imds.polls > seen + 2)
            assert not watched.stop.requested
            imds.spot = spot(120)
            await wait_until(lambda: watched.stop.requested)
    events = [line["event"] for line in logs]
    assert events[:2] == ["imds_failed", "spot_interruption"]
    assert sorted(events[2:]) == ["imds_recovered", "stop_requested"]
