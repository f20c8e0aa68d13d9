"""What an instance says to its group."""

import asyncio
from typing import TYPE_CHECKING, cast

import pytest
import structlog

from stt_async.errors import DependencyError, SettingsError, TransientError
from stt_async.retry import Retry
from stt_async.settings import load
from stt_async.worker import lifecycle as module
from stt_async.worker.lifecycle import Hooks, Lifecycle
from stt_async.worker.stop import Stop
from tests.unit.fakes import beside, until

if TYPE_CHECKING:
    from stt_async.services.autoscaling import OwnGroup

HOOKS = Hooks(launch="joins", termination="leaves")
DENIED = DependencyError("AccessDenied", "Auto Scaling answered AccessDenied")
NOTHING_WAITS = TransientError("ValidationError", "No active Lifecycle Action found")


class FakeGroup:
    """Writes down what it is asked; raises the errors it is given, one a call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.errors: list[Exception] = []

    async def complete(self, hook: str, result: str) -> None:
        self._called("complete", hook, result)

    async def heartbeat(self, hook: str) -> None:
        self._called("heartbeat", hook)

    async def terminate_this_instance(self) -> None:
        self._called("terminate")

    def _called(self, *call: str) -> None:
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


class TestJoining:
    async def test_an_instance_that_can_work_continues(self, group: FakeGroup) -> None:
        async with lifecycle(group).completing_launch():
            assert group.calls == []
        assert group.calls == [("complete", "joins", "CONTINUE")]

    async def test_one_that_cannot_is_abandoned(self, group: FakeGroup) -> None:
        with pytest.raises(DependencyError):
            async with lifecycle(group).completing_launch():
                raise DENIED
        assert group.calls == [("complete", "joins", "ABANDON")]

    async def test_one_that_is_stopped_meanwhile_has_proven_nothing(self, group: FakeGroup) -> None:
        stop = Stop()
        async with lifecycle(group, stop=stop).completing_launch():
            stop.request("test", within_s=100)
        assert group.calls == []

    @pytest.mark.parametrize(("error", "level"), [(DENIED, "warning"), (NOTHING_WAITS, "info")])
    async def test_a_call_that_fails_stops_nothing(self, group: FakeGroup, error: Exception, level: str) -> None:
        group.errors = [error]
        with structlog.testing.capture_logs() as logs:
            async with lifecycle(group).completing_launch():
                pass
        assert [(line["event"], line["log_level"]) for line in logs] == [("lifecycle_action_not_completed", level)]

    async def test_outside_of_a_group_and_without_a_hook_nothing_is_said(self, group: FakeGroup) -> None:
        async with lifecycle(None).completing_launch(), lifecycle(group, hooks=Hooks()).completing_launch():
            pass
        assert group.calls == []


class TestIdle:
    async def test_it_ends_its_instance_after_the_time_and_stops(self, group: FakeGroup) -> None:
        stop = Stop()
        idle = lifecycle(group, stop=stop)
        for empty_s in (20.0, 40.0, 59.9):
            await idle.terminate_when_idle(empty_s)
        assert group.calls == []
        await idle.terminate_when_idle(60.1)
        assert group.calls == [("terminate",)]
        assert stop.signal is not None
        assert stop.signal.reason == "idle"

    async def test_a_call_that_fails_means_to_go_on_and_to_try_after_the_same_time(self, group: FakeGroup) -> None:
        stop = Stop()
        idle = lifecycle(group, stop=stop)
        group.errors = [DENIED, DENIED]
        for empty_s in (60.0, 80.0, 119.0, 120.0, 140.0):
            await idle.terminate_when_idle(empty_s)
            assert not stop.requested
        assert len(group.calls) == 2
        await idle.terminate_when_idle(180.0)
        assert stop.requested

    async def test_after_a_job_the_time_begins_anew(self, group: FakeGroup) -> None:
        idle = lifecycle(group)
        group.errors = [DENIED]
        await idle.terminate_when_idle(60.0)
        await idle.terminate_when_idle(20.0)
        await idle.terminate_when_idle(60.0)
        assert len(group.calls) == 2

    async def test_never_by_default_and_never_outside_of_a_group(self, group: FakeGroup) -> None:
        await lifecycle(group, idle_timeout_s=0).terminate_when_idle(1e9)
        await lifecycle(None).terminate_when_idle(1e9)
        assert group.calls == []


class TestLeaving:
    async def test_while_the_instance_ends_its_hook_is_kept_waiting(
        self, group: FakeGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "HEARTBEAT_INTERVAL_S", 0.001)
        group.errors = [DENIED]
        member = lifecycle(group)
        async with beside(member.run()):
            for _ in range(10):
                await asyncio.sleep(0)
            assert group.calls == []
            member.mark_terminating()
            await until(lambda: len(group.calls) > 3)
        assert set(group.calls) == {("heartbeat", "leaves")}

    async def test_at_the_end_it_need_not_wait_any_longer(
        self, group: FakeGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "COMPLETION", Retry(1.0, 0.001))
        group.errors = [NOTHING_WAITS, NOTHING_WAITS]
        member = lifecycle(group)
        member.mark_terminating()
        await member.complete_termination()
        assert group.calls == [("complete", "leaves", "CONTINUE")] * 3

    async def test_a_worker_stopped_for_other_reasons_leaves_the_hook_alone(self, group: FakeGroup) -> None:
        await lifecycle(group).complete_termination()
        assert group.calls == []


@pytest.mark.usefixtures("bare_environment")
def test_a_hook_without_its_group_is_refused() -> None:
    for hook in ({"launch_hook": "any"}, {"termination_hook": "any"}):
        with pytest.raises(SettingsError, match="STT_AUTOSCALING_GROUP"):
            load(None, **hook)
        assert load(None, **hook, autoscaling_group="workers").autoscaling_group == "workers"
