"""Shared by infrastructure tests: the release that instances boot from, and a package index."""

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from stt_async.errors import DependencyError
from stt_async.fleet.artifact import Artifact, build
from tests.support.machines.cache import CACHE
from tests.support.wheels import PackageIndex, package_index


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    """The release of this checkout. Its wheels are downloaded once, and cached.

    Skips if pip cannot download them, as where no index has torch's CPU build.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "releases.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            built = build(CACHE / "releases")
        except DependencyError as error:
            if error.code != "wheels_missing":
                raise
            pytest.skip(error.message.splitlines()[0])
        for file in built.file.parent.glob("*.tar.gz"):
            if file != built.file:
                file.unlink()
    return built


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    """An empty package index on loopback."""
    folder = tmp_path / "index"
    folder.mkdir()
    with package_index(folder) as opened:
        yield opened
