import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cloudformation import PATH

CREATE_STACK_MAX_BYTES = 51_200
"""Of a template that is sent and not first put into a bucket: a limit of CloudFormation."""


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "ap-south-1"])
def test_cfn_lint_has_nothing_to_say(region: str) -> None:
    cfn_lint = Path(sys.executable).with_name("cfn-lint")
    command: list[str | Path] = [cfn_lint, PATH, "--include-checks", "I", "--format", "json", "--regions", region]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)

    assert json.loads(linted.stdout) == []
    assert (linted.returncode, linted.stderr) == (0, "")


def test_it_fits_into_one_request() -> None:
    assert PATH.stat().st_size <= CREATE_STACK_MAX_BYTES


def test_no_value_of_a_secret_is_in_it(template: dict[str, Any]) -> None:
    # A NoEcho parameter would still be in the user data, for everybody who may describe the instance.
    assert not [name for name, each in template["Parameters"].items() if "NoEcho" in each]
    assert "SECRET_KEY" not in PATH.read_text()
