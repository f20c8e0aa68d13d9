"""Runs the servers, the enqueue command and a worker on loopback, over a folder of recordings."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from stt_async.concurrency import gather_or_cancel
from stt_async.errors import SttError
from stt_async.local.files import LocalRecording, find_recordings
from stt_async.local.inspection import problems
from stt_async.local.loopback import s3_client, sqs_client
from stt_async.local.process import ChildProcess, plain_environment
from stt_async.local.servers import LocalServices, local_services
from stt_async.manifest import MANIFEST_NAME, Manifest
from stt_async.progress import progress
from stt_async.services.failure_records import PREFIX as FAILURES
from stt_async.services.failure_records import UNSPLITTABLE

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client
    from types_aiobotocore_sqs import SQSClient

AT_ONCE = 8
"""Recordings that are loaded, or whose segments are checked, at once: the S3 client has ten connections."""

_T = TypeVar("_T")

VISIBILITY_TIMEOUT_S = 60
LOOK_INTERVAL_S = 0.5
STOP_TIMEOUT_S = 20.0

SOME_FAILED = 4
"""Exit code of `worker --once` if a job failed, and of `split` if a recording did."""


@dataclass(frozen=True, slots=True)
class RecordingOutcome:
    """The outcome of one recording."""

    name: str
    manifest: Manifest | None
    dead_letter: str | None
    """The reason of its dead letter, if it has one."""
    problems: tuple[str, ...]
    """Differences between its output and its manifest."""

    @property
    def accounted_for(self) -> bool:
        """Whether it has an output that matches its manifest, or a reason why it has none."""
        return not self.problems and (self.manifest is not None or self.dead_letter is not None)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The result of a demo, whose servers are still running."""

    outcomes: Sequence[RecordingOutcome]
    sent: int
    done_before: int
    segments: Path
    log: Path
    environment: Mapping[str, str]


@asynccontextmanager
async def demonstration(directory: Path | None, out_dir: Path) -> AsyncIterator[Demonstration]:
    """Run everything over `directory` (None: the samples of the package); stop the servers after the block.

    The S3 server keeps its data in `out_dir`, so a second demo skips the recordings that are done.

    Raises:
        SettingsError: `directory` has no recording.
        DependencyError: a server did not start.
        SttError: a command failed; the message ends with its log.
    """
    with _samples() if directory is None else nullcontext(directory) as folder:
        recordings = find_recordings([folder])
        out = out_dir.resolve()
        async with local_services(out / "servers", visibility_timeout_s=VISIBILITY_TIMEOUT_S) as services:
            owner = services.owner
            async with (
                s3_client(services.servers.objects.url, owner) as s3,
                sqs_client(services.servers.queues_url, owner) as sqs,
            ):
                yield await _run(recordings, out, services, s3, sqs)


async def _run(
    recordings: Sequence[LocalRecording], out: Path, services: LocalServices, s3: "S3Client", sqs: "SQSClient"
) -> Demonstration:
    environment = services.environment() | {"STT_WAIT_TIME_S": "1", "STT_SCRATCH_DIR": str(out / "scratch")}
    await _load(recordings, services, s3)
    summary = await _enqueue(environment, out / "logs" / "enqueue.log")
    log = out / "logs" / "worker.log"
    await _work(environment, log, summary["sent"], services, sqs)
    # The queues end with the demo, so earlier failures are known only from the failure records in the bucket.
    reasons = await _unsplittable(services, s3) | await _dead_letters(services, sqs)
    segments = out / "segments"

    def outcome(recording: LocalRecording) -> Awaitable[RecordingOutcome]:
        return _outcome(recording, reasons.get(recording.name), segments / recording.name, services, s3)

    outcomes = await _for_each(recordings, outcome, "checking the segments")
    return Demonstration(outcomes, summary["sent"], summary["done"], segments, log, environment)


def _samples() -> AbstractContextManager[Path]:
    return as_file(files("stt_async.local") / "samples")


async def _load(recordings: Sequence[LocalRecording], services: LocalServices, s3: "S3Client") -> None:
    """Put the recordings into the source bucket."""

    async def put(recording: LocalRecording) -> None:
        body = await asyncio.to_thread(recording.file.read_bytes)
        await s3.put_object(Bucket=services.source_bucket, Key=recording.name, Body=body)

    await _for_each(recordings, put, "loading the source bucket")


