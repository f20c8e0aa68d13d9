"""What can go wrong, by what happens to the message of the job.

    ClassifiedError
    ├── PermanentError        dead letter, with the reason
    ├── TransientError        back to the queue after a delay with jitter
    │   └── RetryJobError     the same, and no retry within the attempt
    ├── DependencyError       a service refuses this process; a probe decides whether it refuses everyone
    │   └── OutageError       it does: receiving stops, and no job spends its last receive
    │       └── LastingOutageError  the same; a command that a person typed does not retry it
    └── WorkerLostError       the pool process died or hung: back to the queue

Each has a short `code`, stable for logs and dead letters, and a sentence for people.
"""

from typing import ClassVar, Literal

Failure = Literal["permanent", "transient", "environment", "worker_lost"]


UNREACHABLE = "unreachable"
"""Code of a service that does not answer at all."""

DISK_FULL = "disk_full"
"""Code of a job that found no disk space. Fewer jobs are admitted at once for a while."""


class SttError(Exception):
    """Base of everything this package raises on purpose."""


class SettingsError(SttError):
    """Settings are missing or contradict each other: exit code 2."""


class LeaseLostError(SttError):
    """Another worker may hold the message: abandon the job, neither commit nor delete."""


class ClassifiedError(SttError):
    """A failure with a class; `failure` decides what happens to the message."""

    failure: ClassVar[Failure]

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class PermanentError(ClassifiedError):
    """Fails every time: a bad job, a missing source, an undecodable recording."""

    failure = "permanent"


class TransientError(ClassifiedError):
    """May work later: network, 5xx, throttling, a full disk."""

    failure = "transient"


class RetryJobError(TransientError):
    """The attempt cannot succeed any more, a new attempt may: a retry of the same call is useless."""


class DependencyError(ClassifiedError):
    """A service refuses this process, perhaps whatever the job: the breaker opens and probes."""

    failure = "environment"


class OutageError(DependencyError):
    """A service is out of reach, or credentials ran out: never the fault of one job. A retry of the call may help."""


class LastingOutageError(OutageError):
    """An outage that a retry rarely ends: an unknown host, an untrusted certificate, no or expired credentials."""


class WorkerLostError(ClassifiedError):
    """The pool process of the job died, hung or ran out of memory."""

    failure = "worker_lost"
