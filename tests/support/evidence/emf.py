"""Validates log lines against the specification of CloudWatch's embedded metric format (EMF).

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

from collections.abc import Iterator
from typing import Any

import jsonschema

_SIZES = ("Bytes", "Kilobytes", "Megabytes", "Gigabytes", "Terabytes")
_BITS = ("Bits", "Kilobits", "Megabits", "Gigabits", "Terabits")
_RATES = tuple(f"{unit}/Second" for unit in (*_SIZES, *_BITS, "Count"))
UNITS = ("Seconds", "Microseconds", "Milliseconds", *_SIZES, *_BITS, "Percent", "Count", *_RATES, "None")

_SCHEMA = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "required": ["Timestamp", "CloudWatchMetrics"],
            "additionalProperties": False,
            "properties": {
                "Timestamp": {"type": "integer"},
                "CloudWatchMetrics": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["Namespace", "Dimensions", "Metrics"],
                        "additionalProperties": False,
                        "properties": {
                            "Namespace": {"type": "string", "minLength": 1, "maxLength": 1024},
                            "Dimensions": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "array",
                                    "maxItems": 30,
                                    "items": {"type": "string", "minLength": 1, "maxLength": 250},
                                },
                            },
                            "Metrics": {
                                "type": "array",
                                "minItems": 1,
                                "maxItems": 100,
                                "items": {
                                    "type": "object",
                                    "required": ["Name"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "Name": {"type": "string", "minLength": 1, "maxLength": 1024},
                                        "Unit": {"enum": list(UNITS)},
                                        "StorageResolution": {"enum": [1, 60]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}

_TARGETS = {
    "metric": {
        "anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 100}]
    },
    "dimension": {"type": "string", "minLength": 1, "maxLength": 1024},
}
"""Members of the line that the names of metrics and dimensions refer to."""


def metrics_of(line: dict[str, Any]) -> dict[str, float]:
    """Return the metrics that CloudWatch reads from a log line, by name; none if the line has no `_aws`.

    Raises:
        jsonschema.ValidationError: the line has an invalid `_aws`.
    """
    if "_aws" not in line:
        return {}
    jsonschema.validate(line, _SCHEMA)
    targets = list(_targets(line))
    jsonschema.validate(
        {name: line[name] for _, name in targets},
        {"required": [name for _, name in targets], "properties": {name: _TARGETS[kind] for kind, name in targets}},
    )
    return {name: line[name] for kind, name in targets if kind == "metric"}


def dimensions_of(line: dict[str, Any]) -> list[dict[str, str]]:
    """Return the combinations of dimensions of a line's metrics. Each combination is paid for."""
    return [
        {name: line[name] for name in names}
        for directive in line["_aws"]["CloudWatchMetrics"]
        for names in directive["Dimensions"]
    ]


def _targets(line: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for directive in line["_aws"]["CloudWatchMetrics"]:
        for names in directive["Dimensions"]:
            yield from (("dimension", name) for name in names)
        yield from (("metric", metric["Name"]) for metric in directive["Metrics"])
