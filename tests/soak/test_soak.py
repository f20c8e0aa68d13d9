"""Thousands of jobs under random faults: none is lost, none is committed twice, no orphan is left.

`tox -e soak` runs many jobs, `bin/test slow` a few. STT_TEST_SOAK_JOBS sets their number, STT_TEST_SOAK_SEED chooses
the faults; STT_TEST_SOAK_JSON names a file to which the figures are appended as one line.
"""

import asyncio
import os
import random
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.soak.faults import RandomFault, Scene, drawn
from tests.soak.fleet import SLOTS, Fleet
from tests.soak.jobs import SOURCE_LATENCY_S, Commits, excerpts, wait_for_commits
from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.fakes.sqs import OpenSqs, Skew
from tests.support.faults.calls import delay
from tests.support.site import OpenSite, Site
from tests.support.waiting import wait_until

JOBS = int(os.environ.get("STT_TEST_SOAK_JOBS", "150"))
SEED = int(os.environ.get("STT_TEST_SOAK_SEED") or secrets.randbits(32))

WORKERS = 3
VISIBILITY_TIMEOUT_S = 10
JOBS_A_FAULT = 20
SKEW = Skew(twice=0.01, late=0.01, late_s=2.0)
"""A standard queue delivers some messages twice at once, and some late."""
MEASURED_SHARE = 0.95
"""The last jobs, of killed workers, wait for their visibility timeouts: they are done, but not timed."""
VERIFIED = 50
"""Outputs that are decoded and compared with their manifests; the invariants are checked for all."""

_WORKER = {
    "STT_PROCESSES": "1",
    "STT_SLOTS": str(SLOTS),
    "STT_DOWNLOADS": "2",
    "STT_RETRY_MAX_WAIT_S": "0.5",
    "STT_DRAIN_TIMEOUT_S": "5",
}


@dataclass(frozen=True)
class Figures:
    """The results of a run."""

    seed: int
    jobs: int
    faults: int
    workers_lost: int
    deliveries: int
    lost: int
    visible_twice: int
    orphans: int
    jobs_s: float
    """Jobs per second, of all workers."""
    downtime_share: float
    """Share of the workers' time that the faults took: frozen, ending, missing, starting or delayed."""
    jobs_s_of_a_worker: float
    """Jobs per second of one worker, without its downtime."""
    open_files: tuple[int, int]
    """Of the worker that no fault harms: early, and at the end."""
    memory_bytes: tuple[int, int]


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_workers_under_random_faults_lose_nothing_and_commit_once(
    open_sqs: OpenSqs, open_site: OpenSite, start_worker: StartWorker, speech: Path
) -> None:
    print(f"\nseed: {SEED}")  # noqa: T201 - shown when the test fails, or with -s

    async def site(skew: Skew) -> Site:
        queues = await open_sqs(skew=skew, seed=SEED)
        return await open_site(visibility_timeout_s=VISIBILITY_TIMEOUT_S, queues_url=queues.url)

    calm = await _soak(await site(Skew()), start_worker, speech, JOBS // 2, [])
    plan = [drawn(random.Random(f"{SEED}-{n}")) for n in range(JOBS // JOBS_A_FAULT)]  # noqa: S311 - no secret
    rough = await _soak(await site(SKEW), start_worker, speech, JOBS, plan)
    _print(calm, rough)
    assert (rough.lost, rough.visible_twice, rough.orphans) == (0, 0, 0)


async def _soak(site: Site, start_worker: StartWorker, speech: Path, count: int, plan: list[RandomFault]) -> Figures:
    rng = random.Random(SEED)  # noqa: S311 - no secret
    recordings = excerpts(speech, rng)
    jobs = [site.job(f"{number:05d}.wav") for number in range(count)]
    await site.put_recordings({job["source_key"]: rng.choice(recordings) for job in jobs})
    site.gateway.fault("minio", "GetObject", delay(SOURCE_LATENCY_S))
    commits = Commits(site.gateway)
    async with Fleet(site, start_worker, _WORKER) as fleet:
        await fleet.start(WORKERS)
        began_s = time.monotonic()
        for job in jobs:
            await site.send(job)
        scene = Scene(site, fleet, jobs, rng)
        await wait_for_commits(commits, count // 5)
        early = fleet.usage()
        async with asyncio.TaskGroup() as faults:
            for number, fault in enumerate(plan):
                # Early enough that the last fault still finds jobs.
                await wait_for_commits(commits, int(number * JOBS_A_FAULT * 0.9))
                faults.create_task(fault(scene))
        await wait_for_commits(commits, int(count * MEASURED_SHARE))
        elapsed_s, downtime_s = time.monotonic() - began_s, fleet.downtime_s
        await wait_until(site.is_drained, what="all messages to be deleted", timeout_s=120)
        late = fleet.usage()
        await fleet.stop()
        worker_s = elapsed_s * WORKERS
        return Figures(
            seed=SEED,
            jobs=count,
            faults=len(plan),
            workers_lost=fleet.lost,
            deliveries=sum(len(call.messages) for call in site.history.of("sqs", "ReceiveMessage")),
            lost=count - commits.count() + (await site.dead_letter_counts()).visible,
            visible_twice=sum(times > 1 for times in commits.by_key.values()),
            orphans=await _orphans(site, jobs, rng),
            jobs_s=count * MEASURED_SHARE / elapsed_s,
            downtime_share=downtime_s / worker_s,
            jobs_s_of_a_worker=count * MEASURED_SHARE / (worker_s - downtime_s),
            open_files=(early.open_files, late.open_files),
            memory_bytes=(early.memory_bytes, late.memory_bytes),
        )


async def _orphans(site: Site, jobs: list[dict[str, Any]], rng: random.Random) -> int:
    """Verify some outputs, and return the number of objects that no manifest lists."""
    for job in rng.sample(jobs, min(VERIFIED, len(jobs))):
        await verified(site, job["source_key"])
    listed = {
        f"{prefix}/{name}"
        for prefix, manifest in (await site.manifests()).items()
        for name in ["metadata.json", *(segment["filename"] for segment in manifest["segments"])]
    }
    return sum(not key.startswith("failures/") for key in (await site.objects()).keys() - listed)


def _print(calm: Figures, rough: Figures) -> None:
    table = [f"{name:20} {asdict(calm)[name]!s:>28} {value!s:>28}" for name, value in asdict(rough).items()]
    ratio = rough.jobs_s_of_a_worker / calm.jobs_s_of_a_worker
    table.append(f"throughput of a worker under faults, as a share of that without: {ratio:.2f}")
    print("\n".join(table))  # noqa: T201 - the result of a soak
    if file := os.environ.get("STT_TEST_SOAK_JSON"):
        line = orjson.dumps({"calm": asdict(calm), "rough": asdict(rough), "throughput_ratio": ratio})
        with Path(file).open("ab") as lines:
            lines.write(line + b"\n")
