"""The stack, created, updated and deleted on two emulators. What both skip is sent to the API of its service."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stt_async.local.queues import MAX_RECEIVES
from stt_async.retry import Retry
from stt_async.services.queue import open_queue
from tests.support.fakes.clouds import METRIC_MATH, Cloud
from tests.support.stack.cloudformation import Stack
from tests.support.stack.template import ESSENTIAL, SUBSCRIBER
from tests.support.waiting import wait_until


@pytest.fixture(scope="module", params=["moto", "ministack_cloud"])
def cloud(request: pytest.FixtureRequest) -> Cloud:
    cloud: Cloud = request.getfixturevalue(request.param)
    return cloud


def _parameters(name: str, **given: str) -> dict[str, str]:
    """Return parameters of a stack with all resources, under names that are unique on an emulator."""
    own = {
        "Environment": name,
        "OutputBucket": f"{name}-segments",
        "SplitQueueName": f"{name}-split",
        "DownloadQueueName": f"{name}-download",
    }
    return ESSENTIAL | {"CreateOutputBucket": "true", "AlarmEmail": SUBSCRIBER} | own | given


async def _apply(cloud: Cloud, name: str, kind: str, parameters: Mapping[str, str]) -> None:
    """Create or update a stack through a change set, as bin/deploy does."""
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

        async def final_status() -> str | None:
            (stack,) = (await cloudformation.describe_stacks(StackName=name))["Stacks"]
            status: str = stack["StackStatus"]
            return None if status.endswith("_IN_PROGRESS") else status

        assert await wait_until(final_status, what=f"stack {name}") == f"{kind}_COMPLETE"


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
    """Return the physical ids of the resources. Moto also lists those that it skips, without an id."""
    async with cloud.client("cloudformation") as cloudformation:
        answer = await cloudformation.describe_stack_resources(StackName=name)
    return {
        each["LogicalResourceId"]: each["PhysicalResourceId"]
        for each in answer["StackResources"]
        if each.get("PhysicalResourceId")
    }


async def test_all_resources_are_created(cloud: Cloud, stack: Stack) -> None:
    async with _stack(cloud, "whole"):
        created = set(await _resources(cloud, "whole"))

    assert created == set(stack.resources) - cloud.skips


async def test_each_resource_except_metric_math_and_budget_is_created_by_one_emulator(
    moto: Cloud, ministack_cloud: Cloud
) -> None:
    assert moto.skips & ministack_cloud.skips == METRIC_MATH | {"Budget"}


async def test_stack_uses_an_existing_bucket_and_existing_queues(cloud: Cloud, plain_stack: Stack) -> None:
    async with _stack(cloud, "first"):
        names = {
            "OutputBucket": "first-segments",
            "SplitQueueName": "first-split",
            "DownloadQueueName": "first-download",
        }
        async with _stack(cloud, "second", CreateOutputBucket="false", CreateQueues="false", AlarmEmail="", **names):
            created = set(await _resources(cloud, "second"))

    queues = set(plain_stack.of("AWS::SQS::Queue"))
    assert created == set(plain_stack.resources) - queues - cloud.skips


async def test_worker_opens_the_queues_of_the_stack(cloud: Cloud) -> None:
    async with _stack(cloud, "works"), cloud.client("sqs") as sqs:
        queue = await open_queue(sqs, "works-split", Retry(timeout_s=5, max_wait_s=1))
        await queue.send(["a job"])
        (message,) = await queue.receive(most=10, wait_time_s=1, visibility_timeout_s=300)
        await queue.delete(message)

        assert queue.max_receive_count == MAX_RECEIVES
        assert queue.dead_letter_url.endswith("/works-split-dlq")
        assert (await queue.depth()).empty


async def test_queues_have_the_retention_and_timeouts_of_the_template(cloud: Cloud, stack: Stack) -> None:
    async with _stack(cloud, "queues"), cloud.client("sqs") as sqs:
        for logical_name, url in (await _resources(cloud, "queues")).items():
            if logical_name not in stack.of("AWS::SQS::Queue"):
                continue
            attributes = (await sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]))["Attributes"]
            properties = stack.properties(logical_name)
            for attribute in ("MessageRetentionPeriod", "VisibilityTimeout", "ReceiveMessageWaitTimeSeconds"):
                assert attributes[attribute] == str(properties.get(attribute, attributes[attribute]))
            assert attributes["SqsManagedSseEnabled"] == "true"


async def test_launch_template_is_created_with_the_image_looked_up(cloud: Cloud, stack: Stack) -> None:
    async with _stack(cloud, "launches"), cloud.client("ec2") as ec2:
        template_id = (await _resources(cloud, "launches"))["SplitTemplate"]
        answer = await ec2.describe_launch_template_versions(LaunchTemplateId=template_id)

    created = answer["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    declared = stack.properties("SplitTemplate")["LaunchTemplateData"]
    assert created["ImageId"].startswith("ami-"), "the SSM parameter was not looked up"
    assert created["InstanceInitiatedShutdownBehavior"] == declared["InstanceInitiatedShutdownBehavior"]
    assert created["MetadataOptions"]["HttpTokens"] == "required"
    assert created["BlockDeviceMappings"] == declared["BlockDeviceMappings"]


async def test_update_changes_release_and_maximum_size(cloud: Cloud) -> None:
    async with _stack(cloud, "updates", SourceLinkMbps="300"), cloud.client("autoscaling") as autoscaling:
        before = await _resources(cloud, "updates")
        wider = _parameters("updates", SourceLinkMbps="1000", ArtifactSha256="0" * 64)
        await _apply(cloud, "updates", "UPDATE", wider)

        assert (await _resources(cloud, "updates")).keys() == before.keys()
        answer = await autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=["updates-split"])
        (group,) = answer["AutoScalingGroups"]
        assert (group["MinSize"], group["MaxSize"]) == (0, 24)


async def test_delete_retains_bucket_and_queues(ministack_cloud: Cloud) -> None:
    async with _stack(ministack_cloud, "deleted"):
        pass

    async with ministack_cloud.client("s3") as s3, ministack_cloud.client("sqs") as sqs:
        await s3.head_bucket(Bucket="deleted-segments")
        retained = (await sqs.list_queues(QueueNamePrefix="deleted-"))["QueueUrls"]
    assert len(retained) == 4
    async with ministack_cloud.client("autoscaling") as autoscaling:
        answer = await autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=["deleted-split"])
    assert answer["AutoScalingGroups"] == []


async def test_cloudwatch_accepts_the_alarms_with_metric_math(moto: Cloud, stack: Stack) -> None:
    async with moto.client("cloudwatch") as cloudwatch:
        for name in sorted(METRIC_MATH):
            alarm = {**stack.properties(name), "AlarmActions": []}
            await cloudwatch.put_metric_alarm(**alarm)
        names = [stack.properties(name)["AlarmName"] for name in METRIC_MATH]
        described = (await cloudwatch.describe_alarms(AlarmNames=names))["MetricAlarms"]

    assert sorted(each["AlarmName"] for each in described) == sorted(names)
    assert all(each["Metrics"] for each in described)


async def test_autoscaling_accepts_the_lifecycle_hooks(moto: Cloud, stack: Stack) -> None:
    # Both emulators ignore hooks inside a group.
    async with _stack(moto, "hooked"), moto.client("autoscaling") as autoscaling:
        for hook in stack.properties("SplitGroup")["LifecycleHookSpecificationList"]:
            await autoscaling.put_lifecycle_hook(AutoScalingGroupName="hooked-split", **hook)
        answer = await autoscaling.describe_lifecycle_hooks(AutoScalingGroupName="hooked-split")

    assert sorted(hook["LifecycleHookName"] for hook in answer["LifecycleHooks"]) == ["join", "leave"]


async def test_budgets_accepts_the_budget(moto: Cloud, stack: Stack) -> None:
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
