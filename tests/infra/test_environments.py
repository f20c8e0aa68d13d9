"""Locks, and the environments that bin/ creates from them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.support.recordings import ROOT
from tests.support.wheels import PackageIndex

LOCKS = ROOT / "requirements"
PYTORCH = "https://download.pytorch.org/whl/cpu"

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

BACKEND = """
from pathlib import Path
from tests.support.wheels import tiny_wheel

def build_editable(folder, config_settings=None, metadata_directory=None):
    return tiny_wheel(Path(folder), "project", "1").name
"""


def _pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s+]+)", (LOCKS / f"{lock}.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", ["test", "ministack"])
def test_locked_versions_support_the_lowest_python(lock: str) -> None:
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    environment = Path(sys.prefix) if lock == "test" else ROOT / ".venv-ministack"
    if not list(environment.glob(".stamp-*")) and lock == "ministack":
        pytest.skip("no environment for ministack: bin/test creates it, or logs the reason")
    folders = [str(folder) for folder in environment.glob("lib/python*/site-packages")]
    found = {str(canonicalize_name(each.name)): each for each in distributions(path=folders)}

    for name, version in _pins(lock).items():
        assert found[name].version.split("+")[0] == version
        requires = found[name].metadata["Requires-Python"] or ""
        assert SpecifierSet(requires).contains(lowest), f"{name}=={version} requires Python {requires}"


@pytest.mark.parametrize(("large", "small"), [("test", "run"), ("run", "fleet")])
def test_smaller_lock_is_part_of_the_larger(large: str, small: str) -> None:
    assert _pins(small).items() <= _pins(large).items()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a copy of bin/, whose locks have only torch."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "bin", folder / "bin")
    locks = folder / "requirements"
    locks.mkdir()
    shutil.copy(LOCKS / "torch_index.py", locks)
    for name in ("run", "test"):
        (locks / f"{name}.txt").write_text("torch==2.13.0\n")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    return folder


def test_torch_comes_from_the_cpu_index_and_a_missing_python_is_no_error(project: Path, index: PackageIndex) -> None:
    index.add("pypi", "torch", "2.13.0")
    index.add("cpu", "torch", "2.13.0+cpu")
    script = ". bin/_env; ensure_env run; try_ensure_env 3.99 || echo without 3.99"
    pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": "", "PIP_INDEX_URL": f"{index.url}/pypi"}
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        cwd=project,
        env=os.environ | pip | {"STT_TORCH_INDEX": f"{index.url}/cpu/", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "without 3.99\n"), done.stderr
    assert "no Python 3.99" in done.stderr
    assert list((project / ".venv").glob("lib/python*/site-packages/torch-2.13.0+cpu.dist-info"))


def _torch_index(**environment: str) -> tuple[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "STT_TORCH_INDEX"}
    command = [sys.executable, str(LOCKS / "torch_index.py")]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr


def _is_skipped(index: str, outcome: tuple[str, str]) -> bool:
    line = rf"stt-async: cannot read torch's CPU index {index} \(.+\): pip's own settings choose .+\n"
    return outcome[0] == "" and re.fullmatch(line, outcome[1]) is not None


def test_empty_setting_leaves_torch_to_pip() -> None:
    assert _torch_index(STT_TORCH_INDEX="") == ("", "")


def test_silent_index_and_index_without_torch_are_skipped_with_one_line(index: PackageIndex) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for url in (f"http://127.0.0.1:{silent.getsockname()[1]}", f"{index.url}/nowhere"):
            assert _is_skipped(url, _torch_index(STT_TORCH_INDEX=url))


def test_default_is_pytorchs_index_and_is_skipped_if_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"

    assert _is_skipped(PYTORCH, _torch_index(https_proxy=closed, no_proxy=""))
