"""Checks an output folder against its manifest."""

import hashlib
import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import soundfile

from stt_async.manifest import Manifest, Segment


def problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a sentence for each problem: sizes, hashes, lengths, order, decoding. Reads every segment."""
    if manifest.total_segments != len(manifest.segments):
        yield f"total_segments is {manifest.total_segments}, {len(manifest.segments)} segments are listed"
    for before, after in pairwise(manifest.segments):
        if after.start_sample < before.end_sample:
            yield f"{after.filename} begins before {before.filename} ends"
    for segment in manifest.segments:
        try:
            data = _read(folder, manifest, segment)
        except FileNotFoundError as error:
            yield f"{segment.filename} is missing: {error}"
        else:
            yield from _segment_problems(data, manifest, segment)


def _read(folder: Path, manifest: Manifest, segment: Segment) -> bytes:
    if manifest.archive is None:
        return (folder / segment.filename).read_bytes()
    with (folder / manifest.archive.filename).open("rb") as archive:
        archive.seek(segment.tar_offset or 0)
        return archive.read(segment.bytes)


def _segment_problems(data: bytes, manifest: Manifest, segment: Segment) -> Iterator[str]:
    samples = segment.end_sample - segment.start_sample
    if len(data) != segment.bytes or hashlib.sha256(data).hexdigest() != segment.sha256:
        yield f"{segment.filename} differs from the manifest: it has {len(data)} bytes"
        return
    if samples > manifest.max_segment_duration * manifest.sample_rate_hz:
        yield f"{segment.filename} is {segment.duration_sec} s long, more than the maximum"
    if segment.end_sample > round(manifest.recording.decoded_duration_s * manifest.sample_rate_hz):
        yield f"{segment.filename} ends after the recording"
    try:
        decoded = soundfile.info(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        yield f"{segment.filename} does not decode: {error}"
        return
    if (decoded.samplerate, decoded.channels, decoded.frames) != (manifest.sample_rate_hz, 1, samples):
        yield f"{segment.filename} is {decoded.frames} x {decoded.channels} at {decoded.samplerate} Hz, not {samples}"
