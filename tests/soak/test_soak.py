"""Thousands of jobs under random faults: nothing lost, nothing visible twice, nothing left over.

`tox -e soak` runs it long; without more it is short. STT_TEST_SOAK_JOBS and STT_TEST_SOAK_SEED say how many jobs and
which faults; STT_TEST_SOAK_JSON names a file to which the figures go, as a line.
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
from tests.soak.jobs import SOURCE_LATENCY_S, Commits, cuttings, reached
from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import delay
from tests.support.site import OpenSite, Site
from tests.support.sqs.fixture import OpenSqs
from tests.support.sqs.queue import Skew
from tests.support.waiting import wait_until

JOBS = int(os.environ.get("STT_TEST_SOAK_JOBS", "150"))
SEED = int(os.environ.get("STT_TEST_SOAK_SEED") or secrets.randbits(32))

WORKERS = 3
VISIBILITY_TIMEOUT_S = 10
JOBS_A_FAULT = 20
SKEW = Skew(twice=0.01, late=0.01, late_s=2.0)
"""What a standard queue does besides: it delivers a message twice at once, or late."""
MEASURED_SHARE = 0.95
"""The last jobs wait for the visibility timeouts of those that were killed: they are done, but not timed."""
VERIFIED = 50
"""Outputs that are decoded and held against their manifests; the invariants are checked for all."""

_WORKER = {
    "STT_PROCESSES": "1",
    "STT_SLOTS": str(SLOTS),
    "STT_DOWNLOADS": "2",
    "STT_RETRY_MAX_WAIT_S": "0.5",
    "STT_DRAIN_TIMEOUT_S": "5",
}


@dataclass(frozen=True)
class Figures:
    """What came of a run."""

    seed: int
    jobs: int
    faults: int
    workers_lost: int
    deliveries: int
    lost: int
    visible_twice: int
    orphans: int
    jobs_s: float
    """Jobs done in a second, by all workers."""
    away_share: float
    """Part of the workers' time that the faults took away: frozen, dying, gone, starting, held up."""
    jobs_s_of_a_worker: float
    """Jobs done in a second by a worker while it was there."""
    open_files: tuple[int, int]
    """Of a worker that lived all the time: early, and at the end."""
    memory_bytes: tuple[int, int]


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_nothing_is_lost_and_nothing_visible_twice_whatever_befalls_the_workers(
    open_sqs: OpenSqs, open_site: OpenSite, start_worker: StartWorker, speech: Path
) -> None:
    print(f"\nseed: {SEED}")  # noqa: T201 - shown when the test fails, or with -s

    async def site(skew: Skew) -> Site:
        queues = await open_sqs(skew=skew, seed=SEED)
        return await open_site(visibility_timeout_s=VISIBILITY_TIMEOUT_S, queues_url=queues.url)

    calm = await _soak(await site(Skew()), start_worker, speech, JOBS // 2, [])
    plan = [drawn(random.Random(f"{SEED}-{n}")) for n in range(JOBS // JOBS_A_FAULT)]  # noqa: S311 - no secret
    rough = await _soak(await site(SKEW), start_worker, speech, JOBS, plan)
    _tell(calm, rough)
    assert (rough.lost, rough.visible_twice, rough.orphans) == (0, 0, 0)


async def _soak(site: Site, start_worker: StartWorker, speech: Path, count: int, plan: list[RandomFault]) -> Figures:
    rng = random.Random(SEED)  # noqa: S311 - no secret
    recordings = cuttings(speech, rng)
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
        await reached(commits, count // 5)
        early = fleet.usage()
        async with asyncio.TaskGroup() as befalling:
            for number, fault in enumerate(plan):
                # By the time that the last one strikes there is still work that it can strike.
                await reached(commits, int(number * JOBS_A_FAULT * 0.9))
                befalling.create_task(fault(scene))
        await reached(commits, int(count * MEASURED_SHARE))
        elapsed_s, away_s = time.monotonic() - began_s, fleet.away_s
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
            away_share=away_s / worker_s,
            jobs_s_of_a_worker=count * MEASURED_SHARE / (worker_s - away_s),
            open_files=(early.open_files, late.open_files),
            memory_bytes=(early.memory_bytes, late.memory_bytes),
        )


async def _orphans(site: Site, jobs: list[dict[str, Any]], rng: random.Random) -> int:
    """How many objects no manifest lists; on the way, some outputs are looked at closely."""
    for job in rng.sample(jobs, min(VERIFIED, len(jobs))):
        await verified(site, job["source_key"])
    listed = {
        f"{prefix}/{name}"
        for prefix, manifest in (await site.manifests()).items()
        for name in ["metadata.json", *(segment["filename"] for segment in manifest["segments"])]
    }
    return sum(not key.startswith("failures/") for key in (await site.objects()).keys() - listed)


def _tell(calm: Figures, rough: Figures) -> None:
    table = [f"{name:20} {asdict(calm)[name]!s:>28} {value!s:>28}" for name, value in asdict(rough).items()]
    ratio = rough.jobs_s_of_a_worker / calm.jobs_s_of_a_worker
    table.append(f"throughput under faults, of what it is without, by worker and second: {ratio:.2f}")
    print("\n".join(table))  # noqa: T201 - this is what a soak is run for
    if file := os.environ.get("STT_TEST_SOAK_JSON"):
        line = orjson.dumps({"calm": asdict(calm), "rough": asdict(rough), "throughput_ratio": ratio})
        with Path(file).open("ab") as lines:
            lines.write(line + b"\n")
