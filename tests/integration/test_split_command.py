"""The split command, as a process."""

import asyncio
import hashlib
import io
import shutil
import signal
import struct
import sys
import tarfile
from pathlib import Path
from typing import Any, cast

import orjson
import psutil
import pytest
import soundfile

from stt_async.local.process import ChildProcess, plain_environment
from tests.support.commands import Finished, run_command
from tests.support.recordings import ROOT
from tests.support.waiting import wait_until

_FACTS = {"file", "name", "status", "skipped", "duration_s", "segments", "speech_s", "code", "error"}


async def _split(*arguments: str | Path) -> Finished:
    """Run it without any setting."""
    return await run_command("split", *map(str, arguments), environment={})


def _manifest(folder: Path) -> Any:
    return orjson.loads((folder / "metadata.json").read_bytes())


@pytest.mark.parametrize("layout", ["objects", "tar"])
async def test_files_and_folders_become_folders_of_segments(
    tmp_path: Path, samples: list[Path], speech: Path, layout: str
) -> None:
    folder, out = tmp_path / "in" / "ལྷ་ས", tmp_path / "out"
    folder.mkdir(parents=True)
    for file in samples:
        if file.name in {"wind.ogg", "two-voices.m4a"}:
            shutil.copy(file, folder)
    (folder / "notes.txt").write_text("not a recording")
    finished = await _split(speech, folder.parent, "--out", out, "--layout", layout, "--format", "wav", "--json")
    assert finished.returncode == 0, finished.stderr
    facts = {each["name"]: each for each in finished.lines()}
    assert facts.keys() == {"telephone.wav", "ལྷ་ས/wind.ogg", "ལྷ་ས/two-voices.m4a"}
    for name, each in facts.items():
        assert each.keys() == _FACTS
        assert (each["status"], each["skipped"], each["error"]) == ("ok", False, None)
        manifest = _manifest(out / name)
        assert (each["segments"], each["speech_s"]) == (manifest["total_segments"], manifest["speech_s"])
        assert manifest["format"] == "wav"
        _verify(out / name, manifest)


async def test_broken_file_is_one_line_and_the_others_are_split(tmp_path: Path, samples: list[Path]) -> None:
    finished = await _split(samples[0].parent, "--out", tmp_path)
    assert finished.returncode == 4
    # A split that takes longer than ten seconds prints its progress too.
    (line,) = (line for line in finished.stderr.splitlines() if not line.startswith("splitting: "))
    assert line.startswith(str(samples[0].parent / "not-a-recording.mp3"))
    assert "not of any audio format" in line
    assert "failed: not_audio" in finished.stdout
    done = {file.parent.name for file in tmp_path.rglob("metadata.json")}
    assert done == {file.name for file in samples} - {"not-a-recording.mp3"}
    assert {folder.name for folder in tmp_path.iterdir()} == done

    again = await _split(samples[0].parent, "--out", tmp_path, "--json")
    assert again.returncode == 4
    assert {each["name"] for each in again.lines() if each["skipped"]} == done


async def test_done_recording_is_skipped_until_parameters_change(tmp_path: Path, speech: Path) -> None:
    recording, out = tmp_path / "a.wav", tmp_path / "out"
    shutil.copy(speech, recording)
    written = await _processed_at(recording, out)
    assert await _processed_at(recording, out) == written
    assert await _processed_at(recording, out, "--format", "wav") > written
    await _processed_at(recording, out, "--format", "wav", "--max-duration", "2", "--min-duration", "0.5")
    segments = _manifest(out / recording.name)["segments"]
    assert segments
    assert max(each["duration_sec"] for each in segments) <= 2
    assert {file.suffix for file in (out / "a.wav").iterdir()} == {".wav", ".json"}


async def _processed_at(recording: Path, out: Path, *options: str) -> str:
    finished = await _split(recording, "--out", out, *options)
    assert finished.returncode == 0, finished.stderr
    return str(_manifest(out / recording.name)["processed_at"])


async def test_unusable_file_fails_alone(tmp_path: Path, speech: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "failures").mkdir(parents=True)
    expected = {
        "line\nbreak.wav": "unusable_name",
        "failures/reserved.wav": "unusable_name",
        "in-the-way.wav": "file_error",
        "good.wav": None,
    }
    for name in expected:
        shutil.copy(speech, folder / name)
    out.mkdir()
    (out / "in-the-way.wav").write_text("a file where the folder has to be")
    finished = await _split(folder, "--out", out, "--json")
    assert finished.returncode == 4
    assert {each["name"]: each["code"] for each in finished.lines()} == expected
    assert all(each["error"] for each in finished.lines() if each["code"])
    assert "Traceback" not in finished.stderr
    assert _manifest(out / "good.wav")["status"] == "ok"


