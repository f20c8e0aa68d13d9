"""What all infrastructure tests share: the release that instances boot from."""

import fcntl

import pytest

from stt_async.fleet.artifact import Artifact, build
from tests.support.cache import CACHE


@pytest.fixture(scope="session")
def artifact() -> Artifact:
    """The release of this checkout. Its wheels come from the package index, the first time; later from the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "releases.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = build(CACHE / "releases", None)
        for file in built.file.parent.glob("*.tar.gz"):
            if file != built.file:
                file.unlink()
    return built
