"""Two emulators of CloudFormation, and the resources of the template that each of them skips."""

import json
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import aioboto3
import pytest

from stt_async.local.loopback import REGION, Keys, client_options
from tests.support.stack.cloudformation import load

METRIC_MATH = frozenset({"FromZeroAlarm", "StuckAlarm", "BootAlarm"})
"""Alarms on a metric math expression."""

MOTO_SKIPS = frozenset(
    {
        "AWS::AutoScaling::ScalingPolicy",
        "AWS::Budgets::Budget",
        "AWS::CloudWatch::Alarm",
        "AWS::S3::BucketPolicy",
        "AWS::SNS::Subscription",
        "AWS::SNS::TopicPolicy",
        "AWS::SQS::QueuePolicy",
    }
)
"""Types that moto 5.2 silently skips. It also ignores RetainExceptOnCreate and deletes everything."""

_KEYS = Keys.random()


@dataclass(frozen=True)
class Cloud:
    """An emulator.

    Attributes:
        name: Its name.
        url: Its address.
        skips: Logical ids of the resources that it does not create.
        template_body: The template without the parts that it rejects.
    """

    name: str
    url: str
    skips: frozenset[str]
    template_body: str

    def client(self, service: str) -> AbstractAsyncContextManager[Any]:
        session: Any = aioboto3.Session()  # typed for each service by its literal name
        client: AbstractAsyncContextManager[Any] = session.client(service, **client_options(self.url, _KEYS))
        return client

    def environment(self) -> dict[str, str]:
        """Return the variables with which a command uses the emulator."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": _KEYS.access_key,
            "AWS_SECRET_ACCESS_KEY": _KEYS.secret_key,
        }


@pytest.fixture(scope="session")
def moto(moto_url: str) -> Cloud:
    """Moto, which creates launch templates and groups, and skips alarms and policies."""
    template = load()
    skips = {name for name, each in template["Resources"].items() if each["Type"] in MOTO_SKIPS}
    return Cloud("moto", moto_url, frozenset(skips), json.dumps(template))


@pytest.fixture(scope="session")
def ministack_cloud(ministack: str) -> Cloud:
    """Ministack, which rejects metric math and budgets, and creates everything else."""
    template = load()
    skips = METRIC_MATH | {"Budget"}
    for name in skips:
        del template["Resources"][name]
    # Ministack matches the pattern with the image's id, CloudFormation with the name of the SSM parameter.
    del template["Parameters"]["ImageId"]["AllowedPattern"]
    return Cloud("ministack", ministack, skips, json.dumps(template))
