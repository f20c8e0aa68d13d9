"""One split job, as a straight line: from a message body to a manifest that stands."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from stt_async.concurrency import gather_or_cancel
from stt_async.errors import PermanentError, WorkerLostError
from stt_async.job import SplitJob, parse_split_job
from stt_async.manifest import Manifest, build, settles
from stt_async.params import SplitLimits, SplitParams
from stt_async.services.sink import Sink, Standing
from stt_async.services.source import Source
from stt_async.services.trail import STARTED, Breadcrumb, Trail
from stt_async.worker.footprint import Footprints
from stt_async.worker.lease import Lease
from stt_async.worker.pool import Pool, Split
from stt_async.worker.rates import Rates
from stt_async.worker.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended well: the event of its one log line, and what that line tells."""

    event: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPipeline:
    """Runs split jobs. Many at once: while one is in the pool, others are on their way in and out."""

    source: Source
    sink: Sink
    pool: Pool
    trail: Trail
    scratch: Scratch
    params: SplitParams
    limits: SplitLimits
    output_bucket: str
    source_buckets: frozenset[str]
    footprints: Footprints
    rates: Rates = field(default_factory=Rates)

    def seconds_needed(self, body: str) -> float | None:
        """Return how long the job of a message takes, from what the jobs before it took; None: unknown."""
        try:
            job = parse_split_job(body, output_bucket=self.output_bucket, source_buckets=self.source_buckets)
        except PermanentError:
            return None
        return self.rates.seconds_needed(job.source_key, job.source_size)

    async def run(self, lease: Lease) -> Outcome:
        """Do the job of a message held. When this returns, its manifest is durable and the message may be deleted.

        Raises:
            ClassifiedError: its class tells what becomes of the message.
            LeaseLostError: the message is another worker's now, so nothing was committed.
        """
        started_s = time.monotonic()
        job = parse_split_job(lease.message.body, output_bucket=self.output_bucket, source_buckets=self.source_buckets)
        structlog.contextvars.bind_contextvars(job_id=job.job_id, recording=job.recording)
        params = job.params(self.params)

        standing = await self.sink.read_manifest(job.output_prefix)
        if standing is not None and (done := _settled(standing, job, params)):
            return Outcome("job_skipped", {"segments": done.total_segments})

        times = StageTimes()
        async with self.scratch.room(self.footprints.bytes_needed(job.source_key, job.source_size)) as folder:
            with times.stage("fetch"):
                fetched = await self.source.fetch(job, folder / "source")
            lease.fetched = True
            split = await self._split(folder, params, job, fetched.etag, attempt=lease.message.receive_count)
            times.add("split", split.started_s, split.ended_s)
            scratch_used_percent = self.scratch.used_percent()
            manifest = build(job, split.result, params, source_etag=fetched.etag, processed_at=datetime.now(UTC))
            self.footprints.add(
                job.source_key,
                source_bytes=manifest.recording.source_bytes,
                decoded_s=manifest.recording.decoded_duration_s,
                segment_bytes=_segment_bytes(manifest),
            )
            with times.stage("put"):
                await gather_or_cancel(
                    self.sink.put(folder / "out" / name, job.output_prefix + name) for name in manifest.object_names()
                )
                lease.require()
                winner = await self.sink.commit(manifest, replaces=standing.etag if standing else None)
        if winner is not manifest and not settles(winner, job, params, source_etag=fetched.etag):
            raise _conflict(winner, job)
        self.rates.add(
            job.source_key,
            source_bytes=manifest.recording.source_bytes,
            busy_s=times.busy_s,
            waited_s=time.monotonic() - started_s - times.busy_s,
        )
        spent = {
            "receiving_s": round(fetched.receiving_s, 6),  # a rate is made of it, of short downloads too
            "scratch_used_percent": scratch_used_percent,
            "stages": times.spans,
        }
        return Outcome("job_succeeded", _facts(manifest) | spent)

    async def _split(
        self, folder: Path, params: SplitParams, job: SplitJob, source_etag: str | None, *, attempt: int
    ) -> Split:
        """Split in the pool; alone in it, when an earlier attempt ended without a word or lost its process."""
        earlier: list[Breadcrumb] = []
        if attempt > 1:
            earlier = await self.trail.read(job.job_id)
            await self.trail.leave(job.job_id, attempt, STARTED)
        split = self.pool.split_alone if earlier else self.pool.split
        try:
            return await split(folder / "source", _made(folder / "out"), params, self.limits)
        except PermanentError as error:
            await self.trail.condemn(job, source_etag, error)
            raise
        except WorkerLostError as error:
            await self.trail.leave(job.job_id, attempt, error.code)
            told = "".join(f"; {crumb}" for crumb in earlier)
            raise WorkerLostError(error.code, f"{error.message}{told}") from error


class StageTimes:
    """When each stage of a job began and ended, on the monotonic clock: what overlaps what can be read from the log."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[float, float]] = {}

    def add(self, name: str, started_s: float, ended_s: float) -> None:
        """Record a stage."""
        self.spans[name] = (round(started_s, 3), round(ended_s, 3))

    @property
    def busy_s(self) -> float:
        """The time of all stages together; the rest of a job's time it waited for its turn."""
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
        "segment_bytes": _segment_bytes(manifest),
        "duration_s": manifest.recording.decoded_duration_s,
        "speech_s": manifest.speech_s,
        "truncated": manifest.recording.truncated,
        "source_bytes": manifest.recording.source_bytes,
    }


def _segment_bytes(manifest: Manifest) -> int:
    return sum(segment.bytes for segment in manifest.segments)


def _settled(standing: Standing, job: SplitJob, params: SplitParams) -> Manifest | None:
    """Return what stands if it is the result that this job asks for, None if the job may write over it.

    Raises:
        PermanentError: neither.
    """
    try:
        manifest = standing.manifest()
    except PermanentError:
        if job.replace:
            return None
        raise
    if settles(manifest, job, params, source_etag=job.source_etag):
        return manifest
    if job.replace:
        return None
    raise _conflict(manifest, job)


def _conflict(standing: Manifest, job: SplitJob) -> PermanentError:
    return PermanentError(
        "conflict",
        f"{job.output_prefix} already holds the segments of {standing.source_bucket}/{standing.source_key} (ETag "
        f"{standing.source_etag}, parameters {standing.params_sha256[:8]}), not of what this job names; "
        'send it with "replace": true to write over them',
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
