"""What the workers of a deployment log, from CloudWatch Logs: lines as they are, in their order."""

import asyncio
import re
import time
from collections.abc import AsyncIterator

from stt_async.errors import SettingsError
from stt_async.fleet.account import open_account
from stt_async.fleet.deployment import existing
from stt_async.fleet.stack import resources
from stt_async.settings import Settings

GROUP = "Logs"
"""Logical id of the log group."""

POLL_INTERVAL_S = 3.0

LATENESS_S = 60.0
"""How late a line may arrive and still be shown: agents ship every 5 s, and try again when that fails."""

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_span_s(text: str) -> float:
    """Parse a span of time, as `90s`, `15m`, `2h` or `3d`.

    Raises:
        SettingsError: it is none.
    """
    found = re.fullmatch(r"([0-9]+)([smhd])", text)
    if found is None:
        raise SettingsError(f"{text!r} is no span of time: give 90s, 15m, 2h or 3d")
    return float(found[1]) * _UNITS_S[found[2]]


async def lines(settings: Settings, stack: str, *, since_s: float, pattern: str, follow: bool) -> AsyncIterator[str]:
    """Yield the lines of the last `since_s` seconds; with `follow`, those that come as well, until cancelled.

    Args:
        settings: The region.
        stack: Its name.
        since_s: How far to look back.
        pattern: A filter pattern of CloudWatch Logs, as `{ $.event = "job_failed" }`; empty for all lines.
        follow: Whether to go on.

    Raises:
        SettingsError: there is no such stack, or it has no logs.
        ClassifiedError: AWS is out of reach.
    """
    async with open_account(settings) as account:
        group = (await resources(account, await existing(account, stack))).get(GROUP)
        if group is None:
            raise SettingsError(f"stack {stack} has no log group")
        wanted = {"logGroupName": group} | ({"filterPattern": pattern} if pattern else {})
        start_s = time.time() - since_s
        seen: dict[str, float] = {}
        while True:
            async for page in account.pages(
                account.logs.filter_log_events, next_key="nextToken", **wanted, startTime=int(start_s * 1000)
            ):
                for each in page["events"]:
                    if each["eventId"] not in seen:
                        seen[each["eventId"]] = each["timestamp"] / 1000
                        yield each["message"].rstrip("\n")
            if not follow:
                return
            start_s = max(start_s, time.time() - LATENESS_S)
            seen = {event_id: at_s for event_id, at_s in seen.items() if at_s >= start_s}
            await asyncio.sleep(POLL_INTERVAL_S)
