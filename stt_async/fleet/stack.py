"""A CloudFormation stack: find it, propose a change set, execute it, delete it, and follow the events."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from stt_async.concurrency import finish_despite_cancel
from stt_async.errors import SttError
from stt_async.fleet.account import AwsAccount, RejectedError
from stt_async.fleet.template import Template

POLL_INTERVAL_S = 2.0

LEFTOVERS = frozenset({"REVIEW_IN_PROGRESS", "ROLLBACK_COMPLETE"})
"""States of a stack whose creation failed: it holds no resource, and can only be deleted."""

UPDATABLE = frozenset(
    {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE", "IMPORT_ROLLBACK_COMPLETE"}
)

Kind = Literal["CREATE", "UPDATE"]

_NO_CHANGES = ("didn't contain changes", "No updates are to be performed")


class StackError(SttError):
    """Creating, updating or deleting a stack failed."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack as CloudFormation describes it."""

    name: str
    stack_id: str
    status: str
    status_reason: str
    parameters: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a resource, or of the stack itself."""

    logical_id: str
    resource_type: str
    status: str
    reason: str
    is_of_stack: bool

    @property
    def is_failure(self) -> bool:
        """Whether the resource itself failed. CloudFormation cancels the others after the first failure."""
        return self.status.endswith("_FAILED") and "cancelled" not in self.reason.lower()


@dataclass(frozen=True, slots=True)
class Change:
    """A proposed change of one resource."""

    action: str
    logical_id: str
    resource_type: str
    replacement: str
    """`True`, `False` or `Conditional` for a modified resource; otherwise empty."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change set that is ready to execute."""

    kind: Kind
    stack_id: str
    change_set_id: str
    changes: Sequence[Change]


OnEvent = Callable[[Event], None]


