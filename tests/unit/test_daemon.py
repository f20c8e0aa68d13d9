"""What becomes of a message: real leases and breaker, a queue in memory, a pipeline that does as told."""

import asyncio
import time
from functools import partial
from unittest.mock import AsyncMock

import pytest

from stt_async.errors import (
    UNREACHABLE,
    ClassifiedError,
    DependencyError,
    LeaseLostError,
    OutageError,
    PermanentError,
    TransientError,
)
from stt_async.services.queue import Depth
from stt_async.worker import breaker as breaker_module
from stt_async.worker import daemon as daemon_module
from stt_async.worker.daemon import Daemon, stop_when_empty
from stt_async.worker.stop import Stop
from tests.unit.fakes import (
    LONG_S,
    OUTAGE_DELAY_S,
    PATIENCE_S,
    VISIBILITY_S,
    FakeQueue,
    message,
    raises,
    until,
    working,
)

DRAIN_S = 100.0
EMPTY = Depth(visible=0, in_flight=0, delayed=0)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(breaker_module, "LONGEST_WAIT_S", 0.002)
    monkeypatch.setattr(daemon_module, "AFTER_FAILED_RECEIVE_S", 0.001)
    monkeypatch.setattr(daemon_module, "CHECK_INTERVAL_S", 0.001)
    monkeypatch.setattr(daemon_module, "TICK_S", 0.001)


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_job_done_is_deleted() -> None:
    async with working([message("a")]) as worker:
        await until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("delete", "a", None)]
    assert worker.jobs.counts == {"job_succeeded": 1}


async def test_a_job_that_takes_too_long_is_retried_for_that_reason() -> None:
    async with working([message("a", receive_count=5)], job_timeout_s=0.01, does={"a": _for_ever}) as worker:
        await until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("dead_letter", "a", "job_timeout")]


async def test_a_timeout_inside_a_job_is_not_told_as_the_jobs_own() -> None:
    async with working([message("a", receive_count=5)], does={"a": raises(TimeoutError("of a socket"))}) as worker:
        await until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("dead_letter", "a", "crashed")]


async def test_a_failure_costs_its_own_job_alone() -> None:
    names = ["good-1", "bug", "bad", "good-2"]
    does = {"bug": raises(ZeroDivisionError()), "bad": raises(PermanentError("invalid_job", "no"))}
    async with working([message(name) for name in names], does=does) as worker:
        await until(lambda: len(worker.queue.calls) == 4)
        await worker.drain()
    by_name = {name: call for call, name, _ in worker.queue.calls}
    assert by_name == {"good-1": "delete", "bug": "release", "bad": "dead_letter", "good-2": "delete"}


async def test_no_more_is_received_than_slots_are_free() -> None:
    names = [f"m{n}" for n in range(30)]
    go = asyncio.Event()
    slots = 13
    async with working([message(name) for name in names], slots=slots, does=dict.fromkeys(names, go.wait)) as worker:
        await until(lambda: worker.pipeline.running == slots)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(worker.queue.waiting) == len(names) - slots
        assert worker.queue.asked == [13, 3]
        go.set()
        await until(lambda: len(worker.queue.calls) == len(names))
        await worker.drain()
    assert worker.pipeline.most_running == slots
    assert max(worker.queue.asked) == slots


async def test_a_slot_that_comes_free_is_filled_while_others_are_busy() -> None:
    async with working([message("long"), message("a"), message("b")], slots=2, does={"long": _for_ever}) as worker:
        await until(lambda: worker.pipeline.started == ["long", "a", "b"])
        await worker.drain(within_s=0)


@pytest.mark.parametrize("lead", range(-12, 20))
async def test_a_job_that_ends_as_the_drain_begins_disturbs_nothing(lead: int) -> None:
    """Whichever is first, and by however many turns of the loop."""
    go = asyncio.Event()
    async with working([message("a")], slots=1, does={"a": go.wait}) as worker:
        await until(lambda: worker.pipeline.running)
        if lead >= 0:
            go.set()
        else:
            worker.stop.request("test", within_s=LONG_S)
        for _ in range(abs(lead)):
            await asyncio.sleep(0)
        go.set()
        await worker.drain()
    assert worker.queue.calls == [("delete", "a", None)]


