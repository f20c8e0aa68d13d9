import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from stt_async import settings
from tests.support.cloudformation import Stack, resolve
from tests.support.recordings import ROOT
from tests.support.template import ESSENTIAL, RELEASE

MOST_LINES = 30


@pytest.fixture
def user_data(stack: Stack) -> str:
    """What an instance runs at its first boot."""
    text: str = stack.properties("SplitTemplate")["LaunchTemplateData"]["UserData"]
    return text


def _environment(user_data: str, tmp_path: Path) -> Path:
    file = tmp_path / "worker.env"
    file.write_text(user_data.split("<<'END'\n")[1].partition("END\n")[0])
    return file


def test_it_is_short_and_sound(user_data: str) -> None:
    script = user_data.replace("<Logs>", "/stt-async/prod/workers")
    shellcheck: list[str | Path] = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "-"]
    checked = subprocess.run(shellcheck, input=script, capture_output=True, text=True, check=False)

    assert checked.stdout == ""
    assert len(script.splitlines()) < MOST_LINES
    assert script.startswith("#!/bin/bash\n"), "cloud-init takes it for a script by this"


def test_it_takes_the_release_it_was_told_of_and_no_other(user_data: str) -> None:
    assert f"s3://{ESSENTIAL['ArtifactBucket']}/releases/{RELEASE}.tar.gz" in user_data
    checked = user_data.index(f"sha256sum --check --quiet <<<'{RELEASE}  release.tar.gz'")
    assert user_data.index("aws s3 cp") < checked < user_data.index("tar --extract") < user_data.index("./boot.sh")


def test_whatever_fails_ends_the_instance(stack: Stack, user_data: str) -> None:
    before_anything_else = user_data.splitlines()[2:4]

    assert before_anything_else[0] == "set -euo pipefail"
    assert before_anything_else[1] == "trap '[ $? = 0 ] || shutdown --poweroff now' EXIT"
    data = stack.properties("SplitTemplate")["LaunchTemplateData"]
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_the_worker_understands_its_settings(
    template: dict[str, Any], stack: Stack, user_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dotenv_values(_environment(user_data, tmp_path))
    for name, value in given.items():
        monkeypatch.setenv(name, value or "")
    known = {settings.variable((field,)) for field in settings.Settings.model_fields}

    assert set(given) <= known, "a setting that the worker does not have"
    ours = settings.load()
    assert ours.aws_region == "us-east-1"

    group = stack.properties("SplitGroup")
    hooks = {each["LifecycleTransition"]: each["LifecycleHookName"] for each in group["LifecycleHookSpecificationList"]}
    assert ours.autoscaling_group == group["AutoScalingGroupName"]
    assert ours.launch_hook == hooks["autoscaling:EC2_INSTANCE_LAUNCHING"]
    assert ours.termination_hook == hooks["autoscaling:EC2_INSTANCE_TERMINATING"]
    assert ours.idle_timeout_s == template["Parameters"]["IdleTimeoutSeconds"]["Default"]
    assert ours.environment == "prod"
    assert ours.minio_secure


def test_parameters_reach_the_worker(template: dict[str, Any], tmp_path: Path) -> None:
    chosen = {
        "Environment": "test",
        "MinioEndpoint": "minio.example:9000",
        "SourceBucket": "speech",
        "OutputBucket": "pieces",
        "SplitQueueName": "cut-these",
        "SegmentFormat": "wav",
        "SegmentLayout": "tar",
        "IdleTimeoutSeconds": "90",
    }
    stack = resolve(template, ESSENTIAL | chosen)
    user_data = stack.properties("SplitTemplate")["LaunchTemplateData"]["UserData"]

    assert set(chosen.values()) <= set(dotenv_values(_environment(user_data, tmp_path)).values())


def test_the_boot_script_gets_what_it_asks_for(user_data: str) -> None:
    boot = (ROOT / "infra" / "boot.sh").read_text()
    asked = {line.removeprefix(': "${').split(":?")[0] for line in boot.splitlines() if line.startswith(': "${')}

    last = user_data.strip().splitlines()[-1]
    assert asked == {word.split("=")[0] for word in last.split()[:-1]}


def test_no_secret_is_in_it(user_data: str) -> None:
    # Everybody who may describe the instance can read it: it names where the key is, no more.
    assert "MINIO_SECRET_PARAMETER=/stt-async/prod/minio " in user_data
    for secret in ("STT_MINIO_ACCESS_KEY", "STT_MINIO_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"):
        assert secret not in user_data
