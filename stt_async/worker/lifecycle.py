"""The lifecycle of this instance in its Auto Scaling group: launch hook, idle termination, termination hook.

No failure here stops the worker: Auto Scaling applies a default result to a hook that nobody completes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from stt_async.errors import ClassifiedError
from stt_async.retry import Retry
from stt_async.services.autoscaling import NO_ACTION, OwnGroup, Result
from stt_async.worker.stop import Stop

_log = structlog.get_logger()

HEARTBEAT_INTERVAL_S = 15.0
"""Half of the shortest timeout that a lifecycle hook can have."""

CALL_TIMEOUT_S = 10.0

COMPLETION = Retry(timeout_s=30.0, max_wait_s=5.0)
"""After an instance has terminated itself, it takes some seconds until its termination hook waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Names of the group's lifecycle hooks; empty where there is none."""

    launch: str = ""
    termination: str = ""


class Lifecycle:
    """What this instance reports to its group. Without a group it reports nothing.

    Args:
        group: The group, if there is one.
        hooks: Its hooks.
        stop: Asked to stop once the instance has terminated itself.
        idle_timeout_s: Idle time after which the instance terminates itself; 0: never.
        drain_timeout_s: Deadline of the stop that follows.
    """

    def __init__(
        self, group: OwnGroup | None, hooks: Hooks, stop: Stop, *, idle_timeout_s: float, drain_timeout_s: float
    ) -> None:
        self._group = group
        self._hooks = hooks
        self._stop = stop
        self._idle_timeout_s = idle_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._next_attempt_s = idle_timeout_s
        self._terminating = asyncio.Event()

    def mark_terminating(self) -> None:
        """Note that the group terminates this instance."""
        self._terminating.set()

    @asynccontextmanager
    async def completing_launch(self) -> AsyncIterator[None]:
        """Complete the launch hook after the block, which proves that this instance can work.

        CONTINUE after the block, ABANDON if it raises, nothing if the worker was asked to stop meanwhile.
        """
        result: Result | None = "ABANDON"
        try:
            yield
            result = None if self._stop.requested else "CONTINUE"
        finally:
            if self._group is not None and self._hooks.launch and result is not None:
                await self._complete(self._group, self._hooks.launch, result)

    async def terminate_when_idle(self, idle_s: float) -> None:
        """Terminate this instance once no job has come for `idle_s` seconds. Called between polls, with no job held.

        After a failed call the worker continues to poll, and tries again after the same time.
        """
        if self._group is None or not self._idle_timeout_s:
            return
        if idle_s < self._idle_timeout_s:
            self._next_attempt_s = self._idle_timeout_s
        if idle_s < self._next_attempt_s:
            return
        self._next_attempt_s = idle_s + self._idle_timeout_s
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._group.terminate_this_instance()
        except (ClassifiedError, TimeoutError) as error:
            _log.warning("idle_termination_failed", idle_s=round(idle_s), error=_text(error))
            return
        _log.info("idle_terminated", idle_s=round(idle_s))
        self.mark_terminating()
        self._stop.request("idle", within_s=self._drain_timeout_s)

    async def run(self) -> None:
        """Once the instance terminates, send heartbeats to the termination hook until cancelled."""
        await self._terminating.wait()
        while self._group is not None and self._hooks.termination:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await self._group.heartbeat(self._hooks.termination)
            except (ClassifiedError, TimeoutError) as error:
                _log.warning("lifecycle_heartbeat_failed", error=_text(error))
            await asyncio.sleep(HEARTBEAT_INTERVAL_S)

    async def complete_termination(self) -> None:
        """After the drain: complete the termination hook, if the group terminates this instance."""
        if self._terminating.is_set() and self._group is not None and self._hooks.termination:
            await self._complete(self._group, self._hooks.termination, "CONTINUE", COMPLETION)

    async def _complete(self, group: OwnGroup, hook: str, result: Result, retry: Retry | None = None) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S + (retry.timeout_s if retry else 0)):
                if retry is None:
                    await group.complete(hook, result)
                else:
                    await retry(group.complete, hook, result)
        except (ClassifiedError, TimeoutError) as error:
            # No action waits after a restart of the worker, for example: its instance is in service already.
            no_action = isinstance(error, ClassifiedError) and error.code == NO_ACTION
            log = _log.info if no_action else _log.warning
            log("lifecycle_action_not_completed", hook=hook, result=result, error=_text(error))
        else:
            _log.info("lifecycle_action_completed", hook=hook, result=result)


def _text(error: Exception) -> str:
    return str(error) or f"no answer within {CALL_TIMEOUT_S:.0f} s"
