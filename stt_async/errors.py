"""What can go wrong with a job, by what happens to its message.

Every class takes a short `code` (stable, for logs and the dead-letter queue) and a sentence for people.
"""

from typing import ClassVar, Literal

Failure = Literal["permanent", "transient", "environment", "worker_lost"]


UNREACHABLE = "unreachable"
"""Code of a service that does not answer at all."""

DISK_FULL = "disk_full"
"""Code of a job for which there was no space left: fewer are let in at once."""


class SttError(Exception):
    """Base of everything this package raises on purpose."""


class SettingsError(SttError):
    """The settings are missing something or contradict each other: exit code 2."""


class LeaseLostError(SttError):
    """The message is no longer ours: abandon the job, neither commit nor delete."""


class ClassifiedError(SttError):
    """A job failed; `failure` decides what becomes of its message."""

    failure: ClassVar[Failure]

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class PermanentError(ClassifiedError):
    """Will fail every time (bad job, missing source, undecodable): to the dead-letter queue, with the reason."""

    failure = "permanent"


class TransientError(ClassifiedError):
    """May work later (network, 5xx, throttling, disk full): back to the queue after a jittered wait."""

    failure = "transient"


class RetryJobError(TransientError):
    """This attempt cannot succeed any more, a new one may: not worth another try within the call."""


class DependencyError(ClassifiedError):
    """A service refuses us, maybe whatever the job: stop receiving until a probe succeeds."""

    failure = "environment"


class OutageError(DependencyError):
    """Out of reach, or our credentials ran out: never the trouble of one job. Worth another try within the call."""


class WorkerLostError(ClassifiedError):
    """The pool process of this job died or hung: the job is retried, SQS redrives it in the end."""

    failure = "worker_lost"
