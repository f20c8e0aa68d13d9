"""The daemon: real leases and breaker, a queue in memory, and a pipeline with scripted jobs."""

import asyncio
import time
from collections.abc import Awaitable, Callable
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
    TIMEOUT_S,
    VISIBILITY_S,
    FakeQueue,
    daemon_on,
    message,
    raises,
    run_ready_tasks,
    wait_until,
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


async def _wait_for_tick(daemon: Daemon) -> None:
    """Wait until the daemon has begun another round of its loop."""
    now_s = time.monotonic()
    await wait_until(lambda: daemon.ticked_s > now_s)


@pytest.mark.parametrize(
    ("job", "code"), [(_for_ever, "job_timeout"), (raises(TimeoutError("of a socket")), "crashed")]
)
async def test_job_timeout_is_distinguished_from_a_timeout_error_of_the_job(
    job: Callable[[], Awaitable[object]], code: str
) -> None:
    async with daemon_on([message("a", receive_count=5)], job_timeout_s=0.01, actions={"a": job}) as worker:
        await wait_until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("dead_letter", "a", code)]


async def test_failure_affects_only_its_own_job() -> None:
    names = ["good-1", "bug", "bad", "good-2"]
    actions = {"bug": raises(ZeroDivisionError()), "bad": raises(PermanentError("invalid_job", "no"))}
    async with daemon_on([message(name) for name in names], actions=actions) as worker:
        await wait_until(lambda: len(worker.queue.calls) == 4)
        await worker.drain()
    by_name = {name: call for call, name, _ in worker.queue.calls}
    assert by_name == {"good-1": "delete", "bug": "release", "bad": "dead_letter", "good-2": "delete"}


async def test_receives_no_more_messages_than_free_slots() -> None:
    names = [f"m{n}" for n in range(30)]
    go = asyncio.Event()
    slots = 13
    async with daemon_on(
        [message(name) for name in names], slots=slots, actions=dict.fromkeys(names, go.wait)
    ) as worker:
        await wait_until(lambda: worker.pipeline.running == slots)
        await _wait_for_tick(worker.daemon)
        assert len(worker.queue.waiting) == len(names) - slots
        assert worker.queue.polls == [13, 3]
        go.set()
        await wait_until(lambda: len(worker.queue.calls) == len(names))
        await worker.drain()
    assert worker.pipeline.most_running == slots
    assert max(worker.queue.polls) == slots


async def test_freed_slot_is_filled_while_other_jobs_run() -> None:
    async with daemon_on([message("long"), message("a"), message("b")], slots=2, actions={"long": _for_ever}) as worker:
        await wait_until(lambda: worker.pipeline.started == ["long", "a", "b"])
        await worker.drain(within_s=0)


@pytest.mark.parametrize("lead", range(-12, 20))
async def test_job_that_ends_as_the_drain_begins_is_deleted(lead: int) -> None:
    """In either order, and any number of turns of the loop apart."""
    go = asyncio.Event()
    async with daemon_on([message("a")], slots=1, actions={"a": go.wait}) as worker:
        await wait_until(lambda: worker.pipeline.running)
        if lead >= 0:
            go.set()
        else:
            worker.stop.request("test", within_s=LONG_S)
        for _ in range(abs(lead)):
            await asyncio.sleep(0)
        go.set()
        await worker.drain()
    assert worker.queue.calls == [("delete", "a", None)]


async def test_drain_finishes_running_jobs_and_starts_none() -> None:
    go = asyncio.Event()
    async with daemon_on([message("a"), message("b")], slots=1, actions={"a": go.wait}) as worker:
        await wait_until(lambda: worker.pipeline.running)
        worker.stop.request("test", within_s=LONG_S)
        await _wait_for_tick(worker.daemon)
        assert not worker.run.done()
        go.set()
        await worker.drain()
    assert worker.queue.calls == [("delete", "a", None)]
    assert worker.pipeline.started == ["a"]


