"""Writes segments as FLAC or WAV, one file each or all in one tar, named by content."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import soundfile as sf

from stt_async.audio.stream import Pcm
from stt_async.manifest import Archive, content_name
from stt_async.params import SAMPLE_RATE_HZ, Format


class Stored(NamedTuple):
    """A stored segment: a file, or a member of the archive whose data starts at `tar_offset`."""

    filename: str
    bytes: int
    sha256: str
    tar_offset: int | None


class Store(Protocol):
    """Stores the segments of one recording."""

    def add(self, number: int, data: bytes, suffix: str) -> Stored:
        """Store one segment; numbers start at 1."""

    def finish(self) -> Archive | None:
        """Call after the last segment. Returns the archive, or None if no archive was written."""


def encode(pcm: Pcm, audio_format: Format) -> bytes:
    """Encode 16 kHz mono samples. With one version of libsndfile, the same samples give the same bytes."""
    buffer = io.BytesIO()
    sf.write(buffer, pcm, SAMPLE_RATE_HZ, format=audio_format.upper(), subtype="PCM_16")
    return buffer.getvalue()


@contextmanager
def files_in(folder: Path) -> Iterator[Store]:
    """Store each segment in a separate file."""
    yield _Files(folder)


@contextmanager
def tar_in(folder: Path) -> Iterator[Store]:
    """Store all segments in one tar that WebDataset reads. The same segments give the same bytes.

    The tar is named by its content, so it is renamed after the last segment.
    """
    part = folder / "segments.tar.part"
    try:
        with part.open("wb") as file:
            yield _Tar(folder, file)
    finally:
        part.unlink(missing_ok=True)


class _Files:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, number: int, data: bytes, suffix: str) -> Stored:
        sha256 = hashlib.sha256(data).hexdigest()
        filename = content_name(_stem(number), sha256, suffix)
        (self._folder / filename).write_bytes(data)
        return Stored(filename, len(data), sha256, None)

    def finish(self) -> None:
        pass


class _Tar:
    def __init__(self, folder: Path, file: BinaryIO) -> None:
        self._folder = folder
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def add(self, number: int, data: bytes, suffix: str) -> Stored:
        sha256 = hashlib.sha256(data).hexdigest()
        member = tarfile.TarInfo(content_name(_stem(number), sha256, suffix))
        member.size = len(data)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self._bytes
        self._write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        return Stored(member.name, len(data), sha256, offset)

    def finish(self) -> Archive | None:
        if not self._bytes:
            return None
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._file.flush()
        sha256 = self._sha256.hexdigest()
        filename = content_name("segments", sha256, "tar")
        Path(self._file.name).rename(self._folder / filename)
        return Archive(filename=filename, bytes=self._bytes, sha256=sha256)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)


def _stem(number: int) -> str:
    return f"segment_{number:05d}"
