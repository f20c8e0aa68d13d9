"""One queue: its messages, who holds them, and when they become visible again. No I/O.

From the API Reference, by operation, and the Developer Guide:

- Visibility: a received message is hidden for its timeout, then anybody may receive it again; a change sets the timeout
  from now on and is forgotten with the next receive (API_ChangeMessageVisibility.html, sqs-visibility-timeout.html).
- `MessageNotInflight`: a change of a message that is visible again (API_ChangeMessageVisibility.html).
- 12 hours: the timeouts of one receive may not exceed them in sum, and a change that would is refused, not shortened
  (API_ChangeMessageVisibility.html); then the handle has expired, for DeleteMessage too, as users report
  (github.com/boto/boto3/issues/2898).
- Handles: each receive gives a new one. With an old one DeleteMessage succeeds, but "the message might not be deleted"
  (API_DeleteMessage.html): here it is not, and a change is refused. The handle of a deleted message deletes once more
  without an error; to change it is InvalidParameterValue, as measured (github.com/localstack/localstack/pull/6103).
  What never was a handle is `ReceiptHandleIsInvalid`.
- Redrive: a message that was received maxReceiveCount times goes to the dead-letter queue instead of being received
  once more (sqs-dead-letter-queues.html). It keeps the time at which it was sent
  (setting-up-dead-letter-queue-retention.html) and its receive count, which is counted "across all queues"
  (API_ReceiveMessage.html).
"""

import asyncio
import heapq
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from stt_async.local.sqs.limits import VISIBILITY_TIMEOUT_S, RefusedError, invalid, require_range

_EPOCH_S = time.time() - time.monotonic()


def epoch_s() -> float:
    """Seconds since the epoch, by a clock that nobody sets while this process runs."""
    return _EPOCH_S + time.monotonic()


@dataclass(eq=False)
class Message:
    """A message, in whichever queue it is."""

    message_id: str
    body: str
    attributes: Mapping[str, Any]
    sent_s: float
    visible_s: float = 0.0
    receive_count: int = 0
    first_received_s: float | None = None
    handle: str | None = None
    """Of its newest receive."""
    dead_letter_source: str | None = None


@dataclass(frozen=True)
class Redrive:
    """The dead-letter queue, and how many receives come before it."""

    target: "Queue"
    max_receive_count: int


class Counts(NamedTuple):
    """The messages of a queue."""

    visible: int
    in_flight: int
    delayed: int


