"""Alarms, dashboard, budget and tags refer to metrics and resources that exist."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from stt_async.metrics import DIMENSIONS, EMITTED, NAMESPACE
from tests.support.stack.cloudformation import Stack
from tests.support.stack.policies import TLS_ONLY
from tests.support.stack.template import SUBSCRIBER

METRICS_OF_AWS = {
    "AWS/SQS": {
        "ApproximateAgeOfOldestMessage",
        "ApproximateNumberOfMessagesNotVisible",
        "ApproximateNumberOfMessagesVisible",
        "NumberOfMessagesDeleted",
        "NumberOfMessagesReceived",
    },
}
"""Metrics that AWS always emits. Those of a group come only with `MetricsCollection`.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
"""

Used = tuple[str, str, dict[str, str]]
"""Namespace, name and dimensions of a metric that an alarm, policy or dashboard uses."""


def _of_specification(metric: dict[str, Any]) -> Used:
    dimensions = {each["Name"]: each["Value"] for each in metric.get("Dimensions", [])}
    return metric["Namespace"], metric["MetricName"], dimensions


def _of_alarm(alarm: dict[str, Any]) -> Iterator[Used]:
    if "MetricName" in alarm:
        yield _of_specification(alarm)
    for each in alarm.get("Metrics", []):
        if "MetricStat" in each:
            yield _of_specification(each["MetricStat"]["Metric"])


def _of_policy(policy: dict[str, Any]) -> Iterator[Used]:
    tracking = policy.get("TargetTrackingConfiguration", {}).get("CustomizedMetricSpecification", {})
    return _of_alarm({"Metrics": tracking.get("Metrics", [])})


def _of_dashboard(dashboard: dict[str, Any]) -> Iterator[Used]:
    for widget in json.loads(dashboard["DashboardBody"])["widgets"]:
        for row in widget["properties"]["metrics"]:
            words = [word for word in row if isinstance(word, str)]
            if words:
                namespace, name, *dimensions = words
                yield namespace, name, dict(zip(dimensions[::2], dimensions[1::2], strict=True))


def _used(stack: Stack) -> list[Used]:
    kinds = {
        "AWS::CloudWatch::Alarm": _of_alarm,
        "AWS::AutoScaling::ScalingPolicy": _of_policy,
        "AWS::CloudWatch::Dashboard": _of_dashboard,
    }
    return [used for kind, read in kinds.items() for each in stack.of(kind).values() for used in read(each)]


def test_every_used_metric_is_emitted(stack: Stack) -> None:
    (collected,) = stack.properties("SplitGroup")["MetricsCollection"]
    emitted = METRICS_OF_AWS | {"AWS/AutoScaling": set(collected["Metrics"]), NAMESPACE: set(EMITTED)}

    used = _used(stack)

    assert {namespace for namespace, _, _ in used} == set(emitted)
    assert [(namespace, name) for namespace, name, _ in used if name not in emitted[namespace]] == []


def test_every_used_metric_has_the_right_dimensions(stack: Stack) -> None:
    queues = {name + end for name in ("stt-split-jobs", "stt-download-jobs") for end in ("", "-dlq")}

    for namespace, name, dimensions in _used(stack):
        match namespace:
            case "AWS/SQS":
                assert set(dimensions) == {"QueueName"}
                assert dimensions["QueueName"] in queues
            case "AWS/AutoScaling":
                assert dimensions == {"AutoScalingGroupName": "<SplitGroup>"}
            case _:
                assert tuple(dimensions) == DIMENSIONS, name
                assert tuple(dimensions.values()) == ("prod", "stt-split-jobs")


def test_every_collected_group_metric_is_used(stack: Stack) -> None:
    (collected,) = stack.properties("SplitGroup")["MetricsCollection"]

    assert collected["Granularity"] == "1Minute"
    assert {name for namespace, name, _ in _used(stack) if namespace == "AWS/AutoScaling"} == set(collected["Metrics"])


def test_every_alarm_has_an_action_and_treats_missing_data_as_ok(stack: Stack) -> None:
    for name, alarm in stack.of("AWS::CloudWatch::Alarm").items():
        assert alarm["AlarmActions"], name
        assert set(alarm["AlarmActions"]) <= {"<Alarms>", "<FromZero>"}, name
        assert alarm["TreatMissingData"] == "notBreaching", f"{name}: a fleet of zero emits nothing"
        assert alarm["AlarmDescription"].endswith("."), name


def test_every_expression_uses_all_metrics_of_its_alarm_or_policy(stack: Stack) -> None:
    specifications = [each["Metrics"] for each in stack.of("AWS::CloudWatch::Alarm").values() if "Metrics" in each]
    tracking = stack.properties("ByBacklog")["TargetTrackingConfiguration"]["CustomizedMetricSpecification"]

    for metrics in [*specifications, tracking["Metrics"]]:
        (expression,) = [each["Expression"] for each in metrics if "Expression" in each]
        for each in metrics:
            if "MetricStat" in each:
                assert each["Id"] in expression
                assert each["ReturnData"] is False


@pytest.mark.parametrize(
    ("alarm", "metrics"),
    [
        ("SplitDeadLettersAlarm", {"ApproximateNumberOfMessagesVisible"}),
        ("DownloadDeadLettersAlarm", {"ApproximateNumberOfMessagesVisible"}),
        ("ExpiryAlarm", {"ApproximateAgeOfOldestMessage"}),
        (
            "StuckAlarm",
            {
                "GroupInServiceInstances",
                "ApproximateNumberOfMessagesNotVisible",
                "NumberOfMessagesReceived",
                "NumberOfMessagesDeleted",
            },
        ),
        ("BootAlarm", {"GroupDesiredCapacity", "GroupInServiceInstances"}),
        ("HeartbeatAlarm", {"HeartbeatLate"}),
        ("DiskAlarm", {"ScratchUsed"}),
    ],
)
def test_alarm_watches_its_metrics_and_notifies_operators(stack: Stack, alarm: str, metrics: set[str]) -> None:
    properties = stack.properties(alarm)

    assert {name for _, name, _ in _of_alarm(properties)} == metrics
    assert properties["AlarmActions"] == ["<Alarms>"]


def test_expiry_alarm_fires_a_day_before_jobs_expire(stack: Stack) -> None:
    alarm = stack.properties("ExpiryAlarm")

    assert alarm["Threshold"] + alarm["Period"] < stack.properties("SplitQueue")["MessageRetentionPeriod"] - 86_400


def test_topic_accepts_alarms_and_budget_over_tls_only(stack: Stack) -> None:
    allowed, denied = stack.properties("AlarmsPolicy")["PolicyDocument"]["Statement"]

    assert allowed["Principal"] == {"Service": ["cloudwatch.amazonaws.com", "budgets.amazonaws.com"]}
    assert allowed["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}
    assert denied == {"Action": "sns:Publish", "Resource": "<Alarms>", **TLS_ONLY}
    # CloudWatch cannot use the key alias/aws/sns: alarms would be lost silently.
    assert "KmsMasterKeyId" not in stack.properties("Alarms")


def test_email_address_is_subscribed_if_given(stack: Stack, plain_stack: Stack) -> None:
    subscription = {"TopicArn": "<Alarms>", "Protocol": "email", "Endpoint": SUBSCRIBER}
    assert stack.properties("AlarmsByEmail") == subscription
    assert not plain_stack.of("AWS::SNS::Subscription")


def test_budget_counts_the_project_tag_and_notifies_operators(stack: Stack) -> None:
    properties = stack.properties("Budget")

    assert properties["Budget"]["CostFilters"] == {"TagKeyValue": ["user:Project$stt-async"]}
    assert properties["Budget"]["BudgetLimit"] == {"Amount": 300, "Unit": "USD"}
    kinds = [each["Notification"]["NotificationType"] for each in properties["NotificationsWithSubscribers"]]
    assert kinds == ["ACTUAL", "FORECASTED"]
    for each in properties["NotificationsWithSubscribers"]:
        assert each["Subscribers"] == [{"SubscriptionType": "SNS", "Address": "<Alarms>"}]


WITHOUT_TAGS = {
    "AWS::AutoScaling::ScalingPolicy",
    "AWS::Budgets::Budget",
    "AWS::CloudWatch::Dashboard",
    "AWS::IAM::InstanceProfile",
    "AWS::S3::BucketPolicy",
    "AWS::SNS::Subscription",
    "AWS::SNS::TopicPolicy",
    "AWS::SQS::QueuePolicy",
}
"""Free of charge, except the dashboard, which cannot have tags."""


def test_every_resource_with_a_price_is_tagged(stack: Stack) -> None:
    for name, resource in stack.resources.items():
        if resource["Type"] in WITHOUT_TAGS:
            continue
        properties = resource["Properties"]
        specifications = [*properties.get("TagSpecifications", []), *_instance_tags(properties)]
        lists = [each["Tags"] for each in [properties, *specifications] if "Tags" in each]
        assert lists, f"{name} has no tags"
        for tags in lists:
            values = {tag["Key"]: tag["Value"] for tag in tags}
            assert (values["Project"], values["Environment"]) == ("stt-async", "prod"), name


def test_instances_and_their_volumes_are_tagged(stack: Stack) -> None:
    kinds = [each["ResourceType"] for each in _instance_tags(stack.properties("SplitTemplate"))]

    assert kinds == ["instance", "volume"]


def _instance_tags(properties: dict[str, Any]) -> list[dict[str, Any]]:
    tags: list[dict[str, Any]] = properties.get("LaunchTemplateData", {}).get("TagSpecifications", [])
    return tags


def test_stacks_of_the_same_name_in_two_regions_do_not_conflict(stack: Stack) -> None:
    # These names are unique across all regions of an account.
    assert stack.properties("Budget")["Budget"]["BudgetName"].endswith("us-east-1")
    assert stack.properties("Dashboard")["DashboardName"].endswith("us-east-1")


def test_logs_are_kept_for_30_days(stack: Stack) -> None:
    assert stack.properties("Logs")["RetentionInDays"] == 30
