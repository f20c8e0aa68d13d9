"""All queues of the fake: their names, their attributes, and which is whose dead-letter queue. No I/O.

From API_CreateQueue.html, API_SetQueueAttributes.html, API_GetQueueAttributes.html: names, attributes, their defaults
and ranges. To create a queue once more with the same attributes gives the one that is there, with others it is refused.
Of attributes only those are known that this project uses; others are `InvalidAttributeName`.
"""

import re
from collections.abc import Mapping, Sequence
from random import Random

import orjson

from stt_async.local.loopback import REGION
from tests.support.sqs.clock import Clock
from tests.support.sqs.limits import RefusedError, invalid
from tests.support.sqs.queue import Queue, Redrive, Skew, Stale

ACCOUNT = "000000000000"

_DEFAULTS = {
    "VisibilityTimeout": "30",
    "DelaySeconds": "0",
    "ReceiveMessageWaitTimeSeconds": "0",
    "MessageRetentionPeriod": "345600",
    "MaximumMessageSize": "1048576",
}
_RANGES = {
    "VisibilityTimeout": (0, 43_200),
    "DelaySeconds": (0, 900),
    "ReceiveMessageWaitTimeSeconds": (0, 20),
    "MessageRetentionPeriod": (60, 1_209_600),
    "MaximumMessageSize": (1024, 1_048_576),
}
_REDRIVE = "RedrivePolicy"
_MAX_RECEIVE_COUNT = 1000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")


class Sqs:
    """The queues of one account in one region.

    Args:
        clock: The time they live by.
        stale: What old receipt handles can do.
        skew: How far delivery strays.
        seed: Of all that is drawn: ids, and what strays.
    """

    def __init__(self, clock: Clock, *, stale: Stale = "ignored", skew: Skew | None = None, seed: int = 0) -> None:
        self.clock = clock
        self._stale: Stale = stale
        self._skew = skew or Skew()
        self._random = Random(seed)  # noqa: S311 - it is to be predictable
        self._queues: dict[str, Queue] = {}

    def create_queue(self, name: str, attributes: Mapping[str, str]) -> Queue:
        """Create a queue, or find the one that is already there.

        Raises:
            RefusedError: a name or an attribute is not allowed, or there is one with other attributes.
        """
        if not _NAME.fullmatch(name):
            raise RefusedError(
                "InvalidParameterValue",
                "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length",
            )
        self._require_attributes(attributes)
        if name in self._queues:
            there = self._queues[name]
            if any(there.attributes.get(attribute) != value for attribute, value in attributes.items()):
                raise RefusedError("QueueNameExists", f"A queue already exists with the name {name}, otherwise made.")
            return there
        queue = Queue(
            name=name,
            arn=f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}",
            attributes=_DEFAULTS | dict(attributes),
            clock=self.clock,
            stale=self._stale,
            skew=self._skew,
            random=self._random,
        )
        self._queues[name] = queue
        return queue

    def queue(self, name_or_url: str) -> Queue:
        """Find a queue.

        Raises:
            RefusedError: it does not exist.
        """
        name = name_or_url.rsplit("/", 1)[-1]
        if name not in self._queues:
            raise RefusedError("QueueDoesNotExist", "The specified queue does not exist.")
        return self._queues[name]

    def delete_queue(self, queue: Queue) -> None:
        del self._queues[queue.name]

    def redrive(self, queue: Queue) -> Redrive | None:
        """Where its messages go that were received too often; None if they do not."""
        if _REDRIVE not in queue.attributes:
            return None
        policy = orjson.loads(queue.attributes[_REDRIVE])
        target = self._queues.get(policy["deadLetterTargetArn"].rsplit(":", 1)[-1])
        return None if target is None else Redrive(target, int(policy["maxReceiveCount"]))

    def set_attributes(self, queue: Queue, attributes: Mapping[str, str]) -> None:
        """Change attributes; an empty redrive policy takes it away."""
        self._require_attributes(attributes)
        queue.attributes.update(attributes)
        if not queue.attributes.get(_REDRIVE):
            queue.attributes.pop(_REDRIVE, None)

    def attributes(self, queue: Queue, names: Sequence[str]) -> dict[str, str]:
        """The attributes asked for, of those that it has; `All` for all.

        Raises:
            RefusedError: there is no such attribute.
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
            elif name not in _RANGES:
                raise RefusedError("InvalidAttributeName", f"Unknown Attribute {name}.")
            else:
                least, most = _RANGES[name]
                if not value.isdigit() or not least <= int(value) <= most:
                    raise RefusedError("InvalidAttributeValue", f"Invalid value for the parameter {name}.")

    def _require_redrive(self, policy: str) -> None:
        if not policy:
            return
        parsed = orjson.loads(policy)
        count = int(parsed["maxReceiveCount"])
        if not 1 <= count <= _MAX_RECEIVE_COUNT:
            raise invalid(_REDRIVE, policy, f"maxReceiveCount must be between 1 and {_MAX_RECEIVE_COUNT}.")
        if parsed["deadLetterTargetArn"].rsplit(":", 1)[-1] not in self._queues:
            raise invalid(_REDRIVE, policy, "Dead letter target does not exist.")
