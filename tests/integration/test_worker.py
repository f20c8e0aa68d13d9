"""A job from end to end: a message in, a real worker, segments and metadata.json out."""

import signal
import unicodedata
from pathlib import Path

import psutil
import pytest

from tests.support.commands import StartWorker
from tests.support.evidence.outputs import uncovered_s, verified
from tests.support.site import Counts, OpenSite, Site

_EDGES_S = 0.1
"""Speech that a sample's segments may miss: a lossy codec blurs the edges of speech."""


# Other tests verify the other two combinations: test_again flac in objects, test_transfers wav in tars.
@pytest.mark.parametrize(("layout", "form"), [("tar", "flac"), ("objects", "wav")])
async def test_job_has_the_output_that_its_manifest_lists(
    site: Site, start_worker: StartWorker, samples: list[Path], layout: str, form: str
) -> None:
    recordings = [file for file in samples if file.name != "not-a-recording.mp3"]
    for key in await site.put_recordings(recordings):
        await site.send(site.job(key, metadata={"reader": "བཀྲ་ཤིས", "take": 2}))
    worker = await start_worker(site, "--once", STT_FORMAT=form, STT_LAYOUT=layout)
    assert await worker.wait(timeout_s=200) == 0

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
    assert not any("_aws" in line for line in worker.lines())  # no metrics without STT_ENVIRONMENT


async def test_odd_keys_older_messages_and_s3_sources_have_own_outputs(
    open_site: OpenSite, start_worker: StartWorker, speech: Path
) -> None:
    site, elsewhere = await open_site(), await open_site()
    other_bucket = elsewhere.services.source_bucket
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
    await site.put_recordings(dict.fromkeys([*keys, "older.wav"], speech))
    await elsewhere.put_recordings({"folder/elsewhere.wav": speech})
    for key in keys:
        await site.send(site.job(key))
    older = f"{site.services.source_bucket}/older.wav"
    await site.send(
        {"job_id": "older", "raw_audio_path": older, "output_prefix": "older.wav", "metadata": {"speaker": 7}}
    )
    await site.send(site.job("folder/elsewhere.wav", source_type="s3", source_bucket=other_bucket))
    worker = await start_worker(site, STT_ALLOWED_SOURCE_BUCKETS=other_bucket)
    await worker.wait_for("job_succeeded", count=len(keys) + 2, timeout_s=200)
    _assert_only_children_map_torch(worker.pid)
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0

    assert set(await site.manifests()) == {*keys, "older.wav", "folder/elsewhere.wav"}
    for key in keys:
        manifest = await verified(site, key)
        assert (manifest["source_key"], manifest["total_segments"] > 0) == (key, True)
    from_older = await verified(site, "older.wav")
    assert (from_older["job_id"], from_older["metadata"]) == ("older", {"speaker": 7})
    from_s3 = await verified(site, "folder/elsewhere.wav")
    assert from_s3["source_bucket"] == other_bucket
    assert from_s3["recording"]["source_sha256"] == from_older["recording"]["source_sha256"]


def _assert_only_children_map_torch(worker_pid: int) -> None:
    assert "libtorch" not in _maps(worker_pid)
    assert any("libtorch" in _maps(child.pid) for child in psutil.Process(worker_pid).children(recursive=True))


def _maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()
