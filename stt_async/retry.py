"""The retry policy of calls, and the delay before a redelivery."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_before_delay, wait_random_exponential

from stt_async.errors import ClassifiedError, OutageError, RetryJobError, TransientError

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger()

REDELIVERY_BASE_S = 10.0
REDELIVERY_CAP_S = 900.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Retries one call to a service, with full jitter; after `timeout_s` the last error is raised.

    Only errors that may pass are retried: `TransientError` and `OutageError` (a service is out of reach, or credentials
    are about to be renewed). The SDKs' own retries are off, so that waits never multiply.
    """

    timeout_s: float
    max_wait_s: float

    async def __call__(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of `call(*args, **kwargs)`, called as often as needed."""
        # A tenacity object holds the state of one call, and many calls run at once.
        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_random_exponential(multiplier=0.25, max=self.max_wait_s),
            stop=stop_before_delay(self.timeout_s),
            before_sleep=_log_retry,
            reraise=True,
        )
        return await retrying(call, *args, **kwargs)


def redelivery_delay_s(receive_count: int) -> int:
    """Return the delay before the next receive of a failed job: full jitter over a doubling span.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    span_s = min(REDELIVERY_CAP_S, REDELIVERY_BASE_S * 2.0 ** (receive_count - 1))
    return 1 + int(random.uniform(0, span_s))  # noqa: S311 - jitter, not a secret


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, RetryJobError):
        return False
    return isinstance(error, TransientError | OutageError)


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = state.next_action.sleep if state.next_action else 0.0
    code = error.code if isinstance(error, ClassifiedError) else None
    _log.warning("call_retried", attempt=state.attempt_number, wait_s=round(wait_s, 2), code=code, error=str(error))
