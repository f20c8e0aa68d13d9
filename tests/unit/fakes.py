"""Small stand-ins: a queue in memory, a pipeline with scripted jobs, a manifest."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from stt_async.errors import ClassifiedError, SttError
from stt_async.job import SplitJob
from stt_async.manifest import Manifest, Recording, Segment, SplitResult
from stt_async.params import SplitParams
from stt_async.retry import Retry
from stt_async.services.queue import Depth, JobQueue, Message
from stt_async.worker.breaker import Breaker
from stt_async.worker.daemon import Daemon
from stt_async.worker.lease import Lease, Leases
from stt_async.worker.running_jobs import RunningJobs
from stt_async.worker.settlement import Outcome
from stt_async.worker.stop import Stop

TIMEOUT_S = 5.0
"""For conditions that come true within milliseconds."""


async def wait_until(condition: Callable[[], object]) -> None:
    """Let other tasks run until `condition` is true."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - any condition, not one that has an event
            await asyncio.sleep(0.001)


async def run_ready_tasks() -> None:
    """Let every task run as far as it can without an event, for a test that something does not happen."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def background(*works: Coroutine[Any, Any, object]) -> AsyncIterator[list[asyncio.Task[object]]]:
    """Run `works` beside the block; cancel those that still run at its end."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            if not task.done():
                with suppress(asyncio.CancelledError):
                    await task


def message(name: str, *, receive_count: int = 1, age_s: float = 0.0) -> Message:
    """A message whose id and body are its name, received `age_s` ago."""
    return Message(
        message_id=name,
        receipt_handle=f"handle-{name}",
        body=name,
        receive_count=receive_count,
        received_at_s=time.monotonic() - age_s,
    )


class FakeQueue(JobQueue):
    """A queue in memory. `calls` holds each call that settles a message, in order."""

    def __init__(self, *messages: Message, poll_s: float = 0.002) -> None:
        super().__init__(
            cast("Any", None), url="queue", dead_letter_url="dead", max_receive_count=5, retry=Retry(0.0, 0.01)
        )
        self.waiting = list(messages)
        self.poll_s = poll_s
        self.receive_gate: asyncio.Event | None = None
        """A poll ends only after it is set."""
        self.polling = False
        """Whether a poll waits for the gate."""
        self.polls: list[int] = []
        """How many messages each poll requested."""
        self.receive_errors: list[Exception] = []
        self.calls: list[tuple[str, str, object]] = []
        self.settle_error: SttError | None = None
        self.heartbeats: list[list[str]] = []
        self.heartbeat_gate: asyncio.Event | None = None
        self.heartbeat_error: ClassifiedError | None = None
        self.heartbeat_codes: dict[str, str] = {}
        self.depths: list[Depth | ClassifiedError] = []
        self.depth_calls = 0

    async def receive(self, *, most: int, wait_time_s: int, visibility_timeout_s: int) -> list[Message]:
        del wait_time_s, visibility_timeout_s
        self.polls.append(most)
        if self.receive_errors:
            raise self.receive_errors.pop(0)
        if self.receive_gate is not None:
            self.polling = True
            await self.receive_gate.wait()
        elif not self.waiting:
            await asyncio.sleep(self.poll_s)
        batch = min(most, 10)
        received, self.waiting = self.waiting[:batch], self.waiting[batch:]
        return received

    async def extend(self, messages: Sequence[Message], visibility_timeout_s: int) -> dict[str, str]:
        del visibility_timeout_s
        self.heartbeats.append([each.message_id for each in messages])
        if self.heartbeat_gate is not None:
            await self.heartbeat_gate.wait()
        if self.heartbeat_error is not None:
            raise self.heartbeat_error
        codes = self.heartbeat_codes
        return {each.receipt_handle: codes[each.message_id] for each in messages if each.message_id in codes}

    async def release(self, message: Message, *, after_s: int) -> None:
        self._record("release", message, after_s)

    async def delete(self, message: Message) -> None:
        self._record("delete", message, None)

    async def dead_letter(self, message: Message, error: ClassifiedError) -> None:
        self._record("dead_letter", message, error.code)

    async def depth(self) -> Depth:
        self.depth_calls += 1
        await asyncio.sleep(0)
        depth = self.depths.pop(0) if len(self.depths) > 1 else self.depths[0]
        if isinstance(depth, ClassifiedError):
            raise depth
        return depth

    def count_heartbeats(self, name: str) -> int:
        return sum(name in batch for batch in self.heartbeats)

    def _record(self, action: str, message: Message, detail: object) -> None:
        self.calls.append((action, message.message_id, detail))
        if self.settle_error is not None:
            raise self.settle_error


