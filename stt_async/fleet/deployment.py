"""Creates, updates and deletes a deployment: release, stack and group."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from stt_async.errors import SettingsError
from stt_async.fleet import group as groups
from stt_async.fleet import stack as stacks
from stt_async.fleet.account import AwsAccount, open_account
from stt_async.fleet.artifact import sha256
from stt_async.fleet.release import check_buckets, check_queues, is_uploaded, release_key, upload
from stt_async.fleet.stack import Event, Proposal, Stack
from stt_async.fleet.template import Template
from stt_async.settings import Settings

RELEASE = "ArtifactSha256"
"""Template parameter that names the release."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to deploy."""

    stack: str
    template: Template
    given: Mapping[str, str]
    """Parameters. All others keep the existing stack's values."""
    artifact: Path | None
    """Tarball that `build` made; None: the release that the parameters name."""


class Operator(Protocol):
    """The person who approves a deployment and follows it."""

    def approve(self, proposal: Proposal) -> bool:
        """Return whether to execute the changes. Called before the first change."""

    def confirm_cleanup(self, leftover: Stack) -> bool:
        """Return whether to remove what a failed create left, which prevents a change set."""

    def on_event(self, event: Event) -> None:
        """Show an event of the stack."""

    def on_progress(self, sentence: str) -> None:
        """Show any other progress."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a deployment ended, and the stack that exists now."""

    result: Literal["deployed", "unchanged", "declined"]
    stack: Stack | None


async def deploy(settings: Settings, order: Order, operator: Operator) -> Outcome:
    """Create or update a deployment. Check everything, propose a change set, and execute it if approved.

    Raises:
        SettingsError: a parameter, bucket, queue or release is missing or unusable.
        StackError: a resource failed; CloudFormation has rolled back.
        ClassifiedError: AWS is out of reach.
    """
    given = _with_release(order)
    order.template.check(given)
    async with open_account(settings) as account:
        stack = await stacks.find(account, order.stack)
        leftover = stack if stack is not None and stack.status in stacks.LEFTOVERS else None
        if leftover is not None:
            stack = None
        _check_state(stack)
        values = order.template.values(stack.parameters if stack else {}, given)
        await check_buckets(account, values, is_new=stack is None)
        await check_queues(account, values, is_new=stack is None)
        bucket, release = values["ArtifactBucket"], values[RELEASE]
        missing = not await is_uploaded(account, bucket, release)
        if missing and order.artifact is None:
            raise SettingsError(
                f"the bucket {bucket} has no {release_key(release)}: build and upload a release with --build, "
                "or upload one that `bin/deploy build` made with --artifact"
            )
        if leftover is not None:
            if not operator.confirm_cleanup(leftover):
                return Outcome("declined", leftover)
            await stacks.delete(account, leftover, operator.on_event)
        kind: stacks.Kind = "CREATE" if stack is None else "UPDATE"
        async with stacks.proposed(account, order.stack, kind, order.template, values) as proposal:
            if proposal is None:
                await _suspend_az_rebalance(account, stack)
                return Outcome("unchanged", stack)
            if not operator.approve(proposal):
                return Outcome("declined", stack)
            if missing and order.artifact is not None:
                operator.on_progress(f"uploading the release to s3://{bucket}/{release_key(release)}")
                await upload(account, bucket, order.artifact, release)
            stack = await stacks.execute(account, proposal, operator.on_event)
        await _suspend_az_rebalance(account, stack)
        return Outcome("deployed", stack)


async def delete(
    settings: Settings, name: str, on_event: Callable[[Event], None], on_instances_left: Callable[[int], None]
) -> list[str]:
    """Drain the instances of a deployment, which release their jobs; then delete the stack.

    Args:
        settings: The region.
        name: The stack's name.
        on_event: Called with each event of the stack.
        on_instances_left: Called with the number of instances left, while they end.

    Returns:
        Logical ids of the resources that CloudFormation retains.

    Raises:
        SettingsError: the stack does not exist.
        StackError: a resource cannot be deleted.
        ClassifiedError: AWS is out of reach, or instances do not end.
    """
    retained: list[str] = []

    def collect(event: Event) -> None:
        if event.status == "DELETE_SKIPPED":
            retained.append(event.logical_id)
        on_event(event)

    async with open_account(settings) as account:
        stack = await existing(account, name)
        group = await find_group(account, stack)
        # CloudFormation does not end protected instances: it waits for an hour, then fails.
        if group is not None:
            await groups.drain(account, group.name, on_instances_left)
        await stacks.delete(account, stack, collect)
    return retained


async def existing(account: AwsAccount, name: str) -> Stack:
    """Return a stack.

    Raises:
        SettingsError: it does not exist.
    """
    stack = await stacks.find(account, name)
    if stack is None:
        raise SettingsError(
            f"stack {name} does not exist in {account.region}: set --stack or STT_STACK, and AWS_REGION"
        )
    return stack


async def find_group(account: AwsAccount, stack: Stack) -> groups.FleetGroup | None:
    """Return the group of a stack, or None while it does not exist."""
    name = (await stacks.resources(account, stack)).get("SplitGroup")
    return None if name is None else await groups.find(account, name)


async def group_of(account: AwsAccount, name: str) -> groups.FleetGroup:
    """Return the group of a deployment.

    Raises:
        SettingsError: the stack does not exist, or has no group.
    """
    stack = await existing(account, name)
    group = await find_group(account, stack)
    if group is None:
        raise SettingsError(f"stack {name} is {stack.status} and has no Auto Scaling group")
    return group


def _with_release(order: Order) -> dict[str, str]:
    if order.artifact is None:
        return dict(order.given)
    if RELEASE in order.given:
        raise SettingsError(f"a release is given twice, by --set {RELEASE} and by --artifact or --build: give one")
    if not order.artifact.is_file():
        raise SettingsError(f"the artifact {order.artifact} does not exist: `bin/deploy build` makes one")
    return {**order.given, RELEASE: sha256(order.artifact)}


def _check_state(stack: Stack | None) -> None:
    if stack is None or stack.status in stacks.UPDATABLE:
        return
    if stack.status.endswith("_IN_PROGRESS"):
        raise SettingsError(f"stack {stack.name} is {stack.status}: another change is running; try again when it ends")
    raise SettingsError(
        f"stack {stack.name} is {stack.status} ({stack.status_reason or 'no reason given'}) and cannot be updated: "
        "see docs/runbook.md, A deployment fails"
    )


async def _suspend_az_rebalance(account: AwsAccount, stack: Stack | None) -> None:
    """Suspend AZRebalance: it would end busy instances to balance the zones, and CloudFormation cannot suspend it."""
    group = None if stack is None else await find_group(account, stack)
    if group is not None and "AZRebalance" not in group.suspended:
        await groups.suspend(account, group.name, ["AZRebalance"])
