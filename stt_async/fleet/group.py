"""The Auto Scaling group of the split workers: describe, scale, suspend, resume and drain it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stt_async.errors import SettingsError, TransientError
from stt_async.fleet.account import AwsAccount, RejectedError

HELD_BACK = ("Launch", "AlarmNotification")
"""While these processes are suspended, no instance starts, and no alarm raises the desired capacity for later."""

POLL_INTERVAL_S = 5.0

DRAIN_TIMEOUT_S = 900.0
"""An instance drains for 100 s, its hook waits for 120 s, and EC2 takes minutes more."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance of the group."""

    instance_id: str
    state: str
    is_current: bool
    """Launched from the launch template's current version: with the current release and settings."""


@dataclass(frozen=True, slots=True)
class FleetGroup:
    """The group at one moment."""

    name: str
    desired: int
    max_size: int
    instances: Sequence[Instance]
    suspended: Sequence[str]

    @property
    def states(self) -> dict[str, int]:
        """Number of instances in each lifecycle state."""
        return dict(Counter(each.state for each in self.instances))

    @property
    def staying(self) -> list[Instance]:
        """Instances that are not terminating: first outdated ones, then those that still boot."""
        ranks = {"Pending": 0, "InService": 2}
        return sorted(
            (each for each in self.instances if not each.state.startswith(("Terminat", "Detach"))),
            key=lambda each: (each.is_current, ranks.get(each.state, 1), each.instance_id),
        )


@dataclass(frozen=True, slots=True)
class Scaling:
    """How to scale a group to `count` instances."""

    group: FleetGroup
    count: int

    @property
    def ends(self) -> Sequence[Instance]:
        """Instances to end."""
        staying = self.group.staying
        return staying[: max(0, len(staying) - self.count)]

    @property
    def desired(self) -> int:
        """Desired capacity to set before the first instance ends. It rises only if the group grows."""
        return max(self.count, min(self.group.desired, len(self.group.staying)))

    @property
    def surplus(self) -> int:
        """Instances above the desired capacity. When these end, the desired capacity does not decrease."""
        return max(0, len(self.group.staying) - self.desired)


async def find(account: AwsAccount, name: str) -> FleetGroup | None:
    """Return the group of this name, or None."""
    answer = await account.call(account.autoscaling.describe_auto_scaling_groups, AutoScalingGroupNames=[name])
    for found in answer["AutoScalingGroups"]:
        mixed = found.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {}).get("LaunchTemplateSpecification")
        current = _version(mixed or found.get("LaunchTemplate"))
        return FleetGroup(
            name=name,
            desired=found["DesiredCapacity"],
            max_size=found["MaxSize"],
            instances=[
                Instance(each["InstanceId"], each["LifecycleState"], _version(each.get("LaunchTemplate")) == current)
                for each in found["Instances"]
            ],
            suspended=sorted(each["ProcessName"] for each in found.get("SuspendedProcesses", [])),
        )
    return None


def scaling(group: FleetGroup, count: int) -> Scaling:
    """Plan how to scale a group to `count` instances.

    Raises:
        SettingsError: the maximum of the group is lower.
    """
    if count > group.max_size:
        raise SettingsError(
            f"{group.name} may have {group.max_size} instances, not {count}: MinIO's link feeds no more. "
            "If its bandwidth is higher, set it with `bin/deploy deploy --set SourceLinkMbps=...`"
        )
    return Scaling(group, count)


async def scale(account: AwsAccount, plan: Scaling) -> None:
    """Scale a group. The workers of instances to end drain first, as the termination hook waits for them."""
    # SetDesiredCapacity alone ends no protected instance. And once the desired capacity is 0, AWS refuses to let an
    # idle instance end itself ("would violate group's min size constraint").
    if plan.desired != plan.group.desired:
        await account.call(
            account.autoscaling.set_desired_capacity,
            AutoScalingGroupName=plan.group.name,
            DesiredCapacity=plan.desired,
            HonorCooldown=False,
        )
    for number, instance in enumerate(plan.ends):
        try:
            await account.call(
                account.autoscaling.terminate_instance_in_auto_scaling_group,
                InstanceId=instance.instance_id,
                ShouldDecrementDesiredCapacity=number >= plan.surplus,
            )
        except RejectedError:
            # Ignore it if the instance has meanwhile ended itself and decreased the desired capacity.
            group = await find(account, plan.group.name)
            if group is not None and instance.instance_id in {each.instance_id for each in group.staying}:
                raise


async def suspend(account: AwsAccount, name: str, processes: Sequence[str]) -> None:
    """Suspend processes of the group, in addition to those already suspended."""
    await account.call(
        account.autoscaling.suspend_processes, AutoScalingGroupName=name, ScalingProcesses=list(processes)
    )


async def resume(account: AwsAccount, name: str, processes: Sequence[str]) -> None:
    """Resume processes of the group; others stay suspended."""
    await account.call(
        account.autoscaling.resume_processes, AutoScalingGroupName=name, ScalingProcesses=list(processes)
    )


async def drain(account: AwsAccount, name: str, on_instances_left: Callable[[int], None]) -> None:
    """Suspend the group, terminate its instances, and wait; report the number left to `on_instances_left`.

    Raises:
        TransientError: instances are left after `DRAIN_TIMEOUT_S`.
    """
    await suspend(account, name, HELD_BACK)
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            while (group := await find(account, name)) is not None and group.instances:
                on_instances_left(len(group.instances))
                # Each time round, as an instance may have been launching when the group was suspended.
                await scale(account, scaling(group, 0))
                await asyncio.sleep(POLL_INTERVAL_S)
    except TimeoutError as error:
        raise TransientError(
            "still_there",
            f"{name} still has instances after {DRAIN_TIMEOUT_S:.0f} s; it stays suspended: check them with "
            "`bin/deploy status`, and try again",
        ) from error


def _version(specification: dict[str, str] | None) -> tuple[str, str]:
    specification = specification or {}
    return specification.get("LaunchTemplateId", ""), specification.get("Version", "")
