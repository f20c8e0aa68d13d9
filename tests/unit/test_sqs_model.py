"""The fake SQS: what must hold whatever is asked of it, and each special case. Its modules name the rules' sources."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.sqs.clock import Clock
from tests.support.sqs.limits import RefusedError
from tests.support.sqs.model import Sqs
from tests.support.sqs.operations import Answer, perform, wait_time_s
from tests.support.sqs.queue import Counts, Queue, Skew, Stale

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
        self.sqs = Sqs(still_clock(), stale=self.stale, skew=self.skew)
        jobs, dead = queue_pair(self.sqs, MessageRetentionPeriod="1209600")
        self.sqs.set_attributes(dead, {"MessageRetentionPeriod": "1209600"})
        self.queues = {"jobs": jobs, "dead": dead}
        self.known: dict[str, Known] = {}

    @property
    def now_s(self) -> float:
        return self.sqs.clock.now_s()

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
        self.sqs.clock.advance(seconds)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.alive() == sum(known.where != "deleted" for known in self.known.values())

    def teardown(self) -> None:
        """Time alone brings back everything that was not deleted."""
        self.sqs.clock.advance(CAP_S)
        delivered = set()
        for queue in self.queues.values():
            while queue.counts().visible:
                self.sqs.clock.advance(self.skew.late_s)
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


@pytest.fixture
def sqs() -> Sqs:
    return Sqs(still_clock())


def ask(sqs: Sqs, operation: str, **parameters: Any) -> Answer:
    """One request to the queue `jobs`."""
    return perform(sqs, operation, {"QueueUrl": "/jobs"} | parameters)


def receive(queue: Queue, *, timeout_s: int = 30) -> str:
    """Receive the one message; its handle."""
    [message] = queue.receive(most=1, visibility_timeout_s=timeout_s, redrive=None)
    assert message.handle is not None
    return message.handle


def test_what_is_visible_again_is_not_in_flight(sqs: Sqs) -> None:
    jobs, _ = queue_pair(sqs)
    jobs.send("a", {}, delay_s=0)
    handle = receive(jobs)
    sqs.clock.advance(29)
    jobs.change_visibility(handle, 30)
    sqs.clock.advance(30)
    assert attempted(jobs.change_visibility, handle, 30) == "MessageNotInflight"
    assert jobs.counts() == Counts(visible=1, in_flight=0, delayed=0)


@pytest.mark.parametrize("stale", ["ignored", "honoured"])
def test_an_old_handle_has_no_power_or_all_of_it(stale: Stale) -> None:
    jobs, _ = queue_pair(Sqs(still_clock(), stale=stale))
    jobs.send("a", {}, delay_s=0)
    old = receive(jobs, timeout_s=0)
    new = receive(jobs)
    if stale == "ignored":
        assert attempted(jobs.change_visibility, old, 60) == "InvalidParameterValue"
    else:
        jobs.change_visibility(old, 60)
    jobs.delete(old)
    assert jobs.counts().in_flight == (1 if stale == "ignored" else 0)
    jobs.delete(new)
    jobs.delete(new)
    assert jobs.counts() == Counts(visible=0, in_flight=0, delayed=0)


def test_one_receive_lasts_for_12_hours_however_often_it_is_extended(sqs: Sqs) -> None:
    jobs, _ = queue_pair(sqs)
    jobs.send("a", {}, delay_s=0)
    handle = receive(jobs, timeout_s=300)
    for _ in range(CAP_S // 100 - 3):
        sqs.clock.advance(100)
        jobs.change_visibility(handle, 300)
    sqs.clock.advance(100)
    assert attempted(jobs.change_visibility, handle, 300) == "InvalidParameterValue"
    jobs.change_visibility(handle, 200)
    sqs.clock.advance(200)
    assert attempted(jobs.change_visibility, handle, 0) == "MessageNotInflight"
    sqs.clock.advance(1)
    assert attempted(jobs.change_visibility, handle, 0) == "InvalidParameterValue"
    assert attempted(jobs.delete, handle) == "InvalidParameterValue"
    receive(jobs)


def test_the_last_allowed_receive_is_followed_by_the_dead_letter_queue(sqs: Sqs) -> None:
    jobs, dead = queue_pair(sqs)
    sent = jobs.send("a", {}, delay_s=0)
    for _ in range(LIMIT):
        assert len(jobs.receive(most=10, visibility_timeout_s=30, redrive=sqs.redrive(jobs))) == 1
        sqs.clock.advance(30)
    assert (jobs.counts().visible, dead.counts().visible) == (1, 0)
    assert jobs.receive(most=10, visibility_timeout_s=30, redrive=sqs.redrive(jobs)) == []
    [letter] = dead.receive(most=10, visibility_timeout_s=30, redrive=sqs.redrive(dead))
    assert (letter.message_id, letter.sent_s) == (sent.message_id, START_S)
    assert (letter.receive_count, letter.dead_letter_source) == (LIMIT + 1, jobs.arn)


def test_a_message_is_kept_for_the_retention_period_from_when_it_was_sent(sqs: Sqs) -> None:
    jobs, dead = queue_pair(sqs, MessageRetentionPeriod="120")
    sqs.set_attributes(dead, {"MessageRetentionPeriod": "180"})
    jobs.send("moved", {}, delay_s=0)
    for _ in range(LIMIT):
        receive(jobs, timeout_s=0)
    jobs.send("stays", {}, delay_s=0)
    sqs.clock.advance(119)
    assert jobs.receive(most=1, visibility_timeout_s=0, redrive=sqs.redrive(jobs))[0].body == "stays"
    sqs.clock.advance(1)
    assert (jobs.counts().visible, dead.counts().visible) == (0, 1)
    sqs.clock.advance(60)
    assert dead.counts().visible == 0


def test_delays_and_waits_are_those_of_the_queue_unless_asked_otherwise(sqs: Sqs) -> None:
    jobs, _ = queue_pair(sqs, DelaySeconds="10", ReceiveMessageWaitTimeSeconds="7")
    ask(sqs, "SendMessage", MessageBody="delayed")
    ask(sqs, "SendMessage", MessageBody="at once", DelaySeconds=0)
    assert jobs.counts() == Counts(visible=1, in_flight=0, delayed=1)
    assert jobs.next_due_s() == START_S + 10
    sqs.clock.advance(10)
    assert jobs.counts().visible == 2
    assert jobs.next_due_s() is None
    assert (wait_time_s(sqs, "jobs", None), wait_time_s(sqs, "jobs", 0)) == (7, 0)
    assert attempted(wait_time_s, sqs, "jobs", 21) == "InvalidParameterValue"


def test_a_batch_tells_of_each_entry(sqs: Sqs) -> None:
    jobs, _ = queue_pair(sqs)
    answer = ask(
        sqs,
        "SendMessageBatch",
        Entries=[{"Id": "good", "MessageBody": "a"}, {"Id": "bad", "MessageBody": ""}],
    )
    assert [each["Id"] for each in answer["Successful"]] == ["good"]
    assert [(each["Id"], each["Code"]) for each in answer["Failed"]] == [("bad", "MissingParameter")]
    handle = receive(jobs, timeout_s=0)
    entry = {"ReceiptHandle": handle, "VisibilityTimeout": 30}
    answer = ask(sqs, "ChangeMessageVisibilityBatch", Entries=[{"Id": "0"} | entry])
    assert [each["Code"] for each in answer["Failed"]] == ["AWS.SimpleQueueService.MessageNotInflight"]
    assert answer["Successful"] == []


@pytest.mark.parametrize(
    ("ids", "shape"),
    [
        ([], "EmptyBatchRequest"),
        ([str(n) for n in range(11)], "TooManyEntriesInBatchRequest"),
        (["a", "a"], "BatchEntryIdsNotDistinct"),
        (["a b"], "InvalidBatchEntryId"),
    ],
)
def test_a_batch_that_is_none_does_nothing(sqs: Sqs, ids: list[str], shape: str) -> None:
    jobs, _ = queue_pair(sqs)
    entries = [{"Id": each, "MessageBody": "a"} for each in ids]
    assert attempted(lambda: ask(sqs, "SendMessageBatch", Entries=entries)) == shape
    assert jobs.counts().visible == 0


def test_a_batch_may_have_a_mebibyte_in_all(sqs: Sqs) -> None:
    queue_pair(sqs)
    half = "x" * 524_288
    ask(sqs, "SendMessageBatch", Entries=[{"Id": "0", "MessageBody": half}, {"Id": "1", "MessageBody": half}])
    too_long = [{"Id": "0", "MessageBody": half}, {"Id": "1", "MessageBody": half + "x"}]
    assert attempted(lambda: ask(sqs, "SendMessageBatch", Entries=too_long)) == "BatchRequestTooLong"


@pytest.mark.parametrize(
    ("parameters", "shape"),
    [
        ({"MessageBody": ""}, "MissingParameter"),
        ({"MessageBody": "\x0b"}, "InvalidMessageContents"),
        ({"MessageBody": "x" * 1025}, "InvalidParameterValue"),
        ({"MessageBody": "a", "DelaySeconds": 901}, "InvalidParameterValue"),
        ({"MessageBody": "a", "MessageGroupId": "g"}, "UnsupportedOperation"),
        (
            {"MessageBody": "a", "MessageAttributes": {"n": {"DataType": "String", "StringValue": ""}}},
            "InvalidParameterValue",
        ),
        (
            {"MessageBody": "a", "MessageAttributes": {"n": {"DataType": "String", "StringValue": "x" * 1018}}},
            "InvalidParameterValue",
        ),
        (
            {
                "MessageBody": "a",
                "MessageAttributes": {str(n): {"DataType": "Number", "StringValue": "1"} for n in range(11)},
            },
            "InvalidParameterValue",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused(sqs: Sqs, parameters: dict[str, Any], shape: str) -> None:
    jobs, _ = queue_pair(sqs, MaximumMessageSize="1024")
    assert attempted(lambda: ask(sqs, "SendMessage", **parameters)) == shape
    assert jobs.counts().visible == 0


def test_the_attributes_asked_for_are_told_and_no_others(sqs: Sqs) -> None:
    queue_pair(sqs)
    kinds = {name: {"DataType": "String", "StringValue": name} for name in ("code", "other")}
    ask(sqs, "SendMessage", MessageBody="a", MessageAttributes=kinds)

    def told(*names: str) -> set[str]:
        [message] = ask(sqs, "ReceiveMessage", VisibilityTimeout=0, MessageAttributeNames=names)["Messages"]
        assert "Attributes" not in message
        return set(message.get("MessageAttributes", {}))

    assert told() == set()
    assert told("code") == {"code"}
    assert told("All") == {"code", "other"}


def test_what_is_not_part_of_it_is_refused(sqs: Sqs) -> None:
    jobs, _ = queue_pair(sqs)
    assert attempted(perform, sqs, "ListQueueTags", {"QueueUrl": "jobs"}) == "UnsupportedOperation"
    assert attempted(sqs.create_queue, "jobs.fifo", {}) == "InvalidParameterValue"
    assert attempted(sqs.set_attributes, jobs, {"KmsMasterKeyId": "k"}) == "InvalidAttributeName"
    elsewhere = orjson.dumps({"deadLetterTargetArn": "arn:aws:sqs:r:0:nowhere", "maxReceiveCount": 1}).decode()
    assert attempted(sqs.set_attributes, jobs, {"RedrivePolicy": elsewhere}) == "InvalidParameterValue"


def test_a_redrive_policy_can_be_taken_away(sqs: Sqs) -> None:
    jobs, _ = queue_pair(sqs)
    sqs.set_attributes(jobs, {"RedrivePolicy": ""})
    assert sqs.redrive(jobs) is None
    assert "RedrivePolicy" not in sqs.attributes(jobs, ["All"])


def test_skewed_delivery_gives_a_message_to_two_at_once() -> None:
    jobs, _ = queue_pair(Sqs(still_clock(), skew=Skew(twice=1.0)))
    jobs.send("a", {}, delay_s=0)
    assert receive(jobs) != receive(jobs)


def test_skewed_delivery_holds_a_message_back_for_a_while() -> None:
    sqs = Sqs(still_clock(), skew=Skew(late=1.0, late_s=60))
    jobs, _ = queue_pair(sqs)
    jobs.send("a", {}, delay_s=0)
    assert jobs.receive(most=1, visibility_timeout_s=30, redrive=None) == []
    assert jobs.counts().visible == 1
    due_s = jobs.next_due_s()
    assert due_s is not None
    assert START_S < due_s <= START_S + 60
    sqs.clock.advance(60)
    receive(jobs)


def test_the_same_seed_strays_in_the_same_way() -> None:
    def story(seed: int) -> list[list[str]]:
        sqs = Sqs(still_clock(), skew=Skew(twice=0.5, late=0.5, late_s=10), seed=seed)
        jobs, _ = queue_pair(sqs)
        for _ in range(10):
            jobs.send("a", {}, delay_s=0)
        received = []
        for _ in range(20):
            messages = jobs.receive(most=10, visibility_timeout_s=5, redrive=None)
            received.append([str(message.handle) for message in messages])
            sqs.clock.advance(1)
        return received

    assert story(1) == story(1)
    assert story(1) != story(2)