async def test_the_drain_lets_jobs_finish_and_starts_none() -> None:
    go = asyncio.Event()
    async with working([message("a"), message("b")], slots=1, does={"a": go.wait}) as worker:
        await until(lambda: worker.pipeline.running)
        worker.stop.request("test", within_s=LONG_S)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not worker.run.done()
        go.set()
        await worker.drain()
    assert worker.queue.calls == [("delete", "a", None)]
    assert worker.pipeline.started == ["a"]


async def test_what_is_unfinished_at_the_deadline_is_released_for_anybody_at_once() -> None:
    names = ["a", "b", "c"]
    async with working([message(n) for n in names], does=dict.fromkeys(names, _for_ever)) as worker:
        await until(lambda: worker.pipeline.running == 3)
        await worker.drain(within_s=0.005)
    assert sorted(worker.queue.calls) == [("release", name, 0) for name in names]
    assert worker.jobs.counts == {"job_released": 3}


async def test_a_poll_under_way_is_let_end_and_what_it_brings_is_released() -> None:
    async with working([]) as worker:
        worker.queue.gate = asyncio.Event()
        await until(lambda: worker.queue.polling)
        polls = len(worker.queue.asked)
        worker.stop.request("test", within_s=LONG_S)
        worker.queue.waiting = [message("a"), message("b")]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not worker.run.done()
        worker.queue.gate.set()
        await worker.drain()
    assert worker.queue.calls == [("release", "a", 0), ("release", "b", 0)]
    assert len(worker.queue.asked) == polls
    assert worker.pipeline.started == []


async def test_a_poll_that_outlasts_the_deadline_is_given_up() -> None:
    async with working([]) as worker:
        worker.queue.gate = asyncio.Event()
        await until(lambda: worker.queue.polling)
        await worker.drain(within_s=0.005)


async def test_cancelled_it_releases_what_it_holds() -> None:
    async with working([message("a")], does={"a": _for_ever}) as worker:
        await until(lambda: worker.pipeline.running)
        worker.run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker.run
    assert worker.queue.calls == [("release", "a", 0)]


async def test_a_delete_that_fails_is_no_failure_of_the_job() -> None:
    for error in (TransientError("InternalError", "500"), LeaseLostError("gone")):
        async with working([message("a")]) as worker:
            worker.queue.settle_error = error
            await until(lambda: worker.queue.calls)
            await worker.drain()
        assert worker.queue.calls == [("delete", "a", None)]
        assert worker.jobs.counts == {"job_succeeded": 1}


async def test_a_release_that_fails_stops_neither_the_drain_nor_the_others() -> None:
    async with working([message("a"), message("b")], does={"a": _for_ever, "b": _for_ever}) as worker:
        worker.queue.settle_error = TransientError("InternalError", "500")
        await until(lambda: worker.pipeline.running == 2)
        await worker.drain(within_s=0)
    assert sorted(worker.queue.calls) == [("release", "a", 0), ("release", "b", 0)]


async def test_a_lost_lease_abandons_the_job_quietly() -> None:
    async with working([], does={"a": _for_ever}) as worker:
        worker.queue.beat_codes["a"] = "MessageNotInflight"
        worker.queue.waiting = [message("a", age_s=VISIBILITY_S / 2)]
        await until(lambda: worker.jobs.counts["job_lease_lost"])
        await worker.drain()
    assert worker.queue.calls == []


async def test_a_job_that_sees_its_lease_lost_itself_is_abandoned_too() -> None:
    async with working([message("a", receive_count=5)], does={"a": raises(LeaseLostError("too late"))}) as worker:
        await until(lambda: worker.jobs.counts["job_lease_lost"])
        await worker.drain()
    assert worker.queue.calls == []


async def test_a_lost_lease_costs_its_own_job_alone() -> None:
    go = asyncio.Event()
    async with working([], does={"a": _for_ever, "b": go.wait}) as worker:
        worker.queue.beat_codes["a"] = "ReceiptHandleIsInvalid"
        worker.queue.waiting = [message(name, age_s=VISIBILITY_S / 2) for name in ("a", "b")]
        await until(lambda: worker.jobs.counts["job_lease_lost"])
        go.set()
        await until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("delete", "b", None)]


