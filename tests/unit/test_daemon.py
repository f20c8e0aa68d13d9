"""What becomes of a message: real leases and breaker, a queue in memory, a pipeline that does as told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
    WorkerLostError,
)
from stt_async.services.queue import Depth, Message
from stt_async.worker import breaker as breaker_module
from stt_async.worker import daemon as daemon_module
from stt_async.worker.breaker import Breaker
from stt_async.worker.daemon import Daemon, stop_when_empty
from stt_async.worker.delivery import Deliveries
from stt_async.worker.lease import Leases
from stt_async.worker.stop import Stop
from tests.unit.fakes import PATIENCE_S, FakePipeline, FakeQueue, beside, message, raises, until

VISIBILITY_S = 300
LONG_S = 3600.0
REST_S = 60
EMPTY = Depth(visible=0, in_flight=0, delayed=0)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker_module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(breaker_module, "LONGEST_WAIT_S", 0.002)
    monkeypatch.setattr(daemon_module, "AFTER_FAILED_RECEIVE_S", 0.001)
    monkeypatch.setattr(daemon_module, "LOOK_INTERVAL_S", 0.001)


@dataclass
class Site:
    """A daemon that runs, and what it runs on."""

    queue: FakeQueue
    pipeline: FakePipeline
    stop: Stop
    breaker: Breaker
    deliveries: Deliveries
    run: asyncio.Task[object]

    async def drain(self, *, within_s: float = LONG_S) -> None:
        """Ask to stop, and wait for the daemon's end."""
        self.stop.request("test", within_s=within_s)
        async with asyncio.timeout(PATIENCE_S):
            await self.run


async def _in_order() -> None:
    """A probe that finds everything in order."""


@asynccontextmanager
async def working(
    messages: Sequence[Message],
    *,
    slots: int = 4,
    job_timeout_s: float = LONG_S,
    probe: Callable[[], Awaitable[None]] = _in_order,
    does: Mapping[str, Callable[[], Awaitable[object]]] | None = None,
) -> AsyncIterator[Site]:
    """Run a daemon over these messages. Whatever the test does, it has ended afterwards and holds no job."""
    queue, pipeline, stop = FakeQueue(*messages), FakePipeline(does or {}), Stop()
    leases, breaker = Leases(queue, VISIBILITY_S), Breaker(probe)
    leases._tick_s = 0.001
    deliveries = Deliveries(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=pipeline,
        job_timeout_s=job_timeout_s,
        outage_rest_s=REST_S,
    )
    daemon = Daemon(
        queue=queue,
        deliveries=deliveries,
        breaker=breaker,
        stop=stop,
        slots=slots,
        wait_time_s=1,
        visibility_timeout_s=VISIBILITY_S,
    )
    async with beside(daemon.run(), leases.run(), breaker.run(), daemon.triage()) as [run, *_]:
        yield Site(queue, pipeline, stop, breaker, deliveries, run)
    assert pipeline.running == 0
    assert not leases._held


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_job_done_is_deleted() -> None:
    async with working([message("a")]) as site:
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.calls == [("delete", "a", None)]
    assert site.deliveries.tally == {"job_succeeded": 1}


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (PermanentError("undecodable", "no audio in it"), "dead_letter"),
        (TransientError("InternalError", "500"), "release"),
        (DependencyError("AccessDenied", "no"), "release"),
        (WorkerLostError("child_died", "exit code -9"), "release"),
        (ZeroDivisionError("a bug"), "release"),
    ],
    ids=lambda value: getattr(value, "failure", None) or str(value),
)
async def test_the_class_of_a_failure_decides(error: Exception, call: str) -> None:
    async with working([message("a", receive_count=2)], does={"a": raises(error)}) as site:
        await until(lambda: site.queue.calls)
        await site.drain()
    [(called, name, detail)] = site.queue.calls
    assert (called, name) == (call, "a")
    if call == "dead_letter":
        assert detail == "undecodable"
        assert site.deliveries.tally == {"job_failed": 1}
    else:
        assert isinstance(detail, int)
        assert 1 <= detail <= 1 + 2 * 10  # the second receive
        assert site.deliveries.tally == {"job_retried": 1}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermanentError("undecodable", "no audio in it"), "undecodable"),
        (TransientError("InternalError", "500"), "InternalError"),
        (DependencyError("AccessDenied", "no"), "AccessDenied"),
        (WorkerLostError("child_died", "exit code -9"), "child_died"),
        (ZeroDivisionError("a bug"), "crashed"),
    ],
    ids=lambda value: getattr(value, "failure", None) or str(value),
)
async def test_the_last_receive_goes_to_the_dead_letter_queue_with_its_reason(error: Exception, code: str) -> None:
    async with working([message("a", receive_count=5)], does={"a": raises(error)}) as site:
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.calls == [("dead_letter", "a", code)]