async def test_unfinished_jobs_are_released_at_the_deadline() -> None:
    names = ["a", "b", "c"]
    async with daemon_on([message(n) for n in names], actions=dict.fromkeys(names, _for_ever)) as worker:
        await wait_until(lambda: worker.pipeline.running == 3)
        await worker.drain(within_s=0.005)
    assert sorted(worker.queue.calls) == [("release", name, 0) for name in names]
    assert worker.jobs.counts == {"job_released": 3}


async def test_poll_in_flight_ends_and_its_messages_are_released() -> None:
    async with daemon_on([]) as worker:
        worker.queue.receive_gate = asyncio.Event()
        await wait_until(lambda: worker.queue.polling)
        polls = len(worker.queue.polls)
        worker.stop.request("test", within_s=LONG_S)
        worker.queue.waiting = [message("a"), message("b")]
        await run_ready_tasks()
        assert not worker.run.done()
        worker.queue.receive_gate.set()
        await worker.drain()
    assert worker.queue.calls == [("release", "a", 0), ("release", "b", 0)]
    assert len(worker.queue.polls) == polls
    assert worker.pipeline.started == []


async def test_poll_that_outlasts_the_deadline_is_cancelled() -> None:
    async with daemon_on([]) as worker:
        worker.queue.receive_gate = asyncio.Event()
        await wait_until(lambda: worker.queue.polling)
        await worker.drain(within_s=0.005)


async def test_cancelled_daemon_releases_its_messages() -> None:
    async with daemon_on([message("a")], actions={"a": _for_ever}) as worker:
        await wait_until(lambda: worker.pipeline.running)
        worker.run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker.run
    assert worker.queue.calls == [("release", "a", 0)]


async def test_failed_delete_does_not_fail_the_job() -> None:
    for error in (TransientError("InternalError", "500"), LeaseLostError("gone")):
        async with daemon_on([message("a")]) as worker:
            worker.queue.settle_error = error
            await wait_until(lambda: worker.queue.calls)
            await worker.drain()
        assert worker.queue.calls == [("delete", "a", None)]
        assert worker.jobs.counts == {"job_succeeded": 1}


async def test_failed_release_does_not_stop_the_drain() -> None:
    async with daemon_on([message("a"), message("b")], actions={"a": _for_ever, "b": _for_ever}) as worker:
        worker.queue.settle_error = TransientError("InternalError", "500")
        await wait_until(lambda: worker.pipeline.running == 2)
        await worker.drain(within_s=0)
    assert sorted(worker.queue.calls) == [("release", "a", 0), ("release", "b", 0)]


async def test_lost_lease_abandons_only_its_own_job() -> None:
    go = asyncio.Event()
    async with daemon_on([], actions={"a": _for_ever, "b": go.wait}) as worker:
        worker.queue.heartbeat_codes["a"] = "ReceiptHandleIsInvalid"
        worker.queue.waiting = [message(name, age_s=VISIBILITY_S / 2) for name in ("a", "b")]
        await wait_until(lambda: worker.jobs.counts["job_lease_lost"])
        go.set()
        await wait_until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("delete", "b", None)]


async def test_no_heartbeat_follows_a_settled_message() -> None:
    async with daemon_on([], actions={"a": raises(TransientError("any", "thing"))}) as worker:
        worker.queue.heartbeat_gate = asyncio.Event()
        go = asyncio.Event()
        worker.pipeline.actions["a"] = go.wait
        worker.queue.waiting = [message("a", age_s=VISIBILITY_S / 2)]
        await wait_until(lambda: worker.queue.count_heartbeats("a"))
        go.set()
        await run_ready_tasks()
        assert worker.queue.calls == []  # the heartbeat in flight would hide the message again
        worker.queue.heartbeat_gate.set()
        await wait_until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.count_heartbeats("a") == 1


REFUSED = DependencyError("AccessDenied", "no")


