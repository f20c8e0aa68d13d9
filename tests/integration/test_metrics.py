"""A worker's log holds its metrics as valid EMF records, and their sums match what the worker did."""

import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from stt_async.metrics import EMITTED
from tests.support.commands import StartWorker
from tests.support.evidence.emf import dimensions_of, metrics_of
from tests.support.site import Site


async def test_sums_of_metrics_match_the_jobs_of_a_worker(
    site: Site, start_worker: StartWorker, samples: list[Path], speech: Path
) -> None:
    keys = await site.put_recordings(samples)
    for key in [*keys, "never-put.wav"]:
        await site.send(site.job(key))
    worker = await start_worker(site, STT_ENVIRONMENT="test")
    await worker.wait_for("job_succeeded", count=len(keys) - 1, timeout_s=200)
    await worker.wait_for("job_failed", count=2)
    await site.send(site.job(speech.name))
    (skipped,) = await worker.wait_for("job_skipped")
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0

    assert metrics_of(skipped).keys() == {"JobsSkipped", "QueueWait"}
    lines = worker.lines()
    sums = _sums(lines)
    manifests = list((await site.manifests()).values())
    recordings = [manifest["recording"] for manifest in manifests]
    segments = [segment for manifest in manifests for segment in manifest["segments"]]
    assert sums["JobsSkipped"] == 1
    assert sums["JobsDone"] == len(manifests) == len(keys) - 1
    assert sums["JobsFailed"] == sums["JobsFailedPermanent"] == len(await site.take_dead_letters()) == 2
    assert sums["AudioSeconds"] == pytest.approx(_total(recordings, "decoded_duration_s"))
    assert sums["SpeechSeconds"] == pytest.approx(_total(manifests, "speech_s"))
    assert sums["SourceBytes"] == _total(recordings, "source_bytes")
    assert sums["Segments"] == len(segments)
    assert sums["SegmentBytes"] == _total(segments, "bytes")

    for line in worker.events("job_succeeded"):
        metrics = metrics_of(line)
        assert metrics["JobDuration"] > 0
        assert metrics["DownloadMbps"] > 0
        assert metrics["SplitRtf"] > 0
        assert metrics["QueueWait"] >= 0
        assert 0 < metrics["ScratchUsed"] <= 100
    for line in lines:
        if "_aws" in line:
            assert dimensions_of(line) == [{"Environment": "test", "Queue": site.services.queues.name}]


def _sums(lines: list[Any]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for line in lines:
        for name, value in metrics_of(line).items():
            assert name in EMITTED
            sums[name] += value
    return sums


def _total(rows: list[Any], name: str) -> float:
    total: float = sum(row[name] for row in rows)
    return total
