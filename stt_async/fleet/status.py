"""The state of a deployment: stack, release, instances, queues, alarms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stt_async.fleet import group as groups
from stt_async.fleet import stack as stacks
from stt_async.fleet.account import AwsAccount, open_account
from stt_async.fleet.deployment import RELEASE, existing, find_group
from stt_async.fleet.stack import Stack
from stt_async.services.queue import Depth, open_queue
from stt_async.settings import Settings


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """Message counts of a queue and its dead-letter queue."""

    name: str
    jobs: Depth
    dead_letters: int


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a deployment."""

    stack: Stack
    group: groups.FleetGroup | None
    queues: Sequence[QueueStatus]
    alarms: Sequence[str]
    """Names of the alarms in state ALARM."""

    @property
    def release(self) -> str:
        """The sha256 of the release that new instances boot."""
        return self.stack.parameters.get(RELEASE, "")

    @property
    def earlier(self) -> int:
        """Number of instances with an earlier release or earlier settings."""
        return sum(not each.is_current for each in self.group.staying) if self.group is not None else 0

    def facts(self) -> dict[str, Any]:
        """Return the state as JSON, with stable keys."""
        group = self.group
        return {
            "stack": self.stack.name,
            "status": self.stack.status,
            "status_reason": self.stack.status_reason,
            "release": self.release,
            "group": group.name if group else None,
            "desired": group.desired if group else 0,
            "max": group.max_size if group else 0,
            "instances": group.states if group else {},
            "earlier_instances": self.earlier,
            "suspended": list(group.suspended) if group else [],
            "queues": [
                {
                    "name": queue.name,
                    "waiting": queue.jobs.visible,
                    "in_flight": queue.jobs.in_flight,
                    "delayed": queue.jobs.delayed,
                    "dead_letters": queue.dead_letters,
                }
                for queue in self.queues
            ],
            "alarms": list(self.alarms),
        }


async def status(settings: Settings, name: str) -> Status:
    """Return the state of a deployment.

    Raises:
        SettingsError: the stack does not exist.
        ClassifiedError: AWS is out of reach.
    """
    async with open_account(settings) as account:
        stack = await existing(account, name)
        names = [stack.parameters[key] for key in ("SplitQueueName", "DownloadQueueName") if key in stack.parameters]
        return Status(
            stack,
            await find_group(account, stack),
            [await _queue(account, each) for each in names],
            await _alarms(account, stack),
        )


async def _queue(account: AwsAccount, name: str) -> QueueStatus:
    queue = await open_queue(account.sqs, name, account.retry)
    return QueueStatus(name, await queue.depth(), (await queue.dead_letter_depth()).visible)


async def _alarms(account: AwsAccount, stack: Stack) -> list[str]:
    """Return the names of the stack's alarms in state ALARM."""
    of_stack = set((await stacks.resources(account, stack)).values())
    names: list[str] = []
    async for page in account.pages(account.cloudwatch.describe_alarms, StateValue="ALARM"):
        names += [each["AlarmName"] for each in page["MetricAlarms"] if each["AlarmName"] in of_stack]
    return sorted(names)
