"""A worker's log holds its metrics: valid records, whose sums are what was done."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from stt_async.metrics import EMITTED
from tests.support.commands import StartWorker
from tests.support.emf import dimensions_of, metrics_of
from tests.support.site import Site


async def test_the_sums_of_a_workers_metrics_are_what_it_did(
    site: Site, start_worker: StartWorker, samples: list[Path]
) -> None:
    keys = await site.put_recordings(samples)
    for key in [*keys, "never-put.wav"]:
        await site.send(site.job(key))
    worker = await start_worker(site, "--once", STT_ENVIRONMENT="test")
    assert await worker.wait() == 4  # done, but some failed

    lines = worker.lines()
    sums = _sums(lines)
    manifests = list((await site.manifests()).values())
    recordings = [manifest["recording"] for manifest in manifests]
    segments = [segment for manifest in manifests for segment in manifest["segments"]]
    assert sums["JobsDone"] == len(manifests) == len(keys) - 1
    assert sums["JobsFailed"] == sums["JobsFailedPermanent"] == len(await site.take_dead_letters()) == 2
    assert sums["AudioSeconds"] == pytest.approx(_sum(recordings, "decoded_duration_s"))
    assert sums["SpeechSeconds"] == pytest.approx(_sum(manifests, "speech_s"))
    assert sums["SourceBytes"] == _sum(recordings, "source_bytes")
    assert sums["Segments"] == len(segments)
    assert sums["SegmentBytes"] == _sum(segments, "bytes")

    done = [metrics_of(line) for line in lines if line["event"] == "job_succeeded"]
    for each in done:
        assert each["JobDuration"] > 0
        assert each["DownloadMbps"] > 0
        assert each["SplitRtf"] > 0
        assert each["QueueWait"] >= 0
        assert 0 < each["ScratchUsed"] <= 100
    told = [line for line in lines if "_aws" in line]
    assert [dimensions_of(line) for line in told] == [
        [{"Environment": "test", "Queue": site.services.queues.name}] for _ in told
    ]


async def test_a_job_done_before_is_skipped_and_without_an_environment_nothing_is_told(
    site: Site, start_worker: StartWorker, speech: Path
) -> None:
    await site.put_recordings([speech])
    await site.send(site.job(speech.name))
    silent = await start_worker(site, "--once")
    assert await silent.wait() == 0
    assert silent.events("job_succeeded")
    assert not any("_aws" in line for line in silent.lines())

    await site.send(site.job(speech.name))
    worker = await start_worker(site, "--once", STT_ENVIRONMENT="test")
    assert await worker.wait() == 0
    sums = _sums(worker.lines())
    assert sums.pop("QueueWait") >= 0
    assert sums == {"JobsSkipped": 1}


def _sums(lines: list[Any]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for line in lines:
        for name, value in metrics_of(line).items():
            assert name in EMITTED
            sums[name] += value
    return sums


def _sum(of: list[Any], name: str) -> float:
    total: float = sum(each[name] for each in of)
    return total
