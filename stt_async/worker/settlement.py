"""What happens to a message when its job ends. Pure decisions; `running_jobs` executes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stt_async.errors import ClassifiedError, LeaseLostError, OutageError, PermanentError, TransientError

Action = Literal["delete", "release", "dead_letter", "abandon"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job that succeeded or was skipped: the event of its one log line, and the fields of that line."""

    event: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Released:
    """A job that did not start, or was cancelled: the worker stops, or a service is out."""

    delay_s: int = 0


End = Outcome | ClassifiedError | LeaseLostError | Released


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to do with a message, and the log line of its job."""

    action: Action
    event: str
    facts: Mapping[str, Any]
    delay_s: int = 0
    """Of a release: how long no worker receives the message."""
    reason: ClassifiedError | None = None
    """Of a dead letter."""


def decide(
    end: End, *, receive_count: int, max_receive_count: int, retry_delay_s: int, outage_delay_s: int
) -> Settlement:
    """Return what happens to a message.

    Args:
        end: How its job ended.
        receive_count: How often the message was received, this time included.
        max_receive_count: SQS redrives after as many, without a reason. So the last receive is dead-lettered here.
        retry_delay_s: Delay of a job that failed.
        outage_delay_s: Delay of a job that met an outage.
    """
    is_last = receive_count >= max_receive_count
    match end:
        case Outcome():
            return Settlement("delete", end.event, end.facts)
        case LeaseLostError():
            return Settlement("abandon", "job_lease_lost", {"error": str(end)})
        case Released() if not is_last:
            return Settlement("release", "job_released", {"after_s": end.delay_s}, delay_s=end.delay_s)
        case Released():
            # Only a stop releases a last receive; in an outage it waits.
            error: ClassifiedError = TransientError("stopped", "the worker stopped before the job was done")
        case ClassifiedError():
            error = end
    facts = {"failure": error.failure, "code": error.code, "error": error.message}
    if is_last or isinstance(error, PermanentError):
        return Settlement("dead_letter", "job_failed", facts, reason=error)
    delay_s = outage_delay_s if isinstance(error, OutageError) else retry_delay_s
    return Settlement("release", "job_retried", {"after_s": delay_s, **facts}, delay_s=delay_s)
