"""What comes out of a download is what the source holds, or nothing."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from stt_async.errors import DependencyError, PermanentError, TransientError
from stt_async.job import SplitJob
from stt_async.retry import Retry
from stt_async.services import download
from stt_async.services.source import Source, open_source
from stt_async.settings import Settings
from tests.support.faults.faulty_objects import (
    Answer,
    FaultyObjects,
    cut_after,
    drip,
    half_without_length,
    one_bit_wrong,
    refuse,
    serving,
    whole,
    whole_despite_range,
)

SIZE_BYTES = 3 * 1024**2


@asynccontextmanager
async def source_of(*script: Answer) -> AsyncIterator[tuple[FaultyObjects, Source]]:
    """A source whose server follows a script."""
    objects = FaultyObjects(secrets.token_bytes(SIZE_BYTES), list(script))
    async with serving(objects) as address:
        settings = Settings(minio_endpoint=address, minio_secure=False, downloads=8)
        retry = Retry(timeout_s=2.0, max_wait_s=0.05)
        async with open_source(settings, cast("Any", None), retry) as source:
            yield objects, source


def a_job(**facts: object) -> SplitJob:
    return SplitJob.model_validate(
        {
            "job_id": "a",
            "source_bucket": "audio",
            "source_key": "a.mp3",
            "output_bucket": "segments",
            "output_prefix": "a.mp3",
            "source_size": SIZE_BYTES,
            **facts,
        }
    )


async def test_download_that_is_cut_goes_on_where_it_broke(tmp_path: Path) -> None:
    async with source_of(cut_after(0.5), cut_after(0.5), whole) as (objects, source):
        fetched = await source.fetch(a_job(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == objects.content
    assert fetched.etag == objects.etag
    assert fetched.receiving_s > 0
    starts = [objects.asked_from(request) for request in objects.requests]
    assert starts == sorted(starts)
    assert starts[1] > 0
    assert all(request.headers["If-Match"] == f'"{objects.etag}"' for request in objects.requests[1:])


async def test_download_outlives_the_retry_policy_as_long_as_it_gets_on(tmp_path: Path) -> None:
    breaks = [cut_after(0.3)] * 12
    async with source_of(*breaks, whole) as (objects, source):
        source._retry = Retry(timeout_s=0.0, max_wait_s=0.01)  # each call is tried once
        await source.fetch(a_job(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == objects.content


async def test_server_that_ignores_the_range_does_not_spoil_the_content(tmp_path: Path) -> None:
    async with source_of(cut_after(0.5), whole_despite_range) as (objects, source):
        await source.fetch(a_job(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == objects.content


async def test_recording_replaced_during_its_download_starts_again(tmp_path: Path) -> None:
    cut = cut_after(0.5)

    async def cut_and_replace(objects: FaultyObjects, request: Any) -> Any:
        response = await cut(objects, request)
        objects.content = secrets.token_bytes(SIZE_BYTES)
        return response

    async with source_of(cut_and_replace, whole) as (objects, source):
        fetched = await source.fetch(a_job(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == objects.content
    assert fetched.etag == objects.etag
    assert fetched.receiving_s > 0


async def test_truncated_body_without_a_length_is_never_taken_for_the_recording(tmp_path: Path) -> None:
    async with source_of(half_without_length) as (_, source):
        with pytest.raises(TransientError) as caught:
            await source.fetch(a_job(), tmp_path / "a")
    assert caught.value.code == "download_truncated"


async def test_flipped_bit_is_noticed_and_downloaded_again(tmp_path: Path) -> None:
    async with source_of(one_bit_wrong, whole) as (objects, source):
        await source.fetch(a_job(), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == objects.content
    assert len(objects.requests) == 2


async def test_etag_that_is_no_md5_of_the_content_is_believed_the_second_time(tmp_path: Path) -> None:
    # As of objects under some kinds of server-side encryption: the same bytes come again, so they are right.
    async with source_of(one_bit_wrong) as (objects, source):
        await source.fetch(a_job(), tmp_path / "a")
    assert len(objects.requests) == 2


@pytest.mark.parametrize("facts", [{"source_size": 5}, {"source_etag": "0" * 32}])
async def test_recording_that_changed_since_it_was_enqueued_is_refused(facts: dict[str, Any], tmp_path: Path) -> None:
    async with source_of(whole) as (_, source):
        with pytest.raises(PermanentError) as caught:
            await source.fetch(a_job(**facts), tmp_path / "a")
    assert caught.value.code == "source_changed"


async def test_missing_recording_is_permanent_and_asked_for_once(tmp_path: Path) -> None:
    async with source_of(refuse(404, "NoSuchKey")) as (objects, source):
        with pytest.raises(PermanentError) as caught:
            await source.fetch(a_job(), tmp_path / "a")
    assert caught.value.code == "source_missing"
    assert len(objects.requests) == 1


async def test_refusal_is_the_dependency_s_fault_and_not_retried(tmp_path: Path) -> None:
    async with source_of(refuse(403, "AccessDenied")) as (objects, source):
        with pytest.raises(DependencyError):
            await source.fetch(a_job(), tmp_path / "a")
    assert len(objects.requests) == 1


async def test_slow_drip_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "RATE_WINDOW_S", 0.2)
    async with source_of(drip) as (_, source):
        source._retry = Retry(timeout_s=0.0, max_wait_s=0.01)
        with pytest.raises(TransientError) as caught:
            await source.fetch(a_job(), tmp_path / "a")
    assert caught.value.code == download.TOO_SLOW


async def test_slow_down_narrows_the_downloads_and_success_widens_them(tmp_path: Path) -> None:
    async with source_of(refuse(503, "SlowDown"), whole) as (_, source):
        await source.fetch(a_job(), tmp_path / "a")
        assert source._downloads.width == 4
        for number in range(60):
            await source.fetch(a_job(), tmp_path / str(number))
            (tmp_path / str(number)).unlink()
    assert source._downloads.width == 8
