"""Splits on disk: which files are found, what failures cost, and the check of an output against its manifest."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from stt_async.errors import PermanentError, SettingsError, WorkerLostError
from stt_async.local import files
from stt_async.local.files import LocalResult, find_recordings, split_files
from stt_async.local.inspection import problems
from stt_async.manifest import MANIFEST_NAME, Archive, Manifest, Segment
from stt_async.params import SplitLimits, SplitParams
from stt_async.settings import Settings, load
from stt_async.worker.pool import TimedSplit
from tests.unit.fakes import a_manifest, a_recording, a_result, a_segment

RATE = 16_000


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())


class TestFindRecordings:
    def test_files_with_a_recordings_suffix_are_found_with_their_relative_path(self, tmp_path: Path) -> None:
        write_files(tmp_path, "b.mp3", "a/x y+%.FLAC", "a/notes.txt", "བཀྲ་ཤིས།.ogg", "a/.hidden.wav")
        (tmp_path / "folder.mp3").mkdir()
        found = find_recordings([tmp_path])
        assert [each.name for each in found] == ["a/.hidden.wav", "a/x y+%.FLAC", "b.mp3", "བཀྲ་ཤིས།.ogg"]
        assert all(each.file == tmp_path / each.name for each in found)

    def test_file_given_by_name_is_taken_whatever_its_suffix(self, tmp_path: Path) -> None:
        write_files(tmp_path, "strange.name")
        [found] = find_recordings([tmp_path / "strange.name"])
        assert (found.file, found.name) == (tmp_path / "strange.name", "strange.name")

    def test_missing_path_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="nothing does not exist"):
            find_recordings([tmp_path / "nothing"])

    def test_recording_given_twice_is_found_once(self, tmp_path: Path) -> None:
        write_files(tmp_path, "a.mp3")
        assert len(find_recordings([tmp_path, tmp_path / "a.mp3", tmp_path / "." / "a.mp3"])) == 1

    def test_two_recordings_with_one_name_are_refused(self, tmp_path: Path) -> None:
        write_files(tmp_path, "one/a.mp3", "two/a.mp3")
        with pytest.raises(SettingsError, match="same name") as caught:
            find_recordings([tmp_path / "one", tmp_path / "two"])
        assert "one/a.mp3" in str(caught.value)
        assert "two/a.mp3" in str(caught.value)

    def test_folder_without_a_recording_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="no recording found in") as caught:
            find_recordings([tmp_path])
        assert str(tmp_path) in str(caught.value)


class FakePool:
    """Splits a recording into one segment, or raises the error set for its name."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        self.splits: list[str] = []

    async def split(self, source: Path, out_dir: Path, params: SplitParams, limits: SplitLimits) -> TimedSplit:
        del params, limits
        self.splits.append(source.name)
        segment = a_segment()
        (out_dir / segment.filename).write_bytes(b"x")
        await asyncio.sleep(0)
        if source.name in self.errors:
            raise self.errors[source.name]
        return TimedSplit(a_result(recording=a_recording(source_bytes=source.stat().st_size)), 0.0, 1.0)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    """The pool that `split_files` opens."""
    pool = FakePool()

    @asynccontextmanager
    async def open_pool(settings: Settings) -> AsyncIterator[FakePool]:
        assert settings.processes >= 1
        yield pool

    monkeypatch.setattr(files, "open_pool", open_pool)
    return pool


