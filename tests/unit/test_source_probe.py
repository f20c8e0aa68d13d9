"""The probe of the source: which recordings it reads, and how it handles refusals."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import Mock

import pytest
from miniopy_async.error import S3Error

from stt_async.errors import DependencyError, OutageError, PermanentError
from stt_async.retry import Retry
from stt_async.services.source import PROBED, Source
from tests.unit.fakes import TIMEOUT_S


class Minio:
    """A bucket that lists these keys, and refuses a GET of some with an error code. It has no other methods."""

    def __init__(self, keys: list[str], refused: dict[str, str]) -> None:
        self.keys = keys
        self.refused = refused
        self.read: list[str] = []

    async def list_objects(self, bucket: str, **_: Any) -> AsyncIterator[Any]:
        del bucket
        for key in self.keys:
            yield SimpleNamespace(object_name=key, is_dir=False, size=1, etag="e")

    async def get_object(self, bucket: str, key: str) -> Any:
        del bucket
        self.read.append(key)
        if code := self.refused.get(key):
            raise S3Error(code, "because", key, "1", "host", Mock(status=403))
        return Response()


class Response:
    """A response with a body."""

    def __init__(self) -> None:
        self.content = self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""

    async def read(self, size: int) -> bytes:
        return b"x" * size


def _source(minio: Minio, retry_timeout_s: float = TIMEOUT_S) -> Source:
    client: Any = minio
    return Source(client, Mock(), downloads=1, retry=Retry(retry_timeout_s, 0.001))


KEYS = [f"{number:04}.mp3" for number in range(1000)]


async def test_one_readable_recording_is_enough() -> None:
    minio = Minio(KEYS, {KEYS[0]: "AccessDenied", KEYS[200]: "NoSuchKey"})
    assert KEYS[400] in await _source(minio).probe("audio")
    assert minio.read == [KEYS[0], KEYS[200], KEYS[400]]


async def test_refusals_across_the_listing_are_a_refusal() -> None:
    minio = Minio(KEYS, dict.fromkeys(KEYS, "AccessDenied"))
    with pytest.raises(DependencyError, match="AccessDenied"):
        await _source(minio).probe("audio")
    assert minio.read == KEYS[:: len(KEYS) // PROBED]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 999])
async def test_short_listing_is_probed_without_repeats(count: int) -> None:
    minio = Minio(KEYS[:count], dict.fromkeys(KEYS, "NoSuchKey"))
    with pytest.raises(PermanentError):
        await _source(minio).probe("audio")
    assert 1 <= len(minio.read) <= PROBED
    assert len(set(minio.read)) == len(minio.read)


async def test_empty_bucket_passes() -> None:
    assert "empty" in await _source(Minio([], {})).probe("audio")


async def test_outage_is_raised_at_the_first_recording() -> None:
    minio = Minio(KEYS, dict.fromkeys(KEYS, "RequestTimeTooSkewed"))
    with pytest.raises(OutageError):
        await _source(minio, retry_timeout_s=0.0).probe("audio")
    assert set(minio.read) == {KEYS[0]}
