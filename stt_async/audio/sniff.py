"""Detects containers by their first bytes. File names are unreliable: m4a named .aac, HTML named .mp3."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Decoder = Literal["ffmpeg", "libsndfile"]

_HEAD_BYTES = 4_096
_ID3_HEADER_BYTES = 10
_FIXED_WIDTH_TAGS = {1, 3, 6, 7, 0xFFFE}
"""WAV codecs with frames of a fixed size: PCM, floats, A-law, mu-law, and WAVE_FORMAT_EXTENSIBLE."""
_UNKNOWN_SIZES = {0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF}
"""Data sizes in a WAV that was written as a stream, before its size was known."""
_MPEG_SYNC = 0xFFE0


@dataclass(frozen=True, slots=True)
class Kind:
    """A container, and its decoders in the order of trial, the fastest first (measured: docs/engine.md)."""

    name: str
    decoders: tuple[Decoder, ...]


_UNKNOWN = Kind("unknown", ("ffmpeg",))
_MPEG_AUDIO = Kind("mpeg audio", ("ffmpeg", "libsndfile"))
_FLAC = Kind("flac", ("libsndfile", "ffmpeg"))

_BY_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"RIFF", Kind("wav", ("libsndfile", "ffmpeg"))),
    (0, b"RIFX", Kind("wav", ("libsndfile", "ffmpeg"))),
    (0, b"RF64", Kind("wav", ("libsndfile", "ffmpeg"))),
    (0, b"riff", Kind("wave64", ("libsndfile", "ffmpeg"))),
    (0, b"FORM", Kind("aiff", ("libsndfile", "ffmpeg"))),
    (0, b"fLaC", _FLAC),
    (0, b"OggS", Kind("ogg", ("ffmpeg", "libsndfile"))),
    (0, b"NIST_1A", Kind("sphere", ("libsndfile", "ffmpeg"))),
    (0, b"caff", Kind("caf", ("libsndfile", "ffmpeg"))),
    (0, b".snd", Kind("au", ("libsndfile", "ffmpeg"))),
    (0, b"\x1a\x45\xdf\xa3", Kind("matroska", ("ffmpeg",))),
    (0, b"\x30\x26\xb2\x75", Kind("asf", ("ffmpeg",))),
    (0, b"#!AMR", Kind("amr", ("ffmpeg",))),
    (4, b"ftyp", Kind("mp4", ("ffmpeg",))),
    (4, b"moov", Kind("mp4", ("ffmpeg",))),
    (4, b"mdat", Kind("mp4", ("ffmpeg",))),
)


def sniff(fd: int) -> Kind:
    """Return the container of the file behind a descriptor, whose position does not matter and is not moved."""
    start = _after_id3(fd)
    head = os.pread(fd, 16, start)
    for offset, magic, kind in _BY_MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if _is_mpeg_sync(head):
        return _MPEG_AUDIO
    return _MPEG_AUDIO if start else _UNKNOWN


def declared_pcm_frames(fd: int) -> int | None:
    """Return the number of frames in a WAV or AIFF header, or None if it states no usable number.

    libsndfile limits this number to the file's length, and so hides that a recording is truncated.
    """
    head = os.pread(fd, _HEAD_BYTES, _after_id3(fd))
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return _declared_wav_frames(head)
    if head[:4] == b"FORM" and head[8:12] == b"AIFF":
        return next(
            (int.from_bytes(body[2:6], "big") for name, _, body in _chunks(head, "big") if name == b"COMM"), None
        )
    return None


def _declared_wav_frames(head: bytes) -> int | None:
    frame_bytes = 0
    for name, size, body in _chunks(head, "little"):
        if name == b"fmt " and int.from_bytes(body[:2], "little") in _FIXED_WIDTH_TAGS:
            frame_bytes = int.from_bytes(body[12:14], "little")
        if name == b"data":
            return None if size in _UNKNOWN_SIZES or not frame_bytes else size // frame_bytes
    return None


def _chunks(head: bytes, byte_order: Literal["big", "little"]) -> Iterator[tuple[bytes, int, bytes]]:
    position = 12
    while position + 8 <= len(head):
        size = int.from_bytes(head[position + 4 : position + 8], byte_order)
        yield head[position : position + 4], size, head[position + 8 : position + 8 + size]
        position += 8 + size + size % 2


def declares_mpeg_length(fd: int) -> bool:
    """Return whether an MP3 states its length (Xing, Info or VBRI frame); if not, FFmpeg guesses by the bit rate."""
    head = os.pread(fd, _HEAD_BYTES, _after_id3(fd))
    return any(tag in head for tag in (b"Xing", b"Info", b"VBRI"))


def _after_id3(fd: int) -> int:
    head = os.pread(fd, _ID3_HEADER_BYTES, 0)
    if len(head) < _ID3_HEADER_BYTES or head[:3] != b"ID3":
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return _ID3_HEADER_BYTES + size


def _is_mpeg_sync(head: bytes) -> bool:
    return int.from_bytes(head[:2], "big") & _MPEG_SYNC == _MPEG_SYNC
