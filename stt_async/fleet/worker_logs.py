"""The log lines of a deployment's workers, from CloudWatch Logs."""

import asyncio
import re
import time
from collections.abc import AsyncIterator

from stt_async.errors import SettingsError
from stt_async.fleet.account import open_account
from stt_async.fleet.deployment import existing
from stt_async.fleet.stack import resources
from stt_async.settings import Settings

POLL_INTERVAL_S = 3.0

MAX_DELAY_S = 60.0
"""How late a line may reach CloudWatch and still be printed. Agents send every 5 s, and retry after failures."""

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_span_s(text: str) -> float:
    """Parse a time span such as `90s`, `15m`, `2h` or `3d`; return seconds.

    Raises:
        SettingsError: the text has another form.
    """
    found = re.fullmatch(r"([0-9]+)([smhd])", text)
    if found is None:
        raise SettingsError(f"{text!r} is not a time span: give one such as 90s, 15m, 2h or 3d")
    return float(found[1]) * _UNITS_S[found[2]]


async def lines(settings: Settings, stack: str, *, since_s: float, pattern: str, follow: bool) -> AsyncIterator[str]:
    """Yield the log lines of the last `since_s` seconds; with `follow`, also new ones, until cancelled.

    Args:
        settings: The region.
        stack: The stack's name.
        since_s: Age of the oldest line, in seconds.
        pattern: A filter pattern of CloudWatch Logs, such as `{ $.event = "job_failed" }`; empty for all lines.
        follow: Whether to continue with new lines.

    Raises:
        SettingsError: the stack does not exist, or has no log group.
        ClassifiedError: AWS is out of reach.
    """
    async with open_account(settings) as account:
        group = (await resources(account, await existing(account, stack))).get("Logs")
        if group is None:
            raise SettingsError(f"stack {stack} has no log group")
        query = {"logGroupName": group} | ({"filterPattern": pattern} if pattern else {})
        start_s = time.time() - since_s
        printed: dict[str, float] = {}
        while True:
            async for page in account.pages(
                account.logs.filter_log_events, next_key="nextToken", **query, startTime=int(start_s * 1000)
            ):
                for event in page["events"]:
                    if event["eventId"] not in printed:
                        printed[event["eventId"]] = event["timestamp"] / 1000
                        yield event["message"].rstrip("\n")
            if not follow:
                return
            start_s = max(start_s, time.time() - MAX_DELAY_S)
            printed = {event_id: at_s for event_id, at_s in printed.items() if at_s >= start_s}
            await asyncio.sleep(POLL_INTERVAL_S)
