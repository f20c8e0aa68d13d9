"""All queues: names, attributes and redrive policies. No I/O.

Names, attributes, defaults and ranges are those of API_CreateQueue.html, API_SetQueueAttributes.html and
API_GetQueueAttributes.html. Creating a queue that exists returns it if the attributes are equal, and is refused
otherwise. Only attributes that this project uses are implemented; others are `InvalidAttributeName`.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import orjson

from stt_async.local.loopback import REGION
from stt_async.local.sqs import limits
from stt_async.local.sqs.limits import RefusedError, invalid
from stt_async.local.sqs.queue import Queue, Redrive

ACCOUNT = "000000000000"

_NUMBERS = {
    "VisibilityTimeout": (30, 0, limits.MAX_VISIBILITY_TIMEOUT_S),
    "DelaySeconds": (0, 0, limits.MAX_DELAY_S),
    "ReceiveMessageWaitTimeSeconds": (0, 0, limits.MAX_WAIT_TIME_S),
    "MessageRetentionPeriod": (345_600, 60, 1_209_600),
    "MaximumMessageSize": (limits.MAX_MESSAGE_BYTES, 1024, limits.MAX_MESSAGE_BYTES),
}
"""Default, minimum and maximum."""
_REDRIVE = "RedrivePolicy"
_MAX_RECEIVE_COUNT = 1000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")


class Sqs:
    """The queues of one account in one region.

    Args:
        new_queue: Creates a queue from its name, ARN and attributes.
    """

    def __init__(self, new_queue: Callable[[str, str, dict[str, str]], Queue] = Queue) -> None:
        self._new_queue = new_queue
        self.queues: dict[str, Queue] = {}
        """By name."""
        self.url = ""
        """URL of the server, which sets it."""

    def create_queue(self, name: str, attributes: Mapping[str, str]) -> Queue:
        """Create a queue, or return the one that exists.

        Raises:
            RefusedError: the name or an attribute is invalid, or the queue exists with other attributes.
        """
        if not _NAME.fullmatch(name):
            raise RefusedError(
                "InvalidParameterValue",
                "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length",
            )
        self._require_attributes(attributes)
        if name in self.queues:
            found = self.queues[name]
            if any(found.attributes.get(attribute) != value for attribute, value in attributes.items()):
                raise RefusedError("QueueNameExists", f"The queue {name} exists with other attributes.")
            return found
        values = {attribute: str(default) for attribute, (default, _, _) in _NUMBERS.items()} | dict(attributes)
        self.queues[name] = self._new_queue(name, f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}", values)
        return self.queues[name]

    def queue(self, name_or_url: str) -> Queue:
        """Find a queue.

        Raises:
            RefusedError: it does not exist.
        """
        name = name_or_url.rsplit("/", 1)[-1]
        if name not in self.queues:
            raise RefusedError("QueueDoesNotExist", "The specified queue does not exist.")
        return self.queues[name]

    def delete_queue(self, queue: Queue) -> None:
        """Delete a queue and its messages."""
        del self.queues[queue.name]

    def redrive(self, queue: Queue) -> Redrive | None:
        """Return the redrive policy of a queue; None if it has none, or its dead-letter queue is deleted."""
        if _REDRIVE not in queue.attributes:
            return None
        policy = orjson.loads(queue.attributes[_REDRIVE])
        target = self.queues.get(policy["deadLetterTargetArn"].rsplit(":", 1)[-1])
        return None if target is None else Redrive(target, int(policy["maxReceiveCount"]))

    def set_attributes(self, queue: Queue, attributes: Mapping[str, str]) -> None:
        """Change attributes; an empty redrive policy removes the policy."""
        self._require_attributes(attributes)
        queue.attributes.update(attributes)
        if not queue.attributes.get(_REDRIVE):
            queue.attributes.pop(_REDRIVE, None)

    def attributes(self, queue: Queue, names: Sequence[str]) -> dict[str, str]:
        """Return the named attributes that the queue has; `All` names all of them.

        Raises:
            RefusedError: an attribute is unknown.
        """
        counts = queue.counts()
        found = queue.attributes | {
            "QueueArn": queue.arn,
            "ApproximateNumberOfMessages": str(counts.visible),
            "ApproximateNumberOfMessagesNotVisible": str(counts.in_flight),
            "ApproximateNumberOfMessagesDelayed": str(counts.delayed),
        }
        for name in names:
            if name not in {"All", _REDRIVE, *found}:
                raise RefusedError("InvalidAttributeName", f"Unknown Attribute {name}.")
        return {name: value for name, value in found.items() if name in names or "All" in names}

    def _require_attributes(self, attributes: Mapping[str, str]) -> None:
        for name, value in attributes.items():
            if name == _REDRIVE:
                self._require_redrive(value)
            elif name not in _NUMBERS:
                raise RefusedError("InvalidAttributeName", f"Unknown Attribute {name}.")
            else:
                _, least, most = _NUMBERS[name]
                if not value.isdigit() or not least <= int(value) <= most:
                    raise RefusedError("InvalidAttributeValue", f"Invalid value for the parameter {name}.")

    def _require_redrive(self, policy: str) -> None:
        if not policy:
            return
        parsed = orjson.loads(policy)
        count = int(parsed["maxReceiveCount"])
        if not 1 <= count <= _MAX_RECEIVE_COUNT:
            raise invalid(_REDRIVE, policy, f"maxReceiveCount must be between 1 and {_MAX_RECEIVE_COUNT}.")
        if parsed["deadLetterTargetArn"].rsplit(":", 1)[-1] not in self.queues:
            raise invalid(_REDRIVE, policy, "Dead letter target does not exist.")
