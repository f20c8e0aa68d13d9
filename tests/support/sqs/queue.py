"""One queue: its messages, who holds them, and how the clock gives them back. No I/O.

From the API Reference, by operation, and the Developer Guide:

- Visibility: a received message is hidden for its timeout, then anybody may receive it again; a change sets the timeout
  from now on and is forgotten with the next receive (API_ChangeMessageVisibility.html, sqs-visibility-timeout.html).
- `MessageNotInflight`: a change of a message that is visible again (API_ChangeMessageVisibility.html).
- 12 hours: the timeouts of one receive may not exceed them in sum, and a change that would is refused, not shortened
  (API_ChangeMessageVisibility.html); then the handle has expired, for DeleteMessage too, as users report
  (github.com/boto/boto3/issues/2898).
- Handles: each receive gives a new one. With an old one DeleteMessage succeeds, but "the message might not be deleted"
  (API_DeleteMessage.html): see `Stale`. The handle of a deleted message deletes once more without an error; to change
  it is InvalidParameterValue, as measured (github.com/localstack/localstack/pull/6103). What never was a handle is
  `ReceiptHandleIsInvalid`.
- Redrive: what was received maxReceiveCount times and is to be received once more goes to the dead-letter queue
  (sqs-dead-letter-queues.html), keeps the time at which it was sent (setting-up-dead-letter-queue-retention.html) and
  its receive count, which is counted "across all queues" (API_ReceiveMessage.html).
- At least once: a message may be delivered more than once, and come late (standard-queues.html): see `Skew`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal
from uuid import UUID

from tests.support.sqs.clock import Clock
from tests.support.sqs.limits import VISIBILITY_TIMEOUT_S, RefusedError, invalid, require_range

Stale = Literal["ignored", "honoured"]
"""What an old receipt handle can do, of a message that was received again since.

