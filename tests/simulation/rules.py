"""The rules of the template that decide the size of the fleet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.stack.cloudformation import Stack

TRACKING_PERIODS = 3
"""Minutes above the target before the alarm that AWS creates for target tracking fires."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The group and its two scaling policies."""

    max_size: int
    protected: bool
    idle_timeout_s: float
    wake: str
    wake_threshold: float
    adjustment: str
    steps: tuple[tuple[float, int], ...]
    warmup_s: float
    backlog: str
    target: float
    scales_in: bool

    @classmethod
    def of(cls, stack: Stack) -> "Rules":
        group, alarm, step = (stack.properties(name) for name in ("SplitGroup", "FromZeroAlarm", "FromZero"))
        steps = [(each["MetricIntervalLowerBound"], each["ScalingAdjustment"]) for each in step["StepAdjustments"]]
        tracking = stack.properties("ByBacklog")["TargetTrackingConfiguration"]
        return cls(
            max_size=int(group["MaxSize"]),
            protected=group["NewInstancesProtectedFromScaleIn"],
            idle_timeout_s=float(stack.parameters["IdleTimeoutSeconds"]),
            wake=_expression(alarm["Metrics"]),
            wake_threshold=alarm["Threshold"],
            adjustment=step["AdjustmentType"],
            steps=tuple(steps),
            warmup_s=step["EstimatedInstanceWarmup"],
            backlog=_expression(tracking["CustomizedMetricSpecification"]["Metrics"]),
            target=float(tracking["TargetValue"]),
            scales_in=not tracking["DisableScaleIn"],
        )

    def step(self, breach: float) -> int:
        """Return the adjustment for a breach of the threshold."""
        return [adjustment for lower, adjustment in self.steps if breach >= lower][-1]


def evaluate(expression: str, metrics: Mapping[str, float | None]) -> float | None:
    """Return the value of a CloudWatch metric math expression, or None if a metric that it needs is missing."""
    names: dict[str, Any] = {"FILL": _fill, "IF": _if, "__builtins__": {}}
    try:
        value: float = eval(expression, names | dict(metrics))  # noqa: S307 - an expression of this project's template
    except TypeError:  # arithmetic with None
        return None
    return value


def _fill(value: float | None, default: float) -> float:
    return default if value is None else value


def _if(condition: object, then: float, otherwise: float) -> float:
    return then if condition else otherwise


def _expression(metrics: Sequence[Mapping[str, Any]]) -> str:
    (expression,) = [each["Expression"] for each in metrics if "Expression" in each]
    return str(expression)
