"""The Auto Scaling group of the split workers, as operators see it: how many, started, ended, held back."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stt_async.errors import SettingsError, TransientError
from stt_async.fleet.account import AwsAccount, RejectedError

HELD_BACK = ("Launch", "AlarmNotification")
"""Processes whose suspension means that nothing new starts, and that no alarm asks for what would start later."""

NEVER = "AZRebalance"
"""Process that would end busy instances to even out the zones; CloudFormation cannot suspend it."""

POLL_INTERVAL_S = 5.0

DRAIN_TIMEOUT_S = 900.0
"""An instance drains for 100 s, its hook waits for 120 s, and EC2 takes its time."""


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance of the group."""

    instance_id: str
    state: str
    is_current: bool
    """Launched as the group launches now: this release, these settings."""


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
        """How many instances are in each lifecycle state."""
        return dict(Counter(each.state for each in self.instances))

    @property
    def staying(self) -> list[Instance]:
        """Those that are not on their way out; first those that would be missed least."""
        ranks = {"Pending": 0, "InService": 2}
        return sorted(
            (each for each in self.instances if not each.state.startswith(("Terminat", "Detach"))),
            key=lambda each: (each.is_current, ranks.get(each.state, 1), each.instance_id),
        )


@dataclass(frozen=True, slots=True)
class Scaling:
    """What it takes to come to a size."""

    group: FleetGroup
    count: int

    @property
    def ends(self) -> Sequence[Instance]:
        """Instances to end: earlier releases and those that still boot first."""
        staying = self.group.staying
        return staying[: max(0, len(staying) - self.count)]

    @property
    def desired(self) -> int:
        """What the group is to want, before any instance ends: no more than now, unless it is to grow."""
        return max(self.count, min(self.group.desired, len(self.group.staying)))

    @property
    def surplus(self) -> int:
        """How many of the instances the group does not even want: these end without its wanting one less."""
        return max(0, len(self.group.staying) - self.desired)


async def find(account: AwsAccount, name: str) -> FleetGroup | None:
    """Return the group; None if there is none of this name."""
    answer = await account.call(account.autoscaling.describe_auto_scaling_groups, AutoScalingGroupNames=[name])
    for found in answer["AutoScalingGroups"]:
        current = _launched_from(found)
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
    """Return what it takes to come to `count` instances.

    Raises:
        SettingsError: the group may not have so many.
    """
    if count > group.max_size:
        raise SettingsError(
            f"{group.name} may have {group.max_size} instances, not {count}: no more than MinIO's link can feed. "
            "`bin/deploy deploy --set SourceLinkMbps=...` says what it can"
        )
    return Scaling(group, count)


async def scale(account: AwsAccount, plan: Scaling) -> None:
    """Come to a size. Instances to end give their jobs back first: their hook tells their workers."""
    # Not SetDesiredCapacity alone: instances are protected from it; and one that later ends itself would be refused
    # ("would violate group's min size constraint") once the group wants none.
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
            # Perhaps it has ended itself meanwhile, and the group wants one less already.
            now = await find(account, plan.group.name)
            if now is not None and instance.instance_id in {each.instance_id for each in now.staying}:
                raise


async def suspend(account: AwsAccount, name: str, processes: Sequence[str]) -> None:
    """Suspend processes of the group; those that are suspended stay so."""
    await account.call(
        account.autoscaling.suspend_processes, AutoScalingGroupName=name, ScalingProcesses=list(processes)
    )


async def resume(account: AwsAccount, name: str, processes: Sequence[str]) -> None:
    """Resume processes of the group; others stay suspended."""
    await account.call(
        account.autoscaling.resume_processes, AutoScalingGroupName=name, ScalingProcesses=list(processes)
    )


async def drain(account: AwsAccount, name: str, on_instances_left: Callable[[int], None]) -> None:
    """Suspend the group, terminate its instances, and wait; report how many are left to `on_instances_left`.

    Raises:
        TransientError: some are still there after `DRAIN_TIMEOUT_S`.
    """
    await suspend(account, name, HELD_BACK)
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            while (group := await find(account, name)) is not None and group.instances:
                on_instances_left(len(group.instances))
                # Each time round: one that was being launched a moment ago ends, too.
                await scale(account, scaling(group, 0))
                await asyncio.sleep(POLL_INTERVAL_S)
    except TimeoutError as error:
        raise TransientError(
            "still_there",
            f"instances of {name} are still there after {DRAIN_TIMEOUT_S:.0f} s, and no new ones start: look at them "
            "with `bin/deploy status`, and try again",
        ) from error


def _launched_from(found: dict[str, Any]) -> tuple[str, str]:
    mixed = found.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {}).get("LaunchTemplateSpecification")
    return _version(mixed or found.get("LaunchTemplate"))


def _version(specification: dict[str, str] | None) -> tuple[str, str]:
    named = specification or {}
    return named.get("LaunchTemplateId", ""), named.get("Version", "")