class Outage:
    """A probe that fails until the outage is over. It answers only while `gate` is set."""

    def __init__(self) -> None:
        self.over = False
        self.probes = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> None:
        self.probes += 1
        await self.gate.wait()
        if not self.over:
            raise REFUSED


async def test_nothing_is_received_in_an_outage() -> None:
    outage = Outage()
    async with daemon_on([message("a"), message("b")], slots=1, probe=outage, actions={"a": raises(REFUSED)}) as worker:
        await wait_until(lambda: outage.probes >= 3)
        assert worker.queue.polls == [1]
        assert [name for _, name, _ in worker.queue.calls] == ["a"]
        outage.over = True
        await wait_until(lambda: ("delete", "b", None) in worker.queue.calls)
        await worker.drain()


async def test_outage_releases_jobs_before_their_fetch_and_keeps_fetched_ones() -> None:
    outage, go = Outage(), asyncio.Event()
    actions = {"refused": raises(REFUSED), "downloading": _for_ever, "splitting": go.wait}
    async with daemon_on([], probe=outage, actions=actions) as worker:
        worker.pipeline.fetched = {"splitting"}
        worker.queue.waiting = [message(name) for name in ("splitting", "downloading", "refused")]
        await wait_until(lambda: len(worker.queue.calls) == 2)
        assert {name for call, name, _ in worker.queue.calls if call == "release"} == {"downloading", "refused"}
        for _, _, delay_s in worker.queue.calls:
            assert isinstance(delay_s, int)
            assert OUTAGE_DELAY_S < delay_s <= 2 * OUTAGE_DELAY_S + 1  # by then every worker has noticed the outage
        go.set()
        await wait_until(lambda: ("delete", "splitting", None) in worker.queue.calls)
        await worker.drain()
    assert worker.jobs.counts == {"job_retried": 1, "job_released": 1, "job_succeeded": 1}


async def test_any_transient_failure_in_an_outage_counts_as_the_outage() -> None:
    """For example, a CDN without its origin answers 502 to every request."""
    outage = Outage()
    actions = {"a": raises(TransientError("http_502", "bad gateway")), "last": raises(TransientError("cut", "off"))}
    async with daemon_on(
        [message("a", receive_count=4), message("last", receive_count=5)], probe=outage, actions=actions
    ) as worker:
        await wait_until(lambda: outage.probes >= 2)
        await wait_until(lambda: worker.queue.calls)
        [(call, name, delay_s)] = worker.queue.calls
        assert (call, name) == ("release", "a")
        assert isinstance(delay_s, int)
        assert delay_s > OUTAGE_DELAY_S
        worker.pipeline.actions.clear()
        outage.over = True
        await wait_until(lambda: len(worker.queue.calls) == 2)
        await worker.drain()
    assert worker.queue.calls[1] == ("delete", "last", None)


async def test_messages_polled_in_an_outage_are_released_except_last_receives() -> None:
    async with daemon_on([], probe=Outage()) as worker:
        worker.queue.receive_gate = asyncio.Event()
        await wait_until(lambda: worker.queue.polling)
        worker.breaker.trip(OutageError(UNREACHABLE, "no route"))
        worker.queue.waiting = [message("a"), message("b", receive_count=4), message("last", receive_count=5)]
        worker.queue.receive_gate.set()
        await wait_until(lambda: len(worker.queue.calls) == 3)
        await worker.drain()
    assert sorted((name, call) for call, name, _ in worker.queue.calls) == [
        ("a", "release"),
        ("b", "release"),
        ("last", "delete"),
    ]
    assert worker.pipeline.started == ["last"]


