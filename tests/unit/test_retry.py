"""The one retry policy, and the wait before a redelivery."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import (
    UNREACHABLE,
    DependencyError,
    LeaseLostError,
    OutageError,
    PermanentError,
    RetryJobError,
    TransientError,
    WorkerLostError,
)
from stt_async.retry import REDELIVERY_BASE_S, REDELIVERY_CAP_S, Retry, redelivery_delay_s
from tests.unit.fakes import PATIENCE_S, until

PATIENT = Retry(timeout_s=60.0, max_wait_s=0.001)
"""Tries for as long as a test may run, and hardly waits."""


class Call:
    """Fails with the errors it is given, then returns what it was called with."""

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
    [TransientError("SlowDown", "503"), OutageError(UNREACHABLE, "no route")],
    ids=lambda error: error.code,
)
async def test_what_may_pass_is_tried_again(error: Exception) -> None:
    call = Call(error, error, error)
    async with asyncio.timeout(PATIENCE_S):
        assert await PATIENT(call, 1, two=2) == ((1,), {"two": 2})
    assert call.calls == 4


@pytest.mark.parametrize(
    "error",
    [
        PermanentError("source_missing", "gone"),
        DependencyError("AccessDenied", "no"),
        RetryJobError("NoSuchUpload", "aborted"),
        WorkerLostError("child_died", "exit code -9"),
        LeaseLostError("not ours"),
        ZeroDivisionError("a bug"),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_will_not_pass_is_raised_at_once(error: BaseException) -> None:
    call = Call(error)
    with pytest.raises(type(error)) as caught:
        await PATIENT(call)
    assert caught.value is error
    assert call.calls == 1


async def test_after_its_time_the_last_error_is_raised() -> None:
    errors = [TransientError("SlowDown", str(n)) for n in range(1000)]
    call = Call(*errors)
    with pytest.raises(TransientError) as caught:
        await Retry(timeout_s=0.02, max_wait_s=0.002)(call)
    assert call.calls >= 2
    assert caught.value is errors[call.calls - 1]


async def test_without_time_there_is_one_try() -> None:
    call = Call(TransientError("SlowDown", "503"))
    with pytest.raises(TransientError):
        await Retry(timeout_s=0.0, max_wait_s=0.001)(call)
    assert call.calls == 1


async def test_calls_at_the_same_time_do_not_share_their_state() -> None:
    calls = [Call(*[TransientError("SlowDown", "503")] * failures) for failures in (0, 3, 1, 5)]
    async with asyncio.timeout(PATIENCE_S):
        results = await asyncio.gather(*(PATIENT(call, n) for n, call in enumerate(calls)))
    assert results == [((n,), {}) for n in range(4)]
    assert [call.calls for call in calls] == [1, 4, 2, 6]


async def test_a_wait_can_be_cancelled() -> None:
    call = Call(*[TransientError("SlowDown", "503")] * 1000)
    task = asyncio.create_task(Retry(timeout_s=3600.0, max_wait_s=3600.0)(call))
    await until(lambda: call.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@given(st.integers(1, 1000))
def test_a_redelivery_waits_a_second_at_least_and_doubles_its_span(receive_count: int) -> None:
    span_s = min(REDELIVERY_CAP_S, REDELIVERY_BASE_S * 2 ** (receive_count - 1))
    assert 1 <= redelivery_delay_s(receive_count) <= 1 + span_s


def test_redeliveries_are_spread() -> None:
    delays = {redelivery_delay_s(5) for _ in range(200)}
    assert max(delays) - min(delays) > 40
