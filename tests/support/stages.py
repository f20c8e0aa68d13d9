"""Jobs held in the middle of a stage, so that a test can disturb their worker there."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest_asyncio

from tests.support.children import splitting
from tests.support.commands import StartWorker, Worker
from tests.support.evidence.history import Call
from tests.support.faults.calls import hold_before, hold_body
from tests.support.faults.gateway import Rule
from tests.support.site import Site
from tests.support.waiting import wait_until

Layout = Literal["objects", "tar"]

KEY = "held.wav"
"""The recording whose job is held, unless a test names others."""

STAGE_KEYS = ("download.wav", "upload.wav", "split.wav")


@dataclass(frozen=True)
class Held:
    """A worker with jobs in mid-stage."""

    worker: Worker
    rules: Mapping[str, Rule]
    """What holds each job, by key."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Settings with which another worker makes the same output."""
    stopped_child: int | None = None
    """The child that splits, if one does."""

    def resume(self, *keys: str) -> None:
        """Let the jobs of these keys continue, or all of them."""
        for key in keys or self.rules:
            self.rules[key].lift()

    def resume_child(self) -> None:
        """Let the split continue."""
        assert self.stopped_child is not None
        with suppress(ProcessLookupError):
            os.kill(self.stopped_child, signal.SIGCONT)


HoldJob = Callable[..., Awaitable[Held]]
HoldStages = Callable[..., Awaitable[Held]]


@pytest_asyncio.fixture
async def hold_job(start_worker: StartWorker, five_minutes: Path) -> AsyncIterator[HoldJob]:
    """A function that starts a worker and holds a job in mid-download: `await hold_job(site, "a.wav", "b.wav")`."""
    held: list[Held] = []

    async def hold(site: Site, *keys: str, **variables: str) -> Held:
        worker = await start_worker(site, **variables)
        await worker.wait_for("worker_started")
        await site.put_recordings(dict.fromkeys(keys or (KEY,), five_minutes))
        held.append(Held(worker, {key: hold_download(site, key) for key in keys or (KEY,)}))
        for key, rule in held[-1].rules.items():
            await site.send(site.job(key))
            await rule.has_struck()
        return held[-1]

    yield hold
    for each in held:
        each.resume()


@pytest_asyncio.fixture
async def hold_stages(start_worker: StartWorker, five_minutes: Path, an_hour: Path) -> AsyncIterator[HoldStages]:
    """A function that starts a worker and holds a job in each stage: `await hold_stages(site, "tar")`.

    The jobs are those of `STAGE_KEYS`. The child that splits is stopped by SIGSTOP.
    """
    held: list[Held] = []

    async def hold(site: Site, layout: Layout, *, scratch: Path | None = None, **variables: str) -> Held:
        output = {"STT_LAYOUT": layout, "STT_FORMAT": "wav", "STT_MULTIPART_CHUNKSIZE_BYTES": str(5 * 1024**2)}
        download, upload, split = STAGE_KEYS
        await site.put_recordings({download: five_minutes, upload: five_minutes, split: an_hour})
        worker = await start_worker(site, scratch=scratch, STT_PROCESSES="2", **output, **variables)
        await worker.wait_for("worker_started")  # preflight, too, downloads from the source
        await site.send(site.job(split))
        (child,) = await wait_until(
            lambda: splitting(worker, source_bytes=an_hour.stat().st_size), what="the split to start"
        )
        os.kill(child, signal.SIGSTOP)
        rules = {download: hold_download(site, download), upload: _hold_upload(site, upload, layout)}
        held.append(Held(worker, rules, output, child))
        for key, rule in rules.items():
            await site.send(site.job(key))
            await rule.has_struck()
        if layout == "tar":
            assert len(await site.open_uploads()) == 1
        return held[-1]

    yield hold
    for each in held:
        each.resume()
        each.resume_child()


def hold_download(site: Site, key: str) -> Rule:
    """Hold the next download of a recording after a fifth of its bytes."""
    return site.gateway.fault("minio", "GetObject", hold_body(0.2), where=lambda call: call.key == key, times=1)


def segments_put(site: Site, key: str, *, sender: str | None = None) -> list[Call]:
    """The segments (or small tars) of a recording that were stored, by one worker or by all."""
    puts = site.history.of("s3", "PutObject", sender=sender)
    return [call for call in puts if call.served and call.key.startswith(f"{key}/segment")]


def _hold_upload(site: Site, key: str, layout: Layout) -> Rule:
    """Hold all segments but one, or all parts of a tar but one."""
    passed: set[Call] = set()

    def is_held(call: Call) -> bool:
        if not call.key.startswith(f"{key}/segment"):
            return False
        if not passed:
            passed.add(call)
        return call not in passed

    return site.gateway.fault("s3", "UploadPart" if layout == "tar" else "PutObject", hold_before, where=is_held)
