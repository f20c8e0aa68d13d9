"""Scenarios F13, F14, F16-F18 and F20 with a real worker: a job has the whole recording, whatever its download meets.

What the client of the source does in each case, a stall and a drip among them, is in test_downloads.py.
"""

import hashlib
from functools import partial
from pathlib import Path

from tests.support.commands import StartWorker
from tests.support.evidence.history import Call
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import cut_body, flip_bit, reset, short_body
from tests.support.faults.gateway import Reply, Strike
from tests.support.site import Site
from tests.support.waiting import wait_until

_REPLACED, _MISSING, _FROM_S3 = "replaced.wav", "missing.wav", "cut-from-s3.wav"


async def test_spoilt_downloads_end_whole_within_their_jobs(
    site: Site, start_worker: StartWorker, speech: Path, five_minutes: Path
) -> None:
    async def cut_and_replace(strike: Strike) -> Reply:
        reply = await cut_body(0.5)(strike)
        await site.put_recordings({_REPLACED: speech})
        return reply

    # The fault, how often it strikes, and the status that the server answers from then on.
    cases = {
        "cut.wav": (cut_body(0.5), 1, [206]),
        _FROM_S3: (cut_body(0.5), 1, [206]),
        "short.wav": (short_body(0.5), 2, [200]),
        "flipped.wav": (flip_bit, 1, [200]),
        "reset.wav": (reset, 6, [200]),
        _REPLACED: (cut_and_replace, 1, [412, 200]),
    }
    worker = await start_worker(site, STT_RETRY_MAX_WAIT_S="0.2")
    await worker.wait_for("worker_started")
    await site.put_recordings({key: five_minutes if key == _REPLACED else speech for key in cases})
    rules = {
        key: site.gateway.fault(
            "s3" if key == _FROM_S3 else "minio",
            "GetObject",
            fault,
            times=times,
            where=partial(_is_download, site, key),
        )
        for key, (fault, times, _) in cases.items()
    }
    for key in [*cases, _MISSING]:
        await site.send(site.job(key, source_type="s3" if key == _FROM_S3 else "minio"))
    done = await worker.wait_for("job_succeeded", count=len(cases))
    await wait_until(site.is_drained, what="all messages to be deleted")
    assert {line["receive_count"] for line in done} == {1}
    assert worker.events("job_crashed") == []
    sha256 = hashlib.sha256(speech.read_bytes()).hexdigest()
    for key, (_, times, statuses) in cases.items():
        assert rules[key].struck == times, key
        assert [call.served_status for call in _downloads(site, key)][times:] == statuses, key
        recording = (await verified(site, key))["recording"]
        assert (recording["source_sha256"], recording["truncated"]) == (sha256, False), key

    [letter] = await site.take_dead_letters()
    reason = letter.attributes
    assert (reason["failure"], reason["code"], reason["receive_count"]) == ("permanent", "source_missing", "1")
    assert [call.served_status for call in _downloads(site, _MISSING)] == [404]


def _is_download(site: Site, key: str, call: Call) -> bool:
    return (call.operation, call.bucket, call.key) == ("GetObject", site.services.source_bucket, key)


def _downloads(site: Site, key: str) -> list[Call]:
    return [call for call in site.history.calls if _is_download(site, key, call)]
