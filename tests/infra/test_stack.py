"""The stack, made, changed and deleted on two emulators. What neither makes is put to the API that it is meant for."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stt_async.local.queues import MAX_RECEIVES
from stt_async.retry import Retry
from stt_async.services.queue import open_queue
from tests.support.cloudformation import Stack
from tests.support.clouds import METRIC_MATH, Cloud
from tests.support.template import ESSENTIAL, SUBSCRIBER
from tests.support.waiting import wait_until


@pytest.fixture(scope="module", params=["moto", "ministack_cloud"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    """One emulator after the other."""
    cloud: Cloud = request.getfixturevalue(request.param)
    return cloud


def _parameters(name: str, **given: str) -> dict[str, str]:
    """Return parameters for all that a stack can make, under names that no other stack on the same emulator has."""
    own = {
        "Environment": name,
        "OutputBucket": f"{name}-segments",
        "SplitQueueName": f"{name}-split",
        "DownloadQueueName": f"{name}-download",
    }
    return ESSENTIAL | {"CreateOutputBucket": "true", "AlarmEmail": SUBSCRIBER} | own | given


async def _apply(cloud: Cloud, name: str, kind: str, parameters: Mapping[str, str]) -> None:
    """Create or update a stack, as bin/deploy does: by a change set. Fails with CloudFormation's reason."""
    async with cloud.client("cloudformation") as cloudformation:
        change_set = {"StackName": name, "ChangeSetName": kind.lower()}
        await cloudformation.create_change_set(
            **change_set,
            ChangeSetType=kind,
            TemplateBody=cloud.template_body,
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_IAM"],
        )
        await cloudformation.get_waiter("change_set_create_complete").wait(**change_set, WaiterConfig={"Delay": 1})
        await cloudformation.execute_change_set(**change_set)

        async def settled() -> str | None:
            (stack,) = (await cloudformation.describe_stacks(StackName=name))["Stacks"]
            status: str = stack["StackStatus"]
            return None if status.endswith("_IN_PROGRESS") else status

        assert await wait_until(settled, what=f"stack {name}") == f"{kind}_COMPLETE"


async def _delete(cloud: Cloud, name: str) -> None:
    async with cloud.client("cloudformation") as cloudformation:
        await cloudformation.delete_stack(StackName=name)
        await cloudformation.get_waiter("stack_delete_complete").wait(StackName=name, WaiterConfig={"Delay": 1})


@asynccontextmanager
async def _stack(cloud: Cloud, name: str, **given: str) -> AsyncIterator[None]:
    await _apply(cloud, name, "CREATE", _parameters(name, **given))
    yield
    await _delete(cloud, name)


async def _resources(cloud: Cloud, name: str) -> dict[str, str]:
    """Return the physical ids of what was made; moto lists what it skipped, too, without a name."""
    async with cloud.client("cloudformation") as cloudformation:
        answer = await cloudformation.describe_stack_resources(StackName=name)
    return {
        each["LogicalResourceId"]: each["PhysicalResourceId"]
        for each in answer["StackResources"]
        if each.get("PhysicalResourceId")
    }


async def test_it_is_created_whole(cloud: Cloud, stack: Stack) -> None:
    async with _stack(cloud, "whole"):
        made = set(await _resources(cloud, "whole"))

    assert made == set(stack.resources) - cloud.skips


async def test_one_of_the_two_makes_everything_but_metric_math_and_the_budget(
    moto: Cloud, ministack_cloud: Cloud
) -> None:
    assert moto.skips & ministack_cloud.skips == METRIC_MATH | {"Budget"}


async def test_without_a_bucket_and_queues_of_its_own(cloud: Cloud, plain_stack: Stack) -> None:
    async with _stack(cloud, "first"):
        names = {
            "OutputBucket": "first-segments",
            "SplitQueueName": "first-split",
            "DownloadQueueName": "first-download",
        }
        async with _stack(cloud, "second", CreateOutputBucket="false", CreateQueues="false", AlarmEmail="", **names):
            made = set(await _resources(cloud, "second"))

    queues = set(plain_stack.of("AWS::SQS::Queue"))
    assert made == set(plain_stack.resources) - queues - cloud.skips


async def test_the_worker_finds_its_queues_there(cloud: Cloud) -> None:
    async with _stack(cloud, "works"), cloud.client("sqs") as sqs:
        queue = await open_queue(sqs, "works-split", Retry(timeout_s=5, max_wait_s=1))
        await queue.send(["a job"])
        (message,) = await queue.receive(most=10, wait_time_s=1, visibility_timeout_s=300)
        await queue.delete(message)

        assert queue.max_receive_count == MAX_RECEIVES
        assert queue.dead_letter_url.endswith("/works-split-dlq")
        assert (await queue.depth()).empty


