from typing import Any

import pytest

from stt_async.settings import Settings
from tests.support.cloudformation import Stack


@pytest.fixture
def policies(stack: Stack) -> dict[str, dict[str, Any]]:
    """The scaling policies, by what they are."""
    return {each["PolicyType"]: each for each in stack.of("AWS::AutoScaling::ScalingPolicy").values()}


def test_no_policy_makes_the_fleet_smaller(policies: dict[str, dict[str, Any]]) -> None:
    assert set(policies) == {"StepScaling", "TargetTrackingScaling"}
    assert policies["TargetTrackingScaling"]["TargetTrackingConfiguration"]["DisableScaleIn"] is True
    # ExactCapacity would, when it sees a fleet too late that somebody has just started.
    assert policies["StepScaling"]["AdjustmentType"] == "ChangeInCapacity"
    assert all(step["ScalingAdjustment"] > 0 for step in policies["StepScaling"]["StepAdjustments"])


def test_the_steps_from_zero_meet_without_a_gap(stack: Stack, policies: dict[str, dict[str, Any]]) -> None:
    steps = policies["StepScaling"]["StepAdjustments"]

    assert steps[0]["MetricIntervalLowerBound"] == 0
    assert [step.get("MetricIntervalUpperBound") for step in steps] == [
        *[step["MetricIntervalLowerBound"] for step in steps[1:]],
        None,
    ]
    assert [step["ScalingAdjustment"] for step in steps] == sorted({step["ScalingAdjustment"] for step in steps})
    # No step starts more than the most jobs that it is for are worth; the other policy adds what is lacking.
    target = int(stack.parameters["BacklogPerInstance"])
    for step in steps:
        most_jobs = step.get("MetricIntervalUpperBound", step["MetricIntervalLowerBound"])
        assert step["ScalingAdjustment"] * target <= most_jobs


def test_from_zero_fires_within_a_minute_and_at_zero_alone(stack: Stack) -> None:
    alarm = stack.properties("FromZeroAlarm")
    (expression,) = [each["Expression"] for each in alarm["Metrics"] if "Expression" in each]

    assert alarm["AlarmActions"] == ["<FromZero>"]
    assert alarm["EvaluationPeriods"] == 1
    assert {each["MetricStat"]["Period"] for each in alarm["Metrics"] if "MetricStat" in each} == {60}
    # No FILL for desired: where it is not known yet, it is not zero.
    assert expression == "IF(desired < 1, FILL(visible, 0), 0)"


def test_backlog_counts_what_is_in_flight(policies: dict[str, dict[str, Any]]) -> None:
    tracking = policies["TargetTrackingScaling"]["TargetTrackingConfiguration"]
    metrics = {each["Id"]: each for each in tracking["CustomizedMetricSpecification"]["Metrics"]}
    names = {key: each["MetricStat"]["Metric"]["MetricName"] for key, each in metrics.items() if "MetricStat" in each}

    assert names == {
        "visible": "ApproximateNumberOfMessagesVisible",
        "inflight": "ApproximateNumberOfMessagesNotVisible",
        "inservice": "GroupInServiceInstances",
    }
    assert [key for key, each in metrics.items() if each["ReturnData"]] == ["backlog"]


def test_an_instance_is_worth_more_jobs_than_it_holds(template: dict[str, Any]) -> None:
    # Less, and the jobs in its own hands would call for another instance, for ever.
    processes = 2
    holds = 2 * processes + Settings.model_fields["downloads"].default
    assert template["Parameters"]["BacklogPerInstance"]["MinValue"] >= holds


def test_an_idle_worker_leaves_before_the_fleet_seems_stuck(template: dict[str, Any], stack: Stack) -> None:
    alarm = stack.properties("StuckAlarm")
    period_s = max(each["MetricStat"]["Period"] for each in alarm["Metrics"] if "MetricStat" in each)

    assert template["Parameters"]["IdleTimeoutSeconds"]["Default"] < period_s * alarm["EvaluationPeriods"]