async def test_nothing_to_split_is_one_message_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for missing in ("nowhere", "empty"):
        finished = await _split(tmp_path / missing, "--out", tmp_path / "out")
        assert finished.returncode == 2
        assert missing in finished.stderr
        assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=lambda signum: signum.name)
async def test_run_after_an_interruption_leaves_nothing_incomplete(
    tmp_path: Path, an_hour: Path, speech: Path, signum: signal.Signals
) -> None:
    out = tmp_path / "out"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "stt_async",
        "split",
        an_hour,
        speech,
        "--out",
        out,
        "--processes",
        "2",
    ]
    async with ChildProcess(
        command, environment=plain_environment(), log=tmp_path / "split.log", directory=ROOT
    ) as process:
        await wait_until((out / ".an-hour.wav.partial").is_dir, what="the long recording to be started")
        await wait_until((out / "telephone.wav").is_dir, what="the short recording to be done")
        process.signal(signum)
        code = await process.wait()
        await wait_until(lambda: not process.group(), what="its pool processes to end")
    assert code == (130 if signum == signal.SIGINT else -signum), process.log_tail()
    assert not (out / an_hour.name).exists()
    if signum == signal.SIGINT:
        assert {folder.name for folder in out.iterdir()} == {speech.name}
        assert "Traceback" not in process.log_tail()

    finished = await _split(an_hour, speech, "--out", out, "--json")
    assert finished.returncode == 0, finished.stderr
    assert {each["name"]: each["skipped"] for each in finished.lines()} == {an_hour.name: False, speech.name: True}
    assert {folder.name for folder in out.iterdir()} == {an_hour.name, speech.name}
    assert _manifest(out / an_hour.name)["recording"]["truncated"] is False


def _verify(folder: Path, manifest: Any) -> None:
    archive = manifest["archive"]
    segments = manifest["segments"]
    names = [segment["filename"] for segment in segments] if archive is None else [archive["filename"]]
    assert {file.name for file in folder.iterdir()} == {*names, "metadata.json"}
    if archive is None:
        contents = {name: (folder / name).read_bytes() for name in names}
    else:
        with tarfile.open(folder / archive["filename"]) as tar:
            contents = {member.name: cast("Any", tar.extractfile(member)).read() for member in tar}
    for segment in segments:
        data = contents[segment["filename"]]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (segment["bytes"], segment["sha256"])
        assert soundfile.info(io.BytesIO(data)).frames == segment["end_sample"] - segment["start_sample"]


@pytest.mark.slow
async def test_ten_hours_stay_under_600_mb_with_all_processes(tmp_path: Path, speech: Path) -> None:
    recording, seconds = tmp_path / "ten-hours.wav", 10 * 3600
    _write_long(recording, speech, seconds)
    process = ChildProcess(
        [sys.executable, "-m", "stt_async", "split", recording, "--out", tmp_path / "out"],
        environment=plain_environment(),
        directory=ROOT,
        log=tmp_path / "split.log",
    )
    peak_bytes = 0
    async with process:
        ended = asyncio.create_task(process.wait())
        while not ended.done():
            peak_bytes = max(peak_bytes, sum(map(_pss_bytes, process.group())))
            await asyncio.wait({ended}, timeout=0.1)
        assert ended.result() == 0, process.log_tail()
    assert 100e6 < peak_bytes < 600e6
    manifest = _manifest(tmp_path / "out" / recording.name)
    assert manifest["recording"]["decoded_duration_s"] == seconds
    assert manifest["segments"][0]["start_sec"] < 20
    assert manifest["segments"][-1]["end_sec"] > seconds - 20


def _write_long(recording: Path, speech: Path, seconds: int) -> None:
    """Write speech at both ends, and a hole in the file between them, so that hours take no disk space."""
    samples, rate_hz = soundfile.read(speech, dtype="int16")
    data, data_bytes = samples.tobytes(), seconds * rate_hz * 2
    with recording.open("wb") as file:
        file.write(
            struct.pack(
                "<4sI8sIHHIIHH4sI",
                b"RIFF",
                36 + data_bytes,
                b"WAVEfmt ",
                16,
                1,
                1,
                rate_hz,
                rate_hz * 2,
                2,
                16,
                b"data",
                data_bytes,
            )
        )
        file.write(data)
        file.truncate(44 + data_bytes)
        file.seek(-len(data), 2)
        file.write(data)


def _pss_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
