"""This instance in its Auto Scaling group: joining after preflight, leaving when idle, ending in order.

None of it stops the worker: the group has a default for each hook that nobody completes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from stt_async.errors import ClassifiedError
from stt_async.retry import Retry
from stt_async.services.autoscaling import NO_ACTION, Group, Result
from stt_async.worker.stop import Stop

_log = structlog.get_logger()

HEARTBEAT_INTERVAL_S = 15.0
"""Half of the shortest timeout that a lifecycle hook can have."""

CALL_TIMEOUT_S = 10.0

COMPLETION = Retry(timeout_s=30.0, max_wait_s=5.0)
"""After an instance has ended itself, it takes some seconds until its termination hook waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Names of the group's lifecycle hooks; empty where there is none."""

    launch: str = ""
    termination: str = ""


class Membership:
    """What this instance says to its group. Without a group it says nothing.

    Args:
        group: The group, if there is one.
        hooks: Its hooks.
        stop: Is asked to stop once the instance has ended itself.
        idle_timeout_s: How long no job must come for that; 0: never.
        drain_timeout_s: From then to the end.
    """

    def __init__(
        self, group: Group | None, hooks: Hooks, stop: Stop, *, idle_timeout_s: float, drain_timeout_s: float
    ) -> None:
        self._group = group
        self._hooks = hooks
        self._stop = stop
        self._idle_timeout_s = idle_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._next_leave_s = idle_timeout_s
        self._ending = asyncio.Event()

    def ends(self) -> None:
        """Learn that the group ends this instance."""
        self._ending.set()

    @asynccontextmanager
    async def joining(self) -> AsyncIterator[None]:
        """Let the block prove that this instance can work: CONTINUE after it, ABANDON if it raises.

        Asked to stop meanwhile it has proven nothing, and says nothing.
        """
        result: Result | None = "ABANDON"
        try:
            yield
            result = None if self._stop.requested else "CONTINUE"
        finally:
            if self._group is not None and self._hooks.launch and result is not None:
                await self._complete(self._group, self._hooks.launch, result)

    async def leave_when_idle(self, empty_s: float) -> None:
        """End this instance if no job came for `empty_s` seconds: called between two polls, with nothing held.

        A call that fails means to go on polling; the next one comes after the same time again.
        """
        if self._group is None or not self._idle_timeout_s:
            return
        if empty_s < self._idle_timeout_s:
            self._next_leave_s = self._idle_timeout_s
        if empty_s < self._next_leave_s:
            return
        self._next_leave_s = empty_s + self._idle_timeout_s
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._group.terminate_this_instance()
        except (ClassifiedError, TimeoutError) as error:
            _log.warning("idle_termination_failed", idle_s=round(empty_s), error=_text(error))
            return
        _log.info("idle_terminated", idle_s=round(empty_s))
        self.ends()
        self._stop.request("idle", within_s=self._drain_timeout_s)

    async def run(self) -> None:
        """While the instance ends, keep the termination hook waiting; runs until cancelled."""
        await self._ending.wait()
        while self._group is not None and self._hooks.termination:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await self._group.heartbeat(self._hooks.termination)
            except (ClassifiedError, TimeoutError) as error:
                _log.warning("lifecycle_heartbeat_failed", error=_text(error))
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def leave(self) -> None:
        """After the drain: if the group ends this instance, it need not wait any longer."""
        if self._ending.is_set() and self._group is not None and self._hooks.termination:
            await self._complete(self._group, self._hooks.termination, "CONTINUE", COMPLETION)

    async def _complete(self, group: Group, hook: str, result: Result, retry: Retry | None = None) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S + (retry.timeout_s if retry else 0)):
                if retry is None:
                    await group.complete(hook, result)
                else:
                    await retry(group.complete, hook, result)
        except (ClassifiedError, TimeoutError) as error:
            # The worker was started again, say: its instance has joined long ago.
            nothing_waits = isinstance(error, ClassifiedError) and error.code == NO_ACTION
            tell = _log.info if nothing_waits else _log.warning
            tell("lifecycle_action_not_completed", hook=hook, result=result, error=_text(error))
        else:
            _log.info("lifecycle_action_completed", hook=hook, result=result)


def _text(error: Exception) -> str:
    return str(error) or f"no answer within {CALL_TIMEOUT_S:.0f} s"