@pytest.mark.usefixtures("bare_environment")
class TestSplitFiles:
    async def split(self, source: Path, out: Path, **overrides: Any) -> dict[str, LocalResult]:
        recordings = find_recordings([source])
        return {
            result.recording.name: result
            async for result in split_files(recordings, out, load(processes=2, **overrides))
        }

    def files_in(self, out: Path) -> list[str]:
        return sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())

    async def test_each_recording_gets_a_folder_with_its_manifest(self, tmp_path: Path, pool: FakePool) -> None:
        write_files(tmp_path / "in", "a.mp3", "deep/བཀྲ་ཤིས། +%.mp3")
        results = await self.split(tmp_path / "in", tmp_path / "out")
        assert len(pool.splits) == 2
        for name, result in results.items():
            assert result.manifest == Manifest.from_json((tmp_path / "out" / name / MANIFEST_NAME).read_bytes())
            assert result.facts()["status"] == "ok"
            assert not result.skipped

    async def test_second_split_skips_recordings_until_they_or_parameters_change(
        self, tmp_path: Path, pool: FakePool
    ) -> None:
        write_files(tmp_path / "in", "a.mp3", "b.mp3")
        first = await self.split(tmp_path / "in", tmp_path / "out")
        again = await self.split(tmp_path / "in", tmp_path / "out")
        assert all(result.skipped for result in again.values())
        assert {n: r.manifest for n, r in again.items()} == {n: r.manifest for n, r in first.items()}
        write_files(tmp_path / "in", "a.mp3")
        (tmp_path / "in" / "a.mp3").write_bytes(b"another recording")
        pool.splits.clear()
        await self.split(tmp_path / "in", tmp_path / "out")
        assert pool.splits == ["a.mp3"]
        await self.split(tmp_path / "in", tmp_path / "out", format="wav")
        assert sorted(pool.splits) == ["a.mp3", "a.mp3", "b.mp3"]

    @pytest.mark.parametrize(
        "error",
        [PermanentError("undecodable", "no audio"), WorkerLostError("child_died", "exit code -9")],
        ids=lambda error: error.code,
    )
    async def test_failed_recording_leaves_no_file_and_the_others_are_split(
        self, tmp_path: Path, pool: FakePool, error: PermanentError
    ) -> None:
        write_files(tmp_path / "in", "a.mp3", "bad.mp3", "c.mp3")
        pool.errors["bad.mp3"] = error
        results = await self.split(tmp_path / "in", tmp_path / "out")
        assert results["bad.mp3"].error is error
        assert results["bad.mp3"].facts()["code"] == error.code
        assert [name for name, result in results.items() if result.error is None] == ["a.mp3", "c.mp3"]
        assert {Path(name).parts[0] for name in self.files_in(tmp_path / "out")} == {"a.mp3", "c.mp3"}

    @pytest.mark.parametrize("name", ["a\nb.mp3", "releases/a.mp3", "x" * 200 + "/" + "y/" * 360 + "a.mp3"], ids=ascii)
    async def test_unusable_name_fails_only_its_own_recording(self, tmp_path: Path, pool: FakePool, name: str) -> None:
        write_files(tmp_path / "in", "good.mp3", name)
        results = await self.split(tmp_path / "in", tmp_path / "out")
        assert results["good.mp3"].error is None
        failed = results[name].error
        assert isinstance(failed, PermanentError)
        assert pool.splits == ["good.mp3"]

    async def test_file_deleted_meanwhile_fails_only_its_own_recording(self, tmp_path: Path, pool: FakePool) -> None:
        write_files(tmp_path / "in", "a.mp3", "gone.mp3")
        recordings = find_recordings([tmp_path / "in"])
        (tmp_path / "in" / "gone.mp3").unlink()
        results = [result async for result in split_files(recordings, tmp_path / "out", load(processes=1))]
        assert sorted(result.error is None for result in results) == [False, True]
        assert pool.splits == ["a.mp3"]

    async def test_early_end_leaves_no_incomplete_folder(self, tmp_path: Path, pool: FakePool) -> None:
        write_files(tmp_path / "in", *(f"{n}.mp3" for n in range(5)))
        results = split_files(find_recordings([tmp_path / "in"]), tmp_path / "out", load(processes=1))
        await anext(results)
        await results.aclose()  # type: ignore[attr-defined]  # an async generator
        assert pool.splits
        for folder in (tmp_path / "out").iterdir():
            assert (folder / MANIFEST_NAME).is_file()