`ignored`: nothing; a delete succeeds and the message stays, a change is refused.
`honoured`: what the newest can, as github.com/getmoto/moto/pull/4655 measured.
"""


@dataclass(frozen=True)
class Skew:
    """How often (0 to 1) delivery strays as a standard queue's may.

    Attributes:
        twice: A message that is delivered for the first time stays visible: it may be delivered once more at once.
        late: A message that has become visible is held back, by up to `late_s`.
    """

    twice: float = 0.0
    late: float = 0.0
    late_s: float = 0.0


@dataclass
class Message:
    """A message, wherever it is."""

    message_id: str
    body: str
    attributes: Mapping[str, Any]
    sent_s: float
    visible_s: float
    receive_count: int = 0
    first_received_s: float | None = None
    handle: str | None = None
    dead_letter_source: str | None = None
    held_back_until_s: float | None = None
    """Drawn when it is first looked at after it has become visible."""


@dataclass(frozen=True)
class Redrive:
    """Where a message goes that was received too often."""

    target: "Queue"
    max_receive_count: int


@dataclass(frozen=True)
class Counts:
    """The messages of a queue."""

    visible: int
    in_flight: int
    delayed: int


@dataclass(frozen=True)
class _Receipt:
    message_id: str
    received_s: float


@dataclass
class Queue:
    """A queue; whoever calls it has checked what the request says."""

    name: str
    arn: str
    attributes: dict[str, str]
    clock: Clock
    stale: Stale
    skew: Skew
    random: Random
    _messages: dict[str, Message] = field(default_factory=dict, init=False)
    _receipts: dict[str, _Receipt] = field(default_factory=dict, init=False)

    def send(self, body: str, attributes: Mapping[str, Any], *, delay_s: int) -> Message:
        now_s = self.clock.now_s()
        message_id = str(UUID(int=self.random.getrandbits(128), version=4))
        message = Message(message_id, body, attributes, sent_s=now_s, visible_s=now_s + delay_s)
        self._messages[message_id] = message
        return message

    def receive(self, *, most: int, visibility_timeout_s: int, redrive: Redrive | None) -> list[Message]:
        """Deliver messages, as they are now; move those that were received too often."""
        now_s = self.clock.now_s()
        delivered: list[Message] = []
        for message in self._deliverable(now_s):
            if redrive is not None and message.receive_count >= redrive.max_receive_count:
                self._move(message, redrive.target, now_s)
            elif len(delivered) < most:
                self._deliver(message, now_s, visibility_timeout_s)
                delivered.append(replace(message))
        return delivered

    def change_visibility(self, handle: str, visibility_timeout_s: int) -> None:
        """Set the timeout of a message that is in flight.

        Raises:
            RefusedError: the handle is none or has expired, the message is gone, not in flight, or held for too long.
        """
        require_range("VisibilityTimeout", visibility_timeout_s, 0, VISIBILITY_TIMEOUT_S)
        now_s = self.clock.now_s()
        receipt = self._receipt(handle, now_s)
        message = self._held_by(handle)
        if message is None:
            raise invalid(
                "ReceiptHandle", handle, "Message does not exist or is not available for visibility timeout change."
            )
        if message.visible_s <= now_s:
            raise RefusedError("MessageNotInflight", "The specified message isn't in flight.")
        if now_s - receipt.received_s + visibility_timeout_s > VISIBILITY_TIMEOUT_S:
            raise invalid(
                "VisibilityTimeout",
                visibility_timeout_s,
                f"Total VisibilityTimeout for the message is beyond the limit [{VISIBILITY_TIMEOUT_S} seconds]",
            )
        message.visible_s = now_s + visibility_timeout_s

    def delete(self, handle: str) -> None:
        """Delete a message, visible or not; nothing happens if it is gone, or the handle has no power over it.

        Raises:
            RefusedError: the handle is none, or has expired.
        """
        self._receipt(handle, self.clock.now_s())
        message = self._held_by(handle)
        if message is not None:
            del self._messages[message.message_id]

    def purge(self) -> None:
        self._messages.clear()

    def counts(self) -> Counts:
        now_s = self.clock.now_s()
        self._drop_expired(now_s)
        hidden = [message for message in self._messages.values() if message.visible_s > now_s]
        in_flight = sum(message.receive_count > 0 for message in hidden)
        return Counts(visible=len(self._messages) - len(hidden), in_flight=in_flight, delayed=len(hidden) - in_flight)

    def next_due_s(self) -> float | None:
        """When the next message becomes deliverable that is not so yet."""
        now_s = self.clock.now_s()
        dues = [max(each.visible_s, each.held_back_until_s or 0.0) for each in self._messages.values()]
        return min((due_s for due_s in dues if due_s > now_s), default=None)

    def in_flight(self) -> dict[str, float]:
        """The newest receipt handles of the messages in flight, and when each was received."""
        now_s = self.clock.now_s()
        hidden = [each for each in self._messages.values() if each.visible_s > now_s]
        return {each.handle: self._receipts[each.handle].received_s for each in hidden if each.handle is not None}

    def _deliverable(self, now_s: float) -> Iterator[Message]:
        self._drop_expired(now_s)
        for message in list(self._messages.values()):
            if message.visible_s > now_s:
                continue
            if message.held_back_until_s is None:
                is_late = self.random.random() < self.skew.late
                message.held_back_until_s = now_s + (self.random.uniform(0, self.skew.late_s) if is_late else 0)
            if message.held_back_until_s <= now_s:
                yield message

    def _deliver(self, message: Message, now_s: float, visibility_timeout_s: int) -> None:
        message.receive_count += 1
        if message.first_received_s is None:
            message.first_received_s = now_s
        message.handle = f"{self.name}#{message.message_id}#{message.receive_count}"
        message.held_back_until_s = None
        if message.receive_count > 1 or self.random.random() >= self.skew.twice:
            message.visible_s = now_s + visibility_timeout_s
        self._receipts[message.handle] = _Receipt(message.message_id, now_s)

    def _move(self, message: Message, target: "Queue", now_s: float) -> None:
        del self._messages[message.message_id]
        target._messages[message.message_id] = replace(
            message, visible_s=now_s, handle=None, dead_letter_source=self.arn, held_back_until_s=None
        )

    def _drop_expired(self, now_s: float) -> None:
        oldest_s = now_s - int(self.attributes["MessageRetentionPeriod"])
        for message in [each for each in self._messages.values() if each.sent_s <= oldest_s]:
            del self._messages[message.message_id]

    def _receipt(self, handle: str, now_s: float) -> _Receipt:
        self._drop_expired(now_s)
        if handle not in self._receipts:
            raise RefusedError("ReceiptHandleIsInvalid", f'The input receipt handle "{handle}" is not a valid one.')
        receipt = self._receipts[handle]
        if now_s - receipt.received_s > VISIBILITY_TIMEOUT_S:
            raise invalid("ReceiptHandle", handle, "The receipt handle has expired.")
        return receipt

    def _held_by(self, handle: str) -> Message | None:
        """The message over which this handle has power."""
        message = self._messages.get(self._receipts[handle].message_id)
        if message is not None and self.stale == "ignored" and message.handle != handle:
            return None
        return message
