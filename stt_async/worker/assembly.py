"""The worker put together: services, scratch, pool, leases, breaker, daemon; preflight before the first receive."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from stt_async.services.connections import Connections, connect
from stt_async.services.queue import JobQueue
from stt_async.settings import Settings
from stt_async.worker.breaker import Breaker
from stt_async.worker.daemon import Daemon, stop_when_empty
from stt_async.worker.lease import Leases
from stt_async.worker.pipeline import SplitPipeline
from stt_async.worker.pool import open_pool
from stt_async.worker.preflight import require
from stt_async.worker.scratch import open_scratch
from stt_async.worker.stop import Stop, on_signals

Watch = Callable[[JobQueue, Stop], Coroutine[Any, Any, None]]
"""Something that runs beside the daemon and may ask it to stop."""


async def work_until_empty(settings: Settings) -> Counter[str]:
    """Do as `work` does, and stop once the queue is empty."""

    async def watch(queue: JobQueue, stop: Stop) -> None:
        await stop_when_empty(queue, stop, drain_timeout_s=settings.drain_timeout_s)

    return await work(settings, watch)


async def work(settings: Settings, *watches: Watch) -> Counter[str]:
    """Run the worker until a signal or one of `watches` stops it.

    Returns:
        How many jobs ended how, by the events of their log lines.

    Raises:
        JobError: preflight found a service out of order; nothing was received.
    """
    stop = Stop()
    with on_signals(stop, drain_timeout_s=settings.drain_timeout_s):
        async with connect(settings) as services:
            await require(services, settings)
            with open_scratch(settings.scratch_dir, settings.scratch_max_bytes) as scratch:
                async with open_pool(settings) as pool:
                    pipeline = SplitPipeline(
                        source=services.source,
                        sink=services.sink,
                        pool=pool,
                        scratch=scratch,
                        params=settings.split_params,
                        limits=settings.limits,
                        output_bucket=settings.output_bucket,
                        source_buckets=settings.source_buckets,
                    )
                    return await _run(settings, services, pipeline, stop, watches)


async def _run(
    settings: Settings, services: Connections, pipeline: SplitPipeline, stop: Stop, watches: tuple[Watch, ...]
) -> Counter[str]:
    queue = await services.queue()
    leases = Leases(queue.on(services.heartbeat_sqs), settings.visibility_timeout_s)
    breaker = Breaker(lambda: require(services, settings))
    daemon = Daemon(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=pipeline,
        stop=stop,
        slots=settings.job_slots,
        wait_time_s=settings.wait_time_s,
        visibility_timeout_s=settings.visibility_timeout_s,
        job_timeout_s=settings.job_timeout_s,
    )
    async with asyncio.TaskGroup() as group:
        # A side task that dies takes the daemon with it, which releases what it holds: never silently alone.
        beside = [group.create_task(leases.run(), name="heartbeats"), group.create_task(breaker.run(), name="breaker")]
        beside += [group.create_task(watch(queue, stop), name="watch") for watch in watches]
        await daemon.run()
        for task in beside:
            task.cancel()
    return daemon.tally
