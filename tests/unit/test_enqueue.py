"""Which recordings are sent, and what is said of the rest."""

from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from stt_async.corpus.enqueue import CHUNK, Selection, Summary, _go_through, _jobs
from stt_async.job import SplitJob
from stt_async.services.sink import ManifestHead
from stt_async.services.source import SourceObject
from stt_async.settings import Settings, load

pytestmark = pytest.mark.usefixtures("bare_environment")


def found(key: str, *, size_bytes: int = 1000, etag: str = "e1") -> SourceObject:
    return SourceObject(key, size_bytes, etag)


class World:
    """A source bucket in pages, the manifests of the output bucket, and what was sent."""

    def __init__(self, objects: Sequence[SourceObject], *, page: int = 1000) -> None:
        self.pages_read = 0
        self.prefixes: list[str] = []
        self.heads: dict[str, ManifestHead] = {}
        self.unsplittable: set[str] = set()
        """Keys whose bytes can never be split."""
        self.sent: list[SplitJob] = []
        self.sends: list[int] = []
        self.told: list[int] = []
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
        self.sends.append(len(jobs))

    async def enqueue(self, settings: Settings, **selection: Any) -> Summary:
        services: Any = SimpleNamespace(source=self, sink=self, failure_records=self)
        return await _go_through(
            settings, services, Selection(**selection), self.send, lambda summary: self.told.append(summary.sent)
        )

    @property
    def sent_keys(self) -> list[str]:
        return [job.source_key for job in self.sent]


async def test_a_recording_becomes_a_job_that_a_worker_takes() -> None:
    settings = load()
    world = World([found("amdo/བཀྲ་ཤིས།.mp3", size_bytes=4000, etag="e7")])
    summary = await world.enqueue(settings, prefix="amdo/")
    [job] = world.sent
    assert (job.source_bucket, job.source_key, job.source_size, job.source_etag) == (
        "audio",
        "amdo/བཀྲ་ཤིས།.mp3",
        4000,
        "e7",
    )
    assert (job.output_bucket, job.output_prefix) == (settings.output_bucket, "amdo/བཀྲ་ཤིས།.mp3/")
    assert job.params(settings.split_params) == settings.split_params
    assert not job.replace
    assert world.prefixes == ["amdo/"]
    assert summary == Summary(listed=1, sent=1, sent_bytes=4000)


async def test_what_is_no_recording_is_counted_and_left() -> None:
    world = World([found(key) for key in ("a.MP3", "b.txt", "c", "mp3", "d.mp3.json", ".mp3", "e.Flac")])
    summary = await world.enqueue(load())
    assert world.sent_keys == ["a.MP3", "e.Flac"]
    assert (summary.listed, summary.not_audio, summary.sent) == (7, 5, 2)


@pytest.mark.parametrize("key", ["../a.mp3", "a//b.mp3", "releases/a.mp3", "a\nb.mp3", "x" * 897 + ".mp3"], ids=ascii)
async def test_a_key_that_cannot_be_a_prefix_is_named_and_costs_itself_alone(key: str) -> None:
    world = World([found("a.mp3"), found(key), found("b.mp3")])
    summary = await world.enqueue(load())
    assert summary.unusable_keys == [key]
    assert world.sent_keys == ["a.mp3", "b.mp3"]


@pytest.mark.parametrize(
    ("etag", "own_params", "done"),
    [
        pytest.param("e1", True, True, id="the same"),
        pytest.param("", True, True, id="made without an ETag"),
        pytest.param("e0", True, False, id="from another source"),
        pytest.param("e1", False, False, id="from other parameters"),
    ],
)
@pytest.mark.parametrize("replace", [False, True], ids=["", "replace"])
async def test_what_is_done_is_skipped_and_what_stands_is_replaced_if_asked(
    etag: str, *, own_params: bool, done: bool, replace: bool
) -> None:
    settings = load()
    world = World([found("a.mp3")])
    world.heads["a.mp3/"] = ManifestHead(settings.split_params.digest() if own_params else "other", etag)
    summary = await world.enqueue(settings, replace=replace)
    assert (summary.done, summary.other_params) == ((1, 0) if done else (0, 1))
    assert [job.replace for job in world.sent] == ([True] if replace and not done else [])
    assert summary.sent == len(world.sent)


@pytest.mark.parametrize("limit", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
async def test_no_more_is_sent_than_the_limit_and_listing_ends_there(limit: int) -> None:
    world = World([found(f"{n:04}.mp3") for n in range(4 * CHUNK)], page=CHUNK)
    summary = await world.enqueue(load(), limit=limit)
    assert summary.sent == len(world.sent) == limit
    assert world.sent_keys == [f"{n:04}.mp3" for n in range(limit)]
    assert world.pages_read == -(-limit // CHUNK)


async def test_the_limit_counts_what_is_sent_not_what_is_done() -> None:
    settings = load()
    world = World([found(f"{n}.mp3") for n in range(6)])
    for n in (0, 2):
        world.heads[f"{n}.mp3/"] = ManifestHead(settings.split_params.digest(), "e1")
    summary = await world.enqueue(settings, limit=2)
    assert world.sent_keys == ["1.mp3", "3.mp3"]
    assert summary.done == 2


async def test_a_long_page_goes_in_chunks_and_each_is_told() -> None:
    world = World([found(f"{n:04}.mp3") for n in range(2 * CHUNK + 1)])
    await world.enqueue(load())
    assert world.sends == [CHUNK, CHUNK, 1]
    assert world.told == [CHUNK, 2 * CHUNK, 2 * CHUNK + 1]


async def test_an_empty_bucket_is_no_jobs() -> None:
    assert await World([]).enqueue(load()) == Summary()


def test_the_same_recording_has_the_same_job_id_every_time(bare_environment: pytest.MonkeyPatch) -> None:
    def job_id() -> str:
        [job] = _jobs(load(), [found("a.mp3")], Summary())
        return job.job_id

    first = job_id()
    assert job_id() == first
    bare_environment.setenv("STT_VAD_THRESHOLD", "0.5")
    assert job_id() != first


def test_a_bucket_that_tells_no_etag_makes_a_job_without() -> None:
    [job] = _jobs(load(), [found("a.mp3", etag="")], Summary())
    assert job.source_etag is None


@pytest.mark.parametrize(("selection", "sent"), [({}, ["b.mp3"]), ({"retry_unsplittable": True}, ["a.mp3", "b.mp3"])])
async def test_what_can_never_be_split_is_left_out_unless_asked_for(selection: dict[str, Any], sent: list[str]) -> None:
    world = World([found("a.mp3"), found("b.mp3")])
    world.unsplittable = {"a.mp3"}
    summary = await world.enqueue(load(), **selection)
    assert world.sent_keys == sent
    assert summary.unsplittable == 2 - len(sent)