async def test_a_job_that_takes_too_long_is_retried_for_that_reason() -> None:
    async with working([message("a", receive_count=5)], job_timeout_s=0.01, does={"a": _for_ever}) as site:
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.calls == [("dead_letter", "a", "job_timeout")]


async def test_a_timeout_inside_a_job_is_not_told_as_the_jobs_own() -> None:
    async with working([message("a", receive_count=5)], does={"a": raises(TimeoutError("of a socket"))}) as site:
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.calls == [("dead_letter", "a", "crashed")]


async def test_a_failure_costs_its_own_job_alone() -> None:
    names = ["good-1", "bug", "bad", "good-2"]
    does = {"bug": raises(ZeroDivisionError()), "bad": raises(PermanentError("invalid_job", "no"))}
    async with working([message(name) for name in names], does=does) as site:
        await until(lambda: len(site.queue.calls) == 4)
        await site.drain()
    by_name = {name: call for call, name, _ in site.queue.calls}
    assert by_name == {"good-1": "delete", "bug": "release", "bad": "dead_letter", "good-2": "delete"}


async def test_no_more_is_received_than_slots_are_free() -> None:
    names = [f"m{n}" for n in range(30)]
    go = asyncio.Event()
    slots = 13
    async with working([message(name) for name in names], slots=slots, does=dict.fromkeys(names, go.wait)) as site:
        await until(lambda: site.pipeline.running == slots)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(site.queue.waiting) == len(names) - slots
        assert site.queue.asked == [13, 3]
        go.set()
        await until(lambda: len(site.queue.calls) == len(names))
        await site.drain()
    assert site.pipeline.most_running == slots
    assert max(site.queue.asked) == slots


async def test_a_slot_that_comes_free_is_filled_while_others_are_busy() -> None:
    async with working([message("long"), message("a"), message("b")], slots=2, does={"long": _for_ever}) as site:
        await until(lambda: site.pipeline.started == ["long", "a", "b"])
        await site.drain(within_s=0)


@pytest.mark.parametrize("lead", range(-12, 20))
async def test_a_job_that_ends_as_the_drain_begins_disturbs_nothing(lead: int) -> None:
    """Whichever is first, and by however many turns of the loop."""
    go = asyncio.Event()
    async with working([message("a")], slots=1, does={"a": go.wait}) as site:
        await until(lambda: site.pipeline.running)
        if lead >= 0:
            go.set()
        else:
            site.stop.request("test", within_s=LONG_S)
        for _ in range(abs(lead)):
            await asyncio.sleep(0)
        go.set()
        await site.drain()
    assert site.queue.calls == [("delete", "a", None)]


async def test_the_drain_lets_jobs_finish_and_starts_none() -> None:
    go = asyncio.Event()
    async with working([message("a"), message("b")], slots=1, does={"a": go.wait}) as site:
        await until(lambda: site.pipeline.running)
        site.stop.request("test", within_s=LONG_S)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not site.run.done()
        go.set()
        await site.drain()
    assert site.queue.calls == [("delete", "a", None)]
    assert site.pipeline.started == ["a"]


async def test_what_is_unfinished_at_the_deadline_is_released_for_anybody_at_once() -> None:
    names = ["a", "b", "c"]
    async with working([message(n) for n in names], does=dict.fromkeys(names, _for_ever)) as site:
        await until(lambda: site.pipeline.running == 3)
        await site.drain(within_s=0.005)
    assert sorted(site.queue.calls) == [("release", name, 0) for name in names]
    assert site.deliveries.tally == {"job_released": 3}


