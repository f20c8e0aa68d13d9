"""Transfers while the pool is busy, and uploads of tars in parts: read from the log's times and the gateway's calls."""

from pathlib import Path
from typing import Any

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import delay
from tests.support.site import Site

_PART_BYTES = 5 * 1024**2  # the least that S3 allows
_TRANSFER_S = 0.5  # about as long as the split of five minutes


async def test_jobs_transfer_while_the_pool_is_busy_and_large_tars_in_parts(
    site: Site, start_worker: StartWorker, five_minutes: Path, speech: Path
) -> None:
    long = [f"{number}.wav" for number in range(4)]
    await site.put_recordings(dict.fromkeys(long, five_minutes) | {"short.wav": speech})
    for key in (*long, "short.wav"):
        await site.send(site.job(key))
    site.gateway.fault("minio", "GetObject", delay(_TRANSFER_S))
    site.gateway.fault("s3", "UploadPart", delay(_TRANSFER_S))
    worker = await start_worker(
        site,
        "--once",
        STT_PROCESSES="1",
        STT_DOWNLOADS="2",
        STT_LAYOUT="tar",
        STT_FORMAT="wav",
        STT_MULTIPART_CHUNKSIZE_BYTES=str(_PART_BYTES),
    )
    assert await worker.wait(timeout_s=200) == 0

    jobs = [line["stages"] for line in worker.events("job_succeeded")]
    assert len(jobs) == len(long) + 1
    assert _overlaps(jobs, "split", "split") == 0  # the only pool process runs one split at a time
    assert _overlaps(jobs, "split", "fetch") > 0
    assert _overlaps(jobs, "split", "put") > 0

    manifest = await verified(site, long[0])
    parts = [call for call in site.history.of("s3", "UploadPart") if call.key.startswith(f"{long[0]}/segments-")]
    count = -(-manifest["archive"]["bytes"] // _PART_BYTES)
    assert count >= 2
    assert sorted(int(call.query["partNumber"]) for call in parts) == list(range(1, count + 1))
    await verified(site, "short.wav")
    puts = site.history.of("s3", "PutObject")
    assert len([call for call in puts if call.key.startswith("short.wav/segments-")]) == 1
    assert await site.open_uploads() == []


def _overlaps(jobs: list[Any], stage: str, other_stage: str) -> int:
    """Count the pairs of one job in `stage` and another in `other_stage` at the same time."""
    pairs = [(job[stage], other[other_stage]) for job in jobs for other in jobs if job is not other]
    return sum(start < other_end and other_start < end for (start, end), (other_start, other_end) in pairs)
