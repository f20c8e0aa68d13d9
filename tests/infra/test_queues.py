from typing import Any

import pytest

from stt_async.local.queues import MAX_RECEIVES
from stt_async.settings import Settings
from tests.support.stack.cloudformation import Stack, resolve
from tests.support.stack.policies import TLS_ONLY
from tests.support.stack.template import ESSENTIAL

JOBS = ["SplitQueue", "DownloadQueue"]


def _arn(stack: Stack, logical_name: str) -> str:
    return f"arn:aws:sqs:us-east-1:123456789012:{stack.properties(logical_name)['QueueName']}"


@pytest.mark.parametrize("name", JOBS)
def test_each_job_queue_has_its_own_dead_letter_queue(stack: Stack, name: str) -> None:
    redrive = stack.properties(name)["RedrivePolicy"]
    dead_letters = redrive["deadLetterTargetArn"].removeprefix("<").removesuffix(".Arn>")

    assert redrive["maxReceiveCount"] == MAX_RECEIVES
    assert stack.properties(dead_letters)["RedriveAllowPolicy"] == {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [_arn(stack, name)],
    }
    # A redrive does not restart the retention period: a message moved on its last day has to stay for some days.
    retention_s = [stack.properties(each)["MessageRetentionPeriod"] for each in (dead_letters, name)]
    assert retention_s[0] - retention_s[1] >= 3 * 86_400


@pytest.mark.parametrize("name", JOBS)
def test_queue_timeouts_equal_the_settings_of_the_worker(stack: Stack, name: str) -> None:
    queue = stack.properties(name)

    assert queue["VisibilityTimeout"] == Settings.model_fields["visibility_timeout_s"].default
    assert queue["ReceiveMessageWaitTimeSeconds"] == Settings.model_fields["wait_time_s"].default


def test_every_queue_is_encrypted_and_retained(stack: Stack) -> None:
    queues = [each for each in stack.resources.values() if each["Type"] == "AWS::SQS::Queue"]

    assert len(queues) == 4
    for queue in queues:
        assert queue["Properties"]["SqsManagedSseEnabled"] is True
        assert (queue["DeletionPolicy"], queue["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


@pytest.mark.parametrize("create", ["true", "false"])
def test_every_queue_accepts_tls_only(template: dict[str, Any], stack: Stack, create: str) -> None:
    resolved = resolve(template, ESSENTIAL | {"CreateQueues": create})
    queues = {f"<{name}>" if create == "true" else _url(stack, name): name for name in stack.of("AWS::SQS::Queue")}

    policies = resolved.of("AWS::SQS::QueuePolicy").values()

    assert sorted(url for policy in policies for url in policy["Queues"]) == sorted(queues)
    for policy in policies:
        (url,) = policy["Queues"]
        expected = {"Action": "sqs:*", "Resource": _arn(stack, queues[url]), **TLS_ONLY}
        assert policy["PolicyDocument"]["Statement"] == [expected]


def test_existing_queues_are_used_unchanged(template: dict[str, Any]) -> None:
    stack = resolve(template, ESSENTIAL | {"CreateQueues": "false"})

    assert not stack.of("AWS::SQS::Queue")
    assert "Queue>" not in str(stack.resources), "a resource refers to a queue that the stack does not create"


def _url(stack: Stack, logical_name: str) -> str:
    return f"https://sqs.us-east-1.amazonaws.com/123456789012/{stack.properties(logical_name)['QueueName']}"
