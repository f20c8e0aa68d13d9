"""Compare segments with labels and with today's practice: kept speech, purity, forced cuts, lengths.

    python bench/segments.py [--data FOLDER] [--json]

Today's practice: `get_speech_timestamps` (threshold 0.3, silence 800 ms, pad 300 ms), runs under 2 s dropped, runs over
30 s halved until they fit.
"""

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from silero_vad import get_speech_timestamps_from_probs

from stt_async.audio.decode import Tools, decode
from stt_async.audio.segmentation import plan
from stt_async.audio.silero import load_network
from stt_async.audio.stopwatch import Stopwatch
from stt_async.audio.stream import FRAME_SAMPLES, Probabilities
from stt_async.audio.vad import Network
from stt_async.params import SAMPLE_RATE_HZ, SplitLimits, SplitParams

LONGEST = 30 * SAMPLE_RATE_HZ
SPEECH = 0.5
"""A forced cut in a frame above this probability is inside speech."""


@dataclass(frozen=True)
class Cut:
    """A segment in samples, and whether its end is a forced cut."""

    start: int
    end: int
    forced: bool


@dataclass(frozen=True)
class Labelled:
    """A recording's speech probabilities, and its labels, in s, if it has any."""

    probabilities: Probabilities
    samples: int
    labels: list[tuple[float, float]]


Row = dict[str, float | int]
Rule = Callable[[Labelled], list[Cut]]


def stt_async(recording: Labelled) -> list[Cut]:
    """Return this project's segments, with its defaults."""
    spans = plan(recording.probabilities, recording.samples, SplitParams()).spans
    return [Cut(span.start, span.end, span.end_reason == "max_duration") for span in spans]


def practice(recording: Labelled) -> list[Cut]:
    """Return the segments of today's practice."""
    found = get_speech_timestamps_from_probs(
        recording.probabilities.tolist(),
        threshold=0.3,
        min_silence_duration_ms=800,
        speech_pad_ms=300,
        audio_length_samples=recording.samples,
    )
    long_enough = [run for run in found if run["end"] - run["start"] >= 2 * SAMPLE_RATE_HZ]
    return [cut for run in long_enough for cut in halved(run["start"], run["end"])]


def silero(recording: Labelled) -> list[Cut]:
    """Return the segments of Silero's rule with its best parameters on these labels."""
    found = get_speech_timestamps_from_probs(
        recording.probabilities.tolist(),
        threshold=0.2,
        min_silence_duration_ms=800,
        speech_pad_ms=200,
        max_speech_duration_s=30,
        audio_length_samples=recording.samples,
    )
    ends = [run["start"] for run in found[1:]] + [-1]
    return [Cut(run["start"], run["end"], run["end"] == following) for run, following in zip(found, ends, strict=True)]


def halved(start: int, end: int) -> list[Cut]:
    """Halve a run until its parts fit."""
    if end - start <= LONGEST:
        return [Cut(start, end, forced=False)]
    middle = (start + end) // 2
    left = halved(start, middle)
    return [*left[:-1], Cut(left[-1].start, middle, forced=True), *halved(middle, end)]


def load(path: Path, network: Network) -> Labelled:
    """Decode a recording, and read its labels from the file beside it, if it exists."""
    labels = path.with_name(f"{path.stem}.speech.csv")
    fd = os.open(path, os.O_RDONLY)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            decode(fd, Tools(Path(folder), network, SplitLimits(), Stopwatch())) as decoded,
        ):
            return Labelled(decoded.probabilities, decoded.samples, read_labels(labels) if labels.exists() else [])
    finally:
        os.close(fd)


def read_labels(path: Path) -> list[tuple[float, float]]:
    """Return the starts and ends of speech, in s."""
    with path.open() as file:
        return [(float(row["start_s"]), float(row["end_s"])) for row in csv.DictReader(file)]


def scores(rule: Rule, labelled: list[Labelled], readings: list[Labelled]) -> Row:
    """Measure a rule: kept speech and purity on the labels, cuts and lengths on the long readings."""
    kept = spoken = cut_out = 0
    for recording in labelled:
        speech, inside = np.zeros((2, recording.samples), np.bool_)
        for start_s, end_s in recording.labels:
            speech[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)] = True
        for cut in rule(recording):
            inside[cut.start : cut.end] = True
        kept += int((speech & inside).sum())
        spoken += int(speech.sum())
        cut_out += int(inside.sum())
    lengths, forced = [], []
    for reading in readings:
        cuts = rule(reading)
        lengths += [(cut.end - cut.start) / SAMPLE_RATE_HZ for cut in cuts]
        forced += [reading.probabilities[cut.end // FRAME_SAMPLES] >= SPEECH for cut in cuts if cut.forced]
    p5, p25, p50, p75, p95 = np.percentile(lengths, [5, 25, 50, 75, 95]).round(1).tolist()
    return {
        "kept": round(kept / spoken, 3),
        "purity": round(kept / cut_out, 3),
        "segments": len(lengths),
        "forced_cuts": len(forced),
        "in_speech": int(sum(forced)),
        "p5_s": p5,
        "p25_s": p25,
        "p50_s": p50,
        "p75_s": p75,
        "p95_s": p95,
    }


def table(rows: dict[str, Row]) -> Iterator[str]:
    """Yield the lines of a table of the scores."""
    names = list(next(iter(rows.values())))
    yield " ".join([f"{'':24}", *(f"{name:>{len(name) + 2}}" for name in names)])
    for rule, row in rows.items():
        yield " ".join([f"{rule:24}", *(f"{row[name]:>{len(name) + 2}}" for name in names)])


def main() -> int:
    """Compare the rules."""
    default = Path(__file__).parents[2] / "shared" / "data" / "dev"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STT_TEST_DATA", default)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.data / "vad_labelled").is_dir():
        print(f"{options.data} has no folder vad_labelled: give its parent folder with --data", file=sys.stderr)
        return 0
    network = load_network()
    labelled = [load(path, network) for path in sorted((options.data / "vad_labelled").rglob("*.wav"))]
    readings = [load(path, network) for path in sorted((options.data / "long").iterdir())]
    rules: dict[str, Rule] = {"today's practice": practice, "Silero's rule, its best": silero, "stt_async": stt_async}
    rows = {name: scores(rule, labelled, readings) for name, rule in rules.items()}
    print(json.dumps(rows) if options.json else "\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