async def _for_each(
    recordings: Sequence[LocalRecording], do: Callable[[LocalRecording], Awaitable[_T]], title: str
) -> Sequence[_T]:
    """Do something with each recording, `AT_ONCE` of them at a time, and show the progress."""
    room = asyncio.Semaphore(AT_ONCE)
    done = 0

    async def one(recording: LocalRecording) -> _T:
        nonlocal done
        async with room:
            result = await do(recording)
        done += 1
        report(done, len(recordings))
        return result

    with progress(title) as report:
        return await gather_or_cancel(one(recording) for recording in recordings)


async def _enqueue(environment: Mapping[str, str], log: Path) -> dict[str, Any]:
    log.unlink(missing_ok=True)
    async with _command("enqueue", "--json", environment=environment, log=log) as process:
        if await process.wait() != 0:
            raise SttError(f"enqueue failed:\n{process.log_tail()}")
    summary: dict[str, Any] = orjson.loads(log.read_bytes().splitlines()[-1])
    return summary


async def _work(
    environment: Mapping[str, str], log: Path, jobs: int, services: LocalServices, sqs: "SQSClient"
) -> None:
    """Run a worker until the queue is empty."""
    async with _command("worker", "--once", environment=environment, log=log) as process:
        ended = asyncio.create_task(process.wait())
        with progress("working on the recordings") as report:
            while not ended.done():
                await asyncio.wait({ended}, timeout=LOOK_INTERVAL_S)
                report(jobs - await _left(services, sqs), jobs)
        if await ended not in {0, SOME_FAILED}:
            raise SttError(f"the worker failed; its log is {log}:\n{process.log_tail()}")


def _command(*arguments: str, environment: Mapping[str, str], log: Path) -> ChildProcess:
    return ChildProcess(
        [sys.executable, "-m", "stt_async", *arguments],
        environment={**plain_environment(), **environment},
        log=log,
        grace_s=STOP_TIMEOUT_S,
    )


async def _left(services: LocalServices, sqs: "SQSClient") -> int:
    answer = await sqs.get_queue_attributes(
        QueueUrl=services.queues.url,
        AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
    )
    return sum(int(count) for count in answer["Attributes"].values())


async def _dead_letters(services: LocalServices, sqs: "SQSClient") -> dict[str, str]:
    """Return the reasons in the dead-letter queue by source key. The messages stay in the queue."""
    url = services.queues.dead_letter_url
    reasons: dict[str, str] = {}
    handles: list[str] = []
    while True:
        answer = await sqs.receive_message(
            QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"], WaitTimeSeconds=0
        )
        messages = answer.get("Messages", [])
        for message in messages:
            attributes = message.get("MessageAttributes", {})
            key = orjson.loads(message["Body"])["source_key"]
            reasons[key] = attributes["reason"]["StringValue"] if "reason" in attributes else "received too often"
            handles.append(message["ReceiptHandle"])
        if not messages:
            break
    for handle in handles:
        await sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handle, VisibilityTimeout=0)
    return reasons


async def _unsplittable(services: LocalServices, s3: "S3Client") -> dict[str, str]:
    """Return why recordings are unsplittable, as found by this or an earlier demo, by source key."""
    reasons: dict[str, str] = {}
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=services.output_bucket, Prefix=FAILURES)
    async for page in pages:
        for found in page.get("Contents", []):
            if found["Key"].endswith(UNSPLITTABLE):
                note = orjson.loads(await _read(s3, services.output_bucket, found["Key"]) or b"{}")
                reasons[note["source_key"]] = note["reason"]
    return reasons


async def _outcome(
    recording: LocalRecording, dead_letter: str | None, folder: Path, services: LocalServices, s3: "S3Client"
) -> RecordingOutcome:
    """Download a recording's output to `folder` and check it against its manifest."""
    data = await _read(s3, services.output_bucket, f"{recording.name}/{MANIFEST_NAME}")
    if data is None:
        return RecordingOutcome(recording.name, None, dead_letter, ())
    manifest = Manifest.from_json(data)
    folder.mkdir(parents=True, exist_ok=True)
    missing = []
    for name in manifest.object_names():
        body = await _read(s3, services.output_bucket, f"{recording.name}/{name}")
        if body is None:
            missing.append(f"{name} is missing")
        else:
            (folder / name).write_bytes(body)
    (folder / MANIFEST_NAME).write_bytes(data)
    found = missing or await asyncio.to_thread(lambda: list(problems(folder, manifest)))
    return RecordingOutcome(recording.name, manifest, dead_letter, tuple(found))


async def _read(s3: "S3Client", bucket: str, key: str) -> bytes | None:
    try:
        answer = await s3.get_object(Bucket=bucket, Key=key)
    except s3.exceptions.NoSuchKey:
        return None
    async with answer["Body"] as body:
        return await body.read()
