"""Scenario F38: workers are restarted one after the other while they have jobs; one is ten times slower."""

import signal
from pathlib import Path

import pytest

from tests.support.commands import StartWorker, Worker
from tests.support.evidence.outputs import verified
from tests.support.faults.proxy import OpenProxy
from tests.support.site import Counts, Site
from tests.support.waiting import wait_until

_JOBS_A_PHASE = 40
_SLOW_S = 0.1
"""For each 32 KiB to and from the slow worker: its jobs take several seconds."""


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_rolling_restart_loses_no_job_and_repeats_almost_none(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path
) -> None:
    slow = await open_proxy(site.services.servers.objects.url)
    slow.delay_s = _SLOW_S
    to_slow = {"STT_MINIO_ENDPOINT": slow.endpoint, "AWS_ENDPOINT_URL_S3": slow.url}
    workers: list[Worker] = []

    async def start(**variables: str) -> Worker:
        workers.append(await start_worker(site, STT_PROCESSES="1", STT_SLOTS="4", **variables))
        return workers[-1]

    async def restart(old: Worker, **variables: str) -> None:
        """Stop a busy worker, and start another in its place."""
        ends = len(old.events("job_succeeded")) + 2
        await old.wait_for("job_succeeded", count=ends, timeout_s=100)
        old.signal(signal.SIGTERM)
        new = await start(**variables)
        assert await old.wait(timeout_s=150) == 0
        await new.wait_for("worker_started")  # or the other one may do all jobs before

    keys: list[str] = []

    async def send_more() -> None:
        more = [f"{number:03d}.wav" for number in range(len(keys), len(keys) + _JOBS_A_PHASE)]
        await site.put_recordings(dict.fromkeys(more, speech))
        for key in more:
            await site.send(site.job(key))
        keys.extend(more)

    first_fast, first_slow = await start(), await start(**to_slow)
    for worker in (first_fast, first_slow):
        await worker.wait_for("worker_started")
    await send_more()
    await restart(first_fast)
    await send_more()
    await restart(first_slow, **to_slow)
    await send_more()
    await wait_until(site.is_drained, what="all jobs to be done", timeout_s=200)

    assert set(await site.manifests()) == set(keys)
    for key in keys[::10]:
        await verified(site, key)
    segments = [call for call in site.history.of("s3", "PutObject") if "/segment_" in call.key]
    computed = {(call.sender, call.key.split("/")[0]) for call in segments}
    assert len(computed) - len(keys) < 0.01 * len(keys)
    assert all(worker.events("job_succeeded") for worker in workers)
    assert not any(worker.events("job_retried") for worker in workers)
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
