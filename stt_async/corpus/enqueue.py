"""Lists recordings and sends a job for each that has no result yet."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pydantic import ValidationError

from stt_async.concurrency import gather_or_cancel
from stt_async.job import AUDIO_SUFFIXES, SplitJob, split_job_id
from stt_async.services.connections import Connections, connect, operator_retry
from stt_async.services.queue import BATCH
from stt_async.services.sink import ManifestHead
from stt_async.services.source import SourceObject
from stt_async.settings import Settings

CHUNK = 200
"""Recordings checked and sent at a time: at most 200 HEADs, then 20 batches, are in flight. It bounds the memory."""


@dataclass(slots=True)
class Summary:
    """Counts of the objects listed, by what was done with them."""

    listed: int = 0
    not_audio: int = 0
    done: int = 0
    other_params: int = 0
    """Already split, but from other parameters or another source. Sent only with `replace`."""
    unsplittable: int = 0
    """Failed permanently in an earlier split. Sent only with `retry_unsplittable`."""
    unusable_keys: list[str] = field(default_factory=list)
    sent: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which recordings to send."""

    prefix: str = ""
    limit: int | None = None
    replace: bool = False
    """Also send recordings whose result comes from other parameters or another source."""
    retry_unsplittable: bool = False
    """Also send unsplittable recordings, though their bytes are the same."""


async def enqueue(settings: Settings, selection: Selection, progress: Callable[[Summary], None]) -> Summary:
    """Send jobs for the recordings without a result. Memory does not grow with the bucket.

    Args:
        settings: Buckets, queue and parameters.
        selection: Which recordings to send.
        progress: Called after each chunk.

    Raises:
        ClassifiedError: a service failed for longer than the retry policy allows. Jobs sent until then stay in the
            queue. Run the command again to send the rest: a job that is sent twice is committed once.
    """
    async with connect(settings, operator_retry(settings)) as services:
        queue = await services.queue()

        async def send(jobs: Sequence[SplitJob]) -> None:
            bodies = [job.body() for job in jobs]
            await gather_or_cancel(queue.send(bodies[start : start + BATCH]) for start in range(0, len(bodies), BATCH))

        return await _send_open_jobs(settings, services, selection, send, progress)


async def preview(settings: Settings, selection: Selection, progress: Callable[[Summary], None]) -> Summary:
    """Count what `enqueue` would send. It does not connect to the queue."""

    async def send_nothing(_: Sequence[SplitJob]) -> None:
        pass

    async with connect(settings, operator_retry(settings)) as services:
        return await _send_open_jobs(settings, services, selection, send_nothing, progress)


async def _send_open_jobs(
    settings: Settings,
    services: Connections,
    selection: Selection,
    send: Callable[[Sequence[SplitJob]], Awaitable[None]],
    progress: Callable[[Summary], None],
) -> Summary:
    summary = Summary()
    digest = settings.split_params.digest()
    async for chunk in _chunks(services, settings.source_bucket, selection.prefix):
        jobs = _jobs(settings, chunk, summary)
        heads = await gather_or_cancel(services.sink.head_manifest(job.output_prefix) for job in jobs)
        unsplittable = await _unsplittable(services, selection, jobs, heads)
        selected: list[SplitJob] = []
        for job, head in zip(jobs, heads, strict=True):
            if len(selected) + summary.sent == selection.limit:
                break
            if job.job_id in unsplittable:
                summary.unsplittable += 1
            elif head is None:
                selected.append(job)
            elif head.params_sha256 == digest and head.source_etag in {job.source_etag, ""}:
                summary.done += 1
            else:
                summary.other_params += 1
                if selection.replace:
                    selected.append(job.model_copy(update={"replace": True}))
        await send(selected)
        summary.sent += len(selected)
        summary.sent_bytes += sum(job.source_size or 0 for job in selected)
        progress(summary)
        if summary.sent == selection.limit:
            break
    return summary


async def _unsplittable(
    services: Connections, selection: Selection, jobs: Sequence[SplitJob], heads: Sequence[ManifestHead | None]
) -> set[str]:
    """Return the ids of the jobs without a manifest whose recording is unsplittable."""
    if selection.retry_unsplittable:
        return set()
    open_jobs = [job for job, head in zip(jobs, heads, strict=True) if head is None]
    flags = await gather_or_cancel(services.failure_records.is_unsplittable(job) for job in open_jobs)
    return {job.job_id for job, unsplittable in zip(open_jobs, flags, strict=True) if unsplittable}


async def _chunks(services: Connections, bucket: str, prefix: str) -> AsyncIterator[list[SourceObject]]:
    async for page in services.source.pages(bucket, prefix):
        for start in range(0, len(page), CHUNK):
            yield page[start : start + CHUNK]


def _jobs(settings: Settings, chunk: Sequence[SourceObject], summary: Summary) -> list[SplitJob]:
    """Return a job for each recording among the objects; count the other objects."""
    params = settings.split_params
    jobs: list[SplitJob] = []
    for found in chunk:
        summary.listed += 1
        if PurePosixPath(found.key).suffix.lower() not in AUDIO_SUFFIXES:
            summary.not_audio += 1
            continue
        try:
            job = SplitJob(
                job_id=split_job_id(settings.source_bucket, found.key, params),
                source_bucket=settings.source_bucket,
                source_key=found.key,
                source_size=found.size_bytes,
                source_etag=found.etag or None,
                output_bucket=settings.output_bucket,
                output_prefix=found.key,
                max_duration=params.max_speech_duration_s,
            )
        except ValidationError:
            summary.unusable_keys.append(found.key)
        else:
            jobs.append(job)
    return jobs