async def test_queues_keep_and_hide_as_the_template_says(cloud: Cloud, stack: Stack) -> None:
    async with _stack(cloud, "keeps"), cloud.client("sqs") as sqs:
        for logical_name, url in (await _resources(cloud, "keeps")).items():
            if logical_name not in stack.of("AWS::SQS::Queue"):
                continue
            attributes = (await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]))["Attributes"]
            written = stack.properties(logical_name)
            for attribute in ("MessageRetentionPeriod", "VisibilityTimeout", "ReceiveMessageWaitTimeSeconds"):
                assert attributes[attribute] == str(written.get(attribute, attributes[attribute]))
            assert attributes["SqsManagedSseEnabled"] == "true"


async def test_an_instance_would_be_launched_as_the_template_says(cloud: Cloud, stack: Stack) -> None:
    async with _stack(cloud, "launches"), cloud.client("ec2") as ec2:
        template_id = (await _resources(cloud, "launches"))["SplitTemplate"]
        answer = await ec2.describe_launch_template_versions(LaunchTemplateId=template_id)

    launched = answer["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    written = stack.properties("SplitTemplate")["LaunchTemplateData"]
    assert launched["ImageId"].startswith("ami-"), "the SSM parameter was not looked up"
    assert launched["InstanceInitiatedShutdownBehavior"] == written["InstanceInitiatedShutdownBehavior"]
    assert launched["MetadataOptions"]["HttpTokens"] == "required"
    assert launched["BlockDeviceMappings"] == written["BlockDeviceMappings"]


async def test_an_update_takes_a_new_release_and_a_wider_link(cloud: Cloud) -> None:
    async with _stack(cloud, "updates", SourceLinkMbps="300"), cloud.client("autoscaling") as autoscaling:
        before = await _resources(cloud, "updates")
        wider = _parameters("updates", SourceLinkMbps="1000", ArtifactSha256="0" * 64)
        await _apply(cloud, "updates", "UPDATE", wider)

        assert (await _resources(cloud, "updates")).keys() == before.keys()
        answer = await autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=["updates-split"])
        (group,) = answer["AutoScalingGroups"]
        assert (group["MinSize"], group["MaxSize"]) == (0, 24)


async def test_a_delete_keeps_segments_and_queues(ministack_cloud: Cloud) -> None:
    async with _stack(ministack_cloud, "deleted"):
        pass

    async with ministack_cloud.client("s3") as s3, ministack_cloud.client("sqs") as sqs:
        await s3.head_bucket(Bucket="deleted-segments")
        kept = (await sqs.list_queues(QueueNamePrefix="deleted-"))["QueueUrls"]
    assert len(kept) == 4
    async with ministack_cloud.client("autoscaling") as autoscaling:
        answer = await autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=["deleted-split"])
    assert answer["AutoScalingGroups"] == []


async def test_cloudwatch_takes_the_alarms_on_expressions(moto: Cloud, stack: Stack) -> None:
    async with moto.client("cloudwatch") as cloudwatch:
        for name in sorted(METRIC_MATH):
            alarm = {**stack.properties(name), "AlarmActions": []}
            await cloudwatch.put_metric_alarm(**alarm)
        names = [stack.properties(name)["AlarmName"] for name in METRIC_MATH]
        described = (await cloudwatch.describe_alarms(AlarmNames=names))["MetricAlarms"]

    assert sorted(each["AlarmName"] for each in described) == sorted(names)
    assert all(each["Metrics"] for each in described)


async def test_autoscaling_takes_the_hooks(moto: Cloud, stack: Stack) -> None:
    # Neither emulator reads the hooks inside of a group.
    async with _stack(moto, "hooked"), moto.client("autoscaling") as autoscaling:
        for hook in stack.properties("SplitGroup")["LifecycleHookSpecificationList"]:
            await autoscaling.put_lifecycle_hook(AutoScalingGroupName="hooked-split", **hook)
        answer = await autoscaling.describe_lifecycle_hooks(AutoScalingGroupName="hooked-split")

    assert sorted(hook["LifecycleHookName"] for hook in answer["LifecycleHooks"]) == ["join", "leave"]


async def test_budgets_takes_the_budget(moto: Cloud, stack: Stack) -> None:
    properties: dict[str, Any] = stack.properties("Budget")
    limit = properties["Budget"]["BudgetLimit"]
    budget = {**properties["Budget"], "BudgetLimit": {**limit, "Amount": str(limit["Amount"])}}
    async with moto.client("budgets") as budgets:
        await budgets.create_budget(
            AccountId="123456789012",
            Budget=budget,
            NotificationsWithSubscribers=properties["NotificationsWithSubscribers"],
        )
        described = await budgets.describe_budgets(AccountId="123456789012")

    assert [each["BudgetName"] for each in described["Budgets"]] == ["stt-async-us-east-1"]
