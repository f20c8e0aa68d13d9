"""Decodes one recording, in blocks, to 16 kHz mono PCM on disk and speech probabilities."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stt_async.audio.ffmpeg import open_with_ffmpeg
from stt_async.audio.mono import Mono
from stt_async.audio.sndfile import open_with_libsndfile
from stt_async.audio.sniff import Decoder, Kind, sniff
from stt_async.audio.stopwatch import Stopwatch
from stt_async.audio.stream import (
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    NoAudioStreamError,
    NotDecodableError,
    Pcm,
    Probabilities,
    Stream,
)
from stt_async.audio.vad import Network, SpeechProbabilities
from stt_async.errors import PermanentError
from stt_async.params import SAMPLE_RATE_HZ, SplitLimits

_OPEN: dict[Decoder, Callable[[int], AbstractContextManager[Stream]]] = {
    "ffmpeg": open_with_ffmpeg,
    "libsndfile": open_with_libsndfile,
}

_SHORTFALL_S, _SHORTFALL_SHARE = 0.25, 0.005
"""A recording is truncated if it is shorter than declared by more than both. Encoder delay and padding take up to
0.16 s (measured)."""

_DAMAGED_SHARE = 0.0005
"""The share if parts are undecodable. Not 0: a recording that was joined of files byte by byte is not truncated."""

_SAMPLE_BYTES = 2


@dataclass(slots=True, kw_only=True)
class Decoded:
    """A decoded recording. `pcm` is an unnamed file of int16 samples at 16 kHz: 115 MB an hour."""

    stream: Stream
    pcm: IO[bytes]
    samples: int
    probabilities: Probabilities
    clipped_samples: int
    truncated: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class Tools:
    """What `decode` needs; the PCM is stored in `folder`."""

    folder: Path
    network: Network
    limits: SplitLimits
    watch: Stopwatch


@contextmanager
def decode(fd: int, tools: Tools) -> Iterator[Decoded]:
    """Decode the recording behind a file descriptor with the fastest decoder for its container.

    If that decoder refuses the recording or stops early, the other decoder is tried too, and the longer result wins.
    Memory: a few blocks. The PCM file has no name, so it is gone after the block, or when the process dies.

    Raises:
        PermanentError: The recording is not audio, not decodable, empty, or over a limit.
    """
    kind = sniff(fd)
    best: Decoded | None = None
    refusals: list[NotDecodableError] = []
    with ExitStack() as scratch:
        for decoder in kind.decoders:
            try:
                found = _decode_with(decoder, fd, scratch, tools)
            except NotDecodableError as refusal:
                refusals.append(refusal)
                continue
            best = found if best is None else _longer(best, found)
            if best.complete:
                break
        if best is None:
            raise _refusal(kind, refusals)
        if not best.samples:
            raise _no_samples(best.stream)
        yield best


def _longer(first: Decoded, second: Decoded) -> Decoded:
    if second.samples > first.samples + _SHORTFALL_S * SAMPLE_RATE_HZ:
        first, second = second, first
    second.pcm.close()
    return first


def _decode_with(decoder: Decoder, fd: int, scratch: ExitStack, tools: Tools) -> Decoded:
    mono = Mono()
    with _OPEN[decoder](fd) as stream:
        decoded = _decode_stream(stream, mono, scratch, tools)
    channel = mono.loudest_if_cancelled()
    if channel is None:
        return decoded
    decoded.pcm.close()
    with _OPEN[decoder](fd) as stream:
        return _decode_stream(stream, Mono(channel), scratch, tools)


def _decode_stream(stream: Stream, mono: Mono, scratch: ExitStack, tools: Tools) -> Decoded:
    pcm = scratch.enter_context(tempfile.TemporaryFile(dir=tools.folder))  # noqa: SIM115 - the stack closes it
    vad = SpeechProbabilities(tools.network)
    samples = 0
    for part in _parts(stream, mono, tools):
        samples += len(part)
        _check_length(samples, tools.limits)
        with tools.watch("scratch"):
            pcm.write(part.data)
        with tools.watch("vad"):
            vad.push(part)
    with tools.watch("vad"):
        probabilities = vad.finish()
    truncated = _is_short(samples / SAMPLE_RATE_HZ, stream)
    return Decoded(
        stream=stream,
        pcm=pcm,
        samples=samples,
        probabilities=probabilities,
        clipped_samples=mono.clipped_samples,
        truncated=truncated,
        complete=bool(samples) and not truncated and not stream.damaged and stream.read_to_end(),
    )


def _parts(stream: Stream, mono: Mono, tools: Tools) -> Iterator[Pcm]:
    _check_channels(stream.channels, tools.limits)
    for block in tools.watch.each("decode", stream.blocks):
        _check_channels(len(block.channels), tools.limits)
        if not MIN_RATE_HZ <= block.rate_hz <= MAX_RATE_HZ:
            accepted = f"{MIN_RATE_HZ} to {MAX_RATE_HZ} Hz are accepted"
            raise PermanentError("undecodable", f"its sample rate is {block.rate_hz} Hz; {accepted}")
        with tools.watch("resample"):
            part = mono.push(block)
        yield part
    with tools.watch("resample"):
        tail = mono.finish()
    yield tail


def _check_channels(channels: int, limits: SplitLimits) -> None:
    if channels > limits.max_channels:
        raise PermanentError("too_many_channels", f"it has {channels} channels; {limits.max_channels} are allowed")


def _check_length(samples: int, limits: SplitLimits) -> None:
    if samples > limits.max_decoded_s * SAMPLE_RATE_HZ:
        raise PermanentError("too_long", f"it is longer than the allowed {limits.max_decoded_s / 3600:g} h")
    if samples * _SAMPLE_BYTES > limits.max_scratch_bytes:
        raise PermanentError("too_long", f"its decoded audio exceeds the allowed {limits.max_scratch_bytes} bytes")


def _is_short(decoded_s: float, stream: Stream) -> bool:
    if stream.declared_s is None:
        return False
    share = _DAMAGED_SHARE if stream.damaged else _SHORTFALL_SHARE
    return stream.declared_s - decoded_s > max(_SHORTFALL_S, share * stream.declared_s)


def _refusal(kind: Kind, refusals: list[NotDecodableError]) -> PermanentError:
    for refusal in refusals:
        if isinstance(refusal, NoAudioStreamError):
            return PermanentError("no_audio_stream", f"it is a readable {refusal} file, but it contains no audio")
    if kind.name == "unknown":
        return PermanentError("not_audio", "its content is not of any audio format known here")
    return PermanentError("undecodable", f"it starts like {kind.name}, but nothing in it can be decoded")


def _no_samples(stream: Stream) -> PermanentError:
    if stream.damaged or stream.declared_s:
        return PermanentError("undecodable", f"it is a {stream.container} file, but nothing in it can be decoded")
    return PermanentError("empty_recording", f"it is a valid {stream.container} file, but it contains no samples")
