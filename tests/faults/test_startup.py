"""Scenario F36, and what else befalls a worker before its first receive: it says why it ends, and takes no message."""

import signal

import pytest

from tests.support.commands import StartWorker
from tests.support.fakes.autoscaling import GROUP, LAUNCH_HOOK, FakeAutoScaling
from tests.support.fakes.imds import INSTANCE_ID, FakeImds
from tests.support.faults.proxy import OpenProxy
from tests.support.site import Site


async def test_worker_told_to_stop_while_it_looks_at_its_services_stops_at_once(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy
) -> None:
    proxy = await open_proxy(site.services.servers.objects.url)
    proxy.hold("down")
    worker = await start_worker(site, STT_MINIO_ENDPOINT=proxy.endpoint)
    await proxy.holding.wait()
    worker.signal(signal.SIGTERM)
    assert await worker.wait(timeout_s=15) == 0
    assert worker.events("stop_requested")
    assert not worker.events("worker_started")


async def test_worker_whose_source_refuses_it_receives_nothing(site: Site, start_worker: StartWorker) -> None:
    await site.send("a message that must not be received")
    worker = await start_worker(site, STT_MINIO_SECRET_KEY="wrong")  # noqa: S106 - wrong on purpose
    assert await worker.wait() == 3
    assert (await site.counts()).visible == 1
    (letter,) = await site.take_messages()
    assert letter.receive_count == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"STT_PROCESSES": "0"},
        {"STT_MINIO_ENDPOINT": "https://minio.example"},
        {"STT_VISIBILITY_TIMEOUT_S": "20", "STT_WAIT_TIME_S": "20"},
    ],
)
async def test_a_worker_with_bad_settings_ends_with_2_each_time_and_receives_nothing(
    site: Site, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling, bad: dict[str, str]
) -> None:
    await site.send(site.job("a.wav"))
    for _ in range(3):
        worker = await start_worker(site, **imds.environment(), **autoscaling.environment(), **bad)
        assert await worker.wait() == 2
        assert next(iter(bad)) in worker.process.log.read_text()
        assert not list(worker.scratch.iterdir())
    assert site.history.calls == []
    [letter] = await site.take_messages()
    assert letter.receive_count == 1


async def test_a_worker_that_cannot_work_here_abandons_its_instance_each_time_and_receives_nothing(
    site: Site, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling
) -> None:
    await site.send(site.job("a.wav"))
    for _ in range(3):
        worker = await start_worker(
            site, STT_OUTPUT_BUCKET="never-made", **imds.environment(), **autoscaling.environment()
        )
        assert await worker.wait() == 3
    abandoned = {
        "AutoScalingGroupName": GROUP,
        "InstanceId": INSTANCE_ID,
        "LifecycleHookName": LAUNCH_HOOK,
        "LifecycleActionResult": "ABANDON",
    }
    assert autoscaling.of("CompleteLifecycleAction") == [abandoned] * 3
    assert site.history.of("sqs", "ReceiveMessage") == []
    [letter] = await site.take_messages()
    assert letter.receive_count == 1
