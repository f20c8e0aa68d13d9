"""Messages held: when they are extended, when they are lost, and what happens to the job then."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import structlog

from stt_async.errors import UNREACHABLE, ClassifiedError, LeaseLostError, OutageError, TransientError
from stt_async.services.queue import Message
from stt_async.worker import lease as lease_module
from stt_async.worker.lease import Lease, Leases
from tests.unit.fakes import PATIENCE_S, FakeQueue, beside, message, until

VISIBILITY_S = 300
DUE_S = VISIBILITY_S / 3 + 1
"""A message of this age is due for a heartbeat."""
LATE_S = VISIBILITY_S * 0.95
"""A message of this age is due for its last one."""


@asynccontextmanager
async def beating(queue: FakeQueue, visibility_timeout_s: int = VISIBILITY_S) -> AsyncIterator[Leases]:
    """Leases whose ticker runs, and looks every millisecond."""
    leases = Leases(queue, visibility_timeout_s)
    leases._tick_s = 0.001
    async with beside(leases.run()):
        yield leases


class Holder:
    """A task that holds a message until told to let go."""

    def __init__(self, leases: Leases, held: Message, body: Callable[[], ClassifiedError] | None = None) -> None:
        self._leases = leases
        self._message = held
        self._body = body
        self._done = asyncio.Event()
        self.lease: Lease | None = None
        self.task = asyncio.create_task(self._hold(), name=held.message_id)

    async def _hold(self) -> None:
        async with self._leases.hold(self._message) as self.lease:
            try:
                await self._done.wait()
            except asyncio.CancelledError:
                if self._body is not None:
                    raise self._body() from None
                raise

    def let_go(self) -> None:
        self._done.set()

    async def end(self) -> None:
        """Let go, and raise what holding the message raised."""
        self.let_go()
        async with asyncio.timeout(PATIENCE_S):
            await self.task


async def test_a_message_is_due_after_a_third_of_its_time_since_it_was_asked_for() -> None:
    queue = FakeQueue()
    leases = Leases(queue, VISIBILITY_S)
    held = message("a", age_s=20)
    async with leases.hold(held) as lease:
        assert lease.due_s == held.received_at_s + VISIBILITY_S / 3
        assert lease.expires_s == held.received_at_s + VISIBILITY_S


async def test_a_heartbeat_sets_the_time_anew() -> None:
    queue = FakeQueue()
    async with beating(queue) as leases, leases.hold(message("a", age_s=DUE_S)) as lease:
        before_s = time.monotonic()
        await until(lambda: lease.due_s > before_s)
        assert queue.beats == [["a"]]
        assert before_s <= lease.due_s - VISIBILITY_S / 3 <= time.monotonic()
        assert lease.expires_s == pytest.approx(lease.due_s + VISIBILITY_S * 2 / 3)


@pytest.mark.parametrize(("overdue_s", "late"), [(VISIBILITY_S / 10 - 5, False), (VISIBILITY_S / 10 + 5, True)])
async def test_a_heartbeat_that_comes_late_is_told_and_one_in_time_is_not(*, overdue_s: float, late: bool) -> None:
    queue = FakeQueue()
    with structlog.testing.capture_logs() as logs:
        async with beating(queue) as leases:
            holder = Holder(leases, message("a", age_s=VISIBILITY_S / 3 + overdue_s))
            await until(lambda: queue.beats)
            await holder.end()
    told = [line for line in logs if line["event"] == "heartbeat_late"]
    assert bool(told) is late
    if late:
        assert overdue_s <= told[0]["max_s"] < overdue_s + PATIENCE_S
        assert told[0]["messages"] == 1


async def test_only_who_is_due_is_extended_and_ten_a_call() -> None:
    queue = FakeQueue()
    due = [f"due-{n}" for n in range(23)]
    async with beating(queue) as leases:
        holders = [Holder(leases, message(name, age_s=DUE_S)) for name in due]
        holders += [Holder(leases, message(f"fresh-{n}", age_s=DUE_S - 10)) for n in range(3)]
        await until(lambda: len(queue.beats) == 3)
        for holder in holders:
            await holder.end()
    assert sorted(map(len, queue.beats)) == [3, 10, 10]
    assert sorted(name for batch in queue.beats for name in batch) == sorted(due)


@pytest.mark.parametrize(
    "code", ["MessageNotInflight", "ReceiptHandleIsInvalid", "AWS.SimpleQueueService.MessageNotInflight"]
)
async def test_a_message_that_sqs_says_is_not_ours_is_lost_at_once(code: str) -> None:
    queue = FakeQueue()
    queue.beat_codes["lost"] = code
    async with beating(queue) as leases:
        lost, kept = (Holder(leases, message(name, age_s=DUE_S)) for name in ("lost", "kept"))
        with pytest.raises(LeaseLostError, match=code):
            await lost.task
        assert queue.beaten("lost") == 1
        assert not kept.task.done()
        await kept.end()


@pytest.mark.parametrize(
    "error", [TransientError("InternalError", "500"), OutageError(UNREACHABLE, "gone")], ids=lambda e: e.code
)
async def test_a_heartbeat_that_fails_is_sent_again_while_there_is_time(error: ClassifiedError) -> None:
    queue = FakeQueue()
    queue.beat_error = error
    async with beating(queue) as leases:
        holder = Holder(leases, message("a", age_s=DUE_S))
        await until(lambda: queue.beaten("a") >= 3)
        queue.beat_error = None
        await until(lambda: holder.lease is not None and holder.lease.due_s > time.monotonic())
        await holder.end()


async def test_a_message_that_one_call_refused_is_sent_again() -> None:
    queue = FakeQueue()
    queue.beat_codes["a"] = "InternalError"
    async with beating(queue) as leases, leases.hold(message("a", age_s=DUE_S)) as lease:
        await until(lambda: queue.beaten("a") >= 2)
        del queue.beat_codes["a"]
        await until(lambda: lease.due_s > time.monotonic())


async def test_a_message_is_lost_when_no_heartbeat_came_through_in_time() -> None:
    queue = FakeQueue()
    queue.beat_error = TransientError("InternalError", "500")
    async with beating(queue) as leases:
        holder = Holder(leases, message("a", age_s=LATE_S))
        with pytest.raises(LeaseLostError, match="no heartbeat succeeded"):
            await holder.task
    assert queue.beaten("a") == 1


async def test_who_was_asleep_for_longer_than_its_lease_does_not_ask_for_more() -> None:
    queue = FakeQueue()
    async with beating(queue) as leases:
        over, kept = (
            Holder(leases, message(name, age_s=age_s)) for name, age_s in (("over", VISIBILITY_S), ("kept", DUE_S))
        )
        with pytest.raises(LeaseLostError, match="visibility timeout is over"):
            await over.task
        await until(lambda: queue.beaten("kept") == 1)
        assert queue.beaten("over") == 0
        await kept.end()


async def test_a_heartbeat_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "HEARTBEAT_TIMEOUT_S", 0.005)
    queue = FakeQueue()
    queue.beat_gate = asyncio.Event()
    async with beating(queue) as leases:
        holder = Holder(leases, message("a", age_s=LATE_S))
        with pytest.raises(LeaseLostError, match="no heartbeat succeeded"):
            await holder.task


async def test_a_hanging_heartbeat_does_not_hide_that_a_short_lease_ran_out() -> None:
    queue = FakeQueue()
    queue.beat_gate = asyncio.Event()
    async with beating(queue, visibility_timeout_s=1) as leases:
        held = message("a", age_s=0.8)
        with pytest.raises(LeaseLostError):
            async with leases.hold(held), asyncio.timeout(PATIENCE_S):
                await asyncio.Event().wait()
        assert time.monotonic() - held.received_at_s < 1 + lease_module.HEARTBEAT_TIMEOUT_S / 2


async def test_a_cancellation_from_outside_stays_one() -> None:
    queue = FakeQueue()
    async with beating(queue) as leases:
        holder = Holder(leases, message("a"))
        await until(lambda: holder.lease)
        holder.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await holder.task


async def test_a_cancellation_from_outside_stays_one_beside_a_lost_lease() -> None:
    leases = Leases(FakeQueue(), VISIBILITY_S)
    holder = Holder(leases, message("a"))
    await until(lambda: holder.lease)
    assert holder.lease is not None
    holder.lease.lose("for the test")
    holder.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder.task


async def test_a_lost_lease_leaves_the_task_uncancelled() -> None:
    leases = Leases(FakeQueue(), VISIBILITY_S)
    holder = Holder(leases, message("a"))
    await until(lambda: holder.lease)
    assert holder.lease is not None
    holder.lease.lose("for the test")
    with pytest.raises(LeaseLostError):
        await holder.task
    assert holder.task.cancelling() == 0


async def test_a_lost_lease_counts_more_than_an_error_on_the_way_out() -> None:
    """Otherwise a job that another worker has by now would be sent to the dead-letter queue."""
    leases = Leases(FakeQueue(), VISIBILITY_S)
    holder = Holder(leases, message("a"), lambda: TransientError("clean_up", "failed"))
    await until(lambda: holder.lease)
    assert holder.lease is not None
    holder.lease.lose("for the test")
    with pytest.raises(LeaseLostError, match="for the test"):
        await holder.task


async def test_an_error_of_the_block_passes() -> None:
    leases = Leases(FakeQueue(), VISIBILITY_S)
    with pytest.raises(TransientError):
        async with leases.hold(message("a")):
            raise TransientError("any", "thing")


async def test_no_heartbeat_is_sent_after_the_block_has_ended() -> None:
    queue = FakeQueue()
    async with beating(queue) as leases, leases.hold(message("other", age_s=DUE_S)) as other:
        holder = Holder(leases, message("a", age_s=DUE_S))
        await until(lambda: queue.beaten("a") == 1)
        await holder.end()
        for _ in range(3):
            other.due_s = 0.0
            await until(lambda: other.due_s > 0.0)
    assert queue.beaten("a") == 1


async def test_the_block_ends_after_a_heartbeat_that_is_under_way() -> None:
    queue = FakeQueue()
    queue.beat_gate = asyncio.Event()
    async with beating(queue) as leases:
        holder = Holder(leases, message("a", age_s=DUE_S))
        await until(lambda: queue.beaten("a") == 1)
        holder.let_go()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not holder.task.done()
        queue.beat_gate.set()
        await holder.end()


async def test_what_a_heartbeat_learns_after_the_block_has_ended_hurts_nobody() -> None:
    """The job is done, its manifest stands: it goes on to the delete, whatever that brings."""
    queue = FakeQueue()
    queue.beat_gate = asyncio.Event()
    queue.beat_codes["a"] = "MessageNotInflight"
    async with beating(queue) as leases:
        holder = Holder(leases, message("a", age_s=DUE_S))
        await until(lambda: queue.beaten("a") == 1)
        holder.let_go()
        for _ in range(20):
            await asyncio.sleep(0)
        queue.beat_gate.set()
        await holder.end()


async def test_a_message_that_left_while_its_batch_waited_is_not_extended() -> None:
    queue = FakeQueue()
    queue.beat_gate = asyncio.Event()
    async with beating(queue) as leases:
        holders = [Holder(leases, message(f"m{n}", age_s=DUE_S)) for n in range(11)]
        await until(lambda: len(queue.beats) == 1)
        [left] = {f"m{n}" for n in range(11)} - set(queue.beats[0])
        leaving = next(each for each in holders if each.task.get_name() == left)
        leaving.let_go()
        for _ in range(20):
            await asyncio.sleep(0)
        queue.beat_gate.set()
        for holder in holders:
            await holder.end()
    assert queue.beaten(left) == 0


@pytest.mark.parametrize(
    ("age_s", "lost", "ours"),
    [
        pytest.param(0.0, None, True, id="fresh"),
        pytest.param(VISIBILITY_S * 0.8, None, True, id="not extended for a while"),
        pytest.param(LATE_S, None, False, id="about to run out"),
        pytest.param(VISIBILITY_S + 1.0, None, False, id="run out"),
        pytest.param(0.0, "SQS says so", False, id="lost"),
    ],
)
async def test_what_cannot_be_taken_back_needs_a_lease_that_lasts(
    age_s: float, lost: str | None, *, ours: bool
) -> None:
    async with Leases(FakeQueue(), VISIBILITY_S).hold(message("a", age_s=age_s)) as lease:
        lease.lost = lost
        if ours:
            lease.require_held()
        else:
            with pytest.raises(LeaseLostError, match=lost or "too little"):
                lease.require_held()
