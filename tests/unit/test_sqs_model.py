"""The local SQS under any sequence of calls, and the odd deliveries that tests add to it.

tests/integration/test_sqs_contract.py has the single rules; the modules of stt_async/local/sqs name their sources.
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
LIMIT = 3
CAP_S = 43_200


def still_clock() -> Clock:
    """A clock that moves only when it is pushed."""
    return Clock(lambda: START_S)


def queue_pair(sqs: Sqs, **attributes: str) -> tuple[Queue, Queue]:
    """A queue that gives up a message after LIMIT receives, and its dead-letter queue."""
    dead = sqs.create_queue("dead", {})
    policy = {"deadLetterTargetArn": dead.arn, "maxReceiveCount": LIMIT}
    return sqs.create_queue("jobs", {"RedrivePolicy": orjson.dumps(policy).decode()} | attributes), dead


def attempted(call: Any, *arguments: Any) -> str:
    """`done`, or with which error the call was refused."""
    try:
        call(*arguments)
    except RefusedError as error:
        return error.shape
    return "done"


@dataclass
class Known:
    """What a message must be like, by what was done to it."""

    where: str
    hidden_until_s: float
    handles: list[str] = field(default_factory=list)
    received_s: list[float] = field(default_factory=list)


class Delivery(RuleBasedStateMachine):
    """Two queues under any sequence of calls, and time."""

    stale: ClassVar[Stale] = "ignored"
    skew: ClassVar[Skew] = Skew()

    def __init__(self) -> None:
        super().__init__()
        self.clock = still_clock()
        self.sqs = odd_sqs(self.clock, stale=self.stale, skew=self.skew)
        jobs, dead = queue_pair(self.sqs, MessageRetentionPeriod="1209600")
        self.sqs.set_attributes(dead, {"MessageRetentionPeriod": "1209600"})
        self.queues = {"jobs": jobs, "dead": dead}
        self.known: dict[str, Known] = {}

    @property
    def now_s(self) -> float:
        return self.clock.now_s()

    @rule(delay_s=st.sampled_from([0, 0, 60]))
    def send(self, delay_s: int) -> None:
        message = self.queues["jobs"].send("body", {}, delay_s=delay_s)
        assert message.message_id not in self.known
        self.known[message.message_id] = Known("jobs", self.now_s + delay_s)

    @rule(
        where=st.sampled_from(["jobs", "jobs", "dead"]), most=st.integers(1, 3), timeout_s=st.sampled_from([0, 30, 600])
    )
    def receive(self, where: str, most: int, timeout_s: int) -> None:
        queue = self.queues[where]
        messages = queue.receive(most=most, visibility_timeout_s=timeout_s, redrive=self.sqs.redrive(queue))
        assert len(messages) <= most
        for message in messages:
            known = self.known[message.message_id]
            assert message.handle is not None
            assert message.handle not in known.handles
            assert message.receive_count == len(known.handles) + 1
            if where == "jobs":
                assert message.receive_count <= LIMIT
            else:
                assert message.receive_count > LIMIT
            self.must_be_free(known)
            known.where = where
            known.hidden_until_s = self.now_s + timeout_s
            known.handles.append(message.handle)
            known.received_s.append(self.now_s)

    def must_be_free(self, known: Known) -> None:
        """Nobody holds it: only time, or who held it, has given it back."""
        assert known.where != "deleted"
        assert known.hidden_until_s <= self.now_s

    @precondition(lambda self: any(known.handles for known in self.known.values()))
    @rule(data=st.data(), timeout_s=st.sampled_from([0, 30, 20_000, CAP_S]))
    def change(self, data: st.DataObject, timeout_s: int) -> None:
        known, n = self.drawn(data)
        held_s = self.now_s - known.received_s[n]
        outcome = attempted(self.queue_of(n).change_visibility, known.handles[n], timeout_s)
        if outcome == "done":
            assert known.where != "deleted"
            assert known.hidden_until_s > self.now_s
            assert held_s + timeout_s <= CAP_S
            known.hidden_until_s = self.now_s + timeout_s
        elif outcome == "MessageNotInflight":
            assert known.hidden_until_s <= self.now_s
        else:
            assert outcome == "InvalidParameterValue"
            assert known.where == "deleted" or self.may_be_powerless(known, n) or held_s + timeout_s > CAP_S

    @precondition(lambda self: any(known.handles for known in self.known.values()))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        known, n = self.drawn(data)
        before = self.alive()
        outcome = attempted(self.queue_of(n).delete, known.handles[n])
        if outcome == "done" and self.alive() < before:
            assert known.where != "deleted"
            assert self.stale == "honoured" or n == len(known.handles) - 1
            known.where = "deleted"
        elif outcome == "done":
            assert known.where == "deleted" or self.may_be_powerless(known, n)
        else:
            assert outcome == "InvalidParameterValue"
            assert self.now_s - known.received_s[n] > CAP_S

    @rule(seconds=st.sampled_from([1, 29, 30, 600, 19_000]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.alive() == sum(known.where != "deleted" for known in self.known.values())

    def teardown(self) -> None:
        """Time alone brings back everything that was not deleted."""
        self.clock.advance(CAP_S)
        delivered = set()
        for queue in self.queues.values():
            self.clock.advance(self.skew.late_s)
            while queue.counts().visible:
                messages = queue.receive(most=10, visibility_timeout_s=CAP_S, redrive=self.sqs.redrive(queue))
                delivered |= {message.message_id for message in messages}
        assert delivered == {message_id for message_id, known in self.known.items() if known.where != "deleted"}

    def drawn(self, data: st.DataObject) -> tuple[Known, int]:
        """Any handle that was ever given out, as its message and its number."""
        known = data.draw(st.sampled_from([known for known in self.known.values() if known.handles]))
        return known, data.draw(st.integers(0, len(known.handles) - 1))

    def queue_of(self, n: int) -> Queue:
        """The queue that gave out a message's nth handle: the first up to the limit, the other after it."""
        return self.queues["jobs" if n < LIMIT else "dead"]

    def may_be_powerless(self, known: Known, n: int) -> bool:
        """Whether the message was received again since, or may lie in the other queue."""
        was_received_again = n < len(known.handles) - 1
        return n < LIMIT <= len(known.handles) or (was_received_again and self.stale == "ignored")

    def alive(self) -> int:
        """How many messages the queues say they hold."""
        counts = [queue.counts() for queue in self.queues.values()]
        return sum(each.visible + each.in_flight + each.delayed for each in counts)


