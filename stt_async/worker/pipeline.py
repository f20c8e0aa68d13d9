"""One split job as a straight line: from a message body to a committed manifest."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from stt_async.concurrency import gather_or_cancel
from stt_async.errors import PermanentError, WorkerLostError
from stt_async.job import SplitJob, parse_split_job
from stt_async.manifest import Manifest
from stt_async.params import SplitLimits, SplitParams
from stt_async.services.failure_records import STARTED, Attempt, FailureRecords
from stt_async.services.sink import Sink, StoredManifest
from stt_async.services.source import Source
from stt_async.worker.estimates import Estimates, JobCost
from stt_async.worker.lease import Lease
from stt_async.worker.pool import Pool, TimedSplit
from stt_async.worker.scratch import Scratch
from stt_async.worker.settlement import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPipeline:
    """Runs split jobs, many at once: while one is in the pool, others download and upload."""

    source: Source
    sink: Sink
    pool: Pool
    failure_records: FailureRecords
    scratch: Scratch
    params: SplitParams
    limits: SplitLimits
    output_bucket: str
    source_buckets: frozenset[str]
    estimates: Estimates

    async def run(self, lease: Lease) -> Outcome:
        """Do the job of a message. When this returns, its manifest is durable and the message may be deleted.

        Raises:
            ClassifiedError: its class decides what happens to the message.
            LeaseLostError: the message is lost; nothing was committed.
        """
        started_s = time.monotonic()
        job = parse_split_job(lease.message.body, output_bucket=self.output_bucket, source_buckets=self.source_buckets)
        structlog.contextvars.bind_contextvars(job_id=job.job_id, recording=job.recording)
        # On the lease, because the daemon reads them while the job runs. On a last receive this may run again.
        lease.fetched = False
        lease.seconds_needed = partial(self.estimates.seconds_needed, job.source_key, job.source_size)
        params = job.params(self.params)

        stored = await self.sink.read_manifest(job.output_prefix)
        if stored is not None and (done := _reusable(stored, job, params)):
            return Outcome("job_skipped", {"segments": done.total_segments})

        times = StageTimes()
        needed_bytes = self.estimates.scratch_bytes_needed(job.source_key, job.source_size)
        async with self.scratch.job_folder(needed_bytes) as folder:
            with times.stage("fetch"):
                fetched = await self.source.fetch(job, folder / "source")
            lease.fetched = True
            split = await self._split(folder, params, job, fetched.etag, attempt=lease.message.receive_count)
            times.add("split", split.started_s, split.ended_s)
            scratch_used_percent = self.scratch.used_percent()
            manifest = Manifest.from_result(
                job, split.result, params, source_etag=fetched.etag, processed_at=datetime.now(UTC)
            )
            with times.stage("put"):  # with the commit
                await gather_or_cancel(
                    self.sink.put(folder / "out" / name, job.output_prefix + name) for name in manifest.object_names()
                )
                lease.require_held()
                # None: this manifest is committed; else the one that was there first.
                winner = await self.sink.commit(manifest, replaces=stored.etag if stored else None)
        if winner is not None and not winner.matches(job, params, source_etag=fetched.etag):
            raise _conflict(winner, job)
        self.estimates.add(
            job.source_key,
            JobCost(
                source_bytes=manifest.recording.source_bytes,
                scratch_bytes=manifest.recording.source_bytes + manifest.recording.pcm_bytes + manifest.segment_bytes,
                busy_s=times.busy_s,
                waited_s=time.monotonic() - started_s - times.busy_s,
            ),
        )
        timing = {
            "receiving_s": round(fetched.receiving_s, 6),  # short downloads need the digits: a rate is made of it
            "scratch_used_percent": scratch_used_percent,
            "stages": times.spans,
        }
        return Outcome("job_succeeded", _facts(manifest) | timing)

    async def _split(
        self, folder: Path, params: SplitParams, job: SplitJob, source_etag: str | None, *, attempt: int
    ) -> TimedSplit:
        """Split in the pool; alone in it if an earlier attempt has a failure record, as it may have lacked memory."""
        earlier: list[Attempt] = []
        if attempt > 1:
            # Not on the first attempt, which nearly always succeeds: that saves a LIST and a PUT for each job.
            found = await self.failure_records.read(job.job_id)
            earlier = [each for each in found if each.attempt < attempt]  # a last receive may run twice
            await self.failure_records.record(job.job_id, attempt, STARTED)
        out_dir = folder / "out"
        out_dir.mkdir()
        split = self.pool.split_alone if earlier else self.pool.split
        try:
            return await split(folder / "source", out_dir, params, self.limits)
        except PermanentError as error:
            await self.failure_records.mark_unsplittable(job, source_etag, error)
            raise
        except WorkerLostError as error:
            await self.failure_records.record(job.job_id, attempt, error.code)
            history = "".join(f"; {each}" for each in earlier)
            raise WorkerLostError(error.code, f"{error.message}{history}") from error


class StageTimes:
    """When each stage of a job began and ended, on the monotonic clock: the log shows which stages overlap."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[float, float]] = {}

    def add(self, name: str, started_s: float, ended_s: float) -> None:
        """Record a stage."""
        self.spans[name] = (round(started_s, 3), round(ended_s, 3))

    @property
    def busy_s(self) -> float:
        """The time of all stages together; for the rest the job waited for scratch space and the pool."""
        return sum(ended_s - started_s for started_s, ended_s in self.spans.values())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Record the block as a stage."""
        started_s = time.monotonic()
        yield
        self.add(name, started_s, time.monotonic())


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "status": manifest.status,
        "segments": manifest.total_segments,
        "segment_bytes": manifest.segment_bytes,
        "duration_s": manifest.recording.decoded_duration_s,
        "speech_s": manifest.speech_s,
        "truncated": manifest.recording.truncated,
        "source_bytes": manifest.recording.source_bytes,
    }


def _reusable(stored: StoredManifest, job: SplitJob, params: SplitParams) -> Manifest | None:
    """Return the stored manifest if it is the result that the job asks for; None if the job may replace it.

    Raises:
        PermanentError: it is another result, or not ours, and the job does not replace it.
    """
    try:
        manifest = stored.parse()
    except PermanentError:
        if job.replace:
            return None
        raise
    if manifest.matches(job, params, source_etag=job.source_etag):
        return manifest
    if job.replace:
        return None
    raise _conflict(manifest, job)


def _conflict(stored: Manifest, job: SplitJob) -> PermanentError:
    advice = "another job has replaced them" if job.replace else 'send it with "replace": true to replace them'
    return PermanentError(
        "conflict",
        f"{job.output_prefix} already holds the segments of {stored.source_bucket}/{stored.source_key} (ETag "
        f"{stored.source_etag}, parameters {stored.params_sha256[:8]}), not those that this job asks for; "
        f"{advice}",
    )
