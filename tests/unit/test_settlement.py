"""What happens to a message, for each way its job can end."""

import pytest

from stt_async.errors import (
    DependencyError,
    LeaseLostError,
    OutageError,
    PermanentError,
    TransientError,
    WorkerLostError,
)
from stt_async.worker.settlement import End, Outcome, Released, Settlement, decide

FIRST, LAST = 1, 5
RETRY_S, OUTAGE_S, STOP_S = 7, 90, 0

DONE = Outcome("job_succeeded", {"segments": 3})
SKIPPED = Outcome("job_skipped", {"segments": 3})
BAD = PermanentError("undecodable", "no audio in it")
BUSY = TransientError("InternalError", "500")
REFUSED = DependencyError("AccessDenied", "no")
OUT = OutageError("unreachable", "no route")
DIED = WorkerLostError("child_died", "exit status -9")
LOST = LeaseLostError("SQS says MessageNotInflight")


def _decide(end: End, receive_count: int) -> Settlement:
    return decide(
        end, receive_count=receive_count, max_receive_count=LAST, retry_delay_s=RETRY_S, outage_delay_s=OUTAGE_S
    )


@pytest.mark.parametrize(
    ("end", "receive_count", "action", "event", "delay_s"),
    [
        (DONE, FIRST, "delete", "job_succeeded", 0),
        (DONE, LAST, "delete", "job_succeeded", 0),
        (SKIPPED, LAST, "delete", "job_skipped", 0),
        (LOST, FIRST, "abandon", "job_lease_lost", 0),
        (LOST, LAST, "abandon", "job_lease_lost", 0),
        (BAD, FIRST, "dead_letter", "job_failed", 0),
        (BAD, LAST, "dead_letter", "job_failed", 0),
        (BUSY, FIRST, "release", "job_retried", RETRY_S),
        (BUSY, LAST - 1, "release", "job_retried", RETRY_S),
        (BUSY, LAST, "dead_letter", "job_failed", 0),
        (BUSY, LAST + 3, "dead_letter", "job_failed", 0),
        (REFUSED, FIRST, "release", "job_retried", RETRY_S),
        (REFUSED, LAST, "dead_letter", "job_failed", 0),
        (OUT, FIRST, "release", "job_retried", OUTAGE_S),
        (OUT, LAST, "dead_letter", "job_failed", 0),
        (DIED, FIRST, "release", "job_retried", RETRY_S),
        (DIED, LAST, "dead_letter", "job_failed", 0),
        (Released(STOP_S), FIRST, "release", "job_released", STOP_S),
        (Released(60), LAST - 1, "release", "job_released", 60),
        (Released(60), LAST, "dead_letter", "job_failed", 0),
    ],
    ids=lambda value: str(value) if isinstance(value, str | int) else type(value).__name__,
)
def test_end_of_a_job_decides(end: End, receive_count: int, action: str, event: str, delay_s: int) -> None:
    settlement = _decide(end, receive_count)

    assert (settlement.action, settlement.event, settlement.delay_s) == (action, event, delay_s)


@pytest.mark.parametrize("error", [BAD, BUSY, REFUSED, OUT, DIED])
def test_dead_letter_carries_the_reason(error: PermanentError) -> None:
    settlement = _decide(error, LAST)

    assert settlement.reason is error
    assert settlement.facts == {"failure": error.failure, "code": error.code, "error": error.message}


def test_last_receive_that_is_released_is_dead_lettered_because_the_worker_stopped() -> None:
    reason = _decide(Released(), LAST).reason

    assert reason is not None
    assert (reason.failure, reason.code) == ("transient", "stopped")
