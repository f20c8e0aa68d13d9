from typing import Any

import pytest

from stt_async.local.queues import MAX_RECEIVES
from stt_async.settings import Settings
from tests.support.cloudformation import Stack, resolve
from tests.support.policies import TLS_ONLY
from tests.support.template import ESSENTIAL

JOBS = ["SplitQueue", "DownloadQueue"]


def _arn(stack: Stack, logical_name: str) -> str:
    return f"arn:aws:sqs:us-east-1:123456789012:{stack.properties(logical_name)['QueueName']}"


@pytest.mark.parametrize("name", JOBS)
def test_what_fails_goes_to_a_dead_letter_queue_of_its_own(stack: Stack, name: str) -> None:
    redrive = stack.properties(name)["RedrivePolicy"]
    dead_letters = redrive["deadLetterTargetArn"].removeprefix("<").removesuffix(".Arn>")

    assert redrive["maxReceiveCount"] == MAX_RECEIVES
    assert stack.properties(dead_letters)["RedriveAllowPolicy"] == {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [_arn(stack, name)],
    }
    # SQS does not reset the clock when it moves a message: what comes late must still be there for people to see.
    kept_s = [stack.properties(each)["MessageRetentionPeriod"] for each in (dead_letters, name)]
    assert kept_s[0] - kept_s[1] >= 3 * 86_400


@pytest.mark.parametrize("name", JOBS)
def test_it_serves_as_the_worker_expects(stack: Stack, name: str) -> None:
    ours = {field: Settings.model_fields[field].default for field in ("visibility_timeout_s", "wait_time_s")}
    queue = stack.properties(name)

    assert queue["VisibilityTimeout"] == ours["visibility_timeout_s"]
    assert queue["ReceiveMessageWaitTimeSeconds"] == ours["wait_time_s"]


def test_the_worker_finds_its_queue_by_the_usual_name(plain_stack: Stack) -> None:
    assert plain_stack.properties("SplitQueue")["QueueName"] == Settings.model_fields["split_queue"].default


def test_every_queue_is_encrypted_and_outlives_its_stack(stack: Stack) -> None:
    queues = [each for each in stack.resources.values() if each["Type"] == "AWS::SQS::Queue"]

    assert len(queues) == 4
    for queue in queues:
        assert queue["Properties"]["SqsManagedSseEnabled"] is True
        assert (queue["DeletionPolicy"], queue["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")


@pytest.mark.parametrize("make", ["true", "false"])
def test_every_queue_speaks_tls_only(template: dict[str, Any], stack: Stack, make: str) -> None:
    made = resolve(template, ESSENTIAL | {"CreateQueues": make})
    queues = {f"<{name}>" if make == "true" else _url(stack, name): name for name in stack.of("AWS::SQS::Queue")}

    policies = made.of("AWS::SQS::QueuePolicy").values()

    assert sorted(url for policy in policies for url in policy["Queues"]) == sorted(queues)
    for policy in policies:
        (url,) = policy["Queues"]
        expected = {"Action": "sqs:*", "Resource": _arn(stack, queues[url]), **TLS_ONLY}
        assert policy["PolicyDocument"]["Statement"] == [expected]


def test_queues_of_an_earlier_stack_are_taken_as_they_are(template: dict[str, Any]) -> None:
    stack = resolve(template, ESSENTIAL | {"CreateQueues": "false"})

    assert not stack.of("AWS::SQS::Queue")
    assert "Queue>" not in str(stack.resources), "something refers to a queue that is not made"


def _url(stack: Stack, logical_name: str) -> str:
    return f"https://sqs.us-east-1.amazonaws.com/123456789012/{stack.properties(logical_name)['QueueName']}"
