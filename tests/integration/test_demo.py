"""The demo: the whole system on loopback, over the shipped samples and over real recordings."""

import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from stt_async.job import AUDIO_SUFFIXES
from stt_async.local.process import ChildProcess, plain_environment
from tests.support.commands import Finished, run_command
from tests.support.recordings import ROOT
from tests.support.waiting import wait_until

_ACCOUNTS = re.compile(
    r"(?P<settled>\d+) of (?P<all>\d+) recordings accounted for: (?P<before>\d+) were done before, (?P<sent>\d+) jobs"
)
_BROKEN_SAMPLE = "not-a-recording.mp3"


async def _demo(*arguments: str | Path, timeout_s: float = 60.0) -> tuple[Finished, dict[str, int]]:
    finished = await run_command("demo", *map(str, arguments), environment={}, timeout_s=timeout_s)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    said = _ACCOUNTS.search(finished.stdout)
    assert said is not None
    return finished, {name: int(number) for name, number in said.groupdict().items()}


def _manifests(out: Path) -> dict[str, Any]:
    segments = out / "segments"
    return {
        file.parent.relative_to(segments).as_posix(): orjson.loads(file.read_bytes())
        for file in segments.rglob("metadata.json")
    }


def _jobs(out: Path) -> set[str]:
    """What the worker's log says became of its jobs."""
    lines = (orjson.loads(line) for line in (out / "logs" / "worker.log").read_bytes().splitlines())
    return {line["event"] for line in lines if line["event"].startswith("job_")}


async def test_the_samples_are_all_accounted_for_and_the_same_again_computes_nothing(
    tmp_path: Path, samples: list[Path]
) -> None:
    count = len(samples)
    finished, said = await _demo("--out", tmp_path)
    assert said == {"settled": count, "all": count, "before": 0, "sent": count}
    manifests = _manifests(tmp_path)
    assert manifests.keys() == {file.name for file in samples} - {_BROKEN_SAMPLE}
    for name, manifest in manifests.items():
        files = {file.name for file in (tmp_path / "segments" / name).iterdir()}
        assert files == {*(segment["filename"] for segment in manifest["segments"]), "metadata.json"}
    assert "dead-lettered: its content is not of any audio format" in finished.stdout

    (tmp_path / "logs" / "worker.log").unlink()
    finished, said = await _demo("--out", tmp_path)
    assert said == {"settled": count, "all": count, "before": count - 1, "sent": 0}
    assert _manifests(tmp_path) == manifests
    assert _jobs(tmp_path) == set()
    assert "dead-lettered: its content is not of any audio format" in finished.stdout


@pytest.mark.parametrize("stage", ["while the servers start", "while the worker works"])
async def test_ctrl_c_stops_every_process(tmp_path: Path, stage: str) -> None:
    out = tmp_path / "out"
    begun = {"while the servers start": out / "servers", "while the worker works": out / "logs" / "worker.log"}[stage]
    async with _started("--out", out, log=tmp_path / "demo.log") as process:
        await wait_until(begun.exists, what=f"{begun} to be there")
        await _assert_interruptible(process)


async def test_kept_services_answer_to_what_was_printed_until_ctrl_c(tmp_path: Path, speech: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(speech, tmp_path / "in")
    out = tmp_path / "out"
    async with _started(tmp_path / "in", "--keep", "--out", out, log=tmp_path / "demo.log") as process:
        await wait_until(lambda: "until Ctrl-C" in process.log_tail(), what="the demo to be through")
        words = [shlex.split(line) for line in process.log_tail().splitlines() if line.startswith("export ")]
        environment = dict(word.split("=", 1) for _, word in words)
        finished = await run_command("enqueue", "--json", environment=environment)
        assert finished.lines()[0]["done"] == 1
        await _assert_interruptible(process)


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


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_real_recording_is_accounted_for_and_done_once(tmp_path: Path, dev_data: Path) -> None:
    recordings = {
        file.relative_to(dev_data).as_posix()
        for file in dev_data.rglob("*")
        if file.is_file() and file.suffix.lower() in AUDIO_SUFFIXES
    }
    finished, said = await _demo(dev_data, "--out", tmp_path, timeout_s=150)
    count = len(recordings)
    assert said == {"settled": count, "all": count, "before": 0, "sent": count}
    done = _manifests(tmp_path).keys()
    assert done <= recordings
    # What is broken lies in a folder of its own, and says so; all else has an output.
    assert {name.split("/")[0] for name in recordings - done} <= {"malformed", "edge"}
    assert finished.stdout.count("dead-lettered: ") == len(recordings - done)

    (tmp_path / "logs" / "worker.log").unlink()
    _, said = await _demo(dev_data, "--out", tmp_path, timeout_s=100)
    assert said == {"settled": count, "all": count, "before": len(done), "sent": 0}
    assert _jobs(tmp_path) == set()