@pytest.mark.parametrize("fetched", [True, False])
async def test_last_receive_waits_for_the_end_of_an_outage(*, fetched: bool) -> None:
    outage, refused = Outage(), iter([REFUSED, REFUSED])

    async def job() -> None:
        if error := next(refused, None):
            raise error

    async with daemon_on([], probe=outage, actions={"a": job}) as worker:
        worker.pipeline.fetched = {"a"} if fetched else set()
        worker.queue.waiting = [message("a", receive_count=5)]
        await wait_until(lambda: outage.probes >= 3)
        assert worker.queue.calls == []
        assert worker.pipeline.started == ["a"]
        outage.over = True
        await wait_until(lambda: worker.queue.calls)
        await worker.drain()
    # The second refusal came after the outage, so it concerned only this job.
    assert worker.pipeline.started == ["a", "a"]
    assert worker.queue.calls == [("dead_letter", "a", "AccessDenied")]


async def test_last_receive_is_not_released_when_another_job_meets_an_outage() -> None:
    """SQS would redrive it instead of delivering it again."""
    outage, go = Outage(), asyncio.Event()
    async with daemon_on([], probe=outage, actions={"refused": raises(REFUSED), "last": go.wait}) as worker:
        worker.queue.waiting = [message("last", receive_count=5), message("refused")]
        await wait_until(lambda: outage.probes >= 2)
        go.set()
        await wait_until(lambda: ("delete", "last", None) in worker.queue.calls)
        await worker.drain()


async def test_last_receive_stopped_in_an_outage_is_dead_lettered_at_once() -> None:
    outage = Outage()
    async with daemon_on([message("a", receive_count=5)], probe=outage, actions={"a": raises(REFUSED)}) as worker:
        await wait_until(lambda: outage.probes >= 2)
        await worker.drain(within_s=LONG_S)
    assert worker.queue.calls == [("dead_letter", "a", "AccessDenied")]


async def test_outage_beyond_the_job_timeout_is_named_in_the_reason() -> None:
    dead_letter = AsyncMock()
    actions = {"a": raises(REFUSED)}
    async with daemon_on(
        [message("a", receive_count=5)], probe=Outage(), job_timeout_s=0.05, actions=actions
    ) as worker:
        worker.queue.dead_letter = dead_letter  # type: ignore[method-assign]  # to see the message, too
        await wait_until(lambda: dead_letter.called)
        await worker.drain()
    [(_, error)] = [call.args for call in dead_letter.call_args_list]
    assert error.code == "job_timeout"
    assert "AccessDenied" in error.message


async def test_job_refused_alone_is_dead_lettered_and_others_continue() -> None:
    go = asyncio.Event()
    actions = {"refused": raises(REFUSED), "neighbour": go.wait}
    async with daemon_on([message("neighbour"), message("refused", receive_count=4)], actions=actions) as worker:
        await wait_until(lambda: worker.queue.calls)
        [(call, name, after_s)] = worker.queue.calls
        assert (call, name) == ("release", "refused")
        assert isinstance(after_s, int)
        assert worker.pipeline.running == 1
        worker.queue.waiting = [message("refused", receive_count=5), message("next")]
        await wait_until(lambda: len(worker.queue.calls) == 3)
        go.set()
        await wait_until(lambda: len(worker.queue.calls) == 4)
        await worker.drain()
    assert ("dead_letter", "refused", "AccessDenied") in worker.queue.calls
    assert {name for call, name, _ in worker.queue.calls if call == "delete"} == {"neighbour", "next"}


async def test_nothing_is_released_before_the_verdict_of_the_probe() -> None:
    """Otherwise a few forbidden recordings would spend the receives of all others."""
    outage, go = Outage(), asyncio.Event()
    outage.over = True
    outage.gate.clear()
    actions = {"refused": raises(REFUSED), "neighbour": go.wait}
    async with daemon_on([message("refused"), message("neighbour")], probe=outage, actions=actions) as worker:
        await wait_until(lambda: outage.probes)
        await run_ready_tasks()
        assert worker.queue.calls == []
        assert not worker.breaker.closed.is_set()
        outage.gate.set()
        await wait_until(lambda: worker.queue.calls)
        go.set()
        await wait_until(lambda: len(worker.queue.calls) == 2)
        await worker.drain()
    assert sorted(call for call, _, _ in worker.queue.calls) == ["delete", "release"]


