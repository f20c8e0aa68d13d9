"""The retry policy, and the delay before a redelivery."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import (
    UNREACHABLE,
    DependencyError,
    LastingOutageError,
    LeaseLostError,
    OutageError,
    PermanentError,
    RetryJobError,
    TransientError,
    WorkerLostError,
)
from stt_async.retry import REDELIVERY_BASE_S, REDELIVERY_CAP_S, Retry, redelivery_delay_s
from tests.unit.fakes import TIMEOUT_S, wait_until

LONG_RETRY = Retry(timeout_s=60.0, max_wait_s=0.001)
"""Retries for as long as a test may run, almost without delay."""


class Call:
    """Raises these errors, one a call, then returns its arguments."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return args, kwargs


@pytest.mark.parametrize(
    "error",
    [
        TransientError("SlowDown", "503"),
        OutageError(UNREACHABLE, "no route"),
        LastingOutageError("no_credentials", "none"),
    ],
    ids=lambda error: error.code,
)
async def test_passing_errors_are_retried(error: Exception) -> None:
    call = Call(error, error, error)
    async with asyncio.timeout(TIMEOUT_S):
        assert await LONG_RETRY(call, 1, two=2) == ((1,), {"two": 2})
    assert call.calls == 4


@pytest.mark.parametrize(
    "error",
    [
        PermanentError("source_missing", "gone"),
        DependencyError("AccessDenied", "no"),
        RetryJobError("NoSuchUpload", "aborted"),
        WorkerLostError("child_died", "exit code -9"),
        LeaseLostError("lost"),
        ZeroDivisionError("a bug"),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_lasting_errors_are_raised_at_once(error: BaseException) -> None:
    call = Call(error)
    with pytest.raises(type(error)) as caught:
        await LONG_RETRY(call)
    assert caught.value is error
    assert call.calls == 1


async def test_last_error_is_raised_after_the_timeout() -> None:
    errors = [TransientError("SlowDown", str(n)) for n in range(1000)]
    call = Call(*errors)
    with pytest.raises(TransientError) as caught:
        await Retry(timeout_s=0.02, max_wait_s=0.002)(call)
    assert call.calls >= 2
    assert caught.value is errors[call.calls - 1]


async def test_timeout_of_zero_allows_one_try() -> None:
    call = Call(TransientError("SlowDown", "503"))
    with pytest.raises(TransientError):
        await Retry(timeout_s=0.0, max_wait_s=0.001)(call)
    assert call.calls == 1


async def test_an_error_that_the_policy_never_retries_is_raised_at_once() -> None:
    shown: list[str] = []
    call = Call(LastingOutageError("unknown_host", "no such host"))
    with pytest.raises(LastingOutageError):
        await replace(LONG_RETRY, never=(LastingOutageError,), on_wait=lambda reason, _: shown.append(reason))(call)
    assert (call.calls, shown) == (1, [])


async def test_each_wait_is_announced_with_its_reason_and_the_time_left() -> None:
    announced: list[tuple[str, float]] = []
    call = Call(OutageError(UNREACHABLE, "refused"), TransientError("SlowDown", "503"))
    async with asyncio.timeout(TIMEOUT_S):
        await replace(LONG_RETRY, on_wait=lambda reason, left_s: announced.append((reason, left_s)))(call)
    (first, first_s), (second, second_s) = announced
    assert (first, second) == ("refused", "503")
    assert LONG_RETRY.timeout_s >= first_s >= second_s > 0


async def test_concurrent_calls_do_not_share_state() -> None:
    calls = [Call(*[TransientError("SlowDown", "503")] * failures) for failures in (0, 3, 1, 5)]
    async with asyncio.timeout(TIMEOUT_S):
        results = await asyncio.gather(*(LONG_RETRY(call, n) for n, call in enumerate(calls)))
    assert results == [((n,), {}) for n in range(4)]
    assert [call.calls for call in calls] == [1, 4, 2, 6]


async def test_wait_can_be_cancelled() -> None:
    call = Call(*[TransientError("SlowDown", "503")] * 1000)
    task = asyncio.create_task(Retry(timeout_s=3600.0, max_wait_s=3600.0)(call))
    await wait_until(lambda: call.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@given(st.integers(1, 1000))
def test_redelivery_delay_is_at_least_a_second_and_doubles_its_span(receive_count: int) -> None:
    span_s = min(REDELIVERY_CAP_S, REDELIVERY_BASE_S * 2 ** (receive_count - 1))
    assert 1 <= redelivery_delay_s(receive_count) <= 1 + span_s


def test_redelivery_delays_are_spread() -> None:
    delays = {redelivery_delay_s(5) for _ in range(200)}
    assert max(delays) - min(delays) > 40
