"""The deliveries of each message, from a history: their holders, times and settlements."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.support.evidence.history import Call, History

SLACK_S = 1.0
"""Tolerance between the gateway's time of a call and the server's."""


@dataclass(frozen=True)
class Job:
    """The job in the body of a message."""

    job_id: str
    source: str
    """`bucket/key`."""
    prefix: str
    """The output prefix, with the slash."""


@dataclass(eq=False, kw_only=True)
class Delivery:
    """One receive of one message. Times are the gateway's."""

    receipt: str
    message_id: str
    body: str
    receive: Call
    got_s: float
    """When the server answered the receive."""
    visibility: list[tuple[float, int]]
    """The times at which its visibility timeout was set, with the timeouts."""
    changes: list[Call] = field(default_factory=list)
    """Heartbeats and releases."""
    deletes: list[Call] = field(default_factory=list)

    @property
    def holder(self) -> str:
        return self.receive.sender

    @property
    def job(self) -> Job | None:
        return job_of(self.body)

    def hidden_until_s(self, at_s: float = float("inf")) -> float:
        """The latest end of its visibility timeout, by the changes before `at_s`."""
        set_s, timeout_s = [each for each in self.visibility if each[0] <= at_s or each is self.visibility[0]][-1]
        return set_s + timeout_s

    def is_heartbeat(self, change: Call) -> bool:
        """Whether a change is a heartbeat: a batch with the visibility timeout of the receive. Others are releases.

        The delay of a release may equal the visibility timeout, but only heartbeats are batches.
        """
        asked = self.receive.arguments.get("VisibilityTimeout")
        return change.operation.endswith("Batch") and bool(self._timeout_s(change) == asked)

    @property
    def settled_by(self) -> Call | None:
        """The first call of its holder that deletes or releases it, whether or not the call succeeded."""
        releases = [change for change in self.changes if not self.is_heartbeat(change)]
        return min([*releases, *self.deletes], key=lambda call: call.started_s, default=None)

    def is_open(self, at_s: float) -> bool:
        """Whether its holder had received it and not settled it yet."""
        settled = self.settled_by
        return self.got_s <= at_s and (settled is None or settled.started_s > at_s)

    def add(self, call: Call) -> None:
        """Add a call that names its receipt handle."""
        if call.operation.startswith("DeleteMessage"):
            self.deletes.append(call)
            return
        self.changes.append(call)
        if call.served_s is not None and _is_served(call, self.receipt):
            self.visibility.append((call.served_s, self._timeout_s(call)))

    def _timeout_s(self, change: Call) -> int:
        return next(int(e["VisibilityTimeout"]) for e in change.entries if e["ReceiptHandle"] == self.receipt)


class Ledger:
    """The messages of the split queue.

    Args:
        history: The calls, and what the test did.
        queue: Name of the split queue.
        visibility_timeout_s: Of the queue, for a receive that sets none.
    """

    def __init__(self, history: History, *, queue: str, visibility_timeout_s: int) -> None:
        self.bodies: dict[str, str] = dict(history.sent)
        """The bodies of all messages, by id."""
        self.taken = history.taken
        self.deliveries: list[Delivery] = []
        self._of_message: dict[str, list[Delivery]] = defaultdict(list)
        self._of_prefix: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
        by_receipt: dict[str, Delivery] = {}
        for call in history.calls:
            if call.service != "sqs" or call.queue != queue:
                continue
            self.bodies |= _sent(call)
            by_receipt |= {delivery.receipt: delivery for delivery in _received(call, visibility_timeout_s)}
            for receipt in call.receipts:
                if receipt in by_receipt:
                    by_receipt[receipt].add(call)
        self.deliveries += by_receipt.values()
        for delivery in self.deliveries:
            self._of_message[delivery.message_id].append(delivery)
            if delivery.job is not None:
                self._of_prefix[delivery.holder, delivery.job.prefix].append(delivery)

    def of_message(self, message_id: str) -> list[Delivery]:
        """All deliveries of a message."""
        return self._of_message.get(message_id, [])

    def prefixes(self, holder: str) -> set[str]:
        """The output prefixes of all jobs that a worker received."""
        return {prefix for each, prefix in self._of_prefix if each == holder}

    def superseded(self, delivery: Delivery, at_s: float) -> list[Delivery]:
        """The later deliveries of the same message, until `at_s`."""
        return [other for other in self.of_message(delivery.message_id) if delivery.got_s < other.got_s < at_s]

    def successors(self, delivery: Delivery, at_s: float) -> list[Delivery]:
        """The later deliveries after its visibility timeout. A message delivered twice at once has two holders."""
        others = self.superseded(delivery, at_s)
        return [other for other in others if other.got_s > delivery.hidden_until_s(other.got_s) - SLACK_S]

    def deleted(self) -> set[str]:
        """Ids of the messages that were deleted by their newest receipt, and so certainly."""
        return {
            delivery.message_id
            for delivery in self.deliveries
            for call in delivery.deletes
            if _is_served(call, delivery.receipt) and not self.superseded(delivery, call.started_s)
        }

    def maybe_deleted(self) -> set[str]:
        """Ids of the messages that may be deleted.

        A delete by any receipt counts, as the effect of an old one is not documented. So does a delete that the gateway
        passed on without an answer: its sender was killed, and the gateway ends a call whose client is gone.
        """
        return {
            delivery.message_id
            for delivery in self.deliveries
            for call in delivery.deletes
            if _is_served(call, delivery.receipt) or (call.was_passed_on and call.served_status is None)
        }

    def held_for(self, sender: str, prefix: str, at_s: float) -> list[Delivery]:
        """The deliveries that a worker had not settled at `at_s`, of jobs with this output prefix."""
        return [delivery for delivery in self._of_prefix.get((sender, prefix), []) if delivery.is_open(at_s)]


def job_of(body: str) -> Job | None:
    """Return the job in a message body, in either form; None if the body is malformed."""
    try:
        facts: Any = orjson.loads(body)
        source = facts.get("raw_audio_path") or f"{facts['source_bucket']}/{facts['source_key']}"
        return Job(str(facts["job_id"]), source, str(facts["output_prefix"]).removesuffix("/") + "/")
    except (orjson.JSONDecodeError, AttributeError, KeyError):
        return None


def _is_served(call: Call, receipt: str) -> bool:
    return any(entry.get("ReceiptHandle") == receipt for entry in call.served_entries)


def _sent(call: Call) -> dict[str, str]:
    if not call.operation.startswith("SendMessage"):
        return {}
    if call.operation == "SendMessage":
        return {call.result["MessageId"]: call.arguments["MessageBody"]} if call.served else {}
    bodies = {entry["Id"]: entry["MessageBody"] for entry in call.entries}
    return {done["MessageId"]: bodies[done["Id"]] for done in call.result.get("Successful", [])}


def _received(call: Call, visibility_timeout_s: int) -> list[Delivery]:
    if call.operation != "ReceiveMessage":
        return []
    timeout_s = int(call.arguments.get("VisibilityTimeout", visibility_timeout_s))
    got_s = call.served_s or call.started_s
    return [
        Delivery(
            receipt=message["ReceiptHandle"],
            message_id=message["MessageId"],
            body=message["Body"],
            receive=call,
            got_s=got_s,
            visibility=[(got_s, timeout_s)],
        )
        for message in call.messages
    ]
