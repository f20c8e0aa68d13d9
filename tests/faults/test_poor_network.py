"""Scenario F39: a network of 500 ms and 256 KB/s that loses 1% of its packets, before each service."""

import random
from pathlib import Path

import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.faults.calls import delay
from tests.support.faults.proxy import Link, OpenProxy
from tests.support.site import Site
from tests.support.waiting import wait_until

_LONG = "long.wav"
_HELD_S = 12.0
"""A job that lasts as long has a heartbeat: one is due every 10 s."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("service", ["minio", "s3", "sqs"])
async def test_slow_lossy_network_slows_jobs_and_fails_none(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy, speech: Path, five_minutes: Path, *, service: str
) -> None:
    servers = site.services.servers
    proxy = await open_proxy(servers.queues_url if service == "sqs" else servers.objects.url)
    proxy.link = Link(latency_s=0.25, bandwidth_bytes_s=256_000, loss=0.01, rng=random.Random(39))  # noqa: S311
    addresses = {
        "minio": {"STT_MINIO_ENDPOINT": proxy.endpoint},
        "s3": {"AWS_ENDPOINT_URL_S3": proxy.url},
        "sqs": {"AWS_ENDPOINT_URL_SQS": proxy.url},
    }
    # This one has 2.4 MB to download and 9 MB to upload; the delay makes it long before a slow queue, too.
    site.gateway.fault("minio", "GetObject", delay(_HELD_S), where=lambda call: call.key == _LONG)
    worker = await start_worker(site, STT_FORMAT="wav", **addresses[service])
    keys = [_LONG, *(f"{number}.wav" for number in range(5))]
    await site.put_recordings({key: five_minutes if key == _LONG else speech for key in keys})
    for key in keys:
        await site.send(site.job(key))
    done = await worker.wait_for("job_succeeded", count=len(keys), timeout_s=200)
    await wait_until(site.is_drained, what="all messages to be deleted")

    assert {line["receive_count"] for line in done} == {1}
    assert site.history.of("sqs", "ChangeMessageVisibilityBatch")
    for trouble in ("heartbeat_late", "heartbeat_failed", "job_lease_lost", "breaker_opened", "job_retried"):
        assert worker.events(trouble) == []
    for key in keys:
        await verified(site, key)
