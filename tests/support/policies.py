"""What policies of AWS allow."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

TLS_ONLY = {
    "Sid": "TlsOnly",
    "Effect": "Deny",
    "Principal": "*",
    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
}
"""A statement that refuses what comes without TLS, but for its Action and Resource."""


def listed(value: Any) -> list[Any]:
    """Return what may stand alone or in a list, as a list."""
    return value if isinstance(value, list) else [value]


def grants(role: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each action that a role of a template is allowed, with the ARN (or pattern) on which."""
    for policy in role["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            assert statement["Effect"] == "Allow", f"{statement['Sid']} refuses: not read here"
            for action in listed(statement["Action"]):
                for resource in listed(statement["Resource"]):
                    yield action, resource


def allows(role: Mapping[str, Any], action: str, arn: str) -> bool:
    """Tell whether a role may do this there. Conditions are not looked at."""
    return any(action == granted and fnmatchcase(arn, on) for granted, on in grants(role))
