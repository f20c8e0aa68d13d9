"""A job held in the middle of a stage, so that something can befall its worker there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pytest_asyncio

from tests.support.commands import StartWorker, Worker
from tests.support.faults.proxy import OpenProxy, Proxy
from tests.support.site import Site
from tests.support.waiting import wait_until

Stage = Literal["download", "split", "upload of objects", "upload of a tar"]
STAGES: list[Stage] = list(get_args(Stage))

KEY = "held.wav"
"""Of the recording whose job is held."""


@dataclass(frozen=True)
class Held:
    """A worker in mid-job."""

    worker: Worker
    minio: Proxy
    s3: Proxy
    variables: dict[str, str]
    """What another worker needs to make the same output."""

    def let_go(self) -> None:
        """Let the job go on."""
        self.minio.release()
        self.s3.release()

    async def take_away(self) -> None:
        """End the worker's connections, as the end of its machine does."""
        await self.minio.refuse()
        await self.s3.refuse()


HoldJob = Callable[..., Awaitable[Held]]


@pytest_asyncio.fixture
async def hold_job(
    start_worker: StartWorker, open_proxy: OpenProxy, five_minutes: Path, an_hour: Path
) -> AsyncIterator[HoldJob]:
    """A function that starts a worker and waits until its job is in mid-stage: `await hold_job(site, "download")`.

    There it stays until it is let go; a split cannot be held, but lasts for seconds.
    """
    held: list[Held] = []

    async def hold(site: Site, stage: Stage, *, scratch: Path | None = None, **variables: str) -> Held:
        minio = await open_proxy(site.services.servers.objects.url)
        s3 = await open_proxy(site.services.servers.objects.url)
        output = {
            "STT_LAYOUT": "tar" if stage == "upload of a tar" else "objects",
            "STT_FORMAT": "wav",
            "STT_MULTIPART_CHUNKSIZE_BYTES": str(5 * 1024**2),
        }
        await site.put_recordings({KEY: an_hour if stage == "split" else five_minutes})
        through = {"STT_MINIO_ENDPOINT": minio.endpoint, "AWS_ENDPOINT_URL_S3": s3.url}
        worker = await start_worker(site, scratch=scratch, **through, **output, **variables)
        held.append(Held(worker, minio, s3, output))
        await worker.wait_for("worker_started")
        if stage == "download":
            minio.hold("down", after=500_000)
        elif stage != "split":
            s3.hold("up", after=1_000_000)
        await site.send(site.job(KEY))
        if stage == "split":
            await wait_until(lambda: list(worker.scratch.glob("worker-*/job-*/out")), what="the split to be begun")
        else:
            await wait_until((minio if stage == "download" else s3).holding.is_set, what=f"the {stage} to be held")
        if stage == "upload of a tar":
            assert len(await site.open_uploads()) == 1
        return held[-1]

    yield hold
    for each in held:
        each.let_go()
