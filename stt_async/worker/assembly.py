"""Assembles the worker: services, scratch, pool, leases, breaker, daemon. Preflight comes before the first receive."""

import faulthandler
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from stt_async.concurrency import run_unless
from stt_async.services.autoscaling import open_group
from stt_async.services.connections import Connections, connect, daemon_retry
from stt_async.services.imds import open_imds
from stt_async.services.queue import JobQueue
from stt_async.settings import Settings
from stt_async.worker.breaker import Breaker
from stt_async.worker.daemon import Daemon, stop_when_empty
from stt_async.worker.estimates import Estimates
from stt_async.worker.interruption import Interruptions
from stt_async.worker.lag import watch_lag
from stt_async.worker.lease import Leases
from stt_async.worker.lifecycle import Hooks, Lifecycle
from stt_async.worker.pipeline import SplitPipeline
from stt_async.worker.pool import open_pool
from stt_async.worker.preflight import require_services
from stt_async.worker.running_jobs import RunningJobs
from stt_async.worker.scratch import open_scratch
from stt_async.worker.side_tasks import Work, side_tasks
from stt_async.worker.stop import Stop, on_signals
from stt_async.worker.watchdog import Activity, Watchdog, notify

Watch = Callable[[JobQueue, Stop], Coroutine[Any, Any, None]]
"""A side task that may request a stop."""

START_TIMEOUT_S = 300.0
"""From the start to the first receive, instead of `TimeoutStartSec=`: a slow service is retried for a minute, and torch
loads from a cold disk in about a minute."""

STALL_TIMEOUT_S = 90.0
"""Without progress, before the watchdog considers an activity stuck: a late long poll of 20 s and heartbeats to a queue
that times out take less."""


async def work_until_empty(settings: Settings) -> Counter[str]:
    """Run the worker until the queue is empty; see `work`."""

    async def watch(queue: JobQueue, stop: Stop) -> None:
        await stop_when_empty(queue, stop, drain_timeout_s=settings.drain_timeout_s)

    return await work(settings, queue_empty=watch)


async def work(settings: Settings, **watches: Watch) -> Counter[str]:
    """Run the worker until a signal, an interruption of its instance, or one of `watches` stops it.

    Returns:
        The number of jobs by the event of their log line.

    Raises:
        ClassifiedError: preflight found that a service fails; nothing was received.
    """
    faulthandler.enable()  # systemd's watchdog sends SIGABRT: log where the worker is stuck
    notify(settings.notify_socket, "STATUS=preflight", f"EXTEND_TIMEOUT_USEC={START_TIMEOUT_S * 1e6:.0f}")
    stop = Stop()
    with on_signals(stop, drain_timeout_s=settings.drain_timeout_s):
        async with open_imds(settings) as imds, open_group(settings, imds) as group:
            lifecycle = Lifecycle(
                group,
                Hooks(launch=settings.launch_hook, termination=settings.termination_hook),
                stop,
                idle_timeout_s=settings.idle_timeout_s,
                drain_timeout_s=settings.drain_timeout_s,
            )
            async with AsyncExitStack() as stack:
                services = await stack.enter_async_context(connect(settings, daemon_retry(settings)))
                async with lifecycle.completing_launch():
                    pipeline = await run_unless(stop.wait(), _open_pipeline(settings, services, stack))
                if pipeline is None:
                    return Counter()
                notify(settings.notify_socket, "READY=1")
                if imds is not None:
                    interruptions = Interruptions(imds, stop, lifecycle, drain_timeout_s=settings.drain_timeout_s)
                    await interruptions.poll_once()
                    watches["interruptions"] = lambda _queue, _stop: interruptions.run()
                counts = await _run(
                    settings, services, pipeline=pipeline, stop=stop, lifecycle=lifecycle, watches=watches
                )
            await lifecycle.complete_termination()
            return counts


async def _open_pipeline(settings: Settings, services: Connections, stack: AsyncExitStack) -> SplitPipeline:
    """Check the services, then open scratch and pool, which close with `stack`."""
    await require_services(services, settings)
    return SplitPipeline(
        source=services.source,
        sink=services.sink,
        failure_records=services.failure_records,
        scratch=stack.enter_context(open_scratch(settings.scratch_dir, settings.scratch_max_bytes)),
        pool=await stack.enter_async_context(open_pool(settings)),
        params=settings.split_params,
        limits=settings.limits,
        estimates=Estimates(settings.limits),
        output_bucket=settings.output_bucket,
        source_buckets=settings.source_buckets,
    )


async def _run(
    settings: Settings,
    services: Connections,
    *,
    pipeline: SplitPipeline,
    stop: Stop,
    lifecycle: Lifecycle,
    watches: Mapping[str, Watch],
) -> Counter[str]:
    queue = await services.queue()
    leases = Leases(queue.on(services.heartbeat_sqs), settings.visibility_timeout_s)
    breaker = Breaker(lambda: require_services(services, settings))
    jobs = RunningJobs(
        queue=queue,
        leases=leases,
        breaker=breaker,
        pipeline=pipeline,
        job_timeout_s=settings.job_timeout_s,
        outage_delay_s=settings.retry_timeout_s,
    )
    daemon = Daemon(
        queue=queue,
        jobs=jobs,
        breaker=breaker,
        stop=stop,
        slots=settings.job_slots,
        wait_time_s=settings.wait_time_s,
        visibility_timeout_s=settings.visibility_timeout_s,
        when_idle=lifecycle.terminate_when_idle,
    )
    watchdog = _watchdog(settings, daemon, jobs, leases)
    beside: dict[str, Work] = {
        "heartbeats": leases.run,
        "breaker": breaker.run,
        "release-unfinishable": daemon.release_unfinishable,
        "lifecycle-heartbeats": lifecycle.run,
        "watchdog": watchdog.run,
        "announce-stop": partial(watchdog.announce, stop),
        "loop-lag": watch_lag,
        **{name: partial(watch, queue, stop) for name, watch in watches.items()},
    }
    async with side_tasks(beside):
        await daemon.run()
    return jobs.counts


def _watchdog(settings: Settings, daemon: Daemon, jobs: RunningJobs, leases: Leases) -> Watchdog:
    # A job ends by its own timeout; a job that outlives it by minutes cannot be cancelled.
    activities = (
        Activity("polls", lambda: daemon.ticked_s, STALL_TIMEOUT_S),
        Activity("heartbeats", lambda: leases.ticked_s, STALL_TIMEOUT_S),
        Activity("jobs", lambda: jobs.oldest_started_s, settings.job_timeout_s + STALL_TIMEOUT_S),
    )
    return Watchdog(
        settings.notify_socket,
        settings.watchdog_usec / 1e6,
        activities,
        lambda: f"{len(jobs.running)} jobs held, {jobs.counts.total()} ended",
    )