async def test_a_poll_under_way_is_let_end_and_what_it_brings_is_released() -> None:
    async with working([]) as site:
        site.queue.gate = asyncio.Event()
        await until(lambda: site.queue.polling)
        polls = len(site.queue.asked)
        site.stop.request("test", within_s=LONG_S)
        site.queue.waiting = [message("a"), message("b")]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not site.run.done()
        site.queue.gate.set()
        await site.drain()
    assert site.queue.calls == [("release", "a", 0), ("release", "b", 0)]
    assert len(site.queue.asked) == polls
    assert site.pipeline.started == []


async def test_a_poll_that_outlasts_the_deadline_is_given_up() -> None:
    async with working([]) as site:
        site.queue.gate = asyncio.Event()
        await until(lambda: site.queue.polling)
        await site.drain(within_s=0.005)


async def test_cancelled_it_releases_what_it_holds() -> None:
    async with working([message("a")], does={"a": _for_ever}) as site:
        await until(lambda: site.pipeline.running)
        site.run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await site.run
    assert site.queue.calls == [("release", "a", 0)]


async def test_a_delete_that_fails_is_no_failure_of_the_job() -> None:
    for error in (TransientError("InternalError", "500"), LeaseLostError("gone")):
        async with working([message("a")]) as site:
            site.queue.settle_error = error
            await until(lambda: site.queue.calls)
            await site.drain()
        assert site.queue.calls == [("delete", "a", None)]
        assert site.deliveries.tally == {"job_succeeded": 1}


async def test_a_release_that_fails_stops_neither_the_drain_nor_the_others() -> None:
    async with working([message("a"), message("b")], does={"a": _for_ever, "b": _for_ever}) as site:
        site.queue.settle_error = TransientError("InternalError", "500")
        await until(lambda: site.pipeline.running == 2)
        await site.drain(within_s=0)
    assert sorted(site.queue.calls) == [("release", "a", 0), ("release", "b", 0)]


async def test_a_lost_lease_abandons_the_job_quietly() -> None:
    async with working([], does={"a": _for_ever}) as site:
        site.queue.beat_codes["a"] = "MessageNotInflight"
        site.queue.waiting = [message("a", age_s=VISIBILITY_S / 2)]
        await until(lambda: site.deliveries.tally["job_lease_lost"])
        await site.drain()
    assert site.queue.calls == []


async def test_a_job_that_sees_its_lease_lost_itself_is_abandoned_too() -> None:
    async with working([message("a", receive_count=5)], does={"a": raises(LeaseLostError("too late"))}) as site:
        await until(lambda: site.deliveries.tally["job_lease_lost"])
        await site.drain()
    assert site.queue.calls == []


async def test_a_lost_lease_costs_its_own_job_alone() -> None:
    go = asyncio.Event()
    async with working([], does={"a": _for_ever, "b": go.wait}) as site:
        site.queue.beat_codes["a"] = "ReceiptHandleIsInvalid"
        site.queue.waiting = [message(name, age_s=VISIBILITY_S / 2) for name in ("a", "b")]
        await until(lambda: site.deliveries.tally["job_lease_lost"])
        go.set()
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.calls == [("delete", "b", None)]


async def test_no_heartbeat_follows_the_settling_of_a_message() -> None:
    async with working([], does={"a": raises(TransientError("any", "thing"))}) as site:
        site.queue.beat_gate = asyncio.Event()
        go = asyncio.Event()
        site.pipeline.does["a"] = go.wait
        site.queue.waiting = [message("a", age_s=VISIBILITY_S / 2)]
        await until(lambda: site.queue.beaten("a"))
        go.set()
        for _ in range(20):
            await asyncio.sleep(0)
        assert site.queue.calls == []  # the beat that is under way would hide the message again
        site.queue.beat_gate.set()
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.beaten("a") == 1


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
    async with working([message("a"), message("b")], slots=1, probe=outage, does={"a": raises(NO)}) as site:
        await until(lambda: outage.probes >= 3)
        assert site.queue.asked == [1]
        assert [name for _, name, _ in site.queue.calls] == ["a"]
        outage.over = True
        await until(lambda: ("delete", "b", None) in site.queue.calls)
        await site.drain()


