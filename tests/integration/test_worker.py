"""The whole way of a job: a message in, a real worker, segments and metadata.json out."""

import signal
import unicodedata
from pathlib import Path

import psutil
import pytest

from tests.support.commands import StartWorker
from tests.support.outputs import uncovered_s, verified
from tests.support.site import Counts, OpenSite, Site

_EDGES_S = 0.1
"""Speech that may be left out of a sample's segments: a lossy codec blurs where it begins and ends."""


@pytest.mark.parametrize("layout", ["objects", "tar"])
@pytest.mark.parametrize("form", ["flac", "wav"])
async def test_a_job_becomes_what_its_manifest_promises(
    site: Site, start_worker: StartWorker, samples: list[Path], layout: str, form: str
) -> None:
    recordings = [file for file in samples if file.name != "not-a-recording.mp3"]
    for key in await site.put_recordings(recordings):
        await site.send(site.job(key, metadata={"reader": "བཀྲ་ཤིས", "take": 2}))
    worker = await start_worker(site, "--once", STT_FORMAT=form, STT_LAYOUT=layout)
    assert await worker.wait() == 0

    for file in recordings:
        manifest = await verified(site, file.name)
        assert (manifest["layout"], manifest["format"]) == (layout, form)
        assert (manifest["job_id"], manifest["metadata"]) == (f"job-{file.name}", {"reader": "བཀྲ་ཤིས", "take": 2})
        assert (manifest["source_bucket"], manifest["source_key"]) == (site.services.source_bucket, file.name)
        assert manifest["recording"]["source_bytes"] == file.stat().st_size
        assert manifest["max_segment_duration"] == 30
        assert uncovered_s(manifest, file.with_suffix(".speech.csv")) < _EDGES_S
    assert (await verified(site, "no-speech.mp3"))["status"] == "no_speech"
    assert await site.is_drained()
    assert await site.dead_letter_counts() == Counts(visible=0, in_flight=0)
    assert not list(worker.scratch.iterdir())


async def test_the_older_message_form_and_a_source_on_s3(
    open_site: OpenSite, start_worker: StartWorker, speech: Path
) -> None:
    site, elsewhere = await open_site(), await open_site()
    await site.put_recordings({"older.wav": speech})
    await elsewhere.put_recordings({"folder/elsewhere.wav": speech})
    await site.send(
        {
            "job_id": "older",
            "raw_audio_path": f"{site.services.source_bucket}/older.wav",
            "output_prefix": "older.wav",
            "metadata": {"speaker": 7},
        }
    )
    other_bucket = elsewhere.services.source_bucket
    await site.send(site.job("folder/elsewhere.wav", source_type="s3", source_bucket=other_bucket))
    worker = await start_worker(site, "--once", STT_ALLOWED_SOURCE_BUCKETS=other_bucket)
    assert await worker.wait() == 0

    older = await verified(site, "older.wav")
    assert (older["job_id"], older["metadata"]) == ("older", {"speaker": 7})
    from_s3 = await verified(site, "folder/elsewhere.wav")
    assert from_s3["source_bucket"] == other_bucket
    assert from_s3["recording"]["source_sha256"] == older["recording"]["source_sha256"]


async def test_no_two_keys_meet_in_one_output(site: Site, start_worker: StartWorker, speech: Path) -> None:
    keys = [
        "amdo/བཀྲ་ཤིས་ བདེ་ལེགས།.wav",
        "with space.wav",
        "with+plus.wav",
        "with%2Fslash.wav",
        "with/slash.wav",
        "100%.wav",
        "%31.wav",
        unicodedata.normalize("NFC", "é.wav"),
        unicodedata.normalize("NFD", "é.wav"),
        "a.wav",
        "a.mp3",
        "A.wav",
        "a",
    ]
    await site.put_recordings(dict.fromkeys(keys, speech))
    for key in keys:
        await site.send(site.job(key))
    worker = await start_worker(site, "--once")
    assert await worker.wait() == 0

    assert set(await site.manifests()) == set(keys)
    for key in keys:
        manifest = await verified(site, key)
        assert (manifest["source_key"], manifest["total_segments"] > 0) == (key, True)


async def test_torch_lives_in_the_children_alone(site: Site, start_worker: StartWorker) -> None:
    worker = await start_worker(site, STT_PROCESSES="1")
    await worker.wait_for("worker_started")
    assert "libtorch" not in _maps(worker.pid)
    children = [child.pid for child in psutil.Process(worker.pid).children(recursive=True)]
    assert any("libtorch" in _maps(pid) for pid in children)
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0


def _maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()