class TestProblems:
    """The check of an output with two segments, as FLAC files and as members of a tar."""

    @pytest.fixture
    def segments(self, tmp_path: Path) -> list[Segment]:
        found = []
        for number, (start, end) in enumerate([(RATE, 2 * RATE), (3 * RATE, 5 * RATE)], start=1):
            file = tmp_path / f"segment_{number:05}.flac"
            soundfile.write(file, np.sin(np.arange(end - start) / 7) / 2, RATE, subtype="PCM_16")
            data = file.read_bytes()
            found.append(
                a_segment(
                    filename=file.name,
                    start_sample=start,
                    end_sample=end,
                    duration_sec=(end - start) / RATE,
                    bytes=len(data),
                    sha256=hashlib.sha256(data).hexdigest(),
                )
            )
        return found

    @pytest.fixture
    def manifest(self, segments: list[Segment]) -> Manifest:
        return a_manifest(result=a_result(segments=tuple(segments)))

    def found(self, folder: Path, manifest: Manifest) -> str:
        return "\n".join(problems(folder, manifest))

    def test_matching_output_has_no_problem(self, tmp_path: Path, manifest: Manifest) -> None:
        assert self.found(tmp_path, manifest) == ""

    def test_matching_tar_has_no_problem_and_a_flipped_bit_in_it_is_one(
        self, tmp_path: Path, segments: list[Segment]
    ) -> None:
        tar = tmp_path / "segments.tar"
        offsets = []
        with tar.open("wb") as stream:
            for segment in segments:
                stream.write(b"\0" * 512)
                offsets.append(stream.tell())
                stream.write((tmp_path / segment.filename).read_bytes())
                (tmp_path / segment.filename).unlink()
        members = tuple(replace(s, tar_offset=offset) for s, offset in zip(segments, offsets, strict=True))
        archive = Archive(filename=tar.name, bytes=tar.stat().st_size, sha256="0" * 64)
        manifest = a_manifest(result=a_result(segments=members, archive=archive))
        assert self.found(tmp_path, manifest) == ""
        data = bytearray(tar.read_bytes())
        data[-1] ^= 1
        tar.write_bytes(data)
        assert f"{segments[1].filename} differs from the manifest" in self.found(tmp_path, manifest)

    def test_output_without_segments_has_no_problem(self, tmp_path: Path) -> None:
        assert self.found(tmp_path, a_manifest(result=a_result(segments=()))) == ""

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda data: data[:-1], "differs from the manifest"),
            (lambda data: data + b"\0", "differs from the manifest"),
            (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "differs from the manifest"),
        ],
        ids=["shorter", "longer", "a bit flipped"],
    )
    def test_changed_segment_is_a_problem(
        self, tmp_path: Path, manifest: Manifest, change: Callable[[bytes], bytes], sentence: str
    ) -> None:
        file = tmp_path / manifest.segments[1].filename
        file.write_bytes(change(file.read_bytes()))
        assert self.found(tmp_path, manifest).startswith(f"{file.name} {sentence}")

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"total_segments": 3}, "total_segments is 3, 2 segments are listed"),
            ({"max_segment_duration": 1.5}, "segment_00002.flac is 2.0 s long"),
            ({"sample_rate_hz": 8_000}, "at 16000 Hz"),
            ({"recording": a_recording(decoded_duration_s=4.9)}, "segment_00002.flac ends after the recording"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_wrong_number_in_the_manifest_is_a_problem(
        self, tmp_path: Path, manifest: Manifest, changes: dict[str, Any], sentence: str
    ) -> None:
        assert sentence in self.found(tmp_path, replace(manifest, **changes))

    def test_overlap_is_a_problem(self, tmp_path: Path, manifest: Manifest) -> None:
        first, second = manifest.segments
        early = replace(second, start_sample=first.end_sample - 1)
        found = self.found(tmp_path, replace(manifest, segments=(first, early)))
        assert "segment_00002.flac begins before segment_00001.flac ends" in found

    def test_wrong_length_is_a_problem(self, tmp_path: Path, manifest: Manifest) -> None:
        first, second = manifest.segments
        long = replace(second, end_sample=second.end_sample + 1)
        assert "not 32001" in self.found(tmp_path, replace(manifest, segments=(first, long)))

    def test_segment_that_does_not_decode_is_a_problem(self, tmp_path: Path, manifest: Manifest) -> None:
        first, second = manifest.segments
        noise = b"no flac" * 100
        (tmp_path / second.filename).write_bytes(noise)
        broken = replace(second, bytes=len(noise), sha256=hashlib.sha256(noise).hexdigest())
        assert "does not decode" in self.found(tmp_path, replace(manifest, segments=(first, broken)))

    def test_missing_segment_is_a_problem(self, tmp_path: Path, manifest: Manifest) -> None:
        (tmp_path / manifest.segments[0].filename).unlink()
        assert self.found(tmp_path, manifest).startswith("segment_00001.flac is missing")

    def test_manifest_read_back_from_json_matches_too(self, tmp_path: Path, manifest: Manifest) -> None:
        assert self.found(tmp_path, Manifest.from_json(manifest.to_json())) == ""
