"""The local SQS under any sequence of calls, and the deliveries that tests can disturb.

tests/integration/test_sqs_contract.py tests each rule alone; the modules of stt_async/local/sqs name the sources.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stt_async.local.sqs.limits import RefusedError
from stt_async.local.sqs.model import Sqs
from stt_async.local.sqs.queue import Queue
from tests.support.fakes.sqs import Clock, Skew, Stale, odd_sqs

START_S = 1_700_000_000.0
MAX_RECEIVES = 3
MAX_HELD_S = 43_200


def still_clock() -> Clock:
    """A clock that moves only when a test advances it."""
    return Clock(lambda: START_S)


def queue_pair(sqs: Sqs, **attributes: str) -> tuple[Queue, Queue]:
    """A queue that redrives a message after MAX_RECEIVES receives, and its dead-letter queue."""
    dead = sqs.create_queue("dead", {})
    policy = {"deadLetterTargetArn": dead.arn, "maxReceiveCount": MAX_RECEIVES}
    return sqs.create_queue("jobs", {"RedrivePolicy": orjson.dumps(policy).decode()} | attributes), dead


def outcome_of(call: Any, *arguments: Any) -> str:
    """`done`, or the error of a refused call."""
    try:
        call(*arguments)
    except RefusedError as error:
        return error.shape
    return "done"


@dataclass
class Expected:
    """The expected state of a message."""

    where: str
    hidden_until_s: float
    handles: list[str] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)


class Delivery(RuleBasedStateMachine):
    """Two queues under any sequence of calls and pauses."""

    stale: ClassVar[Stale] = "ignored"
    skew: ClassVar[Skew] = Skew()

    def __init__(self) -> None:
        super().__init__()
        self.clock = still_clock()
        self.sqs = odd_sqs(self.clock, stale=self.stale, skew=self.skew)
        jobs, dead = queue_pair(self.sqs, MessageRetentionPeriod="1209600")
        self.sqs.set_attributes(dead, {"MessageRetentionPeriod": "1209600"})
        self.queues = {"jobs": jobs, "dead": dead}
        self.messages: dict[str, Expected] = {}

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    @rule(delay_s=st.sampled_from([0, 0, 60]))
    def send(self, delay_s: int) -> None:
        message = self.queues["jobs"].send("body", {}, delay_s=delay_s)
        assert message.message_id not in self.messages
        self.messages[message.message_id] = Expected("jobs", self.now_s + delay_s)

    @rule(
        where=st.sampled_from(["jobs", "jobs", "dead"]), most=st.integers(1, 3), timeout_s=st.sampled_from([0, 30, 600])
    )
    def receive(self, where: str, most: int, timeout_s: int) -> None:
        queue = self.queues[where]
        messages = queue.receive(most=most, visibility_timeout_s=timeout_s, redrive=self.sqs.redrive(queue))
        assert len(messages) <= most
        for message in messages:
            expected = self.messages[message.message_id]
            assert message.handle is not None
            assert message.handle not in expected.handles
            assert message.receive_count == len(expected.handles) + 1
            if where == "jobs":
                assert message.receive_count <= MAX_RECEIVES
            else:
                assert message.receive_count > MAX_RECEIVES
            self.check_not_held(expected)
            expected.where = where
            expected.hidden_until_s = self.now_s + timeout_s
            expected.handles.append(message.handle)
            expected.received_s.append(self.now_s)

    def check_not_held(self, expected: Expected) -> None:
        """No client holds the message: its timeout is over, or its last client released it."""
        assert expected.where != "deleted"
        assert expected.hidden_until_s <= self.now_s

    @precondition(lambda self: any(expected.handles for expected in self.messages.values()))
    @rule(data=st.data(), timeout_s=st.sampled_from([0, 30, 20_000, MAX_HELD_S]))
    def change(self, data: st.DataObject, timeout_s: int) -> None:
        expected, n = self.draw_receive(data)
        held_s = self.now_s - expected.received_s[n]
        outcome = outcome_of(self.queue_of(n).change_visibility, expected.handles[n], timeout_s)
        if outcome == "done":
            assert expected.where != "deleted"
            assert expected.hidden_until_s > self.now_s
            assert held_s + timeout_s <= MAX_HELD_S
            expected.hidden_until_s = self.now_s + timeout_s
        elif outcome == "MessageNotInflight":
            assert expected.hidden_until_s <= self.now_s
        else:
            assert outcome == "InvalidParameterValue"
            assert expected.where == "deleted" or self.may_do_nothing(expected, n) or held_s + timeout_s > MAX_HELD_S

    @precondition(lambda self: any(expected.handles for expected in self.messages.values()))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        expected, n = self.draw_receive(data)
        before = self.count_messages()
        outcome = outcome_of(self.queue_of(n).delete, expected.handles[n])
        if outcome == "done" and self.count_messages() < before:
            assert expected.where != "deleted"
            assert self.stale == "honoured" or n == len(expected.handles) - 1
            expected.where = "deleted"
        elif outcome == "done":
            assert expected.where == "deleted" or self.may_do_nothing(expected, n)
        else:
            assert outcome == "InvalidParameterValue"
            assert self.now_s - expected.received_s[n] > MAX_HELD_S

    @rule(seconds=st.sampled_from([1, 29, 30, 600, 19_000]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def no_message_is_lost(self) -> None:
        assert self.count_messages() == sum(expected.where != "deleted" for expected in self.messages.values())

    def teardown(self) -> None:
        """Every message that was not deleted is delivered again in time."""
        self.clock.advance(MAX_HELD_S)
        delivered = set()
        for queue in self.queues.values():
            self.clock.advance(self.skew.late_s)
            while queue.counts().visible:
                messages = queue.receive(most=10, visibility_timeout_s=MAX_HELD_S, redrive=self.sqs.redrive(queue))
                delivered |= {message.message_id for message in messages}
        assert delivered == {key for key, expected in self.messages.items() if expected.where != "deleted"}

    def draw_receive(self, data: st.DataObject) -> tuple[Expected, int]:
        """The message and the number of any receive so far."""
        expected = data.draw(st.sampled_from([expected for expected in self.messages.values() if expected.handles]))
        return expected, data.draw(st.integers(0, len(expected.handles) - 1))

    def queue_of(self, n: int) -> Queue:
        """The queue that delivered a message's nth receive."""
        return self.queues["jobs" if n < MAX_RECEIVES else "dead"]

    def may_do_nothing(self, expected: Expected, n: int) -> bool:
        """Whether a handle may do nothing: its message was received again, or may be in the other queue."""
        was_received_again = n < len(expected.handles) - 1
        return n < MAX_RECEIVES <= len(expected.handles) or (was_received_again and self.stale == "ignored")

    def count_messages(self) -> int:
        """The number of messages in both queues."""
        counts = [queue.counts() for queue in self.queues.values()]
        return sum(each.visible + each.in_flight + each.delayed for each in counts)


