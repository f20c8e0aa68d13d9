"""The demo: the whole system on loopback, over the shipped samples and over real recordings."""

import re
import shlex
import signal
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import soundfile

from stt_async.job import AUDIO_SUFFIXES
from stt_async.local.demo import VISIBILITY_TIMEOUT_S
from stt_async.local.process import ChildProcess, plain_environment
from tests.support.commands import run_command
from tests.support.recordings import ROOT
from tests.support.waiting import wait_until

_COUNTS = re.compile(
    r"(?P<accounted_for>\d+) of (?P<all>\d+) recordings accounted for: (?P<before>\d+) were done before, (?P<sent>\d+)"
)
_BROKEN_SAMPLE = "not-a-recording.mp3"
_TIMEOUT_S = 120.0


async def test_demo_does_each_sample_once_and_keeps_its_services_until_ctrl_c(
    tmp_path: Path, samples: list[Path]
) -> None:
    count = len(samples)
    output, counts = await _demo("--out", tmp_path / "out")
    assert counts == {"accounted_for": count, "all": count, "before": 0, "sent": count}
    manifests = _manifests(tmp_path / "out")
    assert manifests.keys() == {file.name for file in samples} - {_BROKEN_SAMPLE}
    for name, manifest in manifests.items():
        files = {file.name for file in (tmp_path / "out" / "segments" / name).iterdir()}
        assert files == {*(segment["filename"] for segment in manifest["segments"]), "metadata.json"}
    assert "dead-lettered: its content is not of any audio format" in output

    (tmp_path / "out" / "logs" / "worker.log").unlink()
    log = tmp_path / "demo.log"
    async with _started("--keep", "--out", tmp_path / "out", log=log) as process:
        await wait_until(
            lambda: "until Ctrl-C" in process.log_tail() or process.returncode is not None,
            what="the demo to keep its services",
            timeout_s=_TIMEOUT_S,
        )
        output = log.read_text()
        assert _counts(output) == {"accounted_for": count, "all": count, "before": count - 1, "sent": 0}
        assert _manifests(tmp_path / "out") == manifests
        assert _job_events(tmp_path / "out") == set()
        assert "dead-lettered: its content is not of any audio format" in output
        words = [shlex.split(line) for line in output.splitlines() if line.startswith("export ")]
        environment = dict(word.split("=", 1) for _, word in words)
        finished = await run_command("enqueue", "--json", environment=environment)
        assert finished.lines()[0]["done"] == count - 1
        await _assert_interruptible(process)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_demo_of_a_thousand_recordings_ends_with_its_last_job(tmp_path: Path, speech: Path) -> None:
    sound, rate = soundfile.read(speech, dtype="int16")
    (tmp_path / "in").mkdir()
    for n in range(1000):
        soundfile.write(tmp_path / "in" / f"{n:04d}.wav", sound[n * 10 : n * 10 + 2 * rate], rate)
    _, counts = await _demo(tmp_path / "in", "--out", tmp_path / "out", timeout_s=800)
    assert counts == {"accounted_for": 1000, "all": 1000, "before": 0, "sent": 1000}
    assert _job_events(tmp_path / "out") == {"job_succeeded"}, "each message is received once"
    lines = [orjson.loads(line) for line in (tmp_path / "out" / "logs" / "worker.log").read_bytes().splitlines()]
    done, stopped = [
        datetime.fromisoformat(line["timestamp"])
        for line in lines
        if line["event"] in {"job_succeeded", "worker_stopped"}
    ][-2:]
    assert stopped - done < timedelta(seconds=VISIBILITY_TIMEOUT_S), "the worker waited for no visibility timeout"


@pytest.mark.parametrize("running", ["servers", "worker"])
async def test_ctrl_c_stops_every_process(tmp_path: Path, running: str) -> None:
    out = tmp_path / "out"
    started = {"servers": out / "servers", "worker": out / "logs" / "worker.log"}[running]
    async with _started("--out", out, log=tmp_path / "demo.log") as process:
        await wait_until(started.exists, what=f"{started} to exist", timeout_s=_TIMEOUT_S)
        await _assert_interruptible(process)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_real_recording_is_accounted_for_and_done_once(tmp_path: Path, dev_data: Path) -> None:
    recordings = {
        file.relative_to(dev_data).as_posix()
        for file in dev_data.rglob("*")
        if file.is_file() and file.suffix.lower() in AUDIO_SUFFIXES
    }
    output, counts = await _demo(dev_data, "--out", tmp_path)
    count = len(recordings)
    assert counts == {"accounted_for": count, "all": count, "before": 0, "sent": count}
    done = _manifests(tmp_path).keys()
    assert done <= recordings
    # Only recordings in these two folders may fail, each with a reason.
    assert {name.split("/")[0] for name in recordings - done} <= {"malformed", "edge"}
    assert output.count("dead-lettered: ") == len(recordings - done)

    (tmp_path / "logs" / "worker.log").unlink()
    _, counts = await _demo(dev_data, "--out", tmp_path)
    assert counts == {"accounted_for": count, "all": count, "before": len(done), "sent": 0}
    assert _job_events(tmp_path) == set()


async def _demo(*arguments: str | Path, timeout_s: float = 2 * _TIMEOUT_S) -> tuple[str, dict[str, int]]:
    """Run the demo to its end; return its output and the counts in it."""
    finished = await run_command("demo", *map(str, arguments), environment={}, timeout_s=timeout_s)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout, _counts(finished.stdout)


def _counts(output: str) -> dict[str, int]:
    found = _COUNTS.search(output)
    assert found is not None, output
    return {name: int(number) for name, number in found.groupdict().items()}


def _manifests(out: Path) -> dict[str, Any]:
    segments = out / "segments"
    return {
        file.parent.relative_to(segments).as_posix(): orjson.loads(file.read_bytes())
        for file in segments.rglob("metadata.json")
    }


def _job_events(out: Path) -> set[str]:
    lines = (orjson.loads(line) for line in (out / "logs" / "worker.log").read_bytes().splitlines())
    return {line["event"] for line in lines if line["event"].startswith("job_")}


def _started(*arguments: str | Path, log: Path) -> ChildProcess:
    command = [sys.executable, "-m", "stt_async", "demo", *arguments]
    return ChildProcess(command, environment=plain_environment(), log=log, directory=ROOT)


async def _assert_interruptible(process: ChildProcess) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    process.signal(signal.SIGINT)
    assert await process.wait() == 130, process.log_tail()
    assert "Traceback" not in process.log_tail()
    _, alive = psutil.wait_procs(children, timeout=0)
    assert alive == []
