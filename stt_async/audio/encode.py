"""Segments to files: FLAC or WAV, loose or in one tar, named by their content."""

import hashlib
import io
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import soundfile as sf

from stt_async.audio.signal import Pcm
from stt_async.manifest import Archive, content_name
from stt_async.params import SAMPLE_RATE_HZ, Format

_TAR_BLOCK_BYTES = 512


class Stored(NamedTuple):
    """Where a segment's bytes lie: a file of its own, or `tar_offset` in the archive."""

    filename: str
    bytes: int
    sha256: str
    tar_offset: int | None


class Store(Protocol):
    """A place for segments."""

    def add(self, number: int, data: bytes, suffix: str) -> Stored:
        """Keep one segment; numbers start at 1."""

    def close(self) -> Archive | None:
        """Finish, and return the archive if there is one."""


def encode(pcm: Pcm, audio_format: Format) -> bytes:
    """Encode 16 kHz mono samples. The same samples give the same bytes (one version of libsndfile)."""
    buffer = io.BytesIO()
    sf.write(buffer, pcm, SAMPLE_RATE_HZ, format=audio_format.upper(), subtype="PCM_16")
    return buffer.getvalue()


class Files:
    """One file for each segment, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def add(self, number: int, data: bytes, suffix: str) -> Stored:
        """Write the segment's file."""
        sha256 = hashlib.sha256(data).hexdigest()
        filename = content_name(_stem(number), sha256, suffix)
        (self._folder / filename).write_bytes(data)
        return Stored(filename, len(data), sha256, None)

    def close(self) -> None:
        """Nothing is left to do."""


class Tar:
    """One tar of all segments, as WebDataset reads it, with the same header bytes every time.

    It is written once, front to back; a name by content is only known at the end, so it is renamed then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._part = folder / "segments.tar.part"
        self._file = self._part.open("wb")
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def add(self, number: int, data: bytes, suffix: str) -> Stored:
        """Append the segment."""
        sha256 = hashlib.sha256(data).hexdigest()
        member = tarfile.TarInfo(content_name(_stem(number), sha256, suffix))
        member.size = len(data)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self._bytes
        self._write(data + bytes(-len(data) % _TAR_BLOCK_BYTES))
        return Stored(member.name, len(data), sha256, offset)

    def close(self) -> Archive | None:
        """End the archive and give it its name; an empty one is not kept."""
        if not self._bytes:
            return None
        self._write(bytes(2 * _TAR_BLOCK_BYTES))
        self._file.close()
        sha256 = self._sha256.hexdigest()
        filename = content_name("segments", sha256, "tar")
        os.replace(self._part, self._folder / filename)  # noqa: PTH105 - the same
        return Archive(filename=filename, bytes=self._bytes, sha256=sha256)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)


def _stem(number: int) -> str:
    return f"segment_{number:05d}"
