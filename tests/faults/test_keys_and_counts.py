"""Scenario F34: keys at their limits, and recordings of more than a thousand segments."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import verified
from tests.support.site import Site

pytestmark = pytest.mark.timeout(300)

_LONGEST_KEY_BYTES = 1024
_LONGEST_PREFIX_BYTES = 900


def _key_of(size_bytes: int, part: str, suffix: str) -> str:
    """A key of exactly that size, made of whole folder names."""
    room = size_bytes - len(suffix.encode())
    parts, padding = divmod(room, len(part.encode()))
    return part * parts + "x" * padding + suffix


async def test_longest_keys_are_processed_unchanged(site: Site, start_worker: StartWorker, speech: Path) -> None:
    longest = [_key_of(_LONGEST_KEY_BYTES, part, ".wav") for part in ("བོད་ སྐད+/", "a%2Fb é/", "e\u0301/")]
    as_prefix = _key_of(_LONGEST_PREFIX_BYTES, "ཀ་ཁ་/", ".wav")
    prefixes = {key: f"short/{number}" for number, key in enumerate(longest)} | {as_prefix: as_prefix}
    assert {len(key.encode()) for key in longest} == {_LONGEST_KEY_BYTES}
    assert len(as_prefix.encode()) == _LONGEST_PREFIX_BYTES
    await site.put_recordings(dict.fromkeys(prefixes, speech))
    too_long = site.job(longest[0], job_id="too long")
    for key, prefix in prefixes.items():
        await site.send(site.job(key, job_id="fits", output_prefix=prefix))
    await site.send(too_long)
    worker = await start_worker(site, "--once")
    assert await worker.wait() == 4

    assert set(await site.manifests()) == set(prefixes.values())
    for key, prefix in prefixes.items():
        assert (await verified(site, prefix))["source_key"] == key
    [letter] = await site.take_dead_letters()
    assert letter.job == too_long
    assert letter.attributes["code"] == "invalid_job"
    assert "output_prefix" in letter.attributes["reason"]


@pytest.mark.slow
async def test_more_than_a_thousand_segments_stay_in_order(
    site: Site, start_worker: StartWorker, speech: Path, tmp_path: Path
) -> None:
    samples, rate_hz = soundfile.read(speech, dtype="int16")
    soundfile.write(tmp_path / "long.wav", np.tile(samples, 105), rate_hz)  # ten segments each time
    await site.put_recordings([tmp_path / "long.wav"])
    await site.send(site.job("long.wav", max_duration=2))
    worker = await start_worker(site, "--once")
    assert await worker.wait(timeout_s=200) == 0
    manifest = await verified(site, "long.wav")
    names = [segment["filename"] for segment in manifest["segments"]]
    assert len(names) > 1000
    assert [int(name.split("_")[1].split("-")[0]) for name in names] == list(range(1, len(names) + 1))
    assert names == sorted(names)
    listed = list(await site.objects("long.wav/segment_"))
    assert [key.removeprefix("long.wav/") for key in listed] == names
