"""Scenarios F13, F14, F16-F18 and F20 with a real worker: whatever befalls a download, its job has the whole recording.

What the client of the source does in each case, and a drip of a byte a second, is in test_downloads.py.
"""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.history import Call
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import cut_body, flip_bit, reset, short_body
from tests.support.faults.gateway import ConnectionLostError, Fault, Reply, Strike
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

KEY = "spoilt.wav"
_SHORT_WAITS = {"STT_RETRY_MAX_WAIT_S": "0.2"}


def _is_of_it(call: Call) -> bool:
    return call.key == KEY


def _stall_at(share: float) -> Fault:
    """That share of the body comes, and then nothing more, on a connection that stays open."""

    async def fault(strike: Strike) -> Reply:
        reply = await strike.forward()
        body = await reply.read()

        async def stalled() -> AsyncIterator[bytes]:
            yield body[: int(len(body) * share)]
            await strike.rule.lifted.wait()
            raise ConnectionLostError(str(strike.call))

        return replace(reply, body=stalled())

    return fault


@pytest.mark.parametrize(
    ("fault", "times", "then"),
    [
        pytest.param(cut_body(0.5), 1, 206, id="cut, with its length"),
        pytest.param(short_body(0.5), 2, 200, id="short, without a length"),
        pytest.param(flip_bit, 1, 200, id="a bit flipped"),
        pytest.param(reset, 6, 200, id="reset again and again"),
        pytest.param(_stall_at(0.99), 1, 206, id="stalled at 99%"),
    ],
)
async def test_a_spoilt_download_ends_whole_within_its_job(
    site: Site, start_worker: StartWorker, speech: Path, *, fault: Fault, times: int, then: int
) -> None:
    worker = await start_worker(site, **_SHORT_WAITS)
    await worker.wait_for("worker_started")
    await site.put_recordings({KEY: speech})
    with site.gateway.fault("minio", "GetObject", fault, times=times, where=_is_of_it) as spoilt:
        await site.send(site.job(KEY))
        [done] = await worker.wait_for("job_succeeded")
    assert spoilt.struck == times
    assert done["receive_count"] == 1
    assert [call.status for call in _reads(site)][times:] == [then]
    await _is_whole(site, speech)


async def test_a_recording_replaced_in_mid_download_is_read_anew_and_never_mixed(
    site: Site, start_worker: StartWorker, speech: Path, five_minutes: Path
) -> None:
    async def cut_and_replace(strike: Strike) -> Reply:
        reply = await cut_body(0.5)(strike)
        await site.put_recordings({KEY: speech})
        return reply

    worker = await start_worker(site, **_SHORT_WAITS)
    await worker.wait_for("worker_started")
    await site.put_recordings({KEY: five_minutes})
    with site.gateway.fault("minio", "GetObject", cut_and_replace, times=1, where=_is_of_it):
        await site.send(site.job(KEY))
        [done] = await worker.wait_for("job_succeeded")
    assert done["receive_count"] == 1
    assert [call.served_status for call in _reads(site)] == [200, 412, 200]
    await _is_whole(site, speech)


async def test_a_missing_recording_is_asked_for_once_and_ends_as_a_dead_letter(
    site: Site, start_worker: StartWorker
) -> None:
    await site.send(site.job(KEY))
    worker = await start_worker(site, "--once")
    assert await worker.wait() == 4
    [letter] = await site.take_dead_letters()
    told = letter.attributes
    assert (told["failure"], told["code"], told["receive_count"]) == ("permanent", "source_missing", "1")
    assert [call.served_status for call in _reads(site)] == [404]


def _reads(site: Site) -> list[Call]:
    return [call for call in site.history.of("minio", "GetObject") if _is_of_it(call)]


async def _is_whole(site: Site, recording: Path) -> None:
    """The one result is that of these bytes, and the message is gone."""
    await wait_until(site.is_drained, what="the message to be deleted")
    manifest: Any = await verified(site, KEY)
    assert manifest["recording"]["source_sha256"] == hashlib.sha256(recording.read_bytes()).hexdigest()
    assert manifest["recording"]["truncated"] is False
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