async def test_in_an_outage_who_only_waits_to_be_refused_goes_back_and_who_has_its_recording_goes_on() -> None:
    outage, go = Outage(), asyncio.Event()
    does = {"refused": raises(NO), "downloading": _for_ever, "splitting": go.wait}
    async with working([], probe=outage, does=does) as site:
        site.pipeline.fetched = {"splitting"}
        site.queue.waiting = [message(name) for name in ("splitting", "downloading", "refused")]
        await until(lambda: len(site.queue.calls) == 2)
        assert {name for call, name, _ in site.queue.calls if call == "release"} == {"downloading", "refused"}
        for _, _, rest_s in site.queue.calls:
            assert isinstance(rest_s, int)
            assert REST_S < rest_s <= 2 * REST_S + 1  # whoever is not aware of it yet, is by then
        go.set()
        await until(lambda: ("delete", "splitting", None) in site.queue.calls)
        await site.drain()
    assert site.deliveries.tally == {"job_retried": 1, "job_released": 1, "job_succeeded": 1}


async def test_whatever_fails_in_an_outage_is_laid_to_it() -> None:
    """As answers of a CDN do, that has lost its server: 502 for all."""
    outage = Outage()
    does = {"a": raises(TransientError("http_502", "bad gateway")), "last": raises(TransientError("cut", "off"))}
    async with working(
        [message("a", receive_count=4), message("last", receive_count=5)], probe=outage, does=does
    ) as site:
        await until(lambda: outage.probes >= 2)
        await until(lambda: site.queue.calls)
        [(call, name, rest_s)] = site.queue.calls
        assert (call, name) == ("release", "a")
        assert isinstance(rest_s, int)
        assert rest_s > REST_S
        site.pipeline.does.clear()
        outage.over = True
        await until(lambda: len(site.queue.calls) == 2)
        await site.drain()
    assert site.queue.calls[1] == ("delete", "last", None)


async def test_what_a_poll_brings_in_an_outage_goes_back_unopened() -> None:
    async with working([], probe=Outage()) as site:
        site.queue.gate = asyncio.Event()
        await until(lambda: site.queue.polling)
        site.breaker.trip(OutageError(UNREACHABLE, "no route"))
        site.queue.waiting = [message("a"), message("b", receive_count=4)]
        site.queue.gate.set()
        await until(lambda: len(site.queue.calls) == 2)
        assert [(call, name) for call, name, _ in site.queue.calls] == [("release", "a"), ("release", "b")]
        assert site.pipeline.started == []
        await site.drain()


@pytest.mark.parametrize("fetched", [True, False])
async def test_an_outage_costs_no_job_its_last_receive(*, fetched: bool) -> None:
    outage, refused = Outage(), iter([NO, NO])

    async def job() -> None:
        if error := next(refused, None):
            raise error

    async with working([], probe=outage, does={"a": job}) as site:
        site.pipeline.fetched = {"a"} if fetched else set()
        site.queue.waiting = [message("a", receive_count=5)]
        await until(lambda: outage.probes >= 3)
        assert site.queue.calls == []
        assert site.pipeline.started == ["a"]
        outage.over = True
        await until(lambda: site.queue.calls)
        await site.drain()
    # The second refusal came after the outage, so it was of this job alone.
    assert site.pipeline.started == ["a", "a"]
    assert site.queue.calls == [("dead_letter", "a", "AccessDenied")]


async def test_a_job_that_outwaited_an_outage_is_done() -> None:
    outage, refused = Outage(), iter([NO])

    async def job() -> None:
        if error := next(refused, None):
            raise error

    async with working([message("a", receive_count=5)], probe=outage, does={"a": job}) as site:
        await until(lambda: outage.probes >= 2)
        outage.over = True
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.calls == [("delete", "a", None)]
    assert site.deliveries.tally == {"job_succeeded": 1}


async def test_a_message_on_its_last_receive_is_not_given_back_because_others_are_refused() -> None:
    """SQS would redrive it instead of delivering it again."""
    outage, go = Outage(), asyncio.Event()
    async with working([], probe=outage, does={"refused": raises(NO), "last": go.wait}) as site:
        site.queue.waiting = [message("last", receive_count=5), message("refused")]
        await until(lambda: outage.probes >= 2)
        go.set()
        await until(lambda: ("delete", "last", None) in site.queue.calls)
        await site.drain()


async def test_nor_is_one_that_a_poll_brings_in_an_outage() -> None:
    async with working([], probe=Outage()) as site:
        site.queue.gate = asyncio.Event()
        await until(lambda: site.queue.polling)
        site.breaker.trip(OutageError(UNREACHABLE, "no route"))
        site.queue.waiting = [message("last", receive_count=5)]
        site.queue.gate.set()
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.calls == [("delete", "last", None)]


