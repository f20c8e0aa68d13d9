"""A CloudFormation stack: found, proposed as a change set, executed, deleted; and its events on the way."""

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
"""States of a stack that never came to be: it holds no resource, and can only be deleted."""

UPDATABLE = frozenset(
    {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE", "IMPORT_ROLLBACK_COMPLETE"}
)

Kind = Literal["CREATE", "UPDATE"]

_NO_CHANGES = ("didn't contain changes", "No updates are to be performed")


class StackError(SttError):
    """A stack failed to become what was asked for."""


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
    """Something that happened to a resource, or to the stack itself."""

    logical_id: str
    resource_type: str
    status: str
    reason: str
    is_of_stack: bool

    @property
    def is_failure(self) -> bool:
        """Whether it tells of a failure of its own, and not of one that was cancelled after another's."""
        return self.status.endswith("_FAILED") and "cancelled" not in self.reason.lower()


@dataclass(frozen=True, slots=True)
class Change:
    """What a change set would do to one resource."""

    action: str
    logical_id: str
    resource_type: str
    replacement: str
    """`True`, `False` or `Conditional`, of a resource that is modified; else empty."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A change set that waits to be executed."""

    kind: Kind
    stack_id: str
    change_set_id: str
    changes: Sequence[Change]


OnEvent = Callable[[Event], None]


async def find(account: AwsAccount, name_or_id: str) -> Stack | None:
    """Return a stack; None if there is none of this name."""
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
    """Return the physical ids of what a stack holds, by the logical ones."""
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
    """Make a change set for the block to execute; what is not executed by then is removed.

    Args:
        account: Where.
        name: The stack's.
        kind: Whether it is new.
        template: What it shall be.
        values: Of all parameters.

    Yields:
        The proposal; None if there is nothing to change.

    Raises:
        RejectedError: CloudFormation does not take it.
        StackError: it could not be made.
    """
    try:
        stack_id, change_set_id = await _ask_for(account, name, kind, template, values)
    except RejectedError as error:
        if not any(each in error.message for each in _NO_CHANGES):
            raise
        yield None
        return
    try:
        made, changes = await _made(account, stack_id, change_set_id)
        if made["Status"] != "FAILED":
            yield Proposal(kind, stack_id, change_set_id, changes)
        elif any(each in made.get("StatusReason", "") for each in _NO_CHANGES):
            yield None
        else:
            raise StackError(f"the change set of {name} failed: {made.get('StatusReason', 'no reason given')}")
    finally:
        await finish_despite_cancel(_discard(account, stack_id, change_set_id))


async def execute(account: AwsAccount, proposal: Proposal, on_event: OnEvent) -> Stack:
    """Execute a change set, and wait for its end; CloudFormation goes on if nobody waits.

    Raises:
        StackError: a resource failed; it names the first, with its reason.
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
    """Delete a stack, and wait for its end; CloudFormation goes on if nobody waits.

    Raises:
        StackError: a resource cannot be deleted; it names the first, with its reason.
    """
    last = await _last_event_id(account, stack.stack_id)
    await account.call(account.cloudformation.delete_stack, StackName=stack.stack_id)
    await _wait_until_stable(account, stack.stack_id, last, "DELETE_COMPLETE", on_event)


async def _wait_until_stable(
    account: AwsAccount, stack_id: str, last: str | None, wanted: str, on_event: OnEvent
) -> Stack:
    """Report the events since `last` until the stack is stable."""
    failure: Event | None = None
    begun = False
    while True:
        # Asked before the events: those that led to a state at rest are then among them.
        stack = await find(account, stack_id)
        if stack is None:
            raise StackError(f"{stack_id} is gone")
        for event_id, event in await _events_since(account, stack_id, last):
            last, begun = event_id, True
            failure = failure or (event if event.is_failure else None)
            on_event(event)
        # Until its first event the stack shows the state that it had before.
        if begun and not stack.status.endswith("_IN_PROGRESS"):
            break
        await asyncio.sleep(POLL_INTERVAL_S)
    if stack.status != wanted:
        why = f"{failure.logical_id} ({failure.resource_type}): {failure.reason}" if failure else stack.status_reason
        raise StackError(f"stack {stack.name} is {stack.status}: {why}")
    return stack


async def _events_since(account: AwsAccount, stack_id: str, last: str | None) -> list[tuple[str, Event]]:
    """Return the events after that of the id `last`, oldest first."""
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


async def _ask_for(
    account: AwsAccount, name: str, kind: Kind, template: Template, values: Mapping[str, str]
) -> tuple[str, str]:
    """Have CloudFormation make a change set; return the ids of its stack and of itself."""
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


async def _made(account: AwsAccount, stack_id: str, change_set_id: str) -> tuple[dict[str, Any], list[Change]]:
    """Wait until a change set is made, or failed; return it, and its changes."""
    names = {"StackName": stack_id, "ChangeSetName": change_set_id}
    while True:
        pages = [page async for page in account.pages(account.cloudformation.describe_change_set, **names)]
        if not pages[0]["Status"].endswith(("_PENDING", "_IN_PROGRESS")):
            found = [change["ResourceChange"] for page in pages for change in page.get("Changes", [])]
            return pages[0], [_change(each) for each in found]
        await asyncio.sleep(POLL_INTERVAL_S)


async def _discard(account: AwsAccount, stack_id: str, change_set_id: str) -> None:
    """Remove a change set that was not executed, and the stack that is there for its sake alone."""
    names = {"StackName": stack_id, "ChangeSetName": change_set_id}
    try:
        made = await account.call(account.cloudformation.describe_change_set, **names)
    except RejectedError:  # executed: CloudFormation has removed it itself
        return
    if made["ExecutionStatus"] not in {"AVAILABLE", "UNAVAILABLE", "OBSOLETE"}:
        return
    stack = await find(account, stack_id)
    if stack is not None and stack.status == "REVIEW_IN_PROGRESS":
        await account.call(account.cloudformation.delete_stack, StackName=stack_id)
    else:
        await account.call(account.cloudformation.delete_change_set, **names)


def _change(found: dict[str, Any]) -> Change:
    return Change(found["Action"], found["LogicalResourceId"], found["ResourceType"], found.get("Replacement", ""))


def _event(found: dict[str, Any]) -> Event:
    return Event(
        logical_id=found["LogicalResourceId"],
        resource_type=found["ResourceType"],
        status=found["ResourceStatus"],
        reason=found.get("ResourceStatusReason", ""),
        is_of_stack=found.get("PhysicalResourceId") == found["StackId"],
    )
