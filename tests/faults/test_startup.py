"""Scenario F36, and other faults before the first receive: the worker logs why it ends, and takes no message."""

import asyncio
import signal

from tests.support.commands import StartWorker
from tests.support.fakes.autoscaling import GROUP, LAUNCH_HOOK, FakeAutoScaling
from tests.support.fakes.imds import INSTANCE_ID, FakeImds
from tests.support.faults.proxy import OpenProxy
from tests.support.machines.systemd import STARTING, Systemd
from tests.support.site import Site


async def test_sigterm_during_preflight_ends_the_worker_at_once(
    site: Site, start_worker: StartWorker, open_proxy: OpenProxy
) -> None:
    proxy = await open_proxy(site.services.servers.objects.url)
    proxy.hold("down")
    worker = await start_worker(site, STT_MINIO_ENDPOINT=proxy.endpoint)
    await proxy.holding.wait()
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    assert worker.events("stop_requested")
    assert not worker.events("worker_started")


async def test_bad_settings_end_the_worker_with_2_before_any_call(site: Site, start_worker: StartWorker) -> None:
    bad = [
        {"STT_PROCESSES": "0"},
        {"STT_MINIO_ENDPOINT": "https://minio.example"},
        {"STT_VISIBILITY_TIMEOUT_S": "20", "STT_WAIT_TIME_S": "20"},
    ]
    await site.send(site.job("a.wav"))
    for variables in bad:
        worker = await start_worker(site, **variables)
        assert await worker.wait() == 2
        assert next(iter(variables)) in worker.process.log.read_text()
        assert not list(worker.scratch.iterdir())
    assert site.history.calls == []
    [letter] = await site.take_messages()
    assert letter.receive_count == 1


async def test_failed_preflight_abandons_the_instance_and_receives_nothing(
    *, site: Site, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling, systemd: Systemd
) -> None:
    await site.send(site.job("a.wav"))
    nowhere = "nowhere.invalid"  # RFC 6761, section 6.4: never resolves
    causes = {
        "STT_OUTPUT_BUCKET": "never-made",
        "STT_MINIO_SECRET_KEY": "wrong",
        "STT_MINIO_ENDPOINT": nowhere,
        "AWS_ENDPOINT_URL_S3": f"http://{nowhere}",
        "AWS_ENDPOINT_URL_SQS": f"http://{nowhere}",
    }
    common = {"STT_RETRY_TIMEOUT_S": "1"} | imds.environment() | autoscaling.environment() | systemd.environment()
    workers = [await start_worker(site, **common, **{variable: value}) for variable, value in causes.items()]
    assert await asyncio.gather(*(worker.wait() for worker in workers)) == [3] * len(causes)
    for worker, (variable, value) in zip(workers, causes.items(), strict=True):
        assert variable.startswith("STT_MINIO_SECRET") or value.split("/")[-1] in worker.process.log.read_text()
    abandoned = {
        "AutoScalingGroupName": GROUP,
        "InstanceId": INSTANCE_ID,
        "LifecycleHookName": LAUNCH_HOOK,
        "LifecycleActionResult": "ABANDON",
    }
    assert autoscaling.of("CompleteLifecycleAction") == [abandoned] * len(causes)
    assert sorted(systemd.lines()) == sorted(STARTING * len(causes))
    assert site.history.of("sqs", "ReceiveMessage") == []
    [letter] = await site.take_messages()
    assert letter.receive_count == 1
