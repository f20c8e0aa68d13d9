"""Waits for conditions, never for a time."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

TIMEOUT_S = 90.0
"""For a condition that is true within seconds on an idle machine."""

_POLL_INTERVAL_S = 0.05


@overload
async def wait_until(condition: Callable[[], Awaitable[T]], *, what: str, timeout_s: float = ...) -> T: ...
@overload
async def wait_until(condition: Callable[[], T], *, what: str, timeout_s: float = ...) -> T: ...
async def wait_until(condition: Callable[[], Any], *, what: str, timeout_s: float = TIMEOUT_S) -> Any:
    """Poll `condition` (plain or async) until its value is true, and return the value.

    Raises:
        AssertionError: it stayed false for `timeout_s`; with `what` and its last value.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}; the last value was {value!r}")
        await asyncio.sleep(_POLL_INTERVAL_S)
