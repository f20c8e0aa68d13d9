"""A worker that dies at once, as on a Spot instance taken away: others do its jobs, and nothing is left."""

import random
import secrets
import signal
from pathlib import Path

import pytest

from tests.support.commands import StartWorker
from tests.support.outputs import verified
from tests.support.proxy import OpenProxy
from tests.support.site import Counts, OpenSite
from tests.support.stages import KEY, STAGES, HoldJob, Stage
from tests.support.waiting import wait_until

_VISIBILITY_TIMEOUT_S = 3
_JOBS = 30


@pytest.mark.parametrize("stage", STAGES)
async def test_killed_in_mid_job_another_worker_does_it_and_nothing_is_left(
    open_site: OpenSite, start_worker: StartWorker, hold_job: HoldJob, tmp_path: Path, stage: Stage
) -> None:
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    scratch = tmp_path / "scratch"
    held = await hold_job(site, stage, scratch=scratch)
    held.worker.kill()
    assert await held.worker.wait() == -signal.SIGKILL
    await held.take_away()
    await wait_until(held.worker.is_all_gone, what="the pool processes of the killed worker to end")
    assert await site.manifests() == {}

    heir = await start_worker(site, scratch=scratch, **held.variables)
    (done,) = await heir.wait_for("job_succeeded")
    assert done["receive_count"] == 2
    await wait_until(site.is_drained, what="the message to be deleted")
    await verified(site, KEY)
    assert await site.open_uploads() == []
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    heir.signal(signal.SIGTERM)
    assert await heir.wait() == 0
    assert not list(scratch.iterdir())


async def test_one_of_two_workers_killed_at_a_random_moment_loses_nothing(
    open_site: OpenSite, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path
) -> None:
    seed = secrets.randbits(32)
    print(f"seed: {seed}")  # noqa: T201 - shown when the test fails
    jobs_before = random.Random(seed).randrange(_JOBS // 2)  # noqa: S311 - a moment, not a secret
    site = await open_site(visibility_timeout_s=_VISIBILITY_TIMEOUT_S)
    proxy = await open_proxy(site.services.servers.objects.url)
    proxy.delay_s = 0.02  # jobs last longer than a look at the log
    keys = [f"{number:02d}.wav" for number in range(_JOBS)]
    await site.put_recordings(dict.fromkeys(keys, speech))
    variables = {
        "STT_PROCESSES": "1",
        "STT_SLOTS": "3",
        "STT_MINIO_ENDPOINT": proxy.endpoint,
        "AWS_ENDPOINT_URL_S3": proxy.url,
    }
    victim, survivor = [await start_worker(site, **variables) for _ in range(2)]
    for worker in (victim, survivor):
        await worker.wait_for("worker_started")
    for key in keys:
        await site.send(site.job(key))
    # Whatever the other one did: when that many are done, it dies, busy or not.
    await wait_until(
        lambda: len(victim.events("job_succeeded") + survivor.events("job_succeeded")) >= jobs_before,
        what=f"{jobs_before} jobs to be done",
    )
    victim.kill()
    await victim.wait()
    await wait_until(site.is_drained, what="all jobs to be done", timeout_s=60)
    await wait_until(victim.is_all_gone, what="the pool processes of the killed worker to end")

    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    assert set(await site.manifests()) == set(keys)
    for key in keys:
        await verified(site, key)
