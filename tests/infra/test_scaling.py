from typing import Any

import pytest

from stt_async.settings import Settings
from tests.support.stack.cloudformation import Stack


@pytest.fixture
def policies(stack: Stack) -> dict[str, dict[str, Any]]:
    """The scaling policies, by type."""
    return {each["PolicyType"]: each for each in stack.of("AWS::AutoScaling::ScalingPolicy").values()}


def test_no_policy_scales_in(policies: dict[str, dict[str, Any]]) -> None:
    assert set(policies) == {"StepScaling", "TargetTrackingScaling"}
    assert policies["TargetTrackingScaling"]["TargetTrackingConfiguration"]["DisableScaleIn"] is True
    # ExactCapacity would, if instances have just started and the metrics do not show them yet.
    assert policies["StepScaling"]["AdjustmentType"] == "ChangeInCapacity"
    assert all(step["ScalingAdjustment"] > 0 for step in policies["StepScaling"]["StepAdjustments"])


def test_steps_from_zero_have_no_gap_and_start_no_surplus(stack: Stack, policies: dict[str, dict[str, Any]]) -> None:
    steps = policies["StepScaling"]["StepAdjustments"]

    assert steps[0]["MetricIntervalLowerBound"] == 0
    assert [step.get("MetricIntervalUpperBound") for step in steps] == [
        *[step["MetricIntervalLowerBound"] for step in steps[1:]],
        None,
    ]
    assert [step["ScalingAdjustment"] for step in steps] == sorted({step["ScalingAdjustment"] for step in steps})
    # No step starts more instances than its upper bound of jobs justifies; the other policy adds instances later.
    target = int(stack.parameters["BacklogPerInstance"])
    for step in steps:
        max_jobs = step.get("MetricIntervalUpperBound", step["MetricIntervalLowerBound"])
        assert step["ScalingAdjustment"] * target <= max_jobs


def test_alarm_from_zero_fires_within_a_minute_and_only_at_zero(stack: Stack) -> None:
    alarm = stack.properties("FromZeroAlarm")
    (expression,) = [each["Expression"] for each in alarm["Metrics"] if "Expression" in each]

    assert alarm["AlarmActions"] == ["<FromZero>"]
    assert alarm["EvaluationPeriods"] == 1
    assert {each["MetricStat"]["Period"] for each in alarm["Metrics"] if "MetricStat" in each} == {60}
    # Without FILL for desired: an unknown capacity is not zero.
    assert expression == "IF(desired < 1, FILL(visible, 0), 0)"


def test_backlog_includes_jobs_in_flight(policies: dict[str, dict[str, Any]]) -> None:
    tracking = policies["TargetTrackingScaling"]["TargetTrackingConfiguration"]
    metrics = {each["Id"]: each for each in tracking["CustomizedMetricSpecification"]["Metrics"]}
    names = {key: each["MetricStat"]["Metric"]["MetricName"] for key, each in metrics.items() if "MetricStat" in each}

    assert names == {
        "visible": "ApproximateNumberOfMessagesVisible",
        "inflight": "ApproximateNumberOfMessagesNotVisible",
        "inservice": "GroupInServiceInstances",
    }
    assert [key for key, each in metrics.items() if each["ReturnData"]] == ["backlog"]


def test_backlog_per_instance_exceeds_the_slots_of_an_instance(template: dict[str, Any]) -> None:
    # Otherwise the jobs that an instance holds would always start another one.
    processes = 2
    slots = 2 * processes + Settings.model_fields["downloads"].default
    assert template["Parameters"]["BacklogPerInstance"]["MinValue"] >= slots


def test_idle_instance_ends_before_the_stuck_alarm_fires(template: dict[str, Any], stack: Stack) -> None:
    alarm = stack.properties("StuckAlarm")
    period_s = max(each["MetricStat"]["Period"] for each in alarm["Metrics"] if "MetricStat" in each)

    assert template["Parameters"]["IdleTimeoutSeconds"]["Default"] < period_s * alarm["EvaluationPeriods"]
