"""Scenario F30: a worker without work ends its instance once, and never while it holds a message."""

from pathlib import Path
from typing import Any

import aioboto3
import pytest

from stt_async.local.loopback import REGION
from tests.support.commands import StartWorker
from tests.support.evidence.history import Call
from tests.support.evidence.outputs import verified
from tests.support.fakes.autoscaling import LAUNCH_HOOK, TERMINATION_HOOK, FakeAutoScaling
from tests.support.fakes.imds import INSTANCE_ID, FakeImds
from tests.support.faults.calls import hold_after
from tests.support.site import Site
from tests.support.waiting import wait_until

TERMINATE = "TerminateInstanceInAutoScalingGroup"
IDLE = {"STT_IDLE_TIMEOUT_S": "1"}
_POLLS = 3
"""Of a second each: three times the idle timeout."""


async def test_idle_worker_ends_its_instance_once_and_never_while_it_holds_a_job(
    site: Site, start_worker: StartWorker, imds: FakeImds, autoscaling: FakeAutoScaling, speech: Path
) -> None:
    autoscaling.refuses = "ScalingActivityInProgress"
    worker = await start_worker(site, **IDLE, **imds.environment(), **autoscaling.environment())
    await worker.wait_for("idle_termination_failed")
    assert [line["hook"] for line in worker.events("lifecycle_action_not_completed")] == [LAUNCH_HOOK]

    await site.put_recordings({"a.wav": speech})
    with site.gateway.fault("minio", "GetObject", hold_after, where=lambda call: call.key == "a.wav") as held:
        await site.send(site.job("a.wav"))
        await held.has_struck()
        autoscaling.refuses = None
        calls, polls = len(autoscaling.of(TERMINATE)), len(_empty_polls(site))
        await wait_until(lambda: len(_empty_polls(site)) >= polls + _POLLS, what="polls for thrice the idle timeout")
        assert len(autoscaling.of(TERMINATE)) == calls
    assert await worker.wait() == 0
    await verified(site, "a.wav")
    terminate = {"InstanceId": INSTANCE_ID, "ShouldDecrementDesiredCapacity": "true"}
    assert autoscaling.of(TERMINATE) == [terminate] * (calls + 1)
    completed = autoscaling.of("CompleteLifecycleAction")
    assert [call["LifecycleHookName"] for call in completed] == [LAUNCH_HOOK, TERMINATION_HOOK]
    assert {call["LifecycleActionResult"] for call in completed} == {"CONTINUE"}
    events = [line["event"] for line in worker.lines() if line["event"] in {"job_succeeded", "idle_terminated"}]
    assert events == ["job_succeeded", "idle_terminated"]
    assert [line["reason"] for line in worker.events("stop_requested")] == ["idle"]


def _empty_polls(site: Site) -> list[Call]:
    """Long polls that ended; each takes a second."""
    return [call for call in site.history.of("sqs", "ReceiveMessage") if call.ended_s is not None and not call.messages]


@pytest.fixture
async def group_of_one(site: Site, moto_url: str) -> Any:
    """A group with one instance, on moto: a second opinion on what the worker's call means."""
    keys: dict[str, Any] = {
        "aws_access_key_id": "any",
        "aws_secret_access_key": "any",
        "region_name": REGION,
        "endpoint_url": moto_url,
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


async def test_idle_worker_lowers_the_desired_capacity_on_moto(
    site: Site, start_worker: StartWorker, imds: FakeImds, group_of_one: Any, moto_url: str
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
        AWS_ENDPOINT_URL_AUTO_SCALING=moto_url,
        **IDLE,
        **imds.environment(),
    )
    assert await worker.wait() == 0
    after = await described()
    assert (after["DesiredCapacity"], after["Instances"]) == (0, [])
