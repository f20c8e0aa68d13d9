from math import ceil
from typing import Any

import pytest

from stt_async.settings import Settings
from stt_async.worker.lifecycle import HEARTBEAT_INTERVAL_S
from tests.support.cloudformation import Stack, resolve
from tests.support.recordings import ROOT
from tests.support.template import ESSENTIAL

CONNECTION_MBPS = 3.5
"""What MinIO gives one connection: 1.1 recordings of 26 MB a minute are 3.8, with the pauses between two."""


@pytest.fixture
def group(stack: Stack) -> dict[str, Any]:
    """The Auto Scaling group."""
    return stack.properties("SplitGroup")


@pytest.fixture
def launch(stack: Stack) -> dict[str, Any]:
    """What the launch template says of an instance."""
    data: dict[str, Any] = stack.properties("SplitTemplate")["LaunchTemplateData"]
    return data


def test_an_update_leaves_the_size_of_a_running_fleet_alone(stack: Stack, group: dict[str, Any]) -> None:
    assert "DesiredCapacity" not in group
    policy = stack.resources["SplitGroup"]["UpdatePolicy"]
    assert policy == {"AutoScalingScheduledAction": {"IgnoreUnmodifiedGroupSizeProperties": True}}, "no rolling update"


def test_it_rests_at_zero(group: dict[str, Any]) -> None:
    assert int(group["MinSize"]) == 0


def test_nothing_but_the_worker_ends_a_busy_instance(group: dict[str, Any]) -> None:
    assert group["NewInstancesProtectedFromScaleIn"] is True
    assert group["CapacityRebalance"] is True
    # The longest job and more, though it only ends what a worker that is stuck did not.
    assert group["MaxInstanceLifetime"] >= max(86_400, 4 * Settings.model_fields["job_timeout_s"].default)


def test_it_is_spot_alone_over_many_types(group: dict[str, Any]) -> None:
    policy = group["MixedInstancesPolicy"]

    assert policy["InstancesDistribution"] == {
        "OnDemandBaseCapacity": 0,
        "OnDemandPercentageAboveBaseCapacity": 0,
        "SpotAllocationStrategy": "price-capacity-optimized",
    }
    (override,) = policy["LaunchTemplate"]["Overrides"]
    wanted = override["InstanceRequirements"]
    assert wanted["CpuManufacturers"] == ["intel", "amd"], "the release is built for x86-64"
    assert wanted["VCpuCount"]["Min"] == wanted["VCpuCount"]["Max"], "a backlog for each is one number"
    assert (wanted["BareMetal"], wanted["BurstablePerformance"]) == ("excluded", "excluded")
    # One pool process may take its limit, and as much is left for all others.
    assert wanted["MemoryMiB"]["Min"] * 2**20 >= 2 * Settings.model_fields["child_max_bytes"].default


def test_both_hooks_are_in_the_group_so_that_the_first_instance_has_them(stack: Stack, group: dict[str, Any]) -> None:
    hooks = {each["LifecycleTransition"]: each for each in group["LifecycleHookSpecificationList"]}
    launching, ending = (hooks[f"autoscaling:EC2_INSTANCE_{transition}"] for transition in ("LAUNCHING", "TERMINATING"))

    assert len(hooks) == 2
    assert not stack.of("AWS::AutoScaling::LifecycleHook")
    assert launching["DefaultResult"] == "ABANDON", "an instance without a worker must not stay"
    assert ending["DefaultResult"] == "CONTINUE"
    assert ending["HeartbeatTimeout"] >= 2 * HEARTBEAT_INTERVAL_S
    assert launching["HeartbeatTimeout"] > _unit_seconds("TimeoutStartSec"), "systemd gives up first, and says why"


def _unit_seconds(name: str) -> int:
    unit = (ROOT / "infra" / "units" / "stt-async.service").read_text()
    (value,) = [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{name}=")]
    return int(value)


def test_the_default_vpc_will_do(plain_stack: Stack) -> None:
    group = plain_stack.properties("SplitGroup")

    assert group["AvailabilityZones"] == ["us-east-1a", "us-east-1b"], "all zones with a default subnet: Fn::GetAZs"
    assert "VPCZoneIdentifier" not in group
    assert "VpcId" not in plain_stack.properties("NoIngress")


def test_so_will_another_vpc(template: dict[str, Any]) -> None:
    subnets = ["subnet-0a1b2c3d", "subnet-1a1b2c3d"]
    stack = resolve(template, ESSENTIAL | {"VpcId": "vpc-0a1b2c3d", "SubnetIds": ",".join(subnets)})

    group = stack.properties("SplitGroup")
    assert group["VPCZoneIdentifier"] == subnets
    assert "AvailabilityZones" not in group
    assert stack.properties("NoIngress")["VpcId"] == "vpc-0a1b2c3d"


def test_nobody_connects_to_an_instance(stack: Stack, launch: dict[str, Any]) -> None:
    assert "SecurityGroupIngress" not in stack.properties("NoIngress")
    assert set(stack.of("AWS::EC2::SecurityGroup")) == {"NoIngress"}
    assert not stack.of("AWS::EC2::SecurityGroupIngress")
    assert launch["SecurityGroupIds"] == ["<NoIngress.GroupId>"]
    assert "KeyName" not in launch


def test_the_metadata_service_wants_a_token_and_answers_the_instance_alone(launch: dict[str, Any]) -> None:
    assert launch["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
    }


def test_every_disk_is_encrypted_and_goes_with_its_instance(launch: dict[str, Any]) -> None:
    (disk,) = launch["BlockDeviceMappings"]

    assert disk["DeviceName"] == "/dev/xvda", "the root device of Amazon Linux, not a second disk"
    assert disk["Ebs"] == {
        "VolumeType": "gp3",
        "VolumeSize": 40,
        "Encrypted": True,
        "DeleteOnTermination": True,
    }


def test_an_instance_has_its_own_role(launch: dict[str, Any]) -> None:
    assert launch["IamInstanceProfile"] == {"Arn": "<SplitProfile.Arn>"}


def test_the_image_is_looked_up(template: dict[str, Any]) -> None:
    parameter = template["Parameters"]["ImageId"]

    assert parameter["Type"] == "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>"
    assert "al2023" in parameter["Default"]
    assert parameter["Default"].endswith("x86_64")


def test_the_link_to_minio_bounds_the_fleet(template: dict[str, Any]) -> None:
    instance_mbps = Settings.model_fields["downloads"].default * CONNECTION_MBPS
    allowed = template["Parameters"]["SourceLinkMbps"]["AllowedValues"]

    sizes = {
        link: resolve(template, ESSENTIAL | {"SourceLinkMbps": link}).properties("SplitGroup")["MaxSize"]
        for link in allowed
    }

    assert sizes == {link: ceil(int(link) / instance_mbps) for link in allowed}
