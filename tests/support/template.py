"""The template, as CloudFormation would see it."""

from typing import Any

import pytest

from tests.support.cloudformation import Stack, load, resolve

RELEASE = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
ESSENTIAL = {"ArtifactBucket": "releases-of-ours", "ArtifactSha256": RELEASE}
SUBSCRIBER = "us@monlam.ai"


@pytest.fixture(scope="session")
def template() -> dict[str, Any]:
    """The template as it is written."""
    return load()


@pytest.fixture(scope="session")
def stack(template: dict[str, Any]) -> Stack:
    """All that the template can make: a bucket of its own, a subscriber."""
    return resolve(template, ESSENTIAL | {"CreateOutputBucket": "true", "AlarmEmail": SUBSCRIBER})


@pytest.fixture(scope="session")
def plain_stack(template: dict[str, Any]) -> Stack:
    """What the template makes when only what has no default is given."""
    return resolve(template, ESSENTIAL)
