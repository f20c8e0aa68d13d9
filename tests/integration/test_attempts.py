"""Attempts of the split pipeline on real servers: failure records, the lease at the commit, estimates."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
import soundfile

from stt_async import settings
from stt_async.errors import LeaseLostError, WorkerLostError
from stt_async.params import SplitLimits, SplitParams
from stt_async.services.connections import Connections, connect, daemon_retry
from stt_async.services.queue import Message
from stt_async.worker.estimates import Estimates
from stt_async.worker.lease import Leases
from stt_async.worker.pipeline import SplitPipeline
from stt_async.worker.pool import TimedSplit, open_pool
from stt_async.worker.scratch import open_scratch
from stt_async.worker.settlement import Outcome
from tests.support.site import Site

VISIBILITY_TIMEOUT_S = 30


@dataclass
class LethalPool:
    """A pool whose child dies at every job. `runs` records how each job was run."""

    runs: list[str] = field(default_factory=list)

    async def split(self, *_: object) -> TimedSplit:
        return self._die("beside others")

    async def split_alone(self, *_: object) -> TimedSplit:
        return self._die("alone")

    def _die(self, run: str) -> TimedSplit:
        self.runs.append(run)
        raise WorkerLostError("child_died", "the process that split this recording ended with exit code -9")


@pytest_asyncio.fixture
async def services(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connections]:
    for name, value in site.environment().items():
        monkeypatch.setenv(name, value)
    async with connect(ours := settings.load(), daemon_retry(ours)) as connections:
        yield connections


@pytest_asyncio.fixture
async def pipeline(services: Connections, site: Site, tmp_path: Path) -> AsyncIterator[SplitPipeline]:
    async with AsyncExitStack() as stack:
        yield SplitPipeline(
            source=services.source,
            sink=services.sink,
            failure_records=services.failure_records,
            pool=await stack.enter_async_context(open_pool(settings.load(processes=1))),
            scratch=stack.enter_context(open_scratch(tmp_path / "scratch", None)),
            params=SplitParams(),
            limits=SplitLimits(),
            output_bucket=site.services.output_bucket,
            source_buckets=frozenset({site.services.source_bucket}),
            estimates=Estimates(SplitLimits()),
        )


def _with_lethal_pool(pipeline: SplitPipeline) -> tuple[SplitPipeline, LethalPool]:
    pool = LethalPool()
    return SplitPipeline(**{name: getattr(pipeline, name) for name in pipeline.__slots__} | {"pool": pool}), pool


async def attempt(
    pipeline: SplitPipeline, site: Site, number: int, *, key: str = "speech.wav", age_s: float = 0.0
) -> Outcome:
    """Run the job of a recording as if its message was received `number` times, the last time `age_s` ago."""
    body = f'{{"job_id": "split-1", "raw_audio_path": "{site.services.source_bucket}/{key}", "output_prefix": "{key}"}}'
    message = Message("message-1", "handle", body, number, time.monotonic() - age_s)
    async with Leases(cast("Any", None), VISIBILITY_TIMEOUT_S).hold(message) as lease:
        return await pipeline.run(lease)


async def test_job_that_lost_its_process_runs_alone_and_lists_all_attempts(
    pipeline: SplitPipeline, site: Site, speech: Path
) -> None:
    await site.put_recordings({"speech.wav": speech})
    rubbish = [b"", b"<html>", b"[1, 2]", b'{"attempt": 1}']  # objects that are no failure records are ignored
    notes = {f"failures/split-1/note-{number}.json": body for number, body in enumerate(rubbish)}
    for key, body in notes.items():
        await site.s3.put_object(Bucket=site.services.output_bucket, Key=key, Body=body)
    lethal, pool = _with_lethal_pool(pipeline)
    for number in range(1, 6):
        with pytest.raises(WorkerLostError) as caught:
            await attempt(lethal, site, number)
    assert pool.runs == ["beside others", "alone", "alone", "alone", "alone"]
    for number in range(1, 5):
        assert f"attempt {number} child_died on " in caught.value.message
    records = (await site.objects("failures/split-1/")).keys() - notes.keys()
    assert records == {f"failures/split-1/{number}.json" for number in range(1, 6)}
    await attempt(pipeline, site, 6)
    assert (await site.manifests())["speech.wav"]["status"] == "ok"


async def test_last_receive_run_again_after_an_outage_ignores_its_own_failure_record(
    pipeline: SplitPipeline, site: Site, speech: Path
) -> None:
    await site.put_recordings({"speech.wav": speech})
    lethal, pool = _with_lethal_pool(pipeline)
    for _ in range(2):
        with pytest.raises(WorkerLostError) as caught:
            await attempt(lethal, site, 5)
    assert pool.runs == ["beside others", "beside others"]
    assert "attempt" not in caught.value.message


async def test_first_attempt_records_its_cost_and_no_failure(
    pipeline: SplitPipeline, site: Site, tmp_path: Path
) -> None:
    quiet = tmp_path / "quiet.flac"  # of a low bit rate: its PCM is far larger than its source
    soundfile.write(quiet, np.zeros(60 * 16_000, np.int16), 16_000)
    await site.put_recordings({"quiet.flac": quiet})
    await attempt(pipeline, site, 1, key="quiet.flac")
    used_bytes = 60 * 16_000 * 2 + quiet.stat().st_size
    assert pipeline.estimates.scratch_bytes_needed("next.flac", quiet.stat().st_size) >= used_bytes - 1
    assert not await site.objects("failures/")


async def test_job_does_not_commit_when_its_lease_may_end_first(
    pipeline: SplitPipeline, site: Site, speech: Path
) -> None:
    await site.put_recordings({"speech.wav": speech})
    with pytest.raises(LeaseLostError):
        await attempt(pipeline, site, 1, age_s=VISIBILITY_TIMEOUT_S * 0.95)
    assert not await site.manifests()