async def test_no_heartbeat_follows_the_settling_of_a_message() -> None:
    async with working([], does={"a": raises(TransientError("any", "thing"))}) as worker:
        worker.queue.beat_gate = asyncio.Event()
        go = asyncio.Event()
        worker.pipeline.does["a"] = go.wait
        worker.queue.waiting = [message("a", age_s=VISIBILITY_S / 2)]
        await until(lambda: worker.queue.beaten("a"))
        go.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert worker.queue.calls == []  # the beat that is under way would hide the message again
        worker.queue.beat_gate.set()
        await until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.beaten("a") == 1


class Outage:
    """A probe that fails until it is over, once it has been asked to look."""

    def __init__(self) -> None:
        self.over = False
        self.probes = 0
        self.look = asyncio.Event()
        self.look.set()

    async def __call__(self) -> None:
        self.probes += 1
        await self.look.wait()
        if not self.over:
            raise NO


NO = DependencyError("AccessDenied", "no")


async def test_while_a_service_refuses_everyone_nothing_is_received() -> None:
    outage = Outage()
    async with working([message("a"), message("b")], slots=1, probe=outage, does={"a": raises(NO)}) as worker:
        await until(lambda: outage.probes >= 3)
        assert worker.queue.asked == [1]
        assert [name for _, name, _ in worker.queue.calls] == ["a"]
        outage.over = True
        await until(lambda: ("delete", "b", None) in worker.queue.calls)
        await worker.drain()


async def test_in_an_outage_who_only_waits_to_be_refused_goes_back_and_who_has_its_recording_goes_on() -> None:
    outage, go = Outage(), asyncio.Event()
    does = {"refused": raises(NO), "downloading": _for_ever, "splitting": go.wait}
    async with working([], probe=outage, does=does) as worker:
        worker.pipeline.fetched = {"splitting"}
        worker.queue.waiting = [message(name) for name in ("splitting", "downloading", "refused")]
        await until(lambda: len(worker.queue.calls) == 2)
        assert {name for call, name, _ in worker.queue.calls if call == "release"} == {"downloading", "refused"}
        for _, _, delay_s in worker.queue.calls:
            assert isinstance(delay_s, int)
            assert OUTAGE_DELAY_S < delay_s <= 2 * OUTAGE_DELAY_S + 1  # whoever is not aware of it yet, is by then
        go.set()
        await until(lambda: ("delete", "splitting", None) in worker.queue.calls)
        await worker.drain()
    assert worker.jobs.counts == {"job_retried": 1, "job_released": 1, "job_succeeded": 1}


async def test_whatever_fails_in_an_outage_is_laid_to_it() -> None:
    """As answers of a CDN do, that has lost its server: 502 for all."""
    outage = Outage()
    does = {"a": raises(TransientError("http_502", "bad gateway")), "last": raises(TransientError("cut", "off"))}
    async with working(
        [message("a", receive_count=4), message("last", receive_count=5)], probe=outage, does=does
    ) as worker:
        await until(lambda: outage.probes >= 2)
        await until(lambda: worker.queue.calls)
        [(call, name, delay_s)] = worker.queue.calls
        assert (call, name) == ("release", "a")
        assert isinstance(delay_s, int)
        assert delay_s > OUTAGE_DELAY_S
        worker.pipeline.does.clear()
        outage.over = True
        await until(lambda: len(worker.queue.calls) == 2)
        await worker.drain()
    assert worker.queue.calls[1] == ("delete", "last", None)


async def test_what_a_poll_brings_in_an_outage_goes_back_unopened() -> None:
    async with working([], probe=Outage()) as worker:
        worker.queue.gate = asyncio.Event()
        await until(lambda: worker.queue.polling)
        worker.breaker.trip(OutageError(UNREACHABLE, "no route"))
        worker.queue.waiting = [message("a"), message("b", receive_count=4)]
        worker.queue.gate.set()
        await until(lambda: len(worker.queue.calls) == 2)
        assert [(call, name) for call, name, _ in worker.queue.calls] == [("release", "a"), ("release", "b")]
        assert worker.pipeline.started == []
        await worker.drain()


