"""A download yields what the source holds, or an error: the client of the source alone, before a spoilt MinIO.

`test_spoilt_downloads.py` holds what a whole worker makes of a spoilt download.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from multidict import CIMultiDict

from stt_async.errors import DependencyError, PermanentError, TransientError
from stt_async.job import SplitJob
from stt_async.retry import Retry
from stt_async.services import download
from stt_async.services.source import Source, open_source
from stt_async.settings import Settings
from tests.support.evidence.history import Call
from tests.support.faults.calls import cut_body, error, flip_bit, hold_body, short_body
from tests.support.faults.gateway import Fault, Reply, Rule, Strike, once
from tests.support.site import Site

KEY = "a.mp3"
_CONTENT = secrets.token_bytes(3 * 1024**2)
_ONE_TRY = Retry(timeout_s=0.0, max_wait_s=0.01)


@pytest_asyncio.fixture
async def source(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Source]:
    """The client of a source with one recording; it waits for the next bytes for half a second, not for 30."""
    await site.put_recordings({KEY: _CONTENT})
    timeout = aiohttp.ClientTimeout
    monkeypatch.setattr(aiohttp, "ClientTimeout", lambda **waits: timeout(**waits | {"sock_read": 0.5}))
    objects = site.services.servers.objects
    settings = Settings(
        minio_endpoint=objects.endpoint,
        minio_access_key=objects.reader.access_key,
        minio_secret_key=objects.reader.secret_key,
        minio_secure=False,
        downloads=8,
    )
    async with open_source(settings, site.s3, Retry(timeout_s=2.0, max_wait_s=0.05)) as opened:
        yield opened


def _spoil(site: Site, fault: Fault, *, times: int | None = None) -> Rule:
    return site.gateway.fault("minio", "GetObject", fault, times=times)


def _downloads(site: Site) -> list[Call]:
    return site.history.of("minio", "GetObject")


def _job(site: Site, **fields: object) -> SplitJob:
    return SplitJob.model_validate(site.job(KEY, source_size=len(_CONTENT), **fields))


async def test_progress_resets_the_retry_timeout(site: Site, source: Source, tmp_path: Path) -> None:
    source._retry = _ONE_TRY
    _spoil(site, cut_body(0.3), times=12)
    fetched = await source.fetch(_job(site), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == _CONTENT
    assert fetched.receiving_s > 0
    assert [call.served_status for call in _downloads(site)] == [200] + [206] * 12


async def test_stalled_download_resumes_on_another_connection(site: Site, source: Source, tmp_path: Path) -> None:
    with _spoil(site, hold_body(0.99), times=1):
        await source.fetch(_job(site), tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == _CONTENT
    assert [call.served_status for call in _downloads(site)] == [200, 206]


async def test_server_that_ignores_the_range_does_not_spoil_the_content(
    site: Site, source: Source, tmp_path: Path
) -> None:
    async def whole(strike: Strike) -> Reply:
        reply = await strike.forward()
        headers = CIMultiDict({"ETag": reply.headers["ETag"], "Content-Length": str(len(_CONTENT))})
        return Reply(200, headers, once(_CONTENT))

    cut = _spoil(site, cut_body(0.5), times=1)
    site.gateway.fault("minio", "GetObject", whole, where=lambda _: cut.struck == 1, times=2)
    await source.fetch(_job(site), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == _CONTENT
    assert len(_downloads(site)) == 2


async def test_truncated_body_without_length_is_never_a_recording(site: Site, source: Source, tmp_path: Path) -> None:
    _spoil(site, short_body(0.5))
    with pytest.raises(TransientError) as caught:
        await source.fetch(_job(site), tmp_path / "a")
    assert caught.value.code == "download_truncated"


async def test_etag_that_is_no_md5_is_accepted_when_the_same_bytes_come_twice(
    site: Site, source: Source, tmp_path: Path
) -> None:
    # As of objects under some kinds of server-side encryption.
    _spoil(site, flip_bit)
    await source.fetch(_job(site), tmp_path / "a")
    assert (tmp_path / "a").read_bytes()[1:] == _CONTENT[1:]
    assert len(_downloads(site)) == 2


@pytest.mark.parametrize("field", ["source_size", "source_etag"])
async def test_recording_that_changed_since_it_was_enqueued_is_refused(
    site: Site, source: Source, tmp_path: Path, field: str
) -> None:
    changed: dict[str, Any] = {"source_size": 5, "source_etag": "0" * 32}
    job = SplitJob.model_validate(site.job(KEY, **{field: changed[field]}))
    with pytest.raises(PermanentError) as caught:
        await source.fetch(job, tmp_path / "a")
    assert caught.value.code == "source_changed"


async def test_refused_download_is_not_retried(site: Site, source: Source, tmp_path: Path) -> None:
    _spoil(site, error(403, "AccessDenied"))
    with pytest.raises(DependencyError):
        await source.fetch(_job(site), tmp_path / "a")
    assert len(_downloads(site)) == 1


async def test_download_of_a_byte_now_and_then_is_cancelled(
    site: Site, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drip(strike: Strike) -> Reply:
        reply = await strike.forward()
        body = await reply.read()

        async def bytes_one_by_one() -> AsyncIterator[bytes]:
            for byte in body:
                yield bytes([byte])
                await asyncio.sleep(0.01)

        return replace(reply, body=bytes_one_by_one())

    monkeypatch.setattr(download, "RATE_WINDOW_S", 0.2)
    source._retry = _ONE_TRY
    _spoil(site, drip)
    with pytest.raises(TransientError) as caught:
        await source.fetch(_job(site), tmp_path / "a")
    assert caught.value.code == download.TOO_SLOW


async def test_slow_down_narrows_the_downloads_and_success_widens_them(
    site: Site, source: Source, tmp_path: Path
) -> None:
    _spoil(site, error(503, "SlowDown"), times=1)
    await source.fetch(_job(site), tmp_path / "a")
    assert source._downloads.width == 4
    for _ in range(60):
        await source.fetch(_job(site), tmp_path / "a")
    assert source._downloads.width == 8
