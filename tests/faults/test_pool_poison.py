"""A recording that kills each process that splits it becomes a dead letter, and other jobs are unaffected."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.children import kill_splitting_children
from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_POISON, _OTHERS = "poison.wav", [f"{number:02d}.wav" for number in range(24)]
_MAX_RECEIVES = 3


async def test_job_that_always_kills_its_child_becomes_a_dead_letter(
    site: Site, start_worker: StartWorker, five_minutes: Path, speech: Path
) -> None:
    await site.set_max_receives(_MAX_RECEIVES)
    await site.put_recordings({_POISON: five_minutes} | dict.fromkeys(_OTHERS, speech))
    worker = await start_worker(site, STT_PROCESSES="2")
    killer = asyncio.create_task(kill_splitting_children(worker, source_bytes=five_minutes.stat().st_size))
    await worker.wait_for("worker_started")
    first, *later = _OTHERS
    for key in (first, _POISON):
        await site.send(site.job(key))
    for attempt in range(1, _MAX_RECEIVES):
        await worker.wait_for("job_retried", count=attempt)
        for key in later[attempt * 8 - 8 : attempt * 8]:
            await site.send(site.job(key))
    (failed,) = await worker.wait_for("job_failed", timeout_s=120)
    for key in later[_MAX_RECEIVES * 8 - 8 :]:
        await site.send(site.job(key))
    done = await worker.wait_for("job_succeeded", count=len(_OTHERS), timeout_s=120)
    killer.cancel()

    assert (failed["failure"], failed["code"], failed["receive_count"]) == ("worker_lost", "child_died", _MAX_RECEIVES)
    assert [line["receive_count"] for line in done] == [1] * len(_OTHERS)
    assert len(worker.events("child_lost")) == _MAX_RECEIVES
    await wait_until(site.is_drained, what="all messages to be deleted")
    (letter,) = await site.take_dead_letters()
    assert letter.job == site.job(_POISON)
    assert {name: letter.attributes[name] for name in ("failure", "code", "receive_count")} == {
        "failure": "worker_lost",
        "code": "child_died",
        "receive_count": str(_MAX_RECEIVES),
    }
    for attempt in range(1, _MAX_RECEIVES):
        assert f"attempt {attempt} child_died on " in letter.attributes["reason"]
    assert await _failure_records(site) == [(attempt, "child_died") for attempt in range(1, _MAX_RECEIVES + 1)]
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    assert await site.objects(f"{_POISON}/") == {}
    for key in _OTHERS:
        await verified(site, key)


async def _failure_records(site: Site) -> list[tuple[int, str]]:
    attempts: list[Any] = [orjson.loads(await site.read(key)) for key in await site.objects(f"failures/job-{_POISON}/")]
    return sorted((attempt["attempt"], attempt["event"]) for attempt in attempts)