@pytest.mark.parametrize("fetched", [True, False])
async def test_an_outage_costs_no_job_its_last_receive(*, fetched: bool) -> None:
    outage, refused = Outage(), iter([NO, NO])

    async def job() -> None:
        if error := next(refused, None):
            raise error

    async with working([], probe=outage, does={"a": job}) as worker:
        worker.pipeline.fetched = {"a"} if fetched else set()
        worker.queue.waiting = [message("a", receive_count=5)]
        await until(lambda: outage.probes >= 3)
        assert worker.queue.calls == []
        assert worker.pipeline.started == ["a"]
        outage.over = True
        await until(lambda: worker.queue.calls)
        await worker.drain()
    # The second refusal came after the outage, so it was of this job alone.
    assert worker.pipeline.started == ["a", "a"]
    assert worker.queue.calls == [("dead_letter", "a", "AccessDenied")]


async def test_a_job_that_outwaited_an_outage_is_done() -> None:
    outage, refused = Outage(), iter([NO])

    async def job() -> None:
        if error := next(refused, None):
            raise error

    async with working([message("a", receive_count=5)], probe=outage, does={"a": job}) as worker:
        await until(lambda: outage.probes >= 2)
        outage.over = True
        await until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("delete", "a", None)]
    assert worker.jobs.counts == {"job_succeeded": 1}


async def test_a_message_on_its_last_receive_is_not_given_back_because_others_are_refused() -> None:
    """SQS would redrive it instead of delivering it again."""
    outage, go = Outage(), asyncio.Event()
    async with working([], probe=outage, does={"refused": raises(NO), "last": go.wait}) as worker:
        worker.queue.waiting = [message("last", receive_count=5), message("refused")]
        await until(lambda: outage.probes >= 2)
        go.set()
        await until(lambda: ("delete", "last", None) in worker.queue.calls)
        await worker.drain()


async def test_nor_is_one_that_a_poll_brings_in_an_outage() -> None:
    async with working([], probe=Outage()) as worker:
        worker.queue.gate = asyncio.Event()
        await until(lambda: worker.queue.polling)
        worker.breaker.trip(OutageError(UNREACHABLE, "no route"))
        worker.queue.waiting = [message("last", receive_count=5)]
        worker.queue.gate.set()
        await until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("delete", "last", None)]


async def test_stopped_in_an_outage_a_last_receive_ends_with_its_reason_at_once() -> None:
    outage = Outage()
    async with working([message("a", receive_count=5)], probe=outage, does={"a": raises(NO)}) as worker:
        await until(lambda: outage.probes >= 2)
        await worker.drain(within_s=LONG_S)
    assert worker.queue.calls == [("dead_letter", "a", "AccessDenied")]


async def test_an_outage_longer_than_a_job_may_take_is_told_as_the_reason() -> None:
    told = AsyncMock()
    does = {"a": raises(NO)}
    async with working([message("a", receive_count=5)], probe=Outage(), job_timeout_s=0.05, does=does) as worker:
        worker.queue.dead_letter = told  # type: ignore[method-assign]  # to see the sentence, too
        await until(lambda: told.called)
        await worker.drain()
    [(_, error)] = [call.args for call in told.call_args_list]
    assert error.code == "job_timeout"
    assert "AccessDenied" in error.message


async def test_a_job_refused_alone_ends_in_the_dead_letter_queue_and_costs_its_neighbours_nothing() -> None:
    go = asyncio.Event()
    does = {"refused": raises(NO), "neighbour": go.wait}
    async with working([message("neighbour"), message("refused", receive_count=4)], does=does) as worker:
        await until(lambda: worker.queue.calls)
        [(call, name, after_s)] = worker.queue.calls
        assert (call, name) == ("release", "refused")
        assert isinstance(after_s, int)
        assert worker.pipeline.running == 1
        worker.queue.waiting = [message("refused", receive_count=5), message("next")]
        await until(lambda: len(worker.queue.calls) == 3)
        go.set()
        await until(lambda: len(worker.queue.calls) == 4)
        await worker.drain()
    assert ("dead_letter", "refused", "AccessDenied") in worker.queue.calls
    assert {name for call, name, _ in worker.queue.calls if call == "delete"} == {"neighbour", "next"}


