"""The units as systemd reads them: valid, and sandboxed except for what a worker needs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from stt_async.fleet.artifact import ROOT
from stt_async.settings import Settings
from stt_async.worker.watchdog import EXTRA_STOP_S

UNITS = sorted((ROOT / "infra/units").glob("*.service"))
WORKER = ROOT / "infra/units/stt-async.service"
MAX_EXPOSURE = 20
"""2.0 of 10, in the unit of `systemd-analyze security --threshold`."""

ANALYZE = shutil.which("systemd-analyze") or ""

pytestmark = pytest.mark.skipif(not ANALYZE, reason="systemd-analyze is not installed")


def directive(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", WORKER.read_text(), re.MULTILINE)
    return str(value)


def test_systemd_verifies_the_units(tmp_path: Path) -> None:
    # A root folder with the programs that the units name, and systemd's units.
    home = tmp_path / "opt/stt-async"
    for program in (home / "venv/bin/stt-async", home / "fetch-secrets.sh", home / "end-instance.sh"):
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(mode=0o755)
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/journalctl").touch(mode=0o755)
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, units)
    shutil.copytree("/lib/systemd/system", tmp_path / "lib/systemd/system", symlinks=True)
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", "--recursive-errors=no", f"--root={tmp_path}", *(unit.name for unit in UNITS)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if "stt-async" in line]
    assert (complaints, done.returncode) == ([], 0)


def test_worker_unit_has_low_exposure(tmp_path: Path) -> None:
    done = subprocess.run(
        [ANALYZE, "security", "--offline=yes", f"--threshold={MAX_EXPOSURE}", str(WORKER)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout


def test_stop_timeout_covers_a_drain() -> None:
    drain_s = Settings.model_fields["drain_timeout_s"].default
    assert int(directive("TimeoutStopSec")) >= drain_s + EXTRA_STOP_S


def test_secrets_are_credentials_not_environment_variables() -> None:
    assert "SECRET" not in directive("Environment")
    assert re.findall(r"^LoadCredential=(stt_\w+):", WORKER.read_text(), re.MULTILINE) == [
        "stt_minio_access_key",
        "stt_minio_secret_key",
    ]
