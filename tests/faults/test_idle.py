"""Scenario F30: a worker without work ends its instance, once, and never while a message is held."""

from pathlib import Path
from typing import Any

import aioboto3
import pytest

from stt_async.local.loopback import REGION
from tests.support.commands import StartWorker
from tests.support.evidence.history import Call
from tests.support.fakes.autoscaling import FakeAutoScaling
from tests.support.fakes.imds import INSTANCE_ID, FakeImds
from tests.support.faults.calls import hold_after
from tests.support.site import Site
from tests.support.waiting import wait_until

TERMINATE = "TerminateInstanceInAutoScalingGroup"
IDLE = {"STT_IDLE_TIMEOUT_S": "2"}
_POLLS = 6
"""Of a second each: three times as long as it takes to be idle."""


async def test_a_worker_without_work_ends_its_instance_once_and_in_order(
    site: Site, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling, speech: Path
) -> None:
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    worker = await start_worker(site, **IDLE, **imds.environment(), **autoscaling.environment())
    assert await worker.wait() == 0
    assert autoscaling.of(TERMINATE) == [{"InstanceId": INSTANCE_ID, "ShouldDecrementDesiredCapacity": "true"}]
    results = [call["LifecycleActionResult"] for call in autoscaling.of("CompleteLifecycleAction")]
    hooks = [call["LifecycleHookName"] for call in autoscaling.of("CompleteLifecycleAction")]
    assert (hooks, results) == (["joins", "leaves"], ["CONTINUE", "CONTINUE"])
    events = [line["event"] for line in worker.lines()]
    assert events.index("job_succeeded") < events.index("idle_terminated")
    assert [line["reason"] for line in worker.events("stop_requested")] == ["idle"]


async def test_when_the_call_fails_the_worker_goes_on_and_tries_again(
    site: Site, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling, speech: Path
) -> None:
    autoscaling.refuses = "ScalingActivityInProgress"
    worker = await start_worker(site, **IDLE, **imds.environment(), **autoscaling.environment())
    await worker.wait_for("idle_termination_failed")
    await site.put_recordings({"a.wav": speech})
    await site.send(site.job("a.wav"))
    await worker.wait_for("job_succeeded")
    autoscaling.refuses = None
    assert await worker.wait() == 0
    assert len(worker.events("idle_terminated")) == 1


async def test_a_worker_that_holds_a_job_is_not_idle_however_long_no_other_comes(
    site: Site, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling, speech: Path
) -> None:
    worker = await start_worker(site, **IDLE, **imds.environment(), **autoscaling.environment())
    await worker.wait_for("worker_started")
    await site.put_recordings({"a.wav": speech})
    with site.gateway.fault("minio", "GetObject", hold_after, where=lambda call: call.key == "a.wav") as held:
        await site.send(site.job("a.wav"))
        await held.has_struck()
        polls = len(_empty_polls(site))
        await wait_until(lambda: len(_empty_polls(site)) >= polls + _POLLS, what="polls of thrice the idle time")
        assert autoscaling.of(TERMINATE) == []
    assert await worker.wait() == 0
    assert set(await site.manifests()) == {"a.wav"}
    assert len(autoscaling.of(TERMINATE)) == 1


def _empty_polls(site: Site) -> list[Call]:
    """Long polls that ended; each takes a second."""
    return [call for call in site.history.of("sqs", "ReceiveMessage") if call.ended_s is not None and not call.messages]


async def test_outside_of_a_group_it_stays(site: Site, start_worker: StartWorker, imds: FakeImds, speech: Path) -> None:
    worker = await start_worker(site, STT_IDLE_TIMEOUT_S="0.001", **imds.environment())
    await worker.wait_for("worker_started")
    for number in range(2):  # it is idle before the first and before the second
        await site.put_recordings({f"{number}.wav": speech})
        await site.send(site.job(f"{number}.wav"))
        await worker.wait_for("job_succeeded", count=number + 1)
        await wait_until(site.is_drained, what="the job to be settled")
    assert not worker.events("stop_requested")


@pytest.fixture
async def group_of_one(site: Site) -> Any:
    """A group with one instance, on moto: a second opinion on what our call means."""
    url = site.services.servers.queues_url
    keys: dict[str, Any] = {
        "aws_access_key_id": "any",
        "aws_secret_access_key": "any",
        "region_name": REGION,
        "endpoint_url": url,
    }
    session = aioboto3.Session()
    async with session.client("autoscaling", **keys) as client, session.client("ec2", **keys) as ec2:
        image = (await ec2.describe_images())["Images"][0]["ImageId"]
        name = site.services.queues.name
        await client.create_launch_configuration(LaunchConfigurationName=name, ImageId=image, InstanceType="c6i.large")
        await client.create_auto_scaling_group(
            AutoScalingGroupName=name,
            LaunchConfigurationName=name,
            MinSize=0,
            MaxSize=1,
            DesiredCapacity=1,
            AvailabilityZones=[f"{REGION}a"],
        )
        yield client, name
        await client.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
        await client.delete_launch_configuration(LaunchConfigurationName=name)


async def test_the_group_wants_one_less_by_moto_too(
    site: Site, start_worker: StartWorker, imds: FakeImds, group_of_one: Any
) -> None:
    client, name = group_of_one

    async def described() -> Any:
        return (await client.describe_auto_scaling_groups(AutoScalingGroupNames=[name]))["AutoScalingGroups"][0]

    before = await described()
    assert before["DesiredCapacity"] == len(before["Instances"]) == 1
    imds.is_instance(before["Instances"][0]["InstanceId"])
    worker = await start_worker(
        site,
        STT_AUTOSCALING_GROUP=name,
        AWS_ENDPOINT_URL_AUTO_SCALING=site.services.servers.queues_url,
        **IDLE,
        **imds.environment(),
    )
    assert await worker.wait() == 0
    after = await described()
    assert (after["DesiredCapacity"], after["Instances"]) == (0, [])
