"""The worker put together: services, scratch, pool, leases, breaker, daemon; preflight before the first receive."""

import asyncio
import faulthandler
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from stt_async.concurrency import run_unless
from stt_async.services.autoscaling import open_group
from stt_async.services.connections import Connections, connect
from stt_async.services.imds import open_imds
from stt_async.services.queue import JobQueue
from stt_async.settings import Settings
from stt_async.worker.breaker import Breaker
from stt_async.worker.daemon import Daemon, stop_when_empty
from stt_async.worker.delivery import Deliveries
from stt_async.worker.footprint import Footprints
from stt_async.worker.interruption import Interruptions
from stt_async.worker.lag import watch_lag
from stt_async.worker.lease import Leases
from stt_async.worker.membership import Hooks, Membership
from stt_async.worker.pipeline import SplitPipeline
from stt_async.worker.pool import open_pool
from stt_async.worker.preflight import require
from stt_async.worker.scratch import open_scratch
from stt_async.worker.stop import Stop, on_signals
from stt_async.worker.watchdog import Side, Watchdog, notify

Watch = Callable[[JobQueue, Stop], Coroutine[Any, Any, None]]
"""Something that runs beside the daemon and may ask it to stop."""


START_TIMEOUT_S = 300.0
"""From the start to the first receive, whatever `TimeoutStartSec=` says: a service that hesitates is tried for a
minute, and a disk that was never read takes as long to load torch."""

PATIENCE_S = 90.0
"""With each side of the worker, before the watchdog takes it for stuck: a long poll of 20 s whose answer is late and
heartbeats to a queue that times out stay below it."""


async def work_until_empty(settings: Settings) -> Counter[str]:
    """Do as `work` does, and stop once the queue is empty."""

    async def watch(queue: JobQueue, stop: Stop) -> None:
        await stop_when_empty(queue, stop, drain_timeout_s=settings.drain_timeout_s)

    return await work(settings, watch)


async def work(settings: Settings, *watches: Watch) -> Counter[str]:
    """Run the worker until a signal, its instance's end or one of `watches` stops it.

    Returns:
        How many jobs ended how, by the events of their log lines.

    Raises:
        ClassifiedError: preflight found a service out of order; nothing was received.
    """
    faulthandler.enable()  # systemd's watchdog ends us by SIGABRT: leave a word of where we were stuck
    notify(settings.notify_socket, "STATUS=preflight", f"EXTEND_TIMEOUT_USEC={START_TIMEOUT_S * 1e6:.0f}")
    stop = Stop()
    with on_signals(stop, drain_timeout_s=settings.drain_timeout_s):
        async with open_imds(settings) as imds, open_group(settings, imds) as group:
            membership = Membership(
                group,
                Hooks(launch=settings.launch_hook, termination=settings.termination_hook),
                stop,
                idle_timeout_s=settings.idle_timeout_s,
                drain_timeout_s=settings.drain_timeout_s,
            )
            async with AsyncExitStack() as stack:
                services = await stack.enter_async_context(connect(settings))
                async with membership.joining():
                    pipeline = await run_unless(stop.wait(), _open_pipeline(settings, services, stack))
                if pipeline is None:
                    return Counter()
                notify(settings.notify_socket, "READY=1")
                if imds is not None:
                    interruptions = Interruptions(imds, stop, membership, drain_timeout_s=settings.drain_timeout_s)
                    await interruptions.look()
                    watches += (lambda _queue, _stop: interruptions.run(),)
                tally = await _run(
                    settings, services, pipeline=pipeline, stop=stop, membership=membership, watches=watches
                )
            await membership.leave()
            return tally


async def _open_pipeline(settings: Settings, services: Connections, stack: AsyncExitStack) -> SplitPipeline:
    """Prove that a worker can work here, then make all that its jobs need; it lives as long as `stack`."""
    await require(services, settings)
    return SplitPipeline(
        source=services.source,
        sink=services.sink,
        trail=services.trail,
        scratch=stack.enter_context(open_scratch(settings.scratch_dir, settings.scratch_max_bytes)),
        pool=await stack.enter_async_context(open_pool(settings)),
        params=settings.split_params,
        limits=settings.limits,
        footprints=Footprints(settings.limits),
        output_bucket=settings.output_bucket,
        source_buckets=settings.source_buckets,
    )


async def _run(
    settings: Settings,
    services: Connections,
    *,
    pipeline: SplitPipeline,
    stop: Stop,
    membership: Membership,
    watches: tuple[Watch, ...],
) -> Counter[str]:
    queue = await services.queue()
    leases = Leases(queue.on(services.heartbeat_sqs), settings.visibility_timeout_s)
    breaker = Breaker(lambda: require(services, settings))
    deliveries = Deliveries(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=pipeline,
        job_timeout_s=settings.job_timeout_s,
        outage_rest_s=settings.retry_timeout_s,
    )
    daemon = Daemon(
        queue=queue,
        deliveries=deliveries,
        breaker=breaker,
        stop=stop,
        slots=settings.job_slots,
        wait_time_s=settings.wait_time_s,
        visibility_timeout_s=settings.visibility_timeout_s,
        seconds_needed=pipeline.seconds_needed,
        when_empty=membership.leave_when_idle,
    )
    watchdog = _watchdog(settings, daemon, deliveries, leases)
    async with asyncio.TaskGroup() as group:
        # A side task that dies takes the daemon with it, which releases what it holds: never silently alone.
        beside = [
            group.create_task(leases.run(), name="heartbeats"),
            group.create_task(breaker.run(), name="breaker"),
            group.create_task(daemon.triage(), name="triage"),
            group.create_task(membership.run(), name="lifecycle-heartbeats"),
            group.create_task(watchdog.run(), name="watchdog"),
            group.create_task(watchdog.announce(stop), name="announce-stop"),
            group.create_task(watch_lag(), name="loop-lag"),
        ]
        beside += [group.create_task(watch(queue, stop), name="watch") for watch in watches]
        await daemon.run()
        for task in beside:
            task.cancel()
    return deliveries.tally


def _watchdog(settings: Settings, daemon: Daemon, deliveries: Deliveries, leases: Leases) -> Watchdog:
    # A job is ended by its own timeout; one that outlives that by minutes cannot be cancelled any more.
    sides = (
        Side("polls", lambda: daemon.ticked_s, PATIENCE_S),
        Side("heartbeats", lambda: leases.ticked_s, PATIENCE_S),
        Side("jobs", lambda: deliveries.oldest_s, settings.job_timeout_s + PATIENCE_S),
    )
    return Watchdog(
        settings.notify_socket,
        settings.watchdog_usec / 1e6,
        sides,
        lambda: f"{len(deliveries.under_way)} jobs held, {deliveries.tally.total()} ended",
    )