class HonouringOldHandles(Delivery):
    stale: ClassVar[Stale] = "honoured"


class Skewed(Delivery):
    """Messages are delivered twice or late; all else holds."""

    skew: ClassVar[Skew] = Skew(twice=0.5, late=0.5, late_s=300)

    def check_not_held(self, expected: Expected) -> None:
        assert expected.where != "deleted"

    @rule()
    def change(self) -> None:
        """No changes: a message that was delivered twice has no single holder."""


TestDelivery = Delivery.TestCase
TestHonouringOldHandles = HonouringOldHandles.TestCase
TestSkewed = Skewed.TestCase


def receive(queue: Queue, *, timeout_s: int = 30) -> str:
    """Receive the only message and return its handle."""
    [message] = queue.receive(most=1, visibility_timeout_s=timeout_s, redrive=None)
    assert message.handle is not None
    return message.handle


def test_message_is_dropped_when_its_retention_from_sending_ends() -> None:
    clock = still_clock()
    sqs = odd_sqs(clock)
    jobs, dead = queue_pair(sqs, MessageRetentionPeriod="120")
    sqs.set_attributes(dead, {"MessageRetentionPeriod": "180"})
    jobs.send("moved", {}, delay_s=0)
    for _ in range(MAX_RECEIVES):
        receive(jobs, timeout_s=0)
    jobs.send("stays", {}, delay_s=0)
    clock.advance(119)
    assert jobs.receive(most=1, visibility_timeout_s=0, redrive=sqs.redrive(jobs))[0].body == "stays"
    clock.advance(1)
    assert (jobs.counts().visible, dead.counts().visible) == (0, 1)
    clock.advance(60)
    assert dead.counts().visible == 0


def test_skew_delivers_a_message_twice_at_once() -> None:
    jobs, _ = queue_pair(odd_sqs(still_clock(), skew=Skew(twice=1.0)))
    jobs.send("a", {}, delay_s=0)
    assert receive(jobs) != receive(jobs)


def test_skew_delivers_a_message_late() -> None:
    clock = still_clock()
    jobs, _ = queue_pair(odd_sqs(clock, skew=Skew(late=1.0, late_s=60)))
    jobs.send("a", {}, delay_s=0)
    assert jobs.receive(most=1, visibility_timeout_s=30, redrive=None) == []
    due_s = jobs.next_due_s()
    assert due_s is not None
    assert START_S < due_s <= START_S + 60
    clock.advance(60)
    receive(jobs)


def test_same_seed_gives_same_deliveries() -> None:
    def deliveries(seed: int) -> list[list[str]]:
        clock = still_clock()
        jobs, _ = queue_pair(odd_sqs(clock, skew=Skew(twice=0.5, late=0.5, late_s=10), seed=seed))
        for _ in range(10):
            jobs.send("a", {}, delay_s=0)
        received = []
        for _ in range(20):
            messages = jobs.receive(most=10, visibility_timeout_s=5, redrive=None)
            received.append([str(message.handle) for message in messages])
            clock.advance(1)
        return received

    assert deliveries(1) == deliveries(1) != deliveries(2)
