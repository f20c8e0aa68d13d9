import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values

from stt_async import settings
from tests.support.recordings import ROOT
from tests.support.stack.cloudformation import Stack, resolve
from tests.support.stack.template import ESSENTIAL, RELEASE


@pytest.fixture
def user_data(stack: Stack) -> str:
    text: str = stack.properties("SplitTemplate")["LaunchTemplateData"]["UserData"]
    return text


def _environment(user_data: str, tmp_path: Path) -> Path:
    file = tmp_path / "worker.env"
    file.write_text(user_data.split("<<'END'\n")[1].partition("END\n")[0])
    return file


def test_user_data_is_short_and_passes_shellcheck(user_data: str) -> None:
    script = user_data.replace("<Logs>", "/stt-async/prod/workers")
    shellcheck: list[str | Path] = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "-"]
    checked = subprocess.run(shellcheck, input=script, capture_output=True, text=True, check=False)

    assert checked.stdout == ""
    assert len(script.splitlines()) < 30
    assert script.startswith("#!/bin/bash\n"), "cloud-init runs user data as a script only with this line"


def test_release_is_verified_before_it_is_unpacked(user_data: str) -> None:
    assert f"s3://{ESSENTIAL['ArtifactBucket']}/releases/{RELEASE}.tar.gz" in user_data
    checked = user_data.index(f"sha256sum --check --quiet <<<'{RELEASE}  release.tar.gz'")
    assert user_data.index("aws s3 cp") < checked < user_data.index("tar --extract") < user_data.index("./boot.sh")


def test_any_failure_ends_the_instance(stack: Stack, user_data: str) -> None:
    assert user_data.splitlines()[2:4] == [
        "set -euo pipefail",
        "trap '[ $? = 0 ] || shutdown --poweroff now' EXIT",
    ]
    data = stack.properties("SplitTemplate")["LaunchTemplateData"]
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_worker_loads_the_settings_of_the_user_data(
    template: dict[str, Any], stack: Stack, user_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dotenv_values(_environment(user_data, tmp_path))
    for name, value in given.items():
        monkeypatch.setenv(name, value or "")
    known = {settings.variable((field,)) for field in settings.Settings.model_fields}

    assert set(given) <= known, "unknown settings"
    loaded = settings.load()
    assert loaded.aws_region == "us-east-1"

    group = stack.properties("SplitGroup")
    hooks = {each["LifecycleTransition"]: each["LifecycleHookName"] for each in group["LifecycleHookSpecificationList"]}
    assert loaded.autoscaling_group == group["AutoScalingGroupName"]
    assert loaded.launch_hook == hooks["autoscaling:EC2_INSTANCE_LAUNCHING"]
    assert loaded.termination_hook == hooks["autoscaling:EC2_INSTANCE_TERMINATING"]
    assert loaded.idle_timeout_s == template["Parameters"]["IdleTimeoutSeconds"]["Default"]
    assert loaded.environment == "prod"
    assert loaded.minio_secure


def test_parameters_reach_the_worker(template: dict[str, Any], tmp_path: Path) -> None:
    chosen = {
        "Environment": "test",
        "MinioEndpoint": "minio.example:9000",
        "SourceBucket": "speech",
        "OutputBucket": "segments",
        "SplitQueueName": "split",
        "SegmentFormat": "wav",
        "SegmentLayout": "tar",
        "IdleTimeoutSeconds": "90",
    }
    stack = resolve(template, ESSENTIAL | chosen)
    user_data = stack.properties("SplitTemplate")["LaunchTemplateData"]["UserData"]

    assert set(chosen.values()) <= set(dotenv_values(_environment(user_data, tmp_path)).values())


def test_boot_script_gets_the_variables_that_it_requires(user_data: str) -> None:
    boot = (ROOT / "infra" / "boot.sh").read_text()
    required = {line.removeprefix(': "${').split(":?")[0] for line in boot.splitlines() if line.startswith(': "${')}

    last = user_data.strip().splitlines()[-1]
    assert required == {word.split("=")[0] for word in last.split()[:-1]}
    assert "MINIO_SECRET_PARAMETER=/stt-async/prod/minio " in last, "the path of the key, not the key"
