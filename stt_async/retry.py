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
    never: tuple[type[ClassifiedError], ...] = (RetryJobError,)
    """Errors that are raised at once, although a wider class of theirs is retried."""
    on_wait: Callable[[str, float], None] | None = None
    """Called before each wait with the last error's message and the seconds that are left until the timeout."""

    async def __call__(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of `call(*args, **kwargs)`, called as often as needed."""
        # A tenacity object holds the state of one call, and many calls run at once.
        retrying = AsyncRetrying(
            retry=retry_if_exception(self._may_pass),
            wait=wait_random_exponential(multiplier=0.25, max=self.max_wait_s),
            stop=stop_before_delay(self.timeout_s),
            before_sleep=self._announce,
            reraise=True,
        )
        return await retrying(call, *args, **kwargs)

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, TransientError | OutageError) and not isinstance(error, self.never)

    def _announce(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, ClassifiedError) or state.next_action is None:
            return
        wait_s = round(state.next_action.sleep, 2)
        _log.warning("call_retried", attempt=state.attempt_number, wait_s=wait_s, code=error.code, error=str(error))
        if self.on_wait is not None:
            self.on_wait(error.message, self.timeout_s - (state.seconds_since_start or 0.0))


def redelivery_delay_s(receive_count: int) -> int:
    """Return the delay before the next receive of a failed job: full jitter over a doubling span.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    span_s = min(REDELIVERY_CAP_S, REDELIVERY_BASE_S * 2.0 ** (receive_count - 1))
    return 1 + int(random.uniform(0, span_s))  # noqa: S311 - jitter, not a secret
