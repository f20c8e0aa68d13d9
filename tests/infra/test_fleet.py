from math import ceil
from typing import Any

import pytest

from stt_async.settings import Settings
from stt_async.worker.lifecycle import HEARTBEAT_INTERVAL_S
from tests.support.recordings import ROOT
from tests.support.stack.cloudformation import Stack, resolve
from tests.support.stack.template import ESSENTIAL

CONNECTION_MBPS = 3.5
"""Throughput of one connection to MinIO. 1.1 recordings of 26 MB a minute are 3.8; the rest is pauses between them."""


@pytest.fixture
def group(stack: Stack) -> dict[str, Any]:
    return stack.properties("SplitGroup")


@pytest.fixture
def launch(stack: Stack) -> dict[str, Any]:
    data: dict[str, Any] = stack.properties("SplitTemplate")["LaunchTemplateData"]
    return data


def test_update_does_not_change_the_size_of_a_running_fleet(stack: Stack, group: dict[str, Any]) -> None:
    assert "DesiredCapacity" not in group
    policy = stack.resources["SplitGroup"]["UpdatePolicy"]
    assert policy == {"AutoScalingScheduledAction": {"IgnoreUnmodifiedGroupSizeProperties": True}}, "no rolling update"


def test_group_does_not_end_busy_instances(group: dict[str, Any]) -> None:
    assert group["NewInstancesProtectedFromScaleIn"] is True
    assert group["CapacityRebalance"] is True
    # Much longer than the longest job: it is only for instances whose worker is stuck.
    assert group["MaxInstanceLifetime"] >= max(86_400, 4 * Settings.model_fields["job_timeout_s"].default)


def test_fleet_is_spot_only_with_many_instance_types(group: dict[str, Any]) -> None:
    policy = group["MixedInstancesPolicy"]

    assert policy["InstancesDistribution"] == {
        "OnDemandBaseCapacity": 0,
        "OnDemandPercentageAboveBaseCapacity": 0,
        "SpotAllocationStrategy": "price-capacity-optimized",
    }
    (override,) = policy["LaunchTemplate"]["Overrides"]
    wanted = override["InstanceRequirements"]
    assert wanted["CpuManufacturers"] == ["intel", "amd"], "the release is built for x86-64"
    assert wanted["VCpuCount"]["Min"] == wanted["VCpuCount"]["Max"], "one target for the backlog per instance"
    assert (wanted["BareMetal"], wanted["BurstablePerformance"]) == ("excluded", "excluded")
    # One pool process at its memory limit leaves as much for all others.
    assert wanted["MemoryMiB"]["Min"] * 2**20 >= 2 * Settings.model_fields["child_max_bytes"].default


def test_first_instance_already_has_both_lifecycle_hooks(stack: Stack, group: dict[str, Any]) -> None:
    hooks = {each["LifecycleTransition"]: each for each in group["LifecycleHookSpecificationList"]}
    launching, ending = (hooks[f"autoscaling:EC2_INSTANCE_{transition}"] for transition in ("LAUNCHING", "TERMINATING"))

    assert len(hooks) == 2
    assert not stack.of("AWS::AutoScaling::LifecycleHook"), "such a hook is created after the group"
    assert launching["DefaultResult"] == "ABANDON", "an instance without a worker has to end"
    assert ending["DefaultResult"] == "CONTINUE"
    assert ending["HeartbeatTimeout"] >= 2 * HEARTBEAT_INTERVAL_S
    assert launching["HeartbeatTimeout"] > _unit_seconds("TimeoutStartSec"), "systemd has to fail first, as it logs why"


def _unit_seconds(name: str) -> int:
    unit = (ROOT / "infra" / "units" / "stt-async.service").read_text()
    (value,) = [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{name}=")]
    return int(value)


def test_default_vpc_needs_no_parameters(plain_stack: Stack) -> None:
    group = plain_stack.properties("SplitGroup")

    assert group["AvailabilityZones"] == ["us-east-1a", "us-east-1b"], "all zones with a default subnet: Fn::GetAZs"
    assert "VPCZoneIdentifier" not in group
    assert "VpcId" not in plain_stack.properties("NoIngress")


def test_other_vpc_is_used_with_its_subnets(template: dict[str, Any]) -> None:
    subnets = ["subnet-0a1b2c3d", "subnet-1a1b2c3d"]
    stack = resolve(template, ESSENTIAL | {"VpcId": "vpc-0a1b2c3d", "SubnetIds": ",".join(subnets)})

    group = stack.properties("SplitGroup")
    assert group["VPCZoneIdentifier"] == subnets
    assert "AvailabilityZones" not in group
    assert stack.properties("NoIngress")["VpcId"] == "vpc-0a1b2c3d"


def test_instances_accept_no_connections(stack: Stack, launch: dict[str, Any]) -> None:
    assert "SecurityGroupIngress" not in stack.properties("NoIngress")
    assert set(stack.of("AWS::EC2::SecurityGroup")) == {"NoIngress"}
    assert not stack.of("AWS::EC2::SecurityGroupIngress")
    assert launch["SecurityGroupIds"] == ["<NoIngress.GroupId>"]
    assert "KeyName" not in launch


def test_metadata_service_requires_a_token_and_allows_one_hop(launch: dict[str, Any]) -> None:
    assert launch["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
    }


def test_volume_is_encrypted_and_deleted_with_its_instance(launch: dict[str, Any]) -> None:
    (volume,) = launch["BlockDeviceMappings"]

    assert volume["DeviceName"] == "/dev/xvda", "the root device of Amazon Linux, not a second volume"
    assert volume["Ebs"] == {"VolumeType": "gp3", "VolumeSize": 40, "Encrypted": True, "DeleteOnTermination": True}


def test_link_to_minio_limits_the_fleet(template: dict[str, Any]) -> None:
    instance_mbps = Settings.model_fields["downloads"].default * CONNECTION_MBPS
    allowed = template["Parameters"]["SourceLinkMbps"]["AllowedValues"]

    sizes = {
        link: resolve(template, ESSENTIAL | {"SourceLinkMbps": link}).properties("SplitGroup")["MaxSize"]
        for link in allowed
    }

    assert sizes == {link: ceil(int(link) / instance_mbps) for link in allowed}
