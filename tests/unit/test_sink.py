"""The sink: uploads, their clean-up, and the conditional commit."""
# ruff: noqa: N803 - boto's names of arguments

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from botocore.exceptions import ClientError

from stt_async.errors import DependencyError, PermanentError, RetryJobError, TransientError
from stt_async.retry import Retry
from stt_async.services.bucket import Bucket
from stt_async.services.sink import ManifestHead, Sink
from tests.unit.fakes import a_job, a_manifest, wait_until

PART_BYTES = 10
Fault = Exception | Callable[[], Any]


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "because"}}, "Any")


class Body:
    """The body of a response."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""

    async def read(self) -> bytes:
        return self._data


class S3:
    """A bucket in memory. Each call first raises, or awaits, the next of `faults` for its operation."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.calls: list[str] = []

    async def _called(self, operation: str) -> None:
        self.calls.append(operation)
        await asyncio.sleep(0)
        if self.faults.get(operation):
            fault = self.faults[operation].pop(0)
            if isinstance(fault, Exception):
                raise fault
            await fault()

    def _etag(self, key: str) -> str:
        return f'"{hash(self.objects[key])}"'

    async def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        del Bucket
        await self._called("get_object")
        if Key not in self.objects:
            raise refusal("NoSuchKey")
        return {"Body": Body(self.objects[Key]), "ETag": self._etag(Key)}

    async def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        del Bucket
        await self._called("head_object")
        if Key not in self.objects:
            raise refusal("404")
        return {"Metadata": self.metadata.get(Key, {}), "ContentLength": len(self.objects[Key])}

    async def put_object(self, *, Key: str, Body: bytes, **arguments: Any) -> None:
        await self._called("put_object")
        if "IfNoneMatch" in arguments and Key in self.objects:
            raise refusal("PreconditionFailed")
        if "IfMatch" in arguments and Key not in self.objects:
            raise refusal("NoSuchKey")
        if "IfMatch" in arguments and arguments["IfMatch"] != self._etag(Key):
            raise refusal("PreconditionFailed")
        self.objects[Key] = Body
        self.metadata[Key] = arguments.get("Metadata", {})
        await self._called("put_object_answer")

    async def create_multipart_upload(self, **_: Any) -> dict[str, str]:
        await self._called("create")
        upload_id = f"upload-{len(self.calls)}"
        self.uploads[upload_id] = {}
        await self._called("create_answer")
        return {"UploadId": upload_id}

    async def upload_part(self, *, UploadId: str, PartNumber: int, Body: bytes, **_: Any) -> dict[str, str]:
        await self._called("part")
        self.uploads[UploadId][PartNumber] = Body
        return {"ETag": str(PartNumber), "ChecksumCRC32": "0"}

    async def complete_multipart_upload(
        self,
        *,
        Key: str,
        UploadId: str,
        MultipartUpload: dict[str, Any],
        **_: Any,
    ) -> None:
        await self._called("complete")
        parts = self.uploads.pop(UploadId, None)
        if parts is None:
            raise refusal("NoSuchUpload")
        self.objects[Key] = b"".join(parts[part["PartNumber"]] for part in MultipartUpload["Parts"])
        await self._called("complete_answer")

    async def abort_multipart_upload(self, *, UploadId: str, **_: Any) -> None:
        await self._called("abort")
        if self.uploads.pop(UploadId, None) is None:
            raise refusal("NoSuchUpload")

    async def list_multipart_uploads(self, **_: Any) -> dict[str, Any]:
        return {}


@pytest.fixture
def s3() -> S3:
    return S3()


