"""While the pool is busy, other jobs come in and go out: read from the times that the log recorded."""

from pathlib import Path
from typing import Any

from tests.support.commands import StartWorker
from tests.support.proxy import OpenProxy
from tests.support.site import Site

_JOBS = 8


async def test_downloads_and_uploads_of_other_jobs_run_while_the_pool_is_busy(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, five_minutes: Path
) -> None:
    proxy = await open_proxy(site.services.servers.objects.url)
    keys = [f"{number}.wav" for number in range(_JOBS)]
    await site.put_recordings(dict.fromkeys(keys, five_minutes))
    for key in keys:
        await site.send(site.job(key))
    proxy.delay_s = 0.005  # the network as slow as the pool, about
    worker = await start_worker(
        site,
        "--once",
        STT_PROCESSES="1",
        STT_DOWNLOADS="2",
        STT_MINIO_ENDPOINT=proxy.endpoint,
        AWS_ENDPOINT_URL_S3=proxy.url,
    )
    assert await worker.wait() == 0

    stages = [line["stages"] for line in worker.events("job_succeeded")]
    assert len(stages) == _JOBS
    assert _overlaps(stages, "split", "split") == 0  # one process: the times are true
    assert _overlaps(stages, "split", "fetch") > 0
    assert _overlaps(stages, "split", "put") > 0


def _overlaps(jobs: list[Any], stage: str, other_stage: str) -> int:
    """How many pairs there are of one job in `stage` and another in `other_stage` at the same time."""
    pairs = [(job[stage], other[other_stage]) for job in jobs for other in jobs if job is not other]
    return sum(start < other_end and other_start < end for (start, end), (other_start, other_end) in pairs)
