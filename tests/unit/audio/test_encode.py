"""Segments on disk: repeatable bytes, names by content, a tar that WebDataset reads."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from stt_async.audio.encode import encode, files_in, tar_in
from stt_async.audio.stream import Pcm
from stt_async.params import Format


@pytest.fixture
def pcm() -> Pcm:
    return np.random.default_rng(1).normal(0, 3000, 20_000).astype(np.int16)


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_encoding_is_lossless_and_repeatable(pcm: Pcm, audio_format: Format) -> None:
    data = encode(pcm, audio_format)
    assert data == encode(pcm, audio_format)
    back, rate_hz = sf.read(io.BytesIO(data), dtype="int16")
    assert rate_hz == 16_000
    assert np.array_equal(back, pcm)


def test_files_are_named_by_number_and_content(tmp_path: Path) -> None:
    with files_in(tmp_path) as store:
        stored = store.add(7, b"some audio", "flac")
        assert store.finish() is None
    assert stored.filename == f"segment_00007-{hashlib.sha256(b'some audio').hexdigest()[:8]}.flac"
    assert (tmp_path / stored.filename).read_bytes() == b"some audio"
    assert stored.tar_offset is None


def _tar(folder: Path, members: list[bytes]) -> tuple[Path, list[int]]:
    with tar_in(folder) as store:
        stored = [store.add(number, data, "flac") for number, data in enumerate(members, 1)]
        archive = store.finish()
    assert archive is not None
    path = folder / archive.filename
    assert archive.bytes == path.stat().st_size
    assert archive.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert archive.filename == f"segments-{archive.sha256[:8]}.tar"
    return path, [item.tar_offset or 0 for item in stored]


def test_tar_offsets_address_the_members(tmp_path: Path) -> None:
    members = [bytes([number]) * size for number, size in enumerate([1, 511, 512, 513, 70_000])]
    path, offsets = _tar(tmp_path, members)
    data = path.read_bytes()
    for member, offset in zip(members, offsets, strict=True):
        assert data[offset : offset + len(member)] == member
    with tarfile.open(path) as tar:
        assert [tar.extractfile(info).read() for info in tar] == members  # type: ignore[union-attr]  # all are files
    assert list(tmp_path.iterdir()) == [path]


def test_same_segments_give_the_same_tar_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, _ = _tar(tmp_path / "a", [b"x" * 100, b"y"])
    second, _ = _tar(tmp_path / "b", [b"x" * 100, b"y"])
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}


def test_tar_without_members_is_not_written(tmp_path: Path) -> None:
    with tar_in(tmp_path) as store:
        assert store.finish() is None
    assert not list(tmp_path.iterdir())


def test_failure_leaves_no_partial_tar(tmp_path: Path) -> None:
    def fail() -> None:
        with tar_in(tmp_path) as store:
            store.add(1, b"x", "flac")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())
