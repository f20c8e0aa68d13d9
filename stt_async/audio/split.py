"""Entry point of audio/: splits one recording into segments on disk, in a pool child or standalone."""

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
import soundfile as sf

from stt_async.audio.decode import Decoded, Tools, decode
from stt_async.audio.encode import Store, encode, files_in, tar_in
from stt_async.audio.segmentation import Plan, Span, plan
from stt_async.audio.silero import load_network
from stt_async.audio.stopwatch import Stopwatch
from stt_async.audio.stream import FRAME_SAMPLES
from stt_async.audio.vad import Network
from stt_async.errors import DISK_FULL, PermanentError, TransientError
from stt_async.manifest import Archive, Recording, Segment, SplitResult
from stt_async.params import SAMPLE_RATE_HZ, Layout, SplitLimits, SplitParams

_DEFAULT_LIMITS = SplitLimits()
_SAMPLE_BYTES = 2
_STORES: dict[Layout, Callable[[Path], AbstractContextManager[Store]]] = {"objects": files_in, "tar": tar_in}


def warm_up() -> None:
    """Load the network in advance, so that the first recording does not wait for it."""
    _network()


def split(
    source: Path,
    out_dir: Path,
    params: SplitParams,
    limits: SplitLimits = _DEFAULT_LIMITS,
    watch: Stopwatch | None = None,
) -> SplitResult:
    """Split one recording into segment files, or one tar of them, in `out_dir`.

    An unnamed file in `out_dir` holds the decoded PCM until the end: 115 MB per hour. Memory grows by only 4 bytes per
    frame (0.5 MB per hour). A `watch` measures the stages (bench/split.py).

    Raises:
        PermanentError: The recording is empty, not audio, not decodable or over a limit.
        TransientError: `disk_full`.
    """
    try:
        with source.open("rb") as file:
            return _split(file.fileno(), out_dir, params, limits, watch or Stopwatch())
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise TransientError(DISK_FULL, f"no space left in {out_dir}") from error
        raise


def _split(fd: int, out_dir: Path, params: SplitParams, limits: SplitLimits, watch: Stopwatch) -> SplitResult:
    source_bytes = os.fstat(fd).st_size
    if not source_bytes:
        raise PermanentError("empty_file", "it has 0 bytes")
    with watch("hash"):
        source_sha256 = _sha256(fd)
    with decode(fd, Tools(out_dir, _network(), limits, watch)) as decoded:
        with watch("segment"):
            found = plan(decoded.probabilities, decoded.samples, params)
        with watch("encode"):
            segments, archive = _write(decoded, found, out_dir, params)
    stream = decoded.stream
    return SplitResult(
        recording=Recording(
            source_bytes=source_bytes,
            source_sha256=source_sha256,
            container=stream.container,
            codec=stream.codec,
            sample_rate_hz=stream.rate_hz,
            channels=stream.channels,
            declared_duration_s=stream.declared_s,
            decoded_duration_s=decoded.samples / SAMPLE_RATE_HZ,
            truncated=decoded.truncated,
        ),
        segments=segments,
        archive=archive,
        speech_s=found.speech_samples / SAMPLE_RATE_HZ,
        dropped_speech_s=found.dropped_samples / SAMPLE_RATE_HZ,
        dropped_runs=found.dropped_runs,
        clipped_samples=decoded.clipped_samples,
        versions=_versions(),
    )


def _write(
    decoded: Decoded, found: Plan, out_dir: Path, params: SplitParams
) -> tuple[tuple[Segment, ...], Archive | None]:
    with _STORES[params.layout](out_dir) as store:
        segments = tuple(_write_one(decoded, number, span, store, params) for number, span in enumerate(found.spans, 1))
        return segments, store.finish()


def _write_one(decoded: Decoded, number: int, span: Span, store: Store, params: SplitParams) -> Segment:
    decoded.pcm.seek(span.start * _SAMPLE_BYTES)
    pcm = np.frombuffer(decoded.pcm.read((span.end - span.start) * _SAMPLE_BYTES), np.int16)
    stored = store.add(number, encode(pcm, params.format), params.format)
    frames = decoded.probabilities[span.start // FRAME_SAMPLES : -(-span.end // FRAME_SAMPLES)]
    return Segment(
        filename=stored.filename,
        start_sec=span.start / SAMPLE_RATE_HZ,
        end_sec=span.end / SAMPLE_RATE_HZ,
        duration_sec=(span.end - span.start) / SAMPLE_RATE_HZ,
        start_sample=span.start,
        end_sample=span.end,
        bytes=stored.bytes,
        sha256=stored.sha256,
        end_reason=span.end_reason,
        mean_speech_probability=round(float(frames.mean()), 4),
        tar_offset=stored.tar_offset,
    )


def _sha256(fd: int) -> str:
    with open(fd, "rb", closefd=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _network() -> Network:
    return load_network()


@cache
def _versions() -> dict[str, str]:
    return {
        **{name: version(name) for name in ("stt-async", "silero-vad", "torch", "soxr", "av", "soundfile")},
        "libsndfile": sf.__libsndfile_version__,
        "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        "vad": _network().name,
    }
