"""Decode with FFmpeg's libraries (PyAV): everything that libsndfile cannot open or is slower at."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import av
import av.logging
import numpy as np

from stt_async.audio.sniff import declares_mpeg_length
from stt_async.audio.stream import Block, NoAudioStreamError, NotDecodableError, Samples, Stream, block_frames

_FORMATS = "aac,aiff,amr,asf,au,caf,flac,flv,matroska,mov,mp3,mpeg,mpegts,nistsphere,ogg,w64,wav"
"""Demuxers that read one file and nothing else. FFmpeg follows a playlist (hls, concat, dash) named .mp3 to any
local file it names, even under a protocol whitelist; these cannot."""

_FULL_SCALE = {"u8": 1 / 128, "s16": 1 / 32_768, "s32": 1 / 2_147_483_648}

_QUEUE_FRAMES = 8_192

_GUESSES_LENGTH = {"aac", "amr", "mpeg", "mpegts"}

# FFmpeg's own reports on broken input go nowhere: what matters comes back as exceptions.
av.logging.set_level(None)
logging.getLogger("libav").setLevel(logging.CRITICAL)


@contextmanager
def open_with_ffmpeg(fd: int) -> Iterator[Stream]:
    """Open the recording behind a descriptor. Memory: one packet, one frame and one block.

    Raises:
        NotDecodableError: not one of the allowed containers, or not readable as the one it claims to be.
        NoAudioStreamError: it is one, but there is no audio in it.
    """
    # /dev/fd has no extension (FFmpeg would guess by it) and no "protocol:" (a file may be named "http:x").
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
    if name in _GUESSES_LENGTH or (name == "mp3" and not declares_mpeg_length(fd)):
        return None
    if track.duration is not None and track.time_base is not None:
        return float(track.duration * track.time_base)
    return None if container.duration is None else container.duration / av.time_base


def _blocks(container: av.container.InputContainer, track: av.AudioStream, stream: Stream) -> Iterator[Block]:
    shape, gather = None, _Gather(0, 1)
    for frame in _frames(container, track, stream):
        if shape != (shape := (frame.sample_rate, frame.layout.nb_channels, frame.format.name)):
            yield from gather.rest()
            rate_hz, channels, _ = shape
            gather = _Gather(rate_hz, channels)
            stream.rate_hz, stream.channels = stream.rate_hz or rate_hz, max(stream.channels, channels)
        frame.pts = None
        gather.queue.write(frame)
        if gather.queue.samples >= _QUEUE_FRAMES:
            yield from gather.full()
    yield from gather.rest()


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


class _Gather:
    """Frames of ~1,000 samples into blocks of ~65,000, so that numpy and soxr are called 60 times less.

    FFmpeg's own queue takes them most of the way: to Python one frame costs as much as eight in one.
    """

    def __init__(self, rate_hz: int, channels: int) -> None:
        self.queue = av.AudioFifo()
        self._rate_hz = rate_hz
        self._block = np.empty((channels, block_frames(channels)), np.float32)
        self._filled = 0

    def full(self) -> Iterator[Block]:
        """Empty the queue; yield each block as it fills."""
        while self.queue.samples:
            count = min(self.queue.samples, self._block.shape[1] - self._filled)
            frame = self.queue.read(count)
            if frame is None:
                return
            for row, plane in zip(self._block, _planes(frame, len(self._block)), strict=True):
                row[self._filled : self._filled + count] = plane
            self._filled += count
            if self._filled == self._block.shape[1]:
                self._filled = 0
                yield Block(self._rate_hz, self._block)

    def rest(self) -> Iterator[Block]:
        """Yield all that is left."""
        yield from self.full()
        if self._filled:
            yield Block(self._rate_hz, self._block[:, : self._filled])


def _planes(frame: av.AudioFrame, channels: int) -> Sequence[Samples]:
    if frame.format.name == "fltp":
        return [np.frombuffer(memoryview(plane), np.float32, frame.samples) for plane in frame.planes]
    raw = frame.to_ndarray()
    if not frame.format.is_planar:
        raw = raw.reshape(-1, channels).T
    samples = raw.astype(np.float32)
    kind = frame.format.name.removesuffix("p")
    if kind == "u8":
        samples -= 128
    samples *= np.float32(_FULL_SCALE.get(kind, 1))
    return list(samples)
