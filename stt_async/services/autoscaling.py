"""EC2 Auto Scaling: the calls of an instance to its own group."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol

from stt_async.services.aws import autoscaling_client, open_session, translated
from stt_async.services.imds import Imds
from stt_async.settings import Settings

Result = Literal["CONTINUE", "ABANDON"]

NO_ACTION = "ValidationError"
"""Error code when no lifecycle action waits: not yet, not any more, or the hook does not exist."""


class AutoScalingClient(Protocol):
    """The methods used of botocore's client."""

    async def complete_lifecycle_action(self, **arguments: Any) -> Any:
        """https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_CompleteLifecycleAction.html ."""

    async def record_lifecycle_action_heartbeat(self, **arguments: Any) -> Any:
        """https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_RecordLifecycleActionHeartbeat.html ."""

    async def terminate_instance_in_auto_scaling_group(self, **arguments: Any) -> Any:
        """https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_TerminateInstanceInAutoScalingGroup.html ."""


class OwnGroup:
    """The group of this instance. Every method raises the failure classes of `errors`; none retries."""

    def __init__(self, client: AutoScalingClient, imds: Imds, name: str) -> None:
        self._client = client
        self._imds = imds
        self._name = name

    async def complete(self, hook: str, result: Result) -> None:
        """Complete the lifecycle action of a hook."""
        arguments = await self._action(hook)
        with translated(f"Auto Scaling (hook {hook})"):
            await self._client.complete_lifecycle_action(**arguments, LifecycleActionResult=result)

    async def heartbeat(self, hook: str) -> None:
        """Restart the timeout of a lifecycle hook."""
        arguments = await self._action(hook)
        with translated(f"Auto Scaling (hook {hook})"):
            await self._client.record_lifecycle_action_heartbeat(**arguments)

    async def terminate_this_instance(self) -> None:
        """Terminate this instance and reduce the group's desired capacity by one."""
        instance_id = await self._imds.instance_id()
        with translated("Auto Scaling"):
            await self._client.terminate_instance_in_auto_scaling_group(
                InstanceId=instance_id, ShouldDecrementDesiredCapacity=True
            )

    async def _action(self, hook: str) -> dict[str, str]:
        return {
            "AutoScalingGroupName": self._name,
            "LifecycleHookName": hook,
            "InstanceId": await self._imds.instance_id(),
        }


@asynccontextmanager
async def open_group(settings: Settings, imds: Imds | None) -> AsyncIterator[OwnGroup | None]:
    """Yield the group that the settings name; None off EC2 and outside of a group."""
    if imds is None or not settings.autoscaling_group:
        yield None
        return
    async with autoscaling_client(await open_session(settings)) as client:
        yield OwnGroup(client, imds, settings.autoscaling_group)
