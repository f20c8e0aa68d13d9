"""Reads IAM policies."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

TLS_ONLY = {
    "Sid": "TlsOnly",
    "Effect": "Deny",
    "Principal": "*",
    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
}
"""A statement that denies requests without TLS, except its Action and Resource."""


def listed(value: Any) -> list[Any]:
    """Return a single value as a list."""
    return value if isinstance(value, list) else [value]


def grants(role: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each action that a role allows, with the ARN or pattern of its resource."""
    for policy in role["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            assert statement["Effect"] == "Allow", f"{statement['Sid']}: Deny is not supported here"
            for action in listed(statement["Action"]):
                for resource in listed(statement["Resource"]):
                    yield action, resource


def allows(role: Mapping[str, Any], action: str, arn: str) -> bool:
    """Return whether a role allows an action on a resource. Conditions are ignored."""
    return any(action == granted and fnmatchcase(arn, on) for granted, on in grants(role))
