import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stt_async.fleet.template import PATH


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "ap-south-1"])
def test_cfn_lint_reports_nothing(region: str) -> None:
    cfn_lint = Path(sys.executable).with_name("cfn-lint")
    command: list[str | Path] = [cfn_lint, PATH, "--include-checks", "I", "--format", "json", "--regions", region]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)

    assert json.loads(linted.stdout) == []
    assert (linted.returncode, linted.stderr) == (0, "")


def test_template_contains_no_secret(template: dict[str, Any]) -> None:
    # A NoEcho parameter would be readable in the user data.
    assert not [name for name, each in template["Parameters"].items() if "NoEcho" in each]
    assert not re.search("(SECRET|ACCESS)_KEY", PATH.read_text())
