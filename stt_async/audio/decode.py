"""One recording to 16 kHz mono PCM on disk and its speech probabilities, in blocks."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stt_async.audio.ffmpeg import open_with_ffmpeg
from stt_async.audio.mono import Mono
from stt_async.audio.signal import (
    MAX_RATE_HZ,
    MIN_RATE_HZ,
    NoAudioStreamError,
    NotDecodableError,
    Pcm,
    Stream,
)
from stt_async.audio.sndfile import open_with_libsndfile
from stt_async.audio.sniff import Decoder, Kind, sniff
from stt_async.audio.stopwatch import Stopwatch
from stt_async.audio.vad import Network, Probabilities, SpeechProbabilities
from stt_async.errors import PermanentError
from stt_async.params import SAMPLE_RATE_HZ, SplitLimits

_OPEN: dict[Decoder, Callable[[int], AbstractContextManager[Stream]]] = {
    "ffmpeg": open_with_ffmpeg,
    "libsndfile": open_with_libsndfile,
}

_SHORTFALL_S, _SHORTFALL_SHARE = 0.25, 0.005
"""Shorter than declared by more than both is truncated. Encoder delay and padding explain up to 0.16 s (measured)."""

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


def decode(fd: int, folder: Path, network: Network, limits: SplitLimits, watch: Stopwatch) -> Decoded:
    """Decode the recording behind a descriptor with the decoder that is fastest for its kind.

    Where that one refuses or stops short, the other is tried too, and the longer result wins. Memory: a few blocks.
    The PCM lies in `folder`'s file system without a name and goes when it is closed (or the process dies).

    Raises:
        PermanentError: not audio, not decodable, empty, or over a limit.
    """
    kind = sniff(fd)
    best: Decoded | None = None
    refusals: list[NotDecodableError] = []
    for decoder in kind.decoders:
        try:
            found = _decode_with(decoder, fd, folder, network, limits, watch)
        except NotDecodableError as refusal:
            refusals.append(refusal)
            continue
        if best is None or found.samples > best.samples + _SHORTFALL_S * SAMPLE_RATE_HZ:
            best, found = found, best
        if found is not None:
            found.pcm.close()
        if best.complete:
            break
    if best is None:
        raise _refused(kind, refusals)
    if not best.samples:
        best.pcm.close()
        raise _empty(best.stream)
    return best


def _decode_with(
    decoder: Decoder, fd: int, folder: Path, network: Network, limits: SplitLimits, watch: Stopwatch
) -> Decoded:
    channel: int | None = None
    while True:
        mono = Mono(channel)
        with _OPEN[decoder](fd) as stream:
            decoded = _drain(stream, mono, folder, network, limits, watch)
        channel = mono.loudest_if_cancelled()
        if channel is None:
            return decoded
        decoded.pcm.close()


def _drain(
    stream: Stream, mono: Mono, folder: Path, network: Network, limits: SplitLimits, watch: Stopwatch
) -> Decoded:
    vad = SpeechProbabilities(network)
    samples = 0
    pcm = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it outlives this function
    try:
        for part in _parts(stream, mono, limits, watch):
            samples += len(part)
            _check_length(samples, limits)
            with watch("scratch"):
                pcm.write(part.data)
            with watch("vad"):
                vad.push(part)
        with watch("vad"):
            probabilities = vad.finish()
        pcm.flush()
    except BaseException:
        pcm.close()
        raise
    truncated = _is_short(samples / SAMPLE_RATE_HZ, stream.declared_s)
    return Decoded(
        stream=stream,
        pcm=pcm,
        samples=samples,
        probabilities=probabilities,
        clipped_samples=mono.clipped_samples,
        truncated=truncated,
        complete=bool(samples) and not truncated and not stream.damaged and stream.read_to_the_end(),
    )


def _parts(stream: Stream, mono: Mono, limits: SplitLimits, watch: Stopwatch) -> Iterator[Pcm]:
    _check_channels(stream.channels, limits)
    for block in watch.each("decode", stream.blocks):
        _check_channels(len(block.samples), limits)
        if not MIN_RATE_HZ <= block.rate_hz <= MAX_RATE_HZ:
            raise PermanentError("undecodable", f"its header says {block.rate_hz} Hz, which no recording has")
        with watch("resample"):
            part = mono.push(block)
        yield part
    with watch("resample"):
        tail = mono.finish()
    yield tail


def _check_channels(channels: int, limits: SplitLimits) -> None:
    if channels > limits.max_channels:
        raise PermanentError("too_many_channels", f"it has {channels} channels; {limits.max_channels} are allowed")


def _check_length(samples: int, limits: SplitLimits) -> None:
    if samples > limits.max_decoded_s * SAMPLE_RATE_HZ:
        raise PermanentError("too_long", f"it is longer than the allowed {limits.max_decoded_s / 3600:g} h")
    if samples * _SAMPLE_BYTES > limits.max_scratch_bytes:
        raise PermanentError("too_long", f"decoded it is larger than the allowed {limits.max_scratch_bytes} bytes")


def _is_short(decoded_s: float, declared_s: float | None) -> bool:
    return declared_s is not None and declared_s - decoded_s > max(_SHORTFALL_S, _SHORTFALL_SHARE * declared_s)


def _refused(kind: Kind, refusals: list[NotDecodableError]) -> PermanentError:
    for refusal in refusals:
        if isinstance(refusal, NoAudioStreamError):
            return PermanentError("no_audio_stream", f"it is a readable {refusal} file, but there is no audio in it")
    if kind.name == "unknown":
        return PermanentError("not_audio", "its content is not of any audio format known here")
    return PermanentError("undecodable", f"it starts like {kind.name}, but nothing in it can be decoded")


def _empty(stream: Stream) -> PermanentError:
    if stream.damaged:
        return PermanentError("undecodable", f"it is a {stream.container} file, but nothing in it can be decoded")
    return PermanentError("empty_recording", f"it is a sound {stream.container} file with no audio samples in it")
