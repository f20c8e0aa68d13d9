"""Metrics: the log line of an event is also its metric record, in CloudWatch's embedded metric format.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from structlog.typing import EventDict, Processor, WrappedLogger

NAMESPACE = "SttAsync"

DIMENSIONS = ("Environment", "Queue")
"""No instance id: CloudWatch bills each metric for each combination of values."""

Line = Mapping[str, Any]
"""The fields of a log line."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of an event. Its value is None if the line lacks the fields."""

    name: str
    unit: str
    value: Callable[[Line], float | None]


def _one(_line: Line) -> float:
    return 1


def _field(name: str) -> Callable[[Line], float | None]:
    return lambda line: line.get(name)


def _failed(failure: str) -> Callable[[Line], float | None]:
    return lambda line: 1 if line.get("failure") == failure else None


def _download_mbps(line: Line) -> float | None:
    source_bytes, receiving_s = line.get("source_bytes"), line.get("receiving_s")
    return source_bytes * 8 / 1e6 / receiving_s if source_bytes and receiving_s else None


def _split_rtf(line: Line) -> float | None:
    duration_s, span = line.get("duration_s"), line.get("stages", {}).get("split")
    return (span[1] - span[0]) / duration_s if duration_s and span else None


_QUEUE_WAIT = Metric("QueueWait", "Seconds", _field("queue_wait_s"))

BY_EVENT: Mapping[str, tuple[Metric, ...]] = {
    "job_succeeded": (
        Metric("JobsDone", "Count", _one),
        Metric("AudioSeconds", "Seconds", _field("duration_s")),
        Metric("SpeechSeconds", "Seconds", _field("speech_s")),
        Metric("Segments", "Count", _field("segments")),
        Metric("SegmentBytes", "Bytes", _field("segment_bytes")),
        Metric("SourceBytes", "Bytes", _field("source_bytes")),
        Metric("DownloadMbps", "Megabits/Second", _download_mbps),
        Metric("SplitRtf", "None", _split_rtf),
        Metric("JobDuration", "Seconds", _field("seconds")),
        Metric("ScratchUsed", "Percent", _field("scratch_used_percent")),
        _QUEUE_WAIT,
    ),
    "job_skipped": (Metric("JobsSkipped", "Count", _one), _QUEUE_WAIT),
    "job_failed": (
        Metric("JobsFailed", "Count", _one),
        Metric("JobsFailedPermanent", "Count", _failed("permanent")),
        Metric("JobsFailedTransient", "Count", _failed("transient")),
        Metric("JobsFailedEnvironment", "Count", _failed("environment")),
        Metric("JobsFailedWorkerLost", "Count", _failed("worker_lost")),
        _QUEUE_WAIT,
    ),
    "job_retried": (Metric("JobsRetried", "Count", _one),),
    "job_released": (Metric("JobsReleased", "Count", _one),),
    "job_lease_lost": (Metric("LeasesLost", "Count", _one),),
    "heartbeat_late": (Metric("HeartbeatLate", "Seconds", _field("max_s")),),
    "loop_lagged": (Metric("LoopLag", "Seconds", _field("max_s")),),
    "child_lost": (Metric("PoolRestarts", "Count", _one),),
    "scratch_full": (Metric("ScratchFull", "Count", _one),),
    "breaker_opened": (Metric("BreakerOpened", "Count", _one),),
    "spot_interruption": (Metric("SpotNotices", "Count", _one),),
    "log_lines_dropped": (Metric("LogLinesDropped", "Count", _field("lines")),),
}

EMITTED: Mapping[str, str] = {metric.name: metric.unit for metrics in BY_EVENT.values() for metric in metrics}
"""The unit of each metric, by its name."""


def processors(environment: str, queue: str) -> tuple[Processor, ...]:
    """Return the processors that turn log lines into metric records; none if `environment` is empty.

    Args:
        environment: Name of the deployment, the first dimension.
        queue: Name or URL of the worker's queue.
    """
    if not environment:
        return ()
    dimensions = dict(zip(DIMENSIONS, (environment, queue.rsplit("/", 1)[-1]), strict=True))

    def embed(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
        values = {metric: metric.value(line) for metric in BY_EVENT.get(line["event"], ())}
        known = {metric: value for metric, value in values.items() if value is not None and math.isfinite(value)}
        if not known:
            return line
        directive = {
            "Namespace": NAMESPACE,
            "Dimensions": [list(DIMENSIONS)],
            "Metrics": [{"Name": metric.name, "Unit": metric.unit} for metric in known],
        }
        record = {"_aws": {"Timestamp": time.time_ns() // 1_000_000, "CloudWatchMetrics": [directive]}}
        return {**line, **{metric.name: value for metric, value in known.items()}, **dimensions, **record}

    return (embed,)
