"""Decodes with FFmpeg's libraries (PyAV) what libsndfile cannot open or decodes more slowly."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import av
import av.logging
import numpy as np

from stt_async.audio.sniff import declares_mpeg_length
from stt_async.audio.stream import Block, NoAudioStreamError, NotDecodableError, Samples, Stream, block_frames

_FORMATS = "aac,aiff,amr,asf,au,avi,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,nistsphere,ogg,w64,wav"
"""Demuxers that read one file and nothing else. Those for playlists (hls, concat, dash) open any local file that a
playlist names, even if it is called .mp3 and protocols are restricted."""

_FULL_SCALE = {"u8": 1 / 128, "s16": 1 / 32_768, "s32": 1 / 2**31, "s64": 1 / 2**63}

_LENGTH_IS_GUESSED = {"aac", "amr", "mpeg", "mpegts"}

# Exceptions report what matters about broken input; FFmpeg's own log does not help.
av.logging.set_level(None)
logging.getLogger("libav").setLevel(logging.CRITICAL)


@contextmanager
def open_with_ffmpeg(fd: int) -> Iterator[Stream]:
    """Open the recording behind a file descriptor. Memory: one packet, one frame and one block.

    Raises:
        NotDecodableError: The container is not an allowed one, or is unreadable.
        NoAudioStreamError: The container is readable, but contains no audio.
    """
    # FFmpeg would guess by a file's extension, and take a file named "http:x" for an address; /dev/fd avoids both.
    name, options = f"/dev/fd/{fd}", {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(name, options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise NotDecodableError(str(error)) from error
    with container:
        track = container.streams.best("audio")
        if not isinstance(track, av.AudioStream):
            raise NoAudioStreamError(container.format.name)
        context = track.codec_context
        if context is None:
            raise NotDecodableError("no decoder for this codec")
        stream = Stream(
            container=container.format.name.split(",")[0],
            codec=context.codec.canonical_name,
            rate_hz=context.sample_rate,
            channels=context.channels,
            declared_s=_declared_s(container, track, fd),
        )
        stream.blocks = _blocks(container, track, stream)
        yield stream


def _declared_s(container: av.container.InputContainer, track: av.AudioStream, fd: int) -> float | None:
    name = container.format.name
    if name in _LENGTH_IS_GUESSED or (name == "mp3" and not declares_mpeg_length(fd)):
        return None
    if track.duration is not None and track.time_base is not None:
        return float(track.duration * track.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _blocks(container: av.container.InputContainer, track: av.AudioStream, stream: Stream) -> Iterator[Block]:
    # A frame of about 1,000 samples costs Python as much as a block, so FFmpeg's queue joins frames to blocks.
    queue, shape, size = av.AudioFifo(), None, 0
    for frame in _frames(container, track, stream):
        if shape != (shape := (frame.sample_rate, frame.layout.nb_channels, frame.format.name)):
            yield from _block(queue.read())
            rate_hz, channels, _ = shape
            queue, size = av.AudioFifo(), block_frames(channels)
            stream.rate_hz, stream.channels = stream.rate_hz or rate_hz, max(stream.channels, channels)
        frame.pts = None
        queue.write(frame)
        while queue.samples >= size:
            yield from _block(queue.read(size))
    yield from _block(queue.read())


def _block(frame: av.AudioFrame | None) -> Iterator[Block]:
    if frame is not None:
        yield Block(frame.sample_rate, _planes(frame))


def _frames(container: av.container.InputContainer, track: av.AudioStream, stream: Stream) -> Iterator[av.AudioFrame]:
    packets = container.demux(track)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError:
            stream.damaged = True
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            stream.damaged = True


def _planes(frame: av.AudioFrame) -> Sequence[Samples]:
    if frame.format.name == "fltp":
        return [np.frombuffer(memoryview(plane), np.float32, frame.samples) for plane in frame.planes]
    raw = frame.to_ndarray()
    if not frame.format.is_planar:
        raw = raw.reshape(frame.samples, -1).T
    samples = raw.astype(np.float32, order="C")
    kind = frame.format.name.removesuffix("p")
    if kind == "u8":
        samples -= 128
    samples *= np.float32(_FULL_SCALE.get(kind, 1))
    return list(samples)