async def test_while_it_is_not_known_whether_one_or_all_are_refused_nobody_is_given_back() -> None:
    """Or a few recordings that are forbidden would spend the receives of all others."""
    outage, go = Outage(), asyncio.Event()
    outage.over = True
    outage.look.clear()
    does = {"refused": raises(NO), "neighbour": go.wait}
    async with working([message("refused"), message("neighbour")], probe=outage, does=does) as worker:
        await until(lambda: outage.probes)
        for _ in range(20):
            await asyncio.sleep(0)
        assert worker.queue.calls == []
        assert not worker.breaker.closed.is_set()
        outage.look.set()
        await until(lambda: worker.queue.calls)
        go.set()
        await until(lambda: len(worker.queue.calls) == 2)
        await worker.drain()
    assert sorted(call for call, _, _ in worker.queue.calls) == ["delete", "release"]


async def test_a_queue_that_is_out_of_reach_opens_the_breaker() -> None:
    outage = Outage()
    async with working([], probe=outage) as worker:
        worker.queue.receive_errors = [OutageError(UNREACHABLE, "no route")]
        await until(lambda: outage.probes >= 3)
        polls = len(worker.queue.asked)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(worker.queue.asked) == polls
        outage.over = True
        await until(lambda: len(worker.queue.asked) > polls)
        await worker.drain()


async def test_a_failed_receive_is_followed_by_another() -> None:
    async with working([message("a")]) as worker:
        worker.queue.receive_errors = [TransientError("InternalError", "500")] * 2
        await until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("delete", "a", None)]


async def test_it_stops_behind_an_open_breaker() -> None:
    async with working([], probe=Outage()) as worker:
        worker.breaker.trip(DependencyError("AccessDenied", "no"))
        await until(lambda: len(worker.queue.asked) <= 1)
        await worker.drain()


async def test_a_bug_in_receiving_ends_the_daemon_after_its_jobs() -> None:
    async with working([message("a")], slots=2) as worker:
        go = asyncio.Event()
        worker.pipeline.does["a"] = go.wait
        await until(lambda: worker.pipeline.running)
        worker.queue.receive_errors = [ZeroDivisionError("a bug")]
        await until(lambda: not worker.queue.receive_errors)
        go.set()
        with pytest.raises(ZeroDivisionError):
            await worker.run
    assert worker.queue.calls == [("delete", "a", None)]


class TestStopWhenEmpty:
    """Of `worker --once`."""

    @pytest.mark.parametrize(
        "busy",
        [
            Depth(visible=1, in_flight=0, delayed=0),
            Depth(visible=0, in_flight=1, delayed=0),
            Depth(visible=0, in_flight=0, delayed=1),
        ],
        ids=["waiting", "in flight", "comes back later"],
    )
    async def test_it_asks_to_stop_when_nothing_is_left_twice_in_a_row(self, busy: Depth) -> None:
        queue, stop = FakeQueue(), Stop()
        queue.depths = [busy, EMPTY, busy, EMPTY, EMPTY]
        async with asyncio.timeout(PATIENCE_S):
            await stop_when_empty(queue, stop, drain_timeout_s=LONG_S)
        assert queue.looks == 5
        assert stop.signal is not None
        assert stop.signal.reason == "queue_empty"

    async def test_it_does_not_go_on_asking_while_the_worker_drains(self) -> None:
        queue, stop = FakeQueue(), Stop()
        queue.depths = [Depth(visible=0, in_flight=1, delayed=0)]
        stop.request("SIGTERM", within_s=LONG_S)
        async with asyncio.timeout(PATIENCE_S):
            await stop_when_empty(queue, stop, drain_timeout_s=LONG_S)
        assert queue.looks <= 1

    async def test_a_queue_that_does_not_answer_is_asked_again(self) -> None:
        queue, stop = FakeQueue(), Stop()
        error: ClassifiedError = OutageError(UNREACHABLE, "no route")
        queue.depths = [EMPTY, error, EMPTY, error, EMPTY, EMPTY]
        async with asyncio.timeout(PATIENCE_S):
            await stop_when_empty(queue, stop, drain_timeout_s=LONG_S)
        assert queue.looks == 6


