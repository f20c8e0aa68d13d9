"""Checks of an output, with the shipped schema and independent readers."""

import csv
import hashlib
import io
import tarfile
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import soundfile

from tests.support.site import Site

RATE_HZ = 16_000
_ROUNDING_S = 0.001


async def verified(site: Site, prefix: str, *, orphans: bool = False) -> Any:
    """Return the manifest of a recording after checking it against the objects in the bucket.

    Other objects fail the check, unless `orphans` of an earlier attempt are expected.
    """
    objects = await site.objects(f"{prefix}/")
    manifest = orjson.loads(await site.read(f"{prefix}/metadata.json"))
    jsonschema.validate(manifest, orjson.loads((files("stt_async") / "manifest.schema.json").read_bytes()))
    segments = manifest["segments"]
    assert manifest["output_prefix"] == f"{prefix}/"
    assert manifest["total_segments"] == len(segments)
    assert manifest["status"] == ("ok" if segments else "no_speech")
    for before, after in pairwise(segments):
        assert before["end_sample"] <= after["start_sample"]

    archive = manifest["archive"]
    if archive is None:
        names = [segment["filename"] for segment in segments]
        contents = {name: await site.read(f"{prefix}/{name}") for name in names}
    else:
        names = [archive["filename"]]
        assert objects[f"{prefix}/{archive['filename']}"] == archive["bytes"]
        contents = await _members(site, f"{prefix}/{archive['filename']}", manifest)
    unlisted = objects.keys() - {f"{prefix}/{name}" for name in [*names, "metadata.json"]}
    assert orphans or not unlisted

    for segment in segments:
        _verify_segment(segment, contents[segment["filename"]], manifest)
    return manifest


def uncovered_s(manifest: Any, speech: Path) -> float:
    """Return the seconds of speech of a `NAME.speech.csv` that are in no segment."""
    segments: list[tuple[float, float]] = [
        (segment["start_sec"], segment["end_sec"]) for segment in manifest["segments"]
    ]
    with speech.open() as file:
        spoken = [(float(row["start_s"]), float(row["end_s"])) for row in csv.DictReader(file)]
    covered = sum(max(0.0, min(end, e) - max(start, s)) for start, end in spoken for s, e in segments)
    return sum(end - start for start, end in spoken) - covered


async def _members(site: Site, key: str, manifest: Any) -> dict[str, bytes]:
    """Return the members of the tar as `tarfile` reads them, after comparing each with a read by its byte offset."""
    data = await site.read(key)
    assert hashlib.sha256(data).hexdigest() == manifest["archive"]["sha256"]
    members = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            members[member.name] = file.read()
    assert list(members) == [segment["filename"] for segment in manifest["segments"]]
    for segment in manifest["segments"]:
        first, last = segment["tar_offset"], segment["tar_offset"] + segment["bytes"] - 1
        ranged = await site.s3.get_object(Bucket=site.services.output_bucket, Key=key, Range=f"bytes={first}-{last}")
        assert await ranged["Body"].read() == members[segment["filename"]]
    return members


def _verify_segment(segment: Any, data: bytes, manifest: Any) -> None:
    assert len(data) == segment["bytes"]
    assert hashlib.sha256(data).hexdigest() == segment["sha256"]
    assert segment["filename"].endswith(f"-{segment['sha256'][:8]}.{manifest['format']}")
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        samples = sound.read(dtype="int16")
        assert (sound.samplerate, sound.channels, sound.subtype) == (RATE_HZ, 1, "PCM_16")
        assert sound.format == manifest["format"].upper()
    assert len(samples) == segment["end_sample"] - segment["start_sample"]
    assert segment["start_sec"] == segment["start_sample"] / RATE_HZ
    assert segment["end_sec"] == segment["end_sample"] / RATE_HZ
    assert abs(segment["duration_sec"] - (segment["end_sec"] - segment["start_sec"])) < _ROUNDING_S
    assert 0 < segment["duration_sec"] <= manifest["max_segment_duration"]
    assert segment["end_sec"] <= manifest["recording"]["decoded_duration_s"]
