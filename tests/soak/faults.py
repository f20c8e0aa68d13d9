"""The faults of a soak: each a function that causes one fault once, and waits until it is over."""

import asyncio
import random
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import psutil

from tests.soak.fleet import Fleet
from tests.support.evidence.history import Call, Service
from tests.support.faults.calls import cut_body, delay, error, flip_bit, lost_answer, reset, short_body
from tests.support.faults.gateway import Fault
from tests.support.site import Site

SLOW_S = 6.0
"""Long enough for one or two heartbeats."""


@dataclass(frozen=True)
class Scene:
    """What the faults act on."""

    site: Site
    fleet: Fleet
    jobs: list[dict[str, Any]]
    rng: random.Random


RandomFault = Callable[[Scene], Coroutine[Any, Any, None]]


async def worker_killed(scene: Scene) -> None:
    """SIGKILL to a worker, as when a host fails; another replaces it, on its disk or on a new one."""
    with scene.fleet.reserve(scene.rng) as instance:
        if instance is not None:
            async with scene.fleet.downtime():
                instance.worker.kill()
                await scene.fleet.replace(instance, -signal.SIGKILL, same_disk=scene.rng.random() < 0.5)


async def worker_stopped(scene: Scene) -> None:
    """SIGTERM, as by `systemctl restart`."""
    with scene.fleet.reserve(scene.rng) as instance:
        if instance is not None:
            async with scene.fleet.downtime():
                instance.worker.signal(signal.SIGTERM)
                await scene.fleet.replace(instance, 0, same_disk=True)


async def instance_interrupted(scene: Scene) -> None:
    """A Spot interruption notice, of two minutes or of seconds."""
    with scene.fleet.reserve(scene.rng) as instance:
        if instance is not None:
            async with scene.fleet.downtime():
                instance.imds.arm_spot(in_s=scene.rng.choice([21, 120]))
                await scene.fleet.replace(instance, 0, same_disk=False)


async def worker_frozen(scene: Scene) -> None:
    """SIGSTOP for less than the visibility timeout, or for longer: then others have its messages when it wakes."""
    with scene.fleet.reserve(scene.rng) as instance:
        if instance is not None:
            async with scene.fleet.downtime():
                instance.worker.signal(signal.SIGSTOP)
                await asyncio.sleep(scene.site.visibility_timeout_s * scene.rng.choice([0.3, 1.2]))
                instance.worker.signal(signal.SIGCONT)


async def child_killed(scene: Scene) -> None:
    """SIGKILL to one pool child, busy or idle, as by the kernel when memory is short."""
    with scene.fleet.reserve(scene.rng) as instance:
        if instance is not None:
            children = [
                process
                for process in psutil.Process(instance.worker.pid).children(recursive=True)
                if _maps_torch(process)
            ]
            if children:
                scene.rng.choice(children).kill()


async def message_duplicated(scene: Scene) -> None:
    """Send a job a second time, while it runs or after it."""
    await scene.site.send(scene.rng.choice(scene.jobs))


async def source_slow_and_heartbeat_lost(scene: Scene) -> None:
    """One download stalls for seconds, and the answer to the first heartbeat of its message is lost."""
    with (
        scene.site.gateway.fault("minio", "GetObject", delay(SLOW_S), times=1) as slow,
        scene.site.gateway.fault("sqs", "ChangeMessageVisibilityBatch", lost_answer, times=1) as beat,
    ):
        await slow.has_struck()
        await beat.has_struck()
        scene.fleet.add_delay(SLOW_S)


def calls_struck(service: Service, operation: str, fault: Fault, **options: Any) -> RandomFault:
    """Spoil one to three calls. aiohttp silently repeats a call that is reset once."""

    async def struck(scene: Scene) -> None:
        times = scene.rng.choice([1, 2, 3])
        with scene.site.gateway.fault(service, operation, fault, times=times, **options) as rule:
            await rule.has_struck(times)

    return struck


def _is_manifest(call: Call) -> bool:
    return call.is_of_manifest


def _is_segment(call: Call) -> bool:
    return not call.is_of_manifest


NETWORK: list[RandomFault] = [
    calls_struck("minio", "GetObject", error(503, "SlowDown")),
    calls_struck("minio", "GetObject", error(500, "InternalError")),
    calls_struck("minio", "GetObject", reset),
    calls_struck("minio", "GetObject", cut_body(0.5)),
    calls_struck("minio", "GetObject", short_body(0.7)),
    calls_struck("minio", "GetObject", flip_bit),
    calls_struck("s3", "PutObject", error(503, "SlowDown")),
    calls_struck("s3", "PutObject", error(500, "InternalError")),
    calls_struck("s3", "PutObject", reset, where=_is_segment),
    calls_struck("s3", "PutObject", lost_answer, where=_is_segment),
    calls_struck("s3", "PutObject", reset, where=_is_manifest),
    calls_struck("s3", "PutObject", lost_answer, where=_is_manifest),
    calls_struck("s3", "GetObject", error(500, "InternalError")),
    calls_struck("sqs", "DeleteMessage", error(500, "InternalFailure")),
    calls_struck("sqs", "DeleteMessage", lost_answer),
    calls_struck("sqs", "ReceiveMessage", error(403, "RequestThrottled")),
    calls_struck("sqs", "ReceiveMessage", lost_answer),
    source_slow_and_heartbeat_lost,
]
"""Faults of calls, without harm to a worker."""

PROCESSES: list[RandomFault] = [
    worker_killed,
    worker_stopped,
    instance_interrupted,
    worker_frozen,
    child_killed,
    message_duplicated,
]
"""Faults of a process, and duplicates of a message."""

NETWORK_SHARE = 0.7


def drawn(rng: random.Random) -> RandomFault:
    """A random fault; most are faults of calls."""
    return rng.choice(NETWORK if rng.random() < NETWORK_SHARE else PROCESSES)


def _maps_torch(process: psutil.Process) -> bool:
    try:
        return any("libtorch" in region.path for region in process.memory_maps())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