async def find(account: AwsAccount, name_or_id: str) -> Stack | None:
    """Return the stack of this name or id, or None."""
    try:
        answer = await account.call(account.cloudformation.describe_stacks, StackName=name_or_id)
    except RejectedError as error:
        if "does not exist" in error.message:
            return None
        raise
    (found,) = answer["Stacks"]
    return Stack(
        name=found["StackName"],
        stack_id=found["StackId"],
        status=found["StackStatus"],
        status_reason=found.get("StackStatusReason", ""),
        parameters={each["ParameterKey"]: each["ParameterValue"] for each in found.get("Parameters", [])},
        outputs={each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs", [])},
    )


async def resources(account: AwsAccount, stack: Stack) -> dict[str, str]:
    """Return the physical ids of a stack's resources, by logical id."""
    answer = await account.call(account.cloudformation.describe_stack_resources, StackName=stack.stack_id)
    return {
        each["LogicalResourceId"]: each["PhysicalResourceId"]
        for each in answer["StackResources"]
        if each.get("PhysicalResourceId")
    }


@asynccontextmanager
async def proposed(
    account: AwsAccount, name: str, kind: Kind, template: Template, values: Mapping[str, str]
) -> AsyncIterator[Proposal | None]:
    """Create a change set for the block to execute. If the block does not, remove it afterwards.

    Args:
        account: Account and region of the stack.
        name: The stack's name.
        kind: Whether to create or update the stack.
        template: The stack's template.
        values: Values of all parameters.

    Yields:
        The proposal, or None if nothing would change.

    Raises:
        RejectedError: CloudFormation rejects the template or a parameter.
        StackError: CloudFormation could not create the change set.
    """
    try:
        stack_id, change_set_id = await _create_change_set(account, name, kind, template, values)
    except RejectedError as error:
        if not any(each in error.message for each in _NO_CHANGES):
            raise
        yield None
        return
    try:
        described, changes = await _wait_for_change_set(account, stack_id, change_set_id)
        if described["Status"] != "FAILED":
            yield Proposal(kind, stack_id, change_set_id, changes)
        elif any(each in described.get("StatusReason", "") for each in _NO_CHANGES):
            yield None
        else:
            raise StackError(f"the change set of {name} failed: {described.get('StatusReason', 'no reason given')}")
    finally:
        await finish_despite_cancel(_discard(account, stack_id, change_set_id))


async def execute(account: AwsAccount, proposal: Proposal, on_event: OnEvent) -> Stack:
    """Execute a change set and wait for its end. CloudFormation continues if this call is cancelled.

    Raises:
        StackError: a resource failed; the message names the first one and the reason.
    """
    last = await _last_event_id(account, proposal.stack_id)
    await account.call(
        account.cloudformation.execute_change_set,
        StackName=proposal.stack_id,
        ChangeSetName=proposal.change_set_id,
        ClientRequestToken=f"stt-async-{uuid.uuid4().hex}",
    )
    return await _wait_until_stable(account, proposal.stack_id, last, f"{proposal.kind}_COMPLETE", on_event)


async def delete(account: AwsAccount, stack: Stack, on_event: OnEvent) -> None:
    """Delete a stack and wait for its end. CloudFormation continues if this call is cancelled.

    Raises:
        StackError: a resource cannot be deleted; the message names the first one and the reason.
    """
    last = await _last_event_id(account, stack.stack_id)
    await account.call(account.cloudformation.delete_stack, StackName=stack.stack_id)
    await _wait_until_stable(account, stack.stack_id, last, "DELETE_COMPLETE", on_event)


async def _wait_until_stable(
    account: AwsAccount, stack_id: str, last: str | None, wanted: str, on_event: OnEvent
) -> Stack:
    """Report the events since `last` until the stack is stable."""
    failure: Event | None = None
    started = False
    while True:
        # The status is read before the events, so that these include the events before a final status.
        stack = await find(account, stack_id)
        if stack is None:
            raise StackError(f"stack {stack_id} no longer exists")
        for event_id, event in await _events_since(account, stack_id, last):
            last, started = event_id, True
            failure = failure or (event if event.is_failure else None)
            on_event(event)
        # Before the first event the stack still has its earlier status.
        if started and not stack.status.endswith("_IN_PROGRESS"):
            break
        await asyncio.sleep(POLL_INTERVAL_S)
    if stack.status != wanted:
        why = f"{failure.logical_id} ({failure.resource_type}): {failure.reason}" if failure else stack.status_reason
        raise StackError(f"stack {stack.name} is {stack.status}: {why}")
    return stack


async def _events_since(account: AwsAccount, stack_id: str, last: str | None) -> list[tuple[str, Event]]:
    """Return the events after the one with the id `last`, oldest first."""
    events: list[tuple[str, Event]] = []
    async for page in account.pages(account.cloudformation.describe_stack_events, StackName=stack_id):
        for each in page["StackEvents"]:  # newest first
            if each["EventId"] == last:
                return events[::-1]
            events.append((each["EventId"], _event(each)))
    return events[::-1]


async def _last_event_id(account: AwsAccount, stack_id: str) -> str | None:
    answer = await account.call(account.cloudformation.describe_stack_events, StackName=stack_id)
    events = answer["StackEvents"]
    return events[0]["EventId"] if events else None


async def _create_change_set(
    account: AwsAccount, name: str, kind: Kind, template: Template, values: Mapping[str, str]
) -> tuple[str, str]:
    """Return the ids of the stack and of the change set."""
    token = f"stt-async-{uuid.uuid4().hex}"
    answer = await account.call(
        account.cloudformation.create_change_set,
        StackName=name,
        ChangeSetName=token,
        ClientToken=token,
        ChangeSetType=kind,
        TemplateBody=template.body,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    return answer["StackId"], answer["Id"]


async def _wait_for_change_set(
    account: AwsAccount, stack_id: str, change_set_id: str
) -> tuple[dict[str, Any], list[Change]]:
    """Wait until a change set is created or has failed; return its description and its changes."""
    names = {"StackName": stack_id, "ChangeSetName": change_set_id}
    while True:
        pages = [page async for page in account.pages(account.cloudformation.describe_change_set, **names)]
        if not pages[0]["Status"].endswith(("_PENDING", "_IN_PROGRESS")):
            found = [change["ResourceChange"] for page in pages for change in page.get("Changes", [])]
            return pages[0], [
                Change(each["Action"], each["LogicalResourceId"], each["ResourceType"], each.get("Replacement", ""))
                for each in found
            ]
        await asyncio.sleep(POLL_INTERVAL_S)


async def _discard(account: AwsAccount, stack_id: str, change_set_id: str) -> None:
    """Remove a change set that was not executed, and the stack if it was created only for the change set."""
    names = {"StackName": stack_id, "ChangeSetName": change_set_id}
    try:
        described = await account.call(account.cloudformation.describe_change_set, **names)
    except RejectedError:  # executed: CloudFormation has removed it
        return
    if described["ExecutionStatus"] not in {"AVAILABLE", "UNAVAILABLE", "OBSOLETE"}:
        return
    stack = await find(account, stack_id)
    if stack is not None and stack.status == "REVIEW_IN_PROGRESS":
        await account.call(account.cloudformation.delete_stack, StackName=stack_id)
    else:
        await account.call(account.cloudformation.delete_change_set, **names)


def _event(found: dict[str, Any]) -> Event:
    return Event(
        logical_id=found["LogicalResourceId"],
        resource_type=found["ResourceType"],
        status=found["ResourceStatus"],
        reason=found.get("ResourceStatusReason", ""),
        is_of_stack=found.get("PhysicalResourceId") == found["StackId"],
    )
