"""What became of each message, read out of a history: who got it when, for how long, and how it was settled."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.support.evidence.history import Call, History

SLACK_S = 1.0
"""Between the clock of the gateway and the moment at which a server did something."""


@dataclass(frozen=True)
class Job:
    """What the body of a message asks for."""

    job_id: str
    source: str
    """`bucket/key`."""
    prefix: str
    """Of its output, with the slash."""


@dataclass(eq=False, kw_only=True)
class Delivery:
    """One receive of one message. Times are those of the gateway."""

    receipt: str
    message_id: str
    body: str
    receive: Call
    got_s: float
    """When the server had handed it out."""
    visibility: list[tuple[float, int]]
    """When its visibility timeout was set, and to what."""
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
        """Until when it is hidden at the longest, by what was set before `at_s`."""
        set_s, timeout_s = [each for each in self.visibility if each[0] <= at_s or each is self.visibility[0]][-1]
        return set_s + timeout_s

    def is_heartbeat(self, change: Call) -> bool:
        """Whether a change of its visibility keeps it for as long as the receive did; any other gives it back.

        Heartbeats go out in batches: a message given back may by chance wait as long as a heartbeat lasts.
        """
        asked = self.receive.arguments.get("VisibilityTimeout")
        return change.operation.endswith("Batch") and bool(self._timeout_s(change) == asked)

    @property
    def settled_by(self) -> Call | None:
        """The first call of its holder that deletes it or gives it back, whether or not that came through."""
        releases = [change for change in self.changes if not self.is_heartbeat(change)]
        return min([*releases, *self.deletes], key=lambda call: call.started_s, default=None)

    def is_open(self, at_s: float) -> bool:
        """Whether its holder had it and had not settled it yet."""
        settled = self.settled_by
        return self.got_s <= at_s and (settled is None or settled.started_s > at_s)

    def note(self, call: Call) -> None:
        """Take down a call that names its receipt."""
        if call.operation.startswith("DeleteMessage"):
            self.deletes.append(call)
            return
        self.changes.append(call)
        if call.served_s is not None and _did(call, self.receipt):
            self.visibility.append((call.served_s, self._timeout_s(call)))

    def _timeout_s(self, change: Call) -> int:
        return next(int(e["VisibilityTimeout"]) for e in change.entries if e["ReceiptHandle"] == self.receipt)


class Ledger:
    """The messages of the split queue.

    Args:
        history: What passed the gateway, and what the test did itself.
        queue: Name of the split queue.
        visibility_timeout_s: Of the queue, for a receive that sets none.
    """

    def __init__(self, history: History, *, queue: str, visibility_timeout_s: int) -> None:
        self.bodies: dict[str, str] = dict(history.sent)
        """Of all messages ever sent, by id."""
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
                    by_receipt[receipt].note(call)
        self.deliveries += by_receipt.values()
        for delivery in self.deliveries:
            self._of_message[delivery.message_id].append(delivery)
            if delivery.job is not None:
                self._of_prefix[delivery.holder, delivery.job.prefix].append(delivery)

    def of_message(self, message_id: str) -> list[Delivery]:
        """All deliveries of a message."""
        return self._of_message.get(message_id, [])

    def prefixes(self, holder: str) -> set[str]:
        """Where the jobs go that a worker ever had."""
        return {prefix for each, prefix in self._of_prefix if each == holder}

    def superseded(self, delivery: Delivery, at_s: float) -> list[Delivery]:
        """The deliveries of the same message after this one, until then."""
        return [other for other in self.of_message(delivery.message_id) if delivery.got_s < other.got_s < at_s]

    def heirs(self, delivery: Delivery, at_s: float) -> list[Delivery]:
        """Those of them that came when its time was over. Delivered twice at once, a message is held by both."""
        others = self.superseded(delivery, at_s)
        return [other for other in others if other.got_s > delivery.hidden_until_s(other.got_s) - SLACK_S]

    def deleted(self) -> set[str]:
        """Ids of the messages that are surely gone: somebody deleted them by their newest receipt."""
        return {
            delivery.message_id
            for delivery in self.deliveries
            for call in delivery.deletes
            if _did(call, delivery.receipt) and not self.superseded(delivery, call.started_s)
        }

    def maybe_deleted(self) -> set[str]:
        """The same, by any of their receipts: what an old one does is not told by SQS."""
        return {
            delivery.message_id
            for delivery in self.deliveries
            for call in delivery.deletes
            if _did(call, delivery.receipt)
        }

    def held_for(self, sender: str, prefix: str, at_s: float) -> list[Delivery]:
        """What a worker had not settled then, of the jobs with that output prefix."""
        return [delivery for delivery in self._of_prefix.get((sender, prefix), []) if delivery.is_open(at_s)]


def job_of(body: str) -> Job | None:
    """The job in a message body, in either of its forms; None if it is none."""
    try:
        facts: Any = orjson.loads(body)
        source = facts.get("raw_audio_path") or f"{facts['source_bucket']}/{facts['source_key']}"
        return Job(str(facts["job_id"]), source, str(facts["output_prefix"]).removesuffix("/") + "/")
    except (orjson.JSONDecodeError, AttributeError, KeyError):
        return None


def _did(call: Call, receipt: str) -> bool:
    return any(entry.get("ReceiptHandle") == receipt for entry in call.done_entries)


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