async def test_stopped_in_an_outage_a_last_receive_ends_with_its_reason_at_once() -> None:
    outage = Outage()
    async with working([message("a", receive_count=5)], probe=outage, does={"a": raises(NO)}) as site:
        await until(lambda: outage.probes >= 2)
        await site.drain(within_s=LONG_S)
    assert site.queue.calls == [("dead_letter", "a", "AccessDenied")]


async def test_an_outage_longer_than_a_job_may_take_is_told_as_the_reason() -> None:
    told = AsyncMock()
    does = {"a": raises(NO)}
    async with working([message("a", receive_count=5)], probe=Outage(), job_timeout_s=0.05, does=does) as site:
        site.queue.dead_letter = told  # type: ignore[method-assign]  # to see the sentence, too
        await until(lambda: told.called)
        await site.drain()
    [(_, error)] = [call.args for call in told.call_args_list]
    assert error.code == "job_timeout"
    assert "AccessDenied" in error.message


async def test_a_job_refused_alone_ends_in_the_dead_letter_queue_and_costs_its_neighbours_nothing() -> None:
    go = asyncio.Event()
    does = {"refused": raises(NO), "neighbour": go.wait}
    async with working([message("neighbour"), message("refused", receive_count=4)], does=does) as site:
        await until(lambda: site.queue.calls)
        [(call, name, after_s)] = site.queue.calls
        assert (call, name) == ("release", "refused")
        assert isinstance(after_s, int)
        assert site.pipeline.running == 1
        site.queue.waiting = [message("refused", receive_count=5), message("next")]
        await until(lambda: len(site.queue.calls) == 3)
        go.set()
        await until(lambda: len(site.queue.calls) == 4)
        await site.drain()
    assert ("dead_letter", "refused", "AccessDenied") in site.queue.calls
    assert {name for call, name, _ in site.queue.calls if call == "delete"} == {"neighbour", "next"}


async def test_while_it_is_not_known_whether_one_or_all_are_refused_nobody_is_given_back() -> None:
    """Or a few recordings that are forbidden would spend the receives of all others."""
    outage, go = Outage(), asyncio.Event()
    outage.over = True
    outage.look.clear()
    does = {"refused": raises(NO), "neighbour": go.wait}
    async with working([message("refused"), message("neighbour")], probe=outage, does=does) as site:
        await until(lambda: outage.probes)
        for _ in range(20):
            await asyncio.sleep(0)
        assert site.queue.calls == []
        assert not site.breaker.closed.is_set()
        outage.look.set()
        await until(lambda: site.queue.calls)
        go.set()
        await until(lambda: len(site.queue.calls) == 2)
        await site.drain()
    assert sorted(call for call, _, _ in site.queue.calls) == ["delete", "release"]


async def test_a_queue_that_is_out_of_reach_opens_the_breaker() -> None:
    outage = Outage()
    async with working([], probe=outage) as site:
        site.queue.receive_errors = [OutageError(UNREACHABLE, "no route")]
        await until(lambda: outage.probes >= 3)
        polls = len(site.queue.asked)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(site.queue.asked) == polls
        outage.over = True
        await until(lambda: len(site.queue.asked) > polls)
        await site.drain()


async def test_a_failed_receive_is_followed_by_another() -> None:
    async with working([message("a")]) as site:
        site.queue.receive_errors = [TransientError("InternalError", "500")] * 2
        await until(lambda: site.queue.calls)
        await site.drain()
    assert site.queue.calls == [("delete", "a", None)]


async def test_it_stops_behind_an_open_breaker() -> None:
    async with working([], probe=Outage()) as site:
        site.breaker.trip(DependencyError("AccessDenied", "no"))
        await until(lambda: len(site.queue.asked) <= 1)
        await site.drain()


async def test_a_bug_in_receiving_ends_the_daemon_after_its_jobs() -> None:
    async with working([message("a")], slots=2) as site:
        go = asyncio.Event()
        site.pipeline.does["a"] = go.wait
        await until(lambda: site.pipeline.running)
        site.queue.receive_errors = [ZeroDivisionError("a bug")]
        await until(lambda: not site.queue.receive_errors)
        go.set()
        with pytest.raises(ZeroDivisionError):
            await site.run
    assert site.queue.calls == [("delete", "a", None)]


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
