"""Leases: heartbeats, lost leases, and what a lost lease does to its job."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog

from stt_async.errors import UNREACHABLE, ClassifiedError, LeaseLostError, OutageError, TransientError
from stt_async.services.queue import Message
from stt_async.worker import lease as lease_module
from stt_async.worker.lease import Lease, Leases
from tests.unit.fakes import TIMEOUT_S, FakeQueue, background, message, run_ready_tasks, wait_until

VISIBILITY_S = 300
DUE_S = VISIBILITY_S / 3 + 1
"""A message of this age is due for a heartbeat."""
LATE_S = VISIBILITY_S * 0.95
"""A message of this age is due for its last one."""


@asynccontextmanager
async def ticking(queue: FakeQueue, visibility_timeout_s: int = VISIBILITY_S) -> AsyncIterator[Leases]:
    """Leases whose ticker runs every millisecond."""
    leases = Leases(queue, visibility_timeout_s)
    leases._tick_s = 0.001
    async with background(leases.run()):
        yield leases


class Holder:
    """A task that holds a message until `release`."""

    def __init__(self, leases: Leases, held: Message, error: ClassifiedError | None = None) -> None:
        self._leases = leases
        self._message = held
        self._error = error
        self._done = asyncio.Event()
        self.lease: Lease | None = None
        self.task = asyncio.create_task(self._hold(), name=held.message_id)

    async def _hold(self) -> None:
        async with self._leases.hold(self._message) as self.lease:
            try:
                await self._done.wait()
            except asyncio.CancelledError:
                raise self._error or asyncio.CancelledError from None

    def release(self) -> None:
        self._done.set()

    async def end(self) -> None:
        """Release the message; raise the error of the task, if any."""
        self.release()
        async with asyncio.timeout(TIMEOUT_S):
            await self.task


async def test_heartbeat_is_due_a_third_of_the_timeout_after_the_receive_call() -> None:
    queue = FakeQueue()
    leases = Leases(queue, VISIBILITY_S)
    held = message("a", age_s=20)
    async with leases.hold(held) as lease:
        assert lease.due_s == held.received_at_s + VISIBILITY_S / 3
        assert lease.expires_s == held.received_at_s + VISIBILITY_S


async def test_heartbeat_renews_the_lease() -> None:
    queue = FakeQueue()
    async with ticking(queue) as leases, leases.hold(message("a", age_s=DUE_S)) as lease:
        before_s = time.monotonic()
        await wait_until(lambda: lease.due_s > before_s)
        assert queue.heartbeats == [["a"]]
        assert before_s <= lease.due_s - VISIBILITY_S / 3 <= time.monotonic()
        assert lease.expires_s == pytest.approx(lease.due_s + VISIBILITY_S * 2 / 3)


@pytest.mark.parametrize(("overdue_s", "late"), [(VISIBILITY_S / 10 - 5, False), (VISIBILITY_S / 10 + 5, True)])
async def test_late_heartbeat_is_logged(*, overdue_s: float, late: bool) -> None:
    queue = FakeQueue()
    with structlog.testing.capture_logs() as logs:
        async with ticking(queue) as leases:
            holder = Holder(leases, message("a", age_s=VISIBILITY_S / 3 + overdue_s))
            await wait_until(lambda: queue.heartbeats)
            await holder.end()
    lines = [line for line in logs if line["event"] == "heartbeat_late"]
    assert bool(lines) is late
    if late:
        assert overdue_s <= lines[0]["max_s"] < overdue_s + TIMEOUT_S
        assert lines[0]["messages"] == 1


async def test_due_messages_are_extended_ten_a_call() -> None:
    queue = FakeQueue()
    due = [f"due-{n}" for n in range(23)]
    async with ticking(queue) as leases:
        holders = [Holder(leases, message(name, age_s=DUE_S)) for name in due]
        holders += [Holder(leases, message(f"fresh-{n}", age_s=DUE_S - 10)) for n in range(3)]
        await wait_until(lambda: len(queue.heartbeats) == 3)
        for holder in holders:
            await holder.end()
    assert sorted(map(len, queue.heartbeats)) == [3, 10, 10]
    assert sorted(name for batch in queue.heartbeats for name in batch) == sorted(due)


@pytest.mark.parametrize(
    "code", ["MessageNotInflight", "ReceiptHandleIsInvalid", "AWS.SimpleQueueService.MessageNotInflight"]
)
async def test_message_that_sqs_reports_as_lost_is_lost_at_once(code: str) -> None:
    queue = FakeQueue()
    queue.heartbeat_codes["lost"] = code
    async with ticking(queue) as leases:
        lost, held = (Holder(leases, message(name, age_s=DUE_S)) for name in ("lost", "held"))
        with pytest.raises(LeaseLostError, match=code):
            await lost.task
        assert queue.count_heartbeats("lost") == 1
        assert not held.task.done()
        await held.end()


@pytest.mark.parametrize(
    "error", [TransientError("InternalError", "500"), OutageError(UNREACHABLE, "gone")], ids=lambda e: e.code
)
async def test_failed_heartbeat_is_sent_again_while_the_lease_lasts(error: ClassifiedError) -> None:
    queue = FakeQueue()
    queue.heartbeat_error = error
    async with ticking(queue) as leases:
        holder = Holder(leases, message("a", age_s=DUE_S))
        await wait_until(lambda: queue.count_heartbeats("a") >= 3)
        queue.heartbeat_error = None
        await wait_until(lambda: holder.lease is not None and holder.lease.due_s > time.monotonic())
        await holder.end()


async def test_heartbeat_of_a_refused_entry_is_sent_again() -> None:
    queue = FakeQueue()
    queue.heartbeat_codes["a"] = "InternalError"
    async with ticking(queue) as leases, leases.hold(message("a", age_s=DUE_S)) as lease:
        await wait_until(lambda: queue.count_heartbeats("a") >= 2)
        del queue.heartbeat_codes["a"]
        await wait_until(lambda: lease.due_s > time.monotonic())


async def test_message_is_lost_when_no_heartbeat_succeeds_in_time() -> None:
    queue = FakeQueue()
    queue.heartbeat_error = TransientError("InternalError", "500")
    async with ticking(queue) as leases:
        holder = Holder(leases, message("a", age_s=LATE_S))
        with pytest.raises(LeaseLostError, match="no heartbeat succeeded"):
            await holder.task
    assert queue.count_heartbeats("a") == 1


async def test_expired_lease_is_lost_without_a_heartbeat() -> None:
    queue = FakeQueue()
    async with ticking(queue) as leases:
        over, held = (
            Holder(leases, message(name, age_s=age_s)) for name, age_s in (("over", VISIBILITY_S), ("held", DUE_S))
        )
        with pytest.raises(LeaseLostError, match="visibility timeout is over"):
            await over.task
        await wait_until(lambda: queue.count_heartbeats("held") == 1)
        assert queue.count_heartbeats("over") == 0
        await held.end()


async def test_hanging_heartbeat_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_TIMEOUT_S", 0.005)
    queue = FakeQueue()
    queue.heartbeat_gate = asyncio.Event()
    async with ticking(queue) as leases:
        holder = Holder(leases, message("a", age_s=LATE_S))
        with pytest.raises(LeaseLostError, match="no heartbeat succeeded"):
            await holder.task


async def test_hanging_heartbeat_does_not_outlast_a_short_lease() -> None:
    queue = FakeQueue()
    queue.heartbeat_gate = asyncio.Event()
    async with ticking(queue, visibility_timeout_s=1) as leases:
        held = message("a", age_s=0.8)
        with pytest.raises(LeaseLostError):
            async with leases.hold(held), asyncio.timeout(TIMEOUT_S):
                await asyncio.Event().wait()
        assert time.monotonic() - held.received_at_s < 1 + lease_module.HEARTBEAT_TIMEOUT_S / 2


async def test_cancellation_from_outside_is_raised() -> None:
    queue = FakeQueue()
    async with ticking(queue) as leases:
        holder = Holder(leases, message("a"))
        await wait_until(lambda: holder.lease)
        holder.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder.task


async def _lose_lease(error: ClassifiedError | None = None) -> Holder:
    """Return a holder whose lease is lost; its clean-up raises `error`."""
    holder = Holder(Leases(FakeQueue(), VISIBILITY_S), message("a"), error)
    await wait_until(lambda: holder.lease)
    assert holder.lease is not None
    holder.lease.lose("for the test")
    return holder


async def test_cancellation_from_outside_precedes_a_lost_lease() -> None:
    holder = await _lose_lease()
    holder.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder.task


@pytest.mark.parametrize("error", [None, TransientError("clean_up", "failed")])
async def test_lost_lease_precedes_an_error_and_leaves_the_task_uncancelled(error: ClassifiedError | None) -> None:
    """Otherwise a job that another worker now holds would be dead-lettered."""
    holder = await _lose_lease(error)
    with pytest.raises(LeaseLostError, match="for the test"):
        await holder.task
    assert holder.task.cancelling() == 0


async def test_error_of_the_block_is_raised() -> None:
    leases = Leases(FakeQueue(), VISIBILITY_S)
    with pytest.raises(TransientError):
        async with leases.hold(message("a")):
            raise TransientError("any", "thing")


async def test_no_heartbeat_is_sent_after_the_block() -> None:
    queue = FakeQueue()
    async with ticking(queue) as leases, leases.hold(message("other", age_s=DUE_S)) as other:
        holder = Holder(leases, message("a", age_s=DUE_S))
        await wait_until(lambda: queue.count_heartbeats("a") == 1)
        await holder.end()
        for _ in range(3):
            other.due_s = 0.0
            await wait_until(lambda: other.due_s > 0.0)
    assert queue.count_heartbeats("a") == 1


async def test_block_waits_for_the_heartbeat_in_flight() -> None:
    queue = FakeQueue()
    queue.heartbeat_gate = asyncio.Event()
    async with ticking(queue) as leases:
        holder = Holder(leases, message("a", age_s=DUE_S))
        await wait_until(lambda: queue.count_heartbeats("a") == 1)
        holder.release()
        await run_ready_tasks()
        assert not holder.task.done()
        queue.heartbeat_gate.set()
        await holder.end()


async def test_refused_last_heartbeat_does_not_fail_a_finished_job() -> None:
    """The manifest is committed, so the delete follows in any case."""
    queue = FakeQueue()
    queue.heartbeat_gate = asyncio.Event()
    queue.heartbeat_codes["a"] = "MessageNotInflight"
    async with ticking(queue) as leases:
        holder = Holder(leases, message("a", age_s=DUE_S))
        await wait_until(lambda: queue.count_heartbeats("a") == 1)
        holder.release()
        await run_ready_tasks()
        queue.heartbeat_gate.set()
        await holder.end()


async def test_message_released_before_its_batch_is_sent_is_not_extended() -> None:
    queue = FakeQueue()
    queue.heartbeat_gate = asyncio.Event()
    async with ticking(queue) as leases:
        holders = [Holder(leases, message(f"m{n}", age_s=DUE_S)) for n in range(11)]
        await wait_until(lambda: len(queue.heartbeats) == 1)
        [left] = {f"m{n}" for n in range(11)} - set(queue.heartbeats[0])
        leaving = next(each for each in holders if each.task.get_name() == left)
        leaving.release()
        await run_ready_tasks()
        queue.heartbeat_gate.set()
        for holder in holders:
            await holder.end()
    assert queue.count_heartbeats(left) == 0


@pytest.mark.parametrize(
    ("age_s", "lost", "held"),
    [
        pytest.param(0.0, None, True, id="fresh"),
        pytest.param(VISIBILITY_S * 0.8, None, True, id="overdue"),
        pytest.param(LATE_S, None, False, id="about to expire"),
        pytest.param(VISIBILITY_S + 1.0, None, False, id="expired"),
        pytest.param(0.0, "SQS says so", False, id="lost"),
    ],
)
async def test_require_held_needs_enough_time_left(age_s: float, lost: str | None, *, held: bool) -> None:
    async with Leases(FakeQueue(), VISIBILITY_S).hold(message("a", age_s=age_s)) as lease:
        lease.lost = lost
        if held:
            lease.require_held()
        else:
            with pytest.raises(LeaseLostError, match=lost or "too little"):
                lease.require_held()
