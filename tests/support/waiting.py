"""Waiting for a condition, never for a time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_POLL_INTERVAL_S = 0.05


@overload
async def wait_until(condition: Callable[[], Awaitable[T]], *, what: str, timeout_s: float = ...) -> T: ...
@overload
async def wait_until(condition: Callable[[], T], *, what: str, timeout_s: float = ...) -> T: ...
async def wait_until(condition: Callable[[], Any], *, what: str, timeout_s: float = 30.0) -> Any:
    """Poll `condition` (plain or async) until it gives something true, and return that.

    Fails with `what` and the last answer when it stays false for `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}; the last answer was {value!r}")
        await asyncio.sleep(_POLL_INTERVAL_S)