class FakePipeline:
    """Runs the action of a message's body. A job without an action succeeds at once."""

    def __init__(self, actions: Mapping[str, Callable[[], Awaitable[object]]]) -> None:
        self.actions = dict(actions)
        self.fetched: set[str] = set()
        """The jobs that count as downloaded from their start."""
        self.needed_s: dict[str, float] = {}
        """The estimated time of each job."""
        self.estimates_read: list[str] = []
        """The jobs whose estimate was read, in order."""
        self.started: list[str] = []
        self.running = 0
        self.most_running = 0

    async def run(self, lease: Lease) -> Outcome:
        body = lease.message.body
        self.started.append(body)
        lease.fetched = body in self.fetched

        def seconds_needed() -> float | None:
            self.estimates_read.append(body)
            return self.needed_s.get(body)

        lease.seconds_needed = seconds_needed
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if body in self.actions:
                await self.actions[body]()
        finally:
            self.running -= 1
        return Outcome("job_succeeded", {"segments": 1})


VISIBILITY_S = 300
LONG_S = 3600.0
OUTAGE_DELAY_S = 60


@dataclass
class RunningDaemon:
    """A daemon that runs, and its parts."""

    queue: FakeQueue
    pipeline: FakePipeline
    stop: Stop
    breaker: Breaker
    leases: Leases
    jobs: RunningJobs
    daemon: Daemon
    run: asyncio.Task[object]
    idle_s: list[float] = field(default_factory=list)

    async def drain(self, *, within_s: float = LONG_S) -> None:
        """Request a stop, and wait for the end of the daemon."""
        self.stop.request("test", within_s=within_s)
        async with asyncio.timeout(TIMEOUT_S):
            await self.run


async def healthy() -> None:
    """A probe that finds no failing service."""


@asynccontextmanager
async def daemon_on(
    messages: Sequence[Message],
    *,
    slots: int = 4,
    job_timeout_s: float = LONG_S,
    probe: Callable[[], Awaitable[None]] = healthy,
    actions: Mapping[str, Callable[[], Awaitable[object]]] | None = None,
) -> AsyncIterator[RunningDaemon]:
    """Run a daemon over these messages until the block ends; then check that it holds no job."""
    queue, pipeline, stop = FakeQueue(*messages), FakePipeline(actions or {}), Stop()
    leases, breaker = Leases(queue, VISIBILITY_S), Breaker(probe)
    leases._tick_s = 0.001
    idle_s: list[float] = []

    async def when_idle(seconds: float) -> None:
        idle_s.append(seconds)

    jobs = RunningJobs(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=pipeline,
        job_timeout_s=job_timeout_s,
        outage_delay_s=OUTAGE_DELAY_S,
    )
    daemon = Daemon(
        queue=queue,
        jobs=jobs,
        breaker=breaker,
        stop=stop,
        slots=slots,
        wait_time_s=1,
        visibility_timeout_s=VISIBILITY_S,
        when_idle=when_idle,
    )
    async with background(daemon.run(), leases.run(), breaker.run(), daemon.release_unfinishable()) as [run, *_]:
        yield RunningDaemon(queue, pipeline, stop, breaker, leases, jobs, daemon, run, idle_s)
    assert pipeline.running == 0
    assert not leases._held


def raises(error: BaseException) -> Callable[[], Awaitable[None]]:
    """Return the action of a job that fails."""

    async def fail() -> None:
        raise error

    return fail


def a_job(**changes: Any) -> SplitJob:
    """A valid job with these changes."""
    return SplitJob(
        **{
            "job_id": "split-1",
            "source_bucket": "audio",
            "source_key": "amdo/001.mp3",
            "source_size": 4000,
            "source_etag": "e1",
            "output_bucket": "out",
            "output_prefix": "amdo/001.mp3",
            **changes,
        }
    )


def a_segment(**changes: Any) -> Segment:
    """A segment of one second with these changes."""
    return Segment(
        **{
            "filename": "segment_00001-3fa9c2d1.flac",
            "start_sec": 1.0,
            "end_sec": 2.0,
            "duration_sec": 1.0,
            "start_sample": 16_000,
            "end_sample": 32_000,
            "bytes": 9_000,
            "sha256": "3fa9c2d1" + "0" * 56,
            "end_reason": "silence",
            "mean_speech_probability": 0.93,
            **changes,
        }
    )


def a_recording(**changes: Any) -> Recording:
    """A recording of ten seconds with these changes."""
    return Recording(
        **{
            "source_bytes": 4000,
            "source_sha256": "a" * 64,
            "container": "mp3",
            "codec": "mp3",
            "sample_rate_hz": 44_100,
            "channels": 2,
            "declared_duration_s": 10.0,
            "decoded_duration_s": 10.0,
            "truncated": False,
            **changes,
        }
    )


def a_result(**changes: Any) -> SplitResult:
    """The result of a split, one segment, with these changes."""
    return SplitResult(
        **{
            "recording": a_recording(),
            "segments": (a_segment(),),
            "archive": None,
            "speech_s": 1.0,
            "dropped_speech_s": 0.0,
            "dropped_runs": 0,
            "clipped_samples": 0,
            "versions": {"stt_async": "0.1.0"},
            **changes,
        }
    )


def a_manifest(
    job: SplitJob | None = None,
    result: SplitResult | None = None,
    params: SplitParams | None = None,
    *,
    source_etag: str | None = "e1",
) -> Manifest:
    """The manifest of a finished job."""
    return Manifest.from_result(
        job or a_job(),
        result or a_result(),
        params or SplitParams(),
        source_etag=source_etag,
        processed_at=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
    )
