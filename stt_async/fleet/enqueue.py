"""List recordings, skip what is done, send a job for each of the rest."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from stt_async.job import SplitJob, split_job_id
from stt_async.services.connections import Connections
from stt_async.services.queue import BATCH, JobQueue
from stt_async.services.source import SourceObject
from stt_async.settings import Settings
from stt_async.tasks import together

AUDIO_SUFFIXES = frozenset(
    {".3gp", ".aac", ".aif", ".aifc", ".aiff", ".amr", ".au", ".flac", ".m4a", ".mka", ".mkv", ".mp3", ".mp4"}
    | {".oga", ".ogg", ".opus", ".sph", ".wav", ".webm", ".wma"}
)
"""What counts as a recording when a bucket is listed; whether it is one shows when it is decoded."""

CHUNK = 200
"""Recordings looked at and sent at once: 200 HEADs and 20 batches in flight, and all that is held in memory."""


@dataclass(slots=True)
class Summary:
    """What an enqueue found and did."""

    listed: int = 0
    not_audio: int = 0
    done: int = 0
    other_params: int = 0
    """Already split, but from other parameters or another source: they stand unless told to replace."""
    unusable_keys: list[str] = field(default_factory=list)
    sent: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which recordings to send."""

    prefix: str = ""
    limit: int | None = None
    replace: bool = False
    """Send those again that were made from other parameters or another source."""


async def enqueue(
    settings: Settings,
    services: Connections,
    selection: Selection,
    send: Callable[[Sequence[SplitJob]], Coroutine[Any, Any, None]],
    progress: Callable[[Summary], None],
) -> Summary:
    """Go through the source bucket and send what is not done. Memory stays flat, whatever the bucket holds.

    Args:
        settings: Buckets and parameters.
        services: Where to list and look.
        selection: Which recordings.
        send: What to do with up to 200 jobs: `sender(queue)`, or nothing at all for a dry run.
        progress: Called after each chunk.

    Raises:
        JobError: a service failed for longer than the retry policy allows. What was sent stays sent; the same
            command again goes on from there, and a job sent twice is done once.
    """
    summary = Summary()
    digest = settings.split_params.digest()
    async for chunk in _chunks(services, settings.source_bucket, selection.prefix):
        jobs = _jobs(settings, chunk, summary)
        heads = await together(services.sink.head_manifest(job.output_prefix) for job in jobs)
        wanted: list[SplitJob] = []
        for job, head in zip(jobs, heads, strict=True):
            if len(wanted) + summary.sent == selection.limit:
                break
            if head is None:
                wanted.append(job)
            elif head.params_sha256 == digest and head.source_etag in {job.source_etag, ""}:
                summary.done += 1
            else:
                summary.other_params += 1
                if selection.replace:
                    wanted.append(job.model_copy(update={"replace": True}))
        await send(wanted)
        summary.sent += len(wanted)
        summary.sent_bytes += sum(job.source_size or 0 for job in wanted)
        progress(summary)
        if summary.sent == selection.limit:
            break
    return summary


def sender(queue: JobQueue) -> Callable[[Sequence[SplitJob]], Coroutine[Any, Any, None]]:
    """Return what sends jobs to `queue`, ten in a batch, all batches at once."""

    async def send(jobs: Sequence[SplitJob]) -> None:
        bodies = [job.body() for job in jobs]
        await together(queue.send(bodies[start : start + BATCH]) for start in range(0, len(bodies), BATCH))

    return send


async def send_nothing(jobs: Sequence[SplitJob]) -> None:
    """Do without sending: a dry run."""


async def _chunks(services: Connections, bucket: str, prefix: str) -> AsyncIterator[list[SourceObject]]:
    async for page in services.source.pages(bucket, prefix):
        for start in range(0, len(page), CHUNK):
            yield page[start : start + CHUNK]


def _jobs(settings: Settings, chunk: Sequence[SourceObject], summary: Summary) -> list[SplitJob]:
    """Return a job for each recording among the objects; count the rest."""
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
