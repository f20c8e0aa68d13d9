"""Compare the split engine with two baselines, in seconds of audio per second of CPU time on one core.

    python bench/split.py [--rounds N] [--data FOLDER] [--json]

reference: FFmpeg's libraries to 16 kHz mono, `silero_vad.get_speech_timestamps` with the JIT model as its README
shows it, a file for each segment. sequence: silero-vad's own block-wise ONNX model (needs onnxruntime, else left out).
They run in turns, in one process; results are medians of CPU time.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import psutil
import soundfile as sf
import soxr
import torch
from numpy.typing import NDArray
from silero_vad import get_speech_timestamps, load_silero_vad

from stt_async.audio.silero import load_network
from stt_async.audio.split import split, warm_up
from stt_async.audio.stopwatch import Stopwatch
from stt_async.audio.vad import SpeechProbabilities
from stt_async.params import SAMPLE_RATE_HZ, SplitParams

Samples = NDArray[np.float32]
Figures = dict[str, float]

SHORT_S = 5
_PRECISE_UNDER = 100
FORMATS = {
    "mp3 44.1 kHz mono": ("a-mono.mp3", "libmp3lame", 44_100, 1, 96_000),
    "mp3 44.1 kHz stereo": ("a.mp3", "libmp3lame", 44_100, 2, 128_000),
    "m4a 44.1 kHz stereo": ("a.m4a", "aac", 44_100, 2, 128_000),
    "ogg 44.1 kHz stereo": ("a.ogg", "VORBIS", 44_100, 2, 0),
    "opus 48 kHz mono": ("a.opus", "libopus", 48_000, 1, 48_000),
    "flac 44.1 kHz stereo": ("a.flac", "PCM_16", 44_100, 2, 0),
    "wav 44.1 kHz stereo": ("a.wav", "PCM_16", 44_100, 2, 0),
    "wav 16 kHz mono": ("a-16k.wav", "PCM_16", 16_000, 1, 0),
}


def seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call, over all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def in_turns(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run all in turns; return the CPU seconds of each round."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(seconds(function))
    return taken


def ratio(baseline: list[float], measured: list[float]) -> float:
    """Return the median ratio of the rounds: the machine's speed drifts, but less within a round."""
    return statistics.median(slow / fast for slow, fast in zip(baseline, measured, strict=True))


