"""Checkov's judgement of the template, offline; what is ignored has its reason."""

import json
import subprocess
from typing import Any

import pytest

from stt_async.local.process import plain_environment
from tests.support.recordings import ROOT

CHECKOV = ROOT / ".venv-checkov" / "bin" / "checkov"

IGNORED = {
    "CKV_AWS_18": "access logs of 25 million PUTs a run cost more than they tell; CloudTrail has them for who wants",
    "CKV_AWS_26": "CloudWatch may not use SNS's own key: alarms would be lost; a key of ours costs more than they hide",
    "CKV_AWS_27": "the queues are encrypted with SQS's own key (SqsManagedSseEnabled), which this check does not know",
    "CKV_AWS_158": "CloudWatch Logs encrypts by itself; a key of ours would be paid for each of the workers' requests",
}


@pytest.fixture(scope="module")
def judgement(template: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What checkov says of all that the template can make: it goes by the defaults."""
    if not CHECKOV.exists():
        pytest.skip(f"no {CHECKOV.relative_to(ROOT)}: bin/test makes it")
    parameters = template["Parameters"] | {"CreateOutputBucket": {"Type": "String", "Default": "true"}}
    # In a folder of its own: checkov would take settings from where it is called.
    folder = tmp_path_factory.mktemp("checkov")
    (folder / "cloudformation.json").write_text(json.dumps(template | {"Parameters": parameters}))
    options = ["--framework", "cloudformation", "--file", "cloudformation.json", "--skip-download", "--output", "json"]
    judged = subprocess.run(
        [str(CHECKOV), *options], cwd=folder, env=plain_environment(), capture_output=True, text=True, check=False
    )
    assert judged.stdout, judged.stderr
    judgement: dict[str, Any] = json.loads(judged.stdout)
    return judgement


def test_nothing_is_wrong_but_what_has_its_reason(judgement: dict[str, Any]) -> None:
    failed = {(check["check_id"], check["resource"]) for check in judgement["results"]["failed_checks"]}

    assert sorted(each for each in failed if each[0] not in IGNORED) == []
    assert {check_id for check_id, _ in failed} == set(IGNORED), "a reason that is needed no more"
    assert judgement["results"]["parsing_errors"] == []


def test_it_looked_at_what_matters(judgement: dict[str, Any]) -> None:
    looked_at = {check["resource"].rpartition(".")[0] for check in judgement["results"]["passed_checks"]}

    assert {"AWS::S3::Bucket", "AWS::EC2::SecurityGroup", "AWS::IAM::Role"} <= looked_at
