"""Fixtures of the template, as written and as resolved."""

from typing import Any

import pytest

from tests.support.stack.cloudformation import Stack, load, resolve

RELEASE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
ESSENTIAL = {"ArtifactBucket": "releases", "ArtifactSha256": RELEASE}
"""Values of the parameters without a default."""
SUBSCRIBER = "operators@monlam.ai"


@pytest.fixture(scope="session")
def template() -> dict[str, Any]:
    return load()


@pytest.fixture(scope="session")
def stack(template: dict[str, Any]) -> Stack:
    """The stack with all resources: a new bucket, new queues, a subscriber."""
    return resolve(template, ESSENTIAL | {"CreateOutputBucket": "true", "AlarmEmail": SUBSCRIBER})


@pytest.fixture(scope="session")
def plain_stack(template: dict[str, Any]) -> Stack:
    """The stack with the defaults."""
    return resolve(template, ESSENTIAL)