class HonouringOldHandles(Delivery):
    stale: ClassVar[Stale] = "honoured"


class Skewed(Delivery):
    """Twice at once, or late: all else holds."""

    skew: ClassVar[Skew] = Skew(twice=0.5, late=0.5, late_s=300)

    def must_be_free(self, known: Known) -> None:
        assert known.where != "deleted"

    @rule()
    def change(self) -> None:
        """Not here: of a message delivered twice nobody can say who holds it."""


TestDelivery = Delivery.TestCase
TestHonouringOldHandles = HonouringOldHandles.TestCase
TestSkewed = Skewed.TestCase


def receive(queue: Queue, *, timeout_s: int = 30) -> str:
    """Receive the one message; its handle."""
    [message] = queue.receive(most=1, visibility_timeout_s=timeout_s, redrive=None)
    assert message.handle is not None
    return message.handle


def test_a_message_is_kept_for_the_retention_period_from_when_it_was_sent() -> None:
    clock = still_clock()
    sqs = odd_sqs(clock)
    jobs, dead = queue_pair(sqs, MessageRetentionPeriod="120")
    sqs.set_attributes(dead, {"MessageRetentionPeriod": "180"})
    jobs.send("moved", {}, delay_s=0)
    for _ in range(LIMIT):
        receive(jobs, timeout_s=0)
    jobs.send("stays", {}, delay_s=0)
    clock.advance(119)
    assert jobs.receive(most=1, visibility_timeout_s=0, redrive=sqs.redrive(jobs))[0].body == "stays"
    clock.advance(1)
    assert (jobs.counts().visible, dead.counts().visible) == (0, 1)
    clock.advance(60)
    assert dead.counts().visible == 0


def test_skewed_delivery_gives_a_message_to_two_at_once() -> None:
    jobs, _ = queue_pair(odd_sqs(still_clock(), skew=Skew(twice=1.0)))
    jobs.send("a", {}, delay_s=0)
    assert receive(jobs) != receive(jobs)


def test_skewed_delivery_holds_a_message_back_for_a_while() -> None:
    clock = still_clock()
    jobs, _ = queue_pair(odd_sqs(clock, skew=Skew(late=1.0, late_s=60)))
    jobs.send("a", {}, delay_s=0)
    assert jobs.receive(most=1, visibility_timeout_s=30, redrive=None) == []
    due_s = jobs.next_due_s()
    assert due_s is not None
    assert START_S < due_s <= START_S + 60
    clock.advance(60)
    receive(jobs)


def test_the_same_seed_strays_in_the_same_way() -> None:
    def story(seed: int) -> list[list[str]]:
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

    assert story(1) == story(1)
    assert story(1) != story(2)