async def test_what_cannot_finish_goes_back_at_once_and_the_rest_may_try() -> None:
    go = asyncio.Event()
    does = {"long": _for_ever, "short": go.wait, "unknown": go.wait}
    async with working([message(name) for name in does], does=does) as worker:
        worker.pipeline.needed_s |= {"long": DRAIN_S + 60, "short": DRAIN_S - 60}
        await until(lambda: len(worker.jobs.running) == 3)
        worker.stop.request("test", within_s=DRAIN_S)
        await until(lambda: worker.queue.calls)
        assert worker.queue.calls == [("release", "long", 0)]
        assert len(worker.jobs.running) == 2
        go.set()
        await worker.run
    assert sorted(worker.queue.calls) == [
        ("delete", "short", None),
        ("delete", "unknown", None),
        ("release", "long", 0),
    ]


async def test_a_poll_under_way_delays_no_release() -> None:
    async with working([message("long")], does={"long": _for_ever}) as worker:
        worker.pipeline.needed_s["long"] = DRAIN_S + 60
        await until(lambda: len(worker.jobs.running) == 1)
        worker.queue.gate = asyncio.Event()
        polls = len(worker.queue.asked)
        await until(lambda: len(worker.queue.asked) > polls)
        worker.stop.request("test", within_s=DRAIN_S)
        await until(lambda: worker.queue.calls)
        assert not worker.run.done()
        worker.queue.gate.set()
        await worker.run


async def test_a_deadline_that_is_shortened_releases_more() -> None:
    async with working([message("a")], does={"a": _for_ever}) as worker:
        worker.pipeline.needed_s["a"] = DRAIN_S - 60
        await until(lambda: len(worker.jobs.running) == 1)
        worker.stop.request("test", within_s=DRAIN_S)
        seen = len(worker.pipeline.asked)
        await until(lambda: len(worker.pipeline.asked) > seen + 2)
        assert worker.queue.calls == []
        worker.stop.request("sooner", within_s=DRAIN_S - 80)
        await worker.run
    assert worker.queue.calls == [("release", "a", 0)]


async def test_empty_polls_add_up_and_any_message_begins_anew() -> None:
    async with working([]) as worker:
        await until(lambda: len(worker.idle_s) >= 5)
        assert worker.idle_s == sorted(worker.idle_s)
        worker.queue.waiting = [message("a")]
        await until(lambda: worker.queue.calls)
        before = max(worker.idle_s)
        seen = len(worker.idle_s)
        await until(lambda: len(worker.idle_s) > seen)
        assert worker.idle_s[-1] < before


async def test_a_poll_that_fails_says_nothing_of_the_queue() -> None:
    async with working([]) as worker:
        await until(lambda: len(worker.idle_s) >= 5)
        before, seen = max(worker.idle_s), len(worker.idle_s)
        worker.queue.receive_errors = [TransientError("InternalError", "500")]
        await until(lambda: len(worker.idle_s) > seen + 1)
        assert worker.idle_s[-1] < before


async def test_while_a_message_is_held_nothing_counts_as_empty() -> None:
    go = asyncio.Event()
    async with working([message("a")], does={"a": go.wait}) as worker:
        await until(lambda: len(worker.jobs.running) == 1)
        seen, polls = len(worker.idle_s), len(worker.queue.asked)
        await until(lambda: len(worker.queue.asked) > polls + 5)
        assert len(worker.idle_s) == seen
        go.set()
        await until(lambda: len(worker.idle_s) > seen)


def _ticked(daemon: Daemon, after_s: float) -> bool:
    return daemon.ticked_s > after_s


async def test_it_ticks_while_it_waits_for_a_slot_and_while_it_drains() -> None:
    names = ["a", "b", "c", "d"]
    async with working([message(name) for name in names], does=dict.fromkeys(names, _for_ever)) as worker:
        await until(lambda: len(worker.jobs.running) == 4)
        for _ in range(2):
            before = time.monotonic()
            await until(partial(_ticked, worker.daemon, before))
            worker.stop.request("test", within_s=DRAIN_S)
        assert worker.jobs.oldest_started_s is not None
        worker.stop.request("test", within_s=0)
        await worker.run
    assert worker.jobs.oldest_started_s is None
