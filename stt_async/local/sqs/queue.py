"""One queue: its messages, their receipt handles, and when they become visible again. No I/O.

From the API Reference, by operation, and the Developer Guide:

- Visibility: a received message is hidden for its timeout, then any client may receive it again. A change sets the
  timeout from now on, until the next receive (API_ChangeMessageVisibility.html, sqs-visibility-timeout.html).
- `MessageNotInflight`: a change of a message that is visible again (API_ChangeMessageVisibility.html).
- 12 hours: the timeouts of one receive may not exceed them in sum, and a change that would is refused, not shortened
  (API_ChangeMessageVisibility.html). Then the handle expires, for DeleteMessage too, as users report
  (github.com/boto/boto3/issues/2898).
- Handles: each receive gives a new one. With an old one, DeleteMessage succeeds, but "the message might not be deleted"
  (API_DeleteMessage.html): here it is not, and a change is refused. The handle of a deleted message deletes again
  without an error; a change with it is InvalidParameterValue, as measured (github.com/localstack/localstack/pull/6103).
  Any other text is `ReceiptHandleIsInvalid`.
- Redrive: after maxReceiveCount receives, a message moves to the dead-letter queue instead of being received again
  (sqs-dead-letter-queues.html). It keeps the time at which it was sent
  (setting-up-dead-letter-queue-retention.html) and its receive count, which counts "across all queues"
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

from stt_async.local.sqs.limits import MAX_VISIBILITY_TIMEOUT_S, RefusedError, invalid, require_range

_EPOCH_S = time.time() - time.monotonic()


def epoch_s() -> float:
    """Return seconds since the epoch; changes of the system clock have no effect while this process runs."""
    return _EPOCH_S + time.monotonic()


@dataclass(eq=False)
class Message:
    """A message; redrive moves it to another queue."""

    message_id: str
    body: str
    attributes: Mapping[str, Any]
    sent_s: float
    visible_s: float = 0.0
    receive_count: int = 0
    first_received_s: float | None = None
    handle: str | None = None
    """Receipt handle of the newest receive."""
    dead_letter_source: str | None = None


@dataclass(frozen=True)
class Redrive:
    """Redrive policy: the dead-letter queue, and after how many receives messages move there."""

    target: "Queue"
    max_receive_count: int


class Counts(NamedTuple):
    """Numbers of messages in a queue."""

    visible: int
    in_flight: int
    delayed: int


class Queue:
    """A queue. Its caller validates requests.

    A receive takes the message that has been visible longest. Each call costs at most O(log n) for n messages: visible
    messages are in order, hidden ones in a heap by the time at which they become visible, and all in a heap by age. A
    heap drops an outdated entry (its message is deleted, or has another timeout) when it reaches the top.

    Args:
        name: Name of the queue.
        arn: ARN of the queue.
        attributes: Attributes of the queue; SetQueueAttributes changes them.
        now_s: Clock, in seconds since the epoch.
        random: Source of message ids.
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
        self.random = random or Random()  # noqa: S311 - ids are no secrets, and tests seed them
        self.arrival = asyncio.Event()
        """Set when a call, not time, makes a message visible. A poll clears it before it waits."""
        self._messages: dict[str, Message] = {}
        self._visible: OrderedDict[str, Message] = OrderedDict()
        self._delayed: set[str] = set()
        self._due: list[tuple[float, int, Message]] = []
        self._ages: list[tuple[float, int, Message]] = []
        self._numbers = itertools.count()

    def send(self, body: str, attributes: Mapping[str, Any], *, delay_s: int) -> Message:
        """Create a message and add it."""
        now_s = self.now_s()
        message_id = str(UUID(int=self.random.getrandbits(128), version=4))
        message = Message(message_id, body, attributes, sent_s=now_s)
        self.add(message, visible_s=now_s + delay_s)
        return message

    def add(self, message: Message, *, visible_s: float) -> None:
        """Add a message that is new or comes from another queue."""
        self._messages[message.message_id] = message
        heapq.heappush(self._ages, (message.sent_s, next(self._numbers), message))
        if message.receive_count == 0:
            self._delayed.add(message.message_id)
        self._hide(message, visible_s)

    def receive(self, *, most: int, visibility_timeout_s: int, redrive: Redrive | None) -> list[Message]:
        """Deliver up to `most` messages; redrive those that were received too often."""
        now_s = self._apply_time()
        delivered: list[Message] = []
        for _ in range(len(self._visible)):  # a timeout of 0 s queues a message again, behind the others
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
        """Set the visibility timeout of a message in flight.

        Raises:
            RefusedError: the handle is invalid or old, the message is deleted or not in flight, or 12 hours exceeded.
        """
        require_range("VisibilityTimeout", visibility_timeout_s, 0, MAX_VISIBILITY_TIMEOUT_S)
        now_s = self._apply_time()
        message, received_s = self._find(handle, now_s)
        if message is None:
            raise invalid(
                "ReceiptHandle", handle, "Message does not exist or is not available for visibility timeout change."
            )
        if message.visible_s <= now_s:
            raise RefusedError("MessageNotInflight", "The specified message isn't in flight.")
        if now_s - received_s + visibility_timeout_s > MAX_VISIBILITY_TIMEOUT_S:
            raise invalid(
                "VisibilityTimeout",
                visibility_timeout_s,
                f"Total VisibilityTimeout for the message is beyond the limit [{MAX_VISIBILITY_TIMEOUT_S} seconds]",
            )
        self._hide(message, now_s + visibility_timeout_s)

    def delete(self, handle: str) -> None:
        """Delete a message, visible or not; do nothing if it is deleted already, or the handle is an old one.

        Raises:
            RefusedError: the handle is invalid or has expired.
        """
        message, _ = self._find(handle, self._apply_time())
        if message is not None:
            self._drop(message)

    def counts(self) -> Counts:
        """Return the numbers of messages."""
        self._apply_time()
        visible, delayed = len(self._visible), len(self._delayed)
        return Counts(visible, in_flight=len(self._messages) - visible - delayed, delayed=delayed)

    def next_due_s(self) -> float | None:
        """Return when the next hidden message becomes visible; None if no message is hidden."""
        while self._due:
            due_s, _, message = self._due[0]
            if self._exists(message) and message.visible_s == due_s:
                return due_s
            heapq.heappop(self._due)
        return None

    def _apply_time(self) -> float:
        """Show messages whose timeout is over, drop those past retention, and return the time."""
        now_s = self.now_s()
        while (due_s := self.next_due_s()) is not None and due_s <= now_s:
            self._show(heapq.heappop(self._due)[-1])
        oldest_s = now_s - int(self.attributes["MessageRetentionPeriod"])
        while self._ages and (self._ages[0][0] <= oldest_s or not self._exists(self._ages[0][-1])):
            message = heapq.heappop(self._ages)[-1]
            if self._exists(message):
                self._drop(message)
        return now_s

    def _exists(self, message: Message) -> bool:
        return message.message_id in self._messages

    def _hide(self, message: Message, until_s: float) -> None:
        message.visible_s = until_s
        if until_s > self.now_s():
            heapq.heappush(self._due, (until_s, next(self._numbers), message))
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

    def _find(self, handle: str, now_s: float) -> tuple[Message | None, float]:
        """Return the message of a handle (None if it is deleted, or the handle is old), and when it was received.

        Raises:
            RefusedError: the handle is not one of this queue, or has expired.
        """
        try:
            name, message_id, _, received = handle.split("#")
            received_s = float(received)
        except ValueError:
            name, message_id, received_s = "", "", 0.0
        if name != self.name:
            raise RefusedError("ReceiptHandleIsInvalid", f'The input receipt handle "{handle}" is not a valid one.')
        if now_s - received_s > MAX_VISIBILITY_TIMEOUT_S:
            raise invalid("ReceiptHandle", handle, "The receipt handle has expired.")
        message = self._messages.get(message_id)
        return (message if message is not None and self._is_valid(handle, message) else None), received_s

    def _is_valid(self, handle: str, message: Message) -> bool:
        return handle == message.handle