async def test_queue_out_of_reach_opens_the_breaker() -> None:
    outage = Outage()
    async with daemon_on([], probe=outage) as worker:
        worker.queue.receive_errors = [OutageError(UNREACHABLE, "no route")]
        await wait_until(lambda: outage.probes >= 3)
        polls = len(worker.queue.polls)
        await _wait_for_tick(worker.daemon)
        assert len(worker.queue.polls) == polls
        outage.over = True
        await wait_until(lambda: len(worker.queue.polls) > polls)
        await worker.drain()


async def test_failed_receive_is_repeated() -> None:
    async with daemon_on([message("a")]) as worker:
        worker.queue.receive_errors = [TransientError("InternalError", "500")] * 2
        await wait_until(lambda: worker.queue.calls)
        await worker.drain()
    assert worker.queue.calls == [("delete", "a", None)]


async def test_daemon_stops_while_the_breaker_is_open() -> None:
    outage = Outage()
    async with daemon_on([], probe=outage) as worker:
        worker.breaker.trip(REFUSED)
        await wait_until(lambda: outage.probes)
        await worker.drain()


async def test_bug_in_receive_ends_the_daemon_after_its_jobs() -> None:
    async with daemon_on([message("a")], slots=2) as worker:
        go = asyncio.Event()
        worker.pipeline.actions["a"] = go.wait
        await wait_until(lambda: worker.pipeline.running)
        worker.queue.receive_errors = [ZeroDivisionError("a bug")]
        await wait_until(lambda: not worker.queue.receive_errors)
        go.set()
        with pytest.raises(ZeroDivisionError):
            await worker.run
    assert worker.queue.calls == [("delete", "a", None)]


class TestStopWhenEmpty:
    """The stop of `worker --once`."""

    @pytest.mark.parametrize(
        "busy",
        [
            Depth(visible=1, in_flight=0, delayed=0),
            Depth(visible=0, in_flight=1, delayed=0),
            Depth(visible=0, in_flight=0, delayed=1),
        ],
        ids=["visible", "in flight", "delayed"],
    )
    async def test_requests_a_stop_after_two_empty_counts_in_a_row(self, busy: Depth) -> None:
        queue, stop = FakeQueue(), Stop()
        queue.depths = [busy, EMPTY, busy, EMPTY, EMPTY]
        async with asyncio.timeout(TIMEOUT_S):
            await stop_when_empty(queue, stop, drain_timeout_s=LONG_S)
        assert queue.depth_calls == 5
        assert stop.signal is not None
        assert stop.signal.reason == "queue_empty"

    async def test_counts_no_more_once_the_worker_drains(self) -> None:
        queue, stop = FakeQueue(), Stop()
        queue.depths = [Depth(visible=0, in_flight=1, delayed=0)]
        stop.request("SIGTERM", within_s=LONG_S)
        async with asyncio.timeout(TIMEOUT_S):
            await stop_when_empty(queue, stop, drain_timeout_s=LONG_S)
        assert queue.depth_calls <= 1

    async def test_failed_count_is_repeated(self) -> None:
        queue, stop = FakeQueue(), Stop()
        error: ClassifiedError = OutageError(UNREACHABLE, "no route")
        queue.depths = [EMPTY, error, EMPTY, error, EMPTY, EMPTY]
        async with asyncio.timeout(TIMEOUT_S):
            await stop_when_empty(queue, stop, drain_timeout_s=LONG_S)
        assert queue.depth_calls == 6