@pytest.fixture
def sink(s3: S3) -> Sink:
    client: Any = s3
    retry = Retry(timeout_s=30.0, max_wait_s=0.001)
    return Sink(Bucket(client, "out", uploads=4, part_bytes=PART_BYTES, retry=retry))


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A file of three full parts and a short one."""
    file = tmp_path / "segments.tar"
    file.write_bytes(bytes(range(3 * PART_BYTES + 5)))
    return file


async def test_small_file_is_one_put_with_retries(s3: S3, sink: Sink, tmp_path: Path) -> None:
    file = tmp_path / "segment.flac"
    file.write_bytes(b"x" * PART_BYTES)
    s3.faults["put_object"] = [refusal("SlowDown"), refusal("InternalError")]
    await sink.put(file, "a.mp3/segment.flac")
    assert s3.objects == {"a.mp3/segment.flac": b"x" * PART_BYTES}
    assert s3.calls.count("put_object") == 3


async def test_large_file_is_uploaded_in_parts(s3: S3, sink: Sink, tar: Path) -> None:
    s3.faults["part"] = [refusal("SlowDown")]
    await sink.put(tar, "a.mp3/segments.tar")
    assert s3.objects == {"a.mp3/segments.tar": tar.read_bytes()}
    assert s3.calls.count("part") == 5
    assert s3.uploads == {}


@pytest.mark.parametrize("operation", ["part", "complete"])
async def test_failed_upload_is_aborted(s3: S3, sink: Sink, tar: Path, operation: str) -> None:
    s3.faults[operation] = [refusal("AccessDenied")]
    with pytest.raises(DependencyError, match="AccessDenied"):
        await sink.put(tar, "a.mp3/segments.tar")
    assert s3.uploads == {}
    assert s3.objects == {}


async def test_upload_whose_completion_lost_its_answer_succeeds(s3: S3, sink: Sink, tar: Path) -> None:
    s3.faults["complete_answer"] = [ConnectionResetError("reset")]
    await sink.put(tar, "a.mp3/segments.tar")
    assert s3.objects == {"a.mp3/segments.tar": tar.read_bytes()}
    assert s3.calls.count("complete") == 2
    assert "abort" not in s3.calls


@pytest.mark.parametrize("present", [None, b"another size"])
async def test_foreign_abort_needs_a_new_attempt(s3: S3, sink: Sink, tar: Path, present: bytes | None) -> None:
    async def abort() -> None:
        s3.uploads.clear()

    if present is not None:
        s3.objects["a.mp3/segments.tar"] = present
    s3.faults["complete"] = [abort]
    with pytest.raises(RetryJobError, match="NoSuchUpload"):
        await sink.put(tar, "a.mp3/segments.tar")


async def test_upload_that_was_not_created_is_not_aborted(s3: S3, sink: Sink, tar: Path) -> None:
    s3.faults["create"] = [refusal("AccessDenied")]
    with pytest.raises(DependencyError, match="AccessDenied"):
        await sink.put(tar, "a.mp3/segments.tar")
    assert "abort" not in s3.calls


@pytest.mark.parametrize("operation", ["create", "create_answer", "part", "complete"])
@pytest.mark.parametrize("times", [1, 3])
async def test_cancelled_upload_is_aborted(s3: S3, sink: Sink, tar: Path, operation: str, times: int) -> None:
    go = asyncio.Event()
    s3.faults[operation] = [go.wait]
    task = asyncio.create_task(sink.put(tar, "a.mp3/segments.tar"))
    await wait_until(lambda: operation in s3.calls)
    for _ in range(times):
        task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert s3.uploads == {}
    assert s3.objects == {}


async def test_failed_abort_does_not_hide_the_first_error(s3: S3, sink: Sink, tar: Path) -> None:
    s3.faults = {"part": [refusal("AccessDenied")], "abort": [refusal("InternalError")]}
    with pytest.raises(DependencyError, match="AccessDenied"):
        await sink.put(tar, "a.mp3/segments.tar")


async def test_probe_leaves_nothing(s3: S3, sink: Sink) -> None:
    await sink.probe()
    assert s3.uploads == {}
    assert s3.objects == {}
    assert {"create", "part", "abort"} <= set(s3.calls)


@pytest.mark.parametrize("operation", ["get_object", "create", "part", "abort"])
async def test_probe_raises_a_refusal(s3: S3, sink: Sink, operation: str) -> None:
    s3.faults[operation] = [refusal("AccessDenied")]
    with pytest.raises(DependencyError, match="AccessDenied"):
        await sink.probe()
    assert s3.uploads == {}


KEY = "amdo/001.mp3/metadata.json"


async def test_first_commit_is_stored_with_its_metadata(s3: S3, sink: Sink) -> None:
    manifest = a_manifest()
    assert await sink.read_manifest(manifest.output_prefix) is None
    assert await sink.head_manifest(manifest.output_prefix) is None
    assert await sink.commit(manifest, replaces=None) is None
    assert s3.objects == {KEY: manifest.to_json()}
    stored = await sink.read_manifest(manifest.output_prefix)
    assert stored is not None
    assert stored.parse() == manifest
    assert await sink.head_manifest(manifest.output_prefix) == ManifestHead(manifest.params_sha256, "e1")


async def test_second_commit_returns_the_winner(s3: S3, sink: Sink) -> None:
    winner, second = a_manifest(), a_manifest(a_job(job_id="split-2"))
    s3.objects[KEY] = winner.to_json()
    assert await sink.commit(second, replaces=None) == winner
    assert s3.objects[KEY] == winner.to_json()


async def test_commit_that_lost_its_answer_returns_itself(s3: S3, sink: Sink) -> None:
    manifest = a_manifest()
    s3.faults["put_object_answer"] = [ConnectionResetError("reset")]
    assert await sink.commit(manifest, replaces=None) == manifest


async def test_replacement_replaces_only_the_manifest_it_read(s3: S3, sink: Sink) -> None:
    old, newer, own = (a_manifest(a_job(job_id=name)) for name in ("old", "newer", "own"))
    s3.objects[KEY] = old.to_json()
    seen = await sink.read_manifest(old.output_prefix)
    assert seen is not None
    s3.objects[KEY] = newer.to_json()
    assert await sink.commit(own, replaces=seen.etag) == newer
    seen = await sink.read_manifest(old.output_prefix)
    assert seen is not None
    assert await sink.commit(own, replaces=seen.etag) is None
    assert s3.objects[KEY] == own.to_json()


async def test_replacement_of_a_missing_manifest_is_transient(s3: S3, sink: Sink) -> None:
    with pytest.raises(TransientError, match="does not exist any more"):
        await sink.commit(a_manifest(), replaces='"1"')
    assert s3.objects == {}


async def test_foreign_manifest_is_refused(s3: S3, sink: Sink) -> None:
    s3.objects[KEY] = b"{}"
    stored = await sink.read_manifest("amdo/001.mp3/")
    assert stored is not None
    with pytest.raises(PermanentError) as caught:
        stored.parse()
    assert caught.value.code == "foreign_manifest"


async def test_uploads_at_once_are_limited(s3: S3, sink: Sink, tmp_path: Path) -> None:
    inside = most = 0

    @asynccontextmanager
    async def counted() -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        yield
        inside -= 1

    async def slowly() -> None:
        async with counted():
            for _ in range(5):
                await asyncio.sleep(0.001)

    s3.faults["put_object"] = [slowly for _ in range(12)]
    files = [tmp_path / f"{n}.flac" for n in range(12)]
    for file in files:
        file.write_bytes(b"x")
    await asyncio.gather(*(sink.put(file, file.name) for file in files))
    assert most == 4
    assert len(s3.objects) == 12
