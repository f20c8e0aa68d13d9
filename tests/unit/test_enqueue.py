"""Which recordings `enqueue` sends, and how it counts the others."""

from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from stt_async.corpus.enqueue import CHUNK, Selection, Summary, _jobs, _send_open_jobs
from stt_async.job import SplitJob
from stt_async.services.sink import ManifestHead
from stt_async.services.source import SourceObject
from stt_async.settings import Settings, load

pytestmark = pytest.mark.usefixtures("bare_environment")


def found(key: str, *, size_bytes: int = 1000, etag: str = "e1") -> SourceObject:
    return SourceObject(key, size_bytes, etag)


class FakeServices:
    """A source bucket in pages, the heads of manifests, the unsplittable recordings, and a queue."""

    def __init__(self, objects: Sequence[SourceObject], *, page: int = 1000) -> None:
        self.pages_read = 0
        self.prefixes: list[str] = []
        self.heads: dict[str, ManifestHead] = {}
        self.unsplittable: set[str] = set()
        """Keys of unsplittable recordings."""
        self.sent: list[SplitJob] = []
        self.batches: list[int] = []
        self.progress: list[int] = []
        self._pages = [list(objects[start : start + page]) for start in range(0, len(objects), page)]

    async def pages(self, bucket: str, prefix: str) -> AsyncIterator[list[SourceObject]]:
        assert bucket == "audio"
        self.prefixes.append(prefix)
        for page in self._pages:
            self.pages_read += 1
            yield page

    async def head_manifest(self, prefix: str) -> ManifestHead | None:
        return self.heads.get(prefix)

    async def is_unsplittable(self, job: SplitJob) -> bool:
        return job.source_key in self.unsplittable

    async def send(self, jobs: Sequence[SplitJob]) -> None:
        self.sent += jobs
        self.batches.append(len(jobs))

    async def enqueue(self, settings: Settings, **selection: Any) -> Summary:
        connections: Any = SimpleNamespace(source=self, sink=self, failure_records=self)
        return await _send_open_jobs(
            settings, connections, Selection(**selection), self.send, lambda summary: self.progress.append(summary.sent)
        )

    @property
    def sent_keys(self) -> list[str]:
        return [job.source_key for job in self.sent]


async def test_recording_becomes_a_job_with_its_location_and_parameters() -> None:
    settings = load()
    services = FakeServices([found("amdo/བཀྲ་ཤིས།.mp3", size_bytes=4000, etag="e7")])
    summary = await services.enqueue(settings, prefix="amdo/")
    [job] = services.sent
    source = (job.source_bucket, job.source_key, job.source_size, job.source_etag)
    assert source == ("audio", "amdo/བཀྲ་ཤིས།.mp3", 4000, "e7")
    assert (job.output_bucket, job.output_prefix) == (settings.output_bucket, "amdo/བཀྲ་ཤིས།.mp3/")
    assert job.params(settings.split_params) == settings.split_params
    assert not job.replace
    assert services.prefixes == ["amdo/"]
    assert summary == Summary(listed=1, sent=1, sent_bytes=4000)


async def test_objects_with_other_suffixes_are_counted_not_sent() -> None:
    services = FakeServices([found(key) for key in ("a.MP3", "b.txt", "c", "mp3", "d.mp3.json", ".mp3", "e.Flac")])
    summary = await services.enqueue(load())
    assert services.sent_keys == ["a.MP3", "e.Flac"]
    assert (summary.listed, summary.not_audio, summary.sent) == (7, 5, 2)


@pytest.mark.parametrize("key", ["../a.mp3", "a//b.mp3", "releases/a.mp3", "a\nb.mp3", "x" * 897 + ".mp3"], ids=ascii)
async def test_key_that_cannot_be_an_output_prefix_is_reported_and_others_are_sent(key: str) -> None:
    services = FakeServices([found("a.mp3"), found(key), found("b.mp3")])
    summary = await services.enqueue(load())
    assert summary.unusable_keys == [key]
    assert services.sent_keys == ["a.mp3", "b.mp3"]


@pytest.mark.parametrize(
    ("etag", "own_params", "done"),
    [
        pytest.param("e1", True, True, id="same"),
        pytest.param("", True, True, id="without ETag"),
        pytest.param("e0", True, False, id="other source"),
        pytest.param("e1", False, False, id="other parameters"),
    ],
)
@pytest.mark.parametrize("replace", [False, True], ids=["", "replace"])
async def test_finished_recording_is_skipped_and_a_different_result_replaced_on_request(
    etag: str, *, own_params: bool, done: bool, replace: bool
) -> None:
    settings = load()
    services = FakeServices([found("a.mp3")])
    services.heads["a.mp3/"] = ManifestHead(settings.split_params.digest() if own_params else "other", etag)
    summary = await services.enqueue(settings, replace=replace)
    assert (summary.done, summary.other_params) == ((1, 0) if done else (0, 1))
    assert [job.replace for job in services.sent] == ([True] if replace and not done else [])
    assert summary.sent == len(services.sent)


@pytest.mark.parametrize("limit", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
async def test_listing_ends_when_the_limit_is_sent(limit: int) -> None:
    services = FakeServices([found(f"{n:04}.mp3") for n in range(4 * CHUNK)], page=CHUNK)
    summary = await services.enqueue(load(), limit=limit)
    assert summary.sent == len(services.sent) == limit
    assert services.sent_keys == [f"{n:04}.mp3" for n in range(limit)]
    assert services.pages_read == -(-limit // CHUNK)


async def test_limit_counts_sent_jobs_not_finished_recordings() -> None:
    settings = load()
    services = FakeServices([found(f"{n}.mp3") for n in range(6)])
    for n in (0, 2):
        services.heads[f"{n}.mp3/"] = ManifestHead(settings.split_params.digest(), "e1")
    summary = await services.enqueue(settings, limit=2)
    assert services.sent_keys == ["1.mp3", "3.mp3"]
    assert summary.done == 2


async def test_long_page_is_sent_in_chunks_with_progress_after_each() -> None:
    services = FakeServices([found(f"{n:04}.mp3") for n in range(2 * CHUNK + 1)])
    await services.enqueue(load())
    assert services.batches == [CHUNK, CHUNK, 1]
    assert services.progress == [CHUNK, 2 * CHUNK, 2 * CHUNK + 1]


async def test_empty_bucket_sends_nothing() -> None:
    assert await FakeServices([]).enqueue(load()) == Summary()


def test_job_id_depends_on_recording_and_parameters_alone(bare_environment: pytest.MonkeyPatch) -> None:
    def job_id() -> str:
        [job] = _jobs(load(), [found("a.mp3")], Summary())
        return job.job_id

    first = job_id()
    assert job_id() == first
    bare_environment.setenv("STT_VAD_THRESHOLD", "0.5")
    assert job_id() != first


def test_listing_without_etags_makes_jobs_without() -> None:
    [job] = _jobs(load(), [found("a.mp3", etag="")], Summary())
    assert job.source_etag is None


@pytest.mark.parametrize(("selection", "sent"), [({}, ["b.mp3"]), ({"retry_unsplittable": True}, ["a.mp3", "b.mp3"])])
async def test_unsplittable_recording_is_sent_only_on_request(selection: dict[str, Any], sent: list[str]) -> None:
    services = FakeServices([found("a.mp3"), found("b.mp3")])
    services.unsplittable = {"a.mp3"}
    summary = await services.enqueue(load(), **selection)
    assert services.sent_keys == sent
    assert summary.unsplittable == 2 - len(sent)