async def test_drain_releases_only_unfinishable_jobs_at_once() -> None:
    go = asyncio.Event()
    actions = {"long": _for_ever, "short": go.wait, "unknown": go.wait}
    async with daemon_on([message(name) for name in actions], actions=actions) as worker:
        worker.pipeline.needed_s |= {"long": DRAIN_S + 60, "short": DRAIN_S - 60}
        await wait_until(lambda: len(worker.jobs.running) == 3)
        worker.stop.request("test", within_s=DRAIN_S)
        await wait_until(lambda: worker.queue.calls)
        assert worker.queue.calls == [("release", "long", 0)]
        assert len(worker.jobs.running) == 2
        go.set()
        await worker.run
    assert sorted(worker.queue.calls) == [
        ("delete", "short", None),
        ("delete", "unknown", None),
        ("release", "long", 0),
    ]


async def test_poll_in_flight_delays_no_release() -> None:
    async with daemon_on([message("long")], actions={"long": _for_ever}) as worker:
        worker.pipeline.needed_s["long"] = DRAIN_S + 60
        await wait_until(lambda: len(worker.jobs.running) == 1)
        worker.queue.receive_gate = asyncio.Event()
        polls = len(worker.queue.polls)
        await wait_until(lambda: len(worker.queue.polls) > polls)
        worker.stop.request("test", within_s=DRAIN_S)
        await wait_until(lambda: worker.queue.calls)
        assert not worker.run.done()
        worker.queue.receive_gate.set()
        await worker.run


async def test_shortened_deadline_releases_more_jobs() -> None:
    async with daemon_on([message("a")], actions={"a": _for_ever}) as worker:
        worker.pipeline.needed_s["a"] = DRAIN_S - 60
        await wait_until(lambda: len(worker.jobs.running) == 1)
        worker.stop.request("test", within_s=DRAIN_S)
        seen = len(worker.pipeline.estimates_read)
        await wait_until(lambda: len(worker.pipeline.estimates_read) > seen + 2)
        assert worker.queue.calls == []
        worker.stop.request("sooner", within_s=DRAIN_S - 80)
        await worker.run
    assert worker.queue.calls == [("release", "a", 0)]


async def test_idle_time_adds_up_and_a_message_resets_it() -> None:
    async with daemon_on([]) as worker:
        await wait_until(lambda: len(worker.idle_s) >= 5)
        assert worker.idle_s == sorted(worker.idle_s)
        worker.queue.waiting = [message("a")]
        await wait_until(lambda: worker.queue.calls)
        before = max(worker.idle_s)
        seen = len(worker.idle_s)
        await wait_until(lambda: len(worker.idle_s) > seen)
        assert worker.idle_s[-1] < before


async def test_failed_poll_resets_the_idle_time() -> None:
    async with daemon_on([]) as worker:
        await wait_until(lambda: len(worker.idle_s) >= 5)
        before, seen = max(worker.idle_s), len(worker.idle_s)
        worker.queue.receive_errors = [TransientError("InternalError", "500")]
        await wait_until(lambda: len(worker.idle_s) > seen + 1)
        assert worker.idle_s[-1] < before


async def test_polls_beside_a_running_job_are_not_idle() -> None:
    go = asyncio.Event()
    async with daemon_on([message("a")], actions={"a": go.wait}) as worker:
        await wait_until(lambda: len(worker.jobs.running) == 1)
        seen, polls = len(worker.idle_s), len(worker.queue.polls)
        await wait_until(lambda: len(worker.queue.polls) > polls + 5)
        assert len(worker.idle_s) == seen
        go.set()
        await wait_until(lambda: len(worker.idle_s) > seen)


async def test_daemon_ticks_while_it_waits_for_a_slot_and_drains() -> None:
    names = ["a", "b", "c", "d"]
    async with daemon_on([message(name) for name in names], actions=dict.fromkeys(names, _for_ever)) as worker:
        await wait_until(lambda: len(worker.jobs.running) == 4)
        await _wait_for_tick(worker.daemon)
        worker.stop.request("test", within_s=DRAIN_S)
        await _wait_for_tick(worker.daemon)
        assert worker.jobs.oldest_started_s is not None
        worker.stop.request("test", within_s=0)
        await worker.run
    assert worker.jobs.oldest_started_s is None