class Queue:
    """A queue; its caller has checked what the request says.

    A receive takes the message that has been visible longest. Each call costs O(log n) for n messages at most: visible
    messages are in order, hidden ones in a heap by the time at which they become visible, all of them in a heap by age.
    An entry of a heap whose message was deleted, or got another timeout since, is dropped when it comes to the top.

    Args:
        name: Its name.
        arn: Its ARN.
        attributes: As SetQueueAttributes changes them.
        now_s: Its clock, in seconds since the epoch.
        random: Where message ids come from.
    """

    def __init__(
        self,
        name: str,
        arn: str,
        attributes: dict[str, str],
        *,
        now_s: Callable[[], float] = epoch_s,
        random: Random | None = None,
    ) -> None:
        self.name = name
        self.arn = arn
        self.attributes = attributes
        self.now_s = now_s
        self.random = random or Random()  # noqa: S311 - ids are no secrets, and tests want the same ones again
        self.arrival = asyncio.Event()
        """Set whenever a message becomes visible by a call, not by time; a poll clears it before it waits."""
        self._messages: dict[str, Message] = {}
        self._visible: OrderedDict[str, Message] = OrderedDict()
        self._delayed: set[str] = set()
        self._dues: list[tuple[float, int, Message]] = []
        self._ages: list[tuple[float, int, Message]] = []
        self._numbers = itertools.count()

    def send(self, body: str, attributes: Mapping[str, Any], *, delay_s: int) -> Message:
        """Add a message."""
        now_s = self.now_s()
        message_id = str(UUID(int=self.random.getrandbits(128), version=4))
        message = Message(message_id, body, attributes, sent_s=now_s)
        self.add(message, visible_s=now_s + delay_s)
        return message

    def add(self, message: Message, *, visible_s: float) -> None:
        """Take in a message, new or from another queue."""
        self._messages[message.message_id] = message
        heapq.heappush(self._ages, (message.sent_s, next(self._numbers), message))
        if message.receive_count == 0:
            self._delayed.add(message.message_id)
        self._hide(message, visible_s)

    def receive(self, *, most: int, visibility_timeout_s: int, redrive: Redrive | None) -> list[Message]:
        """Deliver up to `most` messages; move those that were received too often."""
        now_s = self._catch_up()
        delivered: list[Message] = []
        for _ in range(len(self._visible)):  # with a timeout of 0 s they are visible again, behind the others
            if len(delivered) == most:
                break
            _, message = self._visible.popitem(last=False)
            if redrive is not None and message.receive_count >= redrive.max_receive_count:
                del self._messages[message.message_id]
                message.handle, message.dead_letter_source = None, self.arn
                redrive.target.add(message, visible_s=now_s)
            else:
                self._deliver(message, now_s, visibility_timeout_s)
                delivered.append(message)
        return delivered

    def change_visibility(self, handle: str, visibility_timeout_s: int) -> None:
        """Set the timeout of a message that is in flight.

        Raises:
            RefusedError: the handle is none or has expired, the message is gone, not in flight, or held for too long.
        """
        require_range("VisibilityTimeout", visibility_timeout_s, 0, VISIBILITY_TIMEOUT_S)
        now_s = self._catch_up()
        message, received_s = self._held_by(handle, now_s)
        if message is None:
            raise invalid(
                "ReceiptHandle", handle, "Message does not exist or is not available for visibility timeout change."
            )
        if message.visible_s <= now_s:
            raise RefusedError("MessageNotInflight", "The specified message isn't in flight.")
        if now_s - received_s + visibility_timeout_s > VISIBILITY_TIMEOUT_S:
            raise invalid(
                "VisibilityTimeout",
                visibility_timeout_s,
                f"Total VisibilityTimeout for the message is beyond the limit [{VISIBILITY_TIMEOUT_S} seconds]",
            )
        self._hide(message, now_s + visibility_timeout_s)

    def delete(self, handle: str) -> None:
        """Delete a message, visible or not; nothing happens if it is gone, or the handle is an old one.

        Raises:
            RefusedError: the handle is none, or has expired.
        """
        message, _ = self._held_by(handle, self._catch_up())
        if message is not None:
            self._drop(message)

    def purge(self) -> None:
        """Delete all messages."""
        for each in (self._messages, self._visible, self._delayed, self._dues, self._ages):
            each.clear()

    def counts(self) -> Counts:
        """How many messages there are."""
        self._catch_up()
        visible, delayed = len(self._visible), len(self._delayed)
        return Counts(visible, in_flight=len(self._messages) - visible - delayed, delayed=delayed)

    def next_due_s(self) -> float | None:
        """When the next hidden message becomes visible."""
        while self._dues:
            due_s, _, message = self._dues[0]
            if self._is_here(message) and message.visible_s == due_s:
                return due_s
            heapq.heappop(self._dues)
        return None

    def _catch_up(self) -> float:
        """Show the messages whose timeout is over, and drop those past retention; return the time."""
        now_s = self.now_s()
        while (due_s := self.next_due_s()) is not None and due_s <= now_s:
            self._show(heapq.heappop(self._dues)[-1])
        oldest_s = now_s - int(self.attributes["MessageRetentionPeriod"])
        while self._ages and (self._ages[0][0] <= oldest_s or not self._is_here(self._ages[0][-1])):
            message = heapq.heappop(self._ages)[-1]
            if self._is_here(message):
                self._drop(message)
        return now_s

    def _is_here(self, message: Message) -> bool:
        return message.message_id in self._messages

    def _hide(self, message: Message, until_s: float) -> None:
        message.visible_s = until_s
        if until_s > self.now_s():
            heapq.heappush(self._dues, (until_s, next(self._numbers), message))
        else:
            self._show(message)
            self.arrival.set()

    def _show(self, message: Message) -> None:
        self._delayed.discard(message.message_id)
        self._visible[message.message_id] = message

    def _drop(self, message: Message) -> None:
        del self._messages[message.message_id]
        self._visible.pop(message.message_id, None)
        self._delayed.discard(message.message_id)

    def _deliver(self, message: Message, now_s: float, visibility_timeout_s: int) -> None:
        message.receive_count += 1
        if message.first_received_s is None:
            message.first_received_s = now_s
        message.handle = f"{self.name}#{message.message_id}#{message.receive_count}#{now_s!r}"
        self._hide(message, now_s + visibility_timeout_s)

    def _held_by(self, handle: str, now_s: float) -> tuple[Message | None, float]:
        """Return the message that a handle is for, None if it is gone or the handle is old, and when it was received.

        Raises:
            RefusedError: the handle is none of this queue, or has expired.
        """
        try:
            name, message_id, _, received = handle.split("#")
            received_s = float(received)
        except ValueError:
            name, message_id, received_s = "", "", 0.0
        if name != self.name:
            raise RefusedError("ReceiptHandleIsInvalid", f'The input receipt handle "{handle}" is not a valid one.')
        if now_s - received_s > VISIBILITY_TIMEOUT_S:
            raise invalid("ReceiptHandle", handle, "The receipt handle has expired.")
        message = self._messages.get(message_id)
        return (message if message is not None and self._is_valid(handle, message) else None), received_s

    def _is_valid(self, handle: str, message: Message) -> bool:
        return handle == message.handle
