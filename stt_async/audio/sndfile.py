"""Decodes with libsndfile (soundfile): uncompressed audio and FLAC, and MP3 that FFmpeg refuses."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import soundfile as sf

from stt_async.audio.sniff import declared_pcm_frames
from stt_async.audio.stream import Block, NotDecodableError, Stream, block_frames

_UNDECLARED_FRAMES = 1 << 62
"""libsndfile reports 2**63 - 1 frames (2e14 s at 44.1 kHz) if a FLAC header leaves the length open."""

_TRAILER_BYTES, _TRAILER_SHARE = 16_384, 0.02
"""More unread bytes than both are not trailing tags: the header understates the length."""

_INT16_SCALE = np.float32(1 / 32_768)


@contextmanager
def open_with_libsndfile(fd: int) -> Iterator[Stream]:
    """Open the recording behind a file descriptor. Memory: one block, whatever length the header states.

    Raises:
        NotDecodableError: libsndfile refuses the recording.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    # mpg123 inside libsndfile writes to stderr. Nothing else in this process does until the stream is closed.
    with _silenced_stderr():
        try:
            file = sf.SoundFile(fd, closefd=False)
        except (sf.LibsndfileError, TypeError, ValueError) as error:
            raise NotDecodableError(str(error)) from error
        with file:
            declared_frames = declared_pcm_frames(fd) or (file.frames if file.frames < _UNDECLARED_FRAMES else None)
            stream = Stream(
                container=file.format.lower(),
                codec=file.subtype.lower(),
                rate_hz=file.samplerate,
                channels=file.channels,
                declared_s=declared_frames and declared_frames / file.samplerate,
            )
            stream.blocks = _blocks(file, stream)
            stream.read_to_end = partial(_is_read_to_end, fd)
            yield stream


def _blocks(file: sf.SoundFile, stream: Stream) -> Iterator[Block]:
    is_int16 = file.subtype == "PCM_16" and file.format != "FLAC"
    buffer = np.empty((block_frames(file.channels), file.channels), np.int16 if is_int16 else np.float32)
    planar = np.empty(buffer.shape[::-1], np.float32)
    read = len(buffer)
    while read and not stream.damaged:
        if not is_int16:
            buffer.fill(np.nan)
        try:
            read = len(file.read(out=buffer))
        except sf.LibsndfileError:
            # soundfile does not report how many frames it read before the error; the others are still NaN.
            stream.damaged = True
            read = int(np.argmax(np.isnan(np.append(buffer[:, 0], np.nan))))
        samples = planar[:, :read]
        if is_int16:
            np.multiply(buffer[:read].T, _INT16_SCALE, out=samples)
        else:
            np.copyto(samples, buffer[:read].T)
        yield Block(file.samplerate, list(samples))


def _is_read_to_end(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size - os.lseek(fd, 0, os.SEEK_CUR) <= max(_TRAILER_BYTES, _TRAILER_SHARE * size)


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)
