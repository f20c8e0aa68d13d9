"""The calls of an instance to its group."""

from typing import TYPE_CHECKING, cast

import pytest
import structlog

from stt_async.errors import DependencyError, SettingsError, TransientError
from stt_async.retry import Retry
from stt_async.settings import load
from stt_async.worker import lifecycle as module
from stt_async.worker.lifecycle import Hooks, Lifecycle
from stt_async.worker.stop import Stop
from tests.unit.fakes import background, run_ready_tasks, wait_until

if TYPE_CHECKING:
    from stt_async.services.autoscaling import OwnGroup

HOOKS = Hooks(launch="launching", termination="terminating")
DENIED = DependencyError("AccessDenied", "Auto Scaling answered AccessDenied")
NO_ACTION_WAITS = TransientError("ValidationError", "No active Lifecycle Action found")


class FakeGroup:
    """Records its calls; raises these errors, one a call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.errors: list[Exception] = []

    async def complete(self, hook: str, result: str) -> None:
        self._record("complete", hook, result)

    async def heartbeat(self, hook: str) -> None:
        self._record("heartbeat", hook)

    async def terminate_this_instance(self) -> None:
        self._record("terminate")

    def _record(self, *call: str) -> None:
        self.calls.append(call)
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def group() -> FakeGroup:
    return FakeGroup()


def lifecycle(
    group: FakeGroup | None, *, hooks: Hooks = HOOKS, stop: Stop | None = None, idle_timeout_s: float = 60.0
) -> Lifecycle:
    return Lifecycle(
        cast("OwnGroup | None", group), hooks, stop or Stop(), idle_timeout_s=idle_timeout_s, drain_timeout_s=100.0
    )


class TestLaunch:
    async def test_successful_block_completes_the_hook_with_continue(self, group: FakeGroup) -> None:
        async with lifecycle(group).completing_launch():
            assert group.calls == []
        assert group.calls == [("complete", "launching", "CONTINUE")]

    async def test_failed_block_completes_the_hook_with_abandon(self, group: FakeGroup) -> None:
        with pytest.raises(DependencyError):
            async with lifecycle(group).completing_launch():
                raise DENIED
        assert group.calls == [("complete", "launching", "ABANDON")]

    async def test_stop_within_the_block_leaves_the_hook_open(self, group: FakeGroup) -> None:
        stop = Stop()
        async with lifecycle(group, stop=stop).completing_launch():
            stop.request("test", within_s=100)
        assert group.calls == []

    @pytest.mark.parametrize(("error", "level"), [(DENIED, "warning"), (NO_ACTION_WAITS, "info")])
    async def test_failed_call_is_logged_only(self, group: FakeGroup, error: Exception, level: str) -> None:
        group.errors = [error]
        with structlog.testing.capture_logs() as logs:
            async with lifecycle(group).completing_launch():
                pass
        assert [(line["event"], line["log_level"]) for line in logs] == [("lifecycle_action_not_completed", level)]

    async def test_without_a_group_or_a_hook_nothing_is_called(self, group: FakeGroup) -> None:
        async with lifecycle(None).completing_launch(), lifecycle(group, hooks=Hooks()).completing_launch():
            pass
        assert group.calls == []


class TestIdle:
    async def test_idle_instance_terminates_itself_and_stops(self, group: FakeGroup) -> None:
        stop = Stop()
        idle = lifecycle(group, stop=stop)
        for idle_s in (20.0, 40.0, 59.9):
            await idle.terminate_when_idle(idle_s)
        assert group.calls == []
        await idle.terminate_when_idle(60.1)
        assert group.calls == [("terminate",)]
        assert stop.signal is not None
        assert stop.signal.reason == "idle"

    async def test_failed_termination_is_tried_again_after_the_same_time(self, group: FakeGroup) -> None:
        stop = Stop()
        idle = lifecycle(group, stop=stop)
        group.errors = [DENIED, DENIED]
        for idle_s in (60.0, 80.0, 119.0, 120.0, 140.0):
            await idle.terminate_when_idle(idle_s)
            assert not stop.requested
        assert len(group.calls) == 2
        await idle.terminate_when_idle(180.0)
        assert stop.requested

    async def test_job_resets_the_idle_time(self, group: FakeGroup) -> None:
        idle = lifecycle(group)
        group.errors = [DENIED]
        await idle.terminate_when_idle(60.0)
        await idle.terminate_when_idle(20.0)
        await idle.terminate_when_idle(60.0)
        assert len(group.calls) == 2

    async def test_never_terminates_by_default_or_without_a_group(self, group: FakeGroup) -> None:
        await lifecycle(group, idle_timeout_s=0).terminate_when_idle(1e9)
        await lifecycle(None).terminate_when_idle(1e9)
        assert group.calls == []


class TestTermination:
    async def test_terminating_instance_sends_heartbeats_to_its_hook(
        self, group: FakeGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "HEARTBEAT_INTERVAL_S", 0.001)
        group.errors = [DENIED]
        instance = lifecycle(group)
        async with background(instance.run()):
            await run_ready_tasks()
            assert group.calls == []
            instance.mark_terminating()
            await wait_until(lambda: len(group.calls) > 3)
        assert set(group.calls) == {("heartbeat", "terminating")}

    async def test_hook_is_completed_at_the_end(self, group: FakeGroup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "COMPLETION", Retry(1.0, 0.001))
        group.errors = [NO_ACTION_WAITS, NO_ACTION_WAITS]
        instance = lifecycle(group)
        instance.mark_terminating()
        await instance.complete_termination()
        assert group.calls == [("complete", "terminating", "CONTINUE")] * 3

    async def test_stop_for_another_reason_leaves_the_hook_alone(self, group: FakeGroup) -> None:
        await lifecycle(group).complete_termination()
        assert group.calls == []


@pytest.mark.usefixtures("bare_environment")
def test_hook_without_a_group_is_refused() -> None:
    for hook in ({"launch_hook": "any"}, {"termination_hook": "any"}):
        with pytest.raises(SettingsError, match="STT_AUTOSCALING_GROUP"):
            load(None, **hook)
        assert load(None, **hook, autoscaling_group="workers").autoscaling_group == "workers"
