"""Metrics: the metrics of each log line, valid for CloudWatch."""

import math
import re
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async import metrics
from tests.support.evidence.emf import UNITS, dimensions_of, metrics_of
from tests.support.recordings import ROOT

DONE = {
    "event": "job_succeeded",
    "seconds": 9.5,
    "queue_wait_s": 61.2,
    "status": "ok",
    "segments": 12,
    "duration_s": 180.0,
    "speech_s": 120.5,
    "source_bytes": 4_000_000,
    "segment_bytes": 2_500_000,
    "receiving_s": 2.0,
    "scratch_used_percent": 31.5,
    "stages": {"fetch": [5.0, 12.0], "split": [12.5, 14.3], "put": [14.3, 15.0]},
}


def record(line: dict[str, Any], *, environment: str = "test", queue: str = "stt-split-jobs") -> dict[str, Any]:
    """Return a line after the processors and a round trip through JSON."""
    passed: Any = line
    for process in metrics.processors(environment, queue):
        passed = process(None, "info", passed)
    written: dict[str, Any] = orjson.loads(orjson.dumps(passed))
    return written


def test_succeeded_job_has_all_its_metrics() -> None:
    before_ms = time.time_ns() // 1_000_000
    line = record(DONE)
    assert metrics_of(line) == {
        "JobsDone": 1,
        "AudioSeconds": 180.0,
        "SpeechSeconds": 120.5,
        "Segments": 12,
        "SegmentBytes": 2_500_000,
        "SourceBytes": 4_000_000,
        "DownloadMbps": 16.0,
        "SplitRtf": pytest.approx(0.01),
        "JobDuration": 9.5,
        "ScratchUsed": 31.5,
        "QueueWait": 61.2,
    }
    assert line["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "SttAsync"
    assert before_ms <= line["_aws"]["Timestamp"] <= time.time_ns() // 1_000_000
    assert line.items() >= DONE.items()


def test_dimensions_are_environment_and_queue() -> None:
    line = record(DONE, environment="production", queue="https://sqs.us-east-1.amazonaws.com/1/stt-split-jobs")
    assert dimensions_of(line) == [{"Environment": "production", "Queue": "stt-split-jobs"}]


@pytest.mark.parametrize(
    ("failure", "name"),
    [
        ("permanent", "JobsFailedPermanent"),
        ("transient", "JobsFailedTransient"),
        ("environment", "JobsFailedEnvironment"),
        ("worker_lost", "JobsFailedWorkerLost"),
    ],
)
def test_failed_job_counts_in_total_and_by_class(failure: str, name: str) -> None:
    assert metrics_of(record({"event": "job_failed", "failure": failure})) == {"JobsFailed": 1, name: 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"event": "job_skipped", "segments": 3, "queue_wait_s": 1.5}, {"JobsSkipped": 1, "QueueWait": 1.5}),
        ({"event": "job_retried", "failure": "transient"}, {"JobsRetried": 1}),
        ({"event": "job_released"}, {"JobsReleased": 1}),
        ({"event": "job_lease_lost"}, {"LeasesLost": 1}),
        ({"event": "loop_lagged", "max_s": 30.2}, {"LoopLag": 30.2}),
        ({"event": "heartbeat_late", "max_s": 12.5}, {"HeartbeatLate": 12.5}),
        ({"event": "breaker_opened", "code": "AccessDenied"}, {"BreakerOpened": 1}),
        ({"event": "spot_interruption", "within_s": 100.0}, {"SpotNotices": 1}),
        ({"event": "log_lines_dropped", "lines": 17}, {"LogLinesDropped": 17}),
    ],
    ids=lambda value: value.get("event") if isinstance(value, dict) else None,
)
def test_other_events_have_their_metrics(line: dict[str, Any], expected: dict[str, float]) -> None:
    assert metrics_of(record(line)) == expected


def test_lines_without_a_metric_or_an_environment_are_unchanged() -> None:
    other = {"event": "worker_started", "slots": 4}
    assert record(other) == other
    assert record(DONE, environment="") == DONE


def test_each_metric_has_one_unit_that_cloudwatch_knows() -> None:
    units: dict[str, set[str]] = {}
    for of_event in metrics.BY_EVENT.values():
        for metric in of_event:
            units.setdefault(metric.name, set()).add(metric.unit)
    assert {name: {unit} for name, unit in metrics.EMITTED.items()} == units
    assert set(metrics.EMITTED.values()) <= set(UNITS)


_NUMBER = st.one_of(st.none(), st.floats(), st.integers(min_value=0, max_value=2**60))
_FIELDS = ["segments", "duration_s", "speech_s", "source_bytes", "receiving_s", "queue_wait_s", "max_s", "lines"]


@given(
    event=st.sampled_from(sorted(metrics.BY_EVENT)),
    fields=st.dictionaries(st.sampled_from(_FIELDS), _NUMBER),
    stages=st.dictionaries(st.sampled_from(["fetch", "split"]), st.tuples(st.floats(0, 1e9), st.floats(0, 1e9))),
    failure=st.sampled_from(["permanent", "something new"]),
)
def test_any_line_makes_a_valid_record(
    event: str, fields: dict[str, float | None], stages: dict[str, tuple[float, float]], failure: str
) -> None:
    line = record({"event": event, "stages": stages, "failure": failure} | fields)
    values = metrics_of(line)
    assert all(math.isfinite(value) for value in values.values())
    assert values.keys() <= {metric.name for metric in metrics.BY_EVENT[event]}


def test_each_event_is_logged_somewhere() -> None:
    package = [file.read_text() for file in (ROOT / "stt_async").rglob("*.py") if file.name != "metrics.py"]
    assert [event for event in metrics.BY_EVENT if not any(f'"{event}"' in source for source in package)] == []


def test_page_lists_each_metric_with_its_unit() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w/]+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert dict(rows) == dict(metrics.EMITTED)