def speech(data: Path) -> tuple[Samples, int]:
    """Return about 6 min of speech: a long reading of the shared recordings, or the shipped samples, repeated."""
    readings = sorted((data / "long").glob("*085*.mp3"))
    if readings:
        return sf.read(readings[0], dtype="float32")  # type: ignore[no-any-return]  # soundfile has no types
    shipped = sorted(Path(__file__).parents[1].glob("stt_async/local/samples/**/*.wav"))
    parts = []
    for path in shipped:
        samples, rate_hz = sf.read(path, dtype="float32")
        parts.append(resampled(samples, rate_hz, SAMPLE_RATE_HZ))
    return np.resize(np.concatenate(parts), 6 * 60 * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ


def resampled(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """Resample, mixed to mono."""
    mono = samples if samples.ndim == 1 else samples.mean(1)
    return soxr.resample(mono, from_hz, to_hz)  # type: ignore[no-any-return]  # soxr has no types


def write(folder: Path, samples: Samples, rate_hz: int) -> dict[str, Path]:
    """Write the recording in each format."""
    paths = {}
    for name, (filename, codec, to_hz, channels, bits_per_s) in FORMATS.items():
        mono = resampled(samples, rate_hz, to_hz)
        wave = np.stack([mono, 0.9 * np.roll(mono, 7)][:channels], 1)
        paths[name] = folder / filename
        if codec.isupper() or codec.startswith("PCM"):
            with sf.SoundFile(paths[name], "w", to_hz, channels, subtype=codec) as file:
                for start in range(0, len(wave), to_hz):
                    file.write(wave[start : start + to_hz])
        else:
            write_with_ffmpeg(paths[name], wave, to_hz, codec, bits_per_s)
    return paths


def write_with_ffmpeg(path: Path, wave: Samples, rate_hz: int, codec: str, bits_per_s: int) -> None:
    """Encode (frames, channels) samples."""
    layout = ("mono", "stereo")[wave.shape[1] - 1]
    pcm = (np.clip(wave, -1, 1) * 32_767).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(stream, av.AudioStream)  # noqa: S101 - for the type checker
        stream.bit_rate = bits_per_s
        for start in range(0, len(pcm), rate_hz):
            data = np.ascontiguousarray(pcm[start : start + rate_hz].reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(data, format="s16", layout=layout)
            frame.sample_rate = rate_hz
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def reference(path: Path, folder: Path, model: torch.jit.ScriptModule) -> None:
    """Split as today's scripts do."""
    parts = []
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
        for frame in container.decode(audio=0):
            parts += [out.to_ndarray()[0] for out in resampler.resample(frame)]
        parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
    pcm = np.concatenate(parts)
    wave = torch.from_numpy(pcm.astype(np.float32) / 32_768)
    found = get_speech_timestamps(wave, model, threshold=0.3, speech_pad_ms=300, max_speech_duration_s=30)
    for number, run in enumerate(found):
        sf.write(folder / f"reference_{number:05d}.flac", pcm[run["start"] : run["end"]], SAMPLE_RATE_HZ)


def vad(samples: Samples, rounds: int) -> Figures:
    """Compare the VAD alone: seconds of audio per second, and the ratios."""
    wave = torch.from_numpy(samples)
    pcm = (np.clip(samples, -1, 1) * 32_767).astype(np.int16)
    network = load_network()

    def batched() -> None:
        stream = SpeechProbabilities(network)
        for start in range(0, len(pcm), 24_000):
            stream.push(pcm[start : start + 24_000])
        stream.finish()

    model = load_silero_vad()
    functions: dict[str, Callable[[], object]] = {
        "stt_async": batched,
        "reference": lambda: get_speech_timestamps(wave, model),
    }
    if find_spec("onnxruntime"):
        from silero_vad import get_speech_timestamps_sequence  # noqa: PLC0415 - needs an optional package

        sequence = load_silero_vad(sequence=True)
        functions["sequence"] = lambda: get_speech_timestamps_sequence(samples, sequence)
    batched()
    taken = in_turns(functions, rounds)
    duration_s = len(samples) / SAMPLE_RATE_HZ
    figures = {name: duration_s / statistics.median(times) for name, times in taken.items()}
    return figures | {
        f"ratio_to_{name}": ratio(taken[name], taken["stt_async"])
        for name in ("reference", "sequence")
        if name in taken
    }


def whole(paths: dict[str, Path], duration_s: float, rounds: int) -> dict[str, Figures]:
    """Compare the whole split for each format: seconds of audio per second, also by stage, and the ratio."""
    model = load_silero_vad()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out_dir = Path(folder)
        for name, path in paths.items():
            stages: list[dict[str, float]] = []

            def measured(path: Path = path, stages: list[dict[str, float]] = stages) -> None:
                watch = Stopwatch()
                split(path, out_dir, SplitParams(), watch=watch)
                stages.append(watch.seconds)

            taken = in_turns({"stt_async": measured, "reference": lambda p=path: reference(p, out_dir, model)}, rounds)  # type: ignore[misc]  # mypy does not infer a lambda's default
            found[name] = {
                **{stage: duration_s / statistics.median(s[stage] for s in stages) for stage in stages[0]},
                "stt_async": duration_s / statistics.median(taken["stt_async"]),
                "reference": duration_s / statistics.median(taken["reference"]),
                "ratio": ratio(taken["reference"], taken["stt_async"]),
            }
    return found


def short(path: Path, rounds: int) -> float:
    """Return how many recordings of 5 s are split per second of CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        samples, rate_hz = sf.read(path, frames=SHORT_S * 44_100, dtype="float32", always_2d=True)
        clip = Path(folder) / "short.mp3"
        write_with_ffmpeg(clip, samples, rate_hz, "libmp3lame", 96_000)
        return 1 / statistics.median(
            seconds(lambda: split(clip, Path(folder), SplitParams())) for _ in range(20 * rounds)
        )


def child(connection: multiprocessing.connection.Connection) -> None:
    """Act as a pool child: warm up, report private memory in MB, wait."""
    warm_up()
    connection.send(psutil.Process().memory_full_info().uss / 2**20)
    connection.recv()


def start_up() -> Figures:
    """Start a child as the pool does; return how long it takes (s), and its private memory when idle (MB)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stt_async.audio.split"])
    figures: Figures = {}
    for name in ("first_child_s", "next_child_s"):
        pipe, child_pipe = context.Pipe()
        process = context.Process(target=child, args=(child_pipe,))
        start = time.monotonic()
        process.start()
        figures["idle_private_mb"] = pipe.recv()
        figures[name] = time.monotonic() - start
        pipe.send(None)
        process.join()
    return figures


PEAK = """
import sys
from pathlib import Path
from stt_async.audio.split import split
from stt_async.params import SplitParams
split(Path(sys.argv[1]), Path(sys.argv[2]), SplitParams())
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_mb(path: Path) -> float:
    """Return the peak memory of a separate process that splits one recording, libraries included."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", PEAK, path, folder], capture_output=True, check=True, text=True)
    return float(done.stdout)


def show(report: dict[str, dict[str, Figures]]) -> None:
    """Print the tables."""
    for title, rows in report.items():
        print(f"\n{title}")
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        print(" ".join([f"{'':22}", *(f"{name:>{max(len(name), 6)}}" for name in names)]))
        for label, row in rows.items():
            cells = (f"{row[name]:>{max(len(name), 6)}.{0 if row[name] > _PRECISE_UNDER else 1}f}" for name in names)
            print(" ".join([f"{label:22}", *cells]))


def main() -> int:
    """Run all measurements."""
    default = Path(__file__).parents[2] / "shared" / "data" / "dev"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STT_TEST_DATA", default)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    samples, rate_hz = speech(options.data)
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), samples, rate_hz)
        warm_up()
        report = {
            "VAD alone": {"times real time": vad(resampled(samples, rate_hz, SAMPLE_RATE_HZ), options.rounds)},
            "whole split, times real time": whole(paths, len(samples) / rate_hz, options.rounds),
            "start, short recordings, memory": {
                "": start_up()
                | {
                    "5_s_recordings_per_s": short(paths["wav 44.1 kHz stereo"], options.rounds),
                    "peak_mb": peak_mb(paths["mp3 44.1 kHz stereo"]),
                }
            },
        }
    if options.json:
        print(json.dumps(report))
    else:
        show(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
