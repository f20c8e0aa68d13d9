"""Segments against labels and against today's practice: kept speech, purity, forced cuts, lengths.

    python bench/segments.py [--data FOLDER] [--json]

Today's practice: `get_speech_timestamps` (threshold 0.3, silence 800 ms, pad 300 ms), runs under 2 s dropped, what is
longer than 30 s halved until it fits.
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
    """A segment in samples, and whether its end was forced."""

    start: int
    end: int
    forced: bool


@dataclass(frozen=True)
class Heard:
    """A recording as the VAD heard it, with its labels in s if it has any."""

    probabilities: Probabilities
    samples: int
    labels: list[tuple[float, float]]


Row = dict[str, float | int]
Rule = Callable[[Heard], list[Cut]]


def ours(heard: Heard) -> list[Cut]:
    """Return this project's segments, with its defaults."""
    spans = plan(heard.probabilities, heard.samples, SplitParams()).spans
    return [Cut(span.start, span.end, span.end_reason == "max_duration") for span in spans]


def practice(heard: Heard) -> list[Cut]:
    """Return today's segments."""
    found = get_speech_timestamps_from_probs(
        heard.probabilities.tolist(),
        threshold=0.3,
        min_silence_duration_ms=800,
        speech_pad_ms=300,
        audio_length_samples=heard.samples,
    )
    long_enough = [run for run in found if run["end"] - run["start"] >= 2 * SAMPLE_RATE_HZ]
    return [cut for run in long_enough for cut in halved(run["start"], run["end"])]


def silero(heard: Heard) -> list[Cut]:
    """Return Silero's own at the best point of its rule on these labels."""
    found = get_speech_timestamps_from_probs(
        heard.probabilities.tolist(),
        threshold=0.2,
        min_silence_duration_ms=800,
        speech_pad_ms=200,
        max_speech_duration_s=30,
        audio_length_samples=heard.samples,
    )
    ends = [run["start"] for run in found[1:]] + [-1]
    return [Cut(run["start"], run["end"], run["end"] == following) for run, following in zip(found, ends, strict=True)]


def halved(start: int, end: int) -> list[Cut]:
    """Halve until it fits."""
    if end - start <= LONGEST:
        return [Cut(start, end, forced=False)]
    middle = (start + end) // 2
    left = halved(start, middle)
    return [*left[:-1], Cut(left[-1].start, middle, forced=True), *halved(middle, end)]


def hear(path: Path, network: Network) -> Heard:
    """Decode a recording and read its labels, if they lie beside it."""
    labels = path.with_name(f"{path.stem}.speech.csv")
    fd = os.open(path, os.O_RDONLY)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            decode(fd, Tools(Path(folder), network, SplitLimits(), Stopwatch())) as decoded,
        ):
            return Heard(decoded.probabilities, decoded.samples, read_labels(labels) if labels.exists() else [])
    finally:
        os.close(fd)


def read_labels(path: Path) -> list[tuple[float, float]]:
    """Read where speech lies, in s."""
    with path.open() as file:
        return [(float(row["start_s"]), float(row["end_s"])) for row in csv.DictReader(file)]


def scores(rule: Rule, labelled: list[Heard], readings: list[Heard]) -> Row:
    """Measure a rule: kept speech and purity on the labels, cuts and lengths on the long readings."""
    kept = spoken = cut_out = 0
    for heard in labelled:
        speech, inside = np.zeros((2, heard.samples), np.bool_)
        for start_s, end_s in heard.labels:
            speech[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)] = True
        for cut in rule(heard):
            inside[cut.start : cut.end] = True
        kept += int((speech & inside).sum())
        spoken += int(speech.sum())
        cut_out += int(inside.sum())
    lengths, forced = [], []
    for heard in readings:
        cuts = rule(heard)
        lengths += [(cut.end - cut.start) / SAMPLE_RATE_HZ for cut in cuts]
        forced += [heard.probabilities[cut.end // FRAME_SAMPLES] >= SPEECH for cut in cuts if cut.forced]
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
    """Lay the scores out in lines."""
    names = list(next(iter(rows.values())))
    yield " ".join([f"{'':24}", *(f"{name:>{len(name) + 2}}" for name in names)])
    for rule, row in rows.items():
        yield " ".join([f"{rule:24}", *(f"{row[name]:>{len(name) + 2}}" for name in names)])


def main() -> int:
    """Compare the rules."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "dev"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STT_TEST_DATA", beside)))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.data / "vad_labelled").is_dir():
        print(f"no labelled recordings in {options.data}: name their folder with --data", file=sys.stderr)
        return 0
    network = load_network()
    labelled = [hear(path, network) for path in sorted((options.data / "vad_labelled").rglob("*.wav"))]
    readings = [hear(path, network) for path in sorted((options.data / "long").iterdir())]
    rules: dict[str, Rule] = {"today's practice": practice, "Silero's rule, its best": silero, "stt_async": ours}
    rows = {name: scores(rule, labelled, readings) for name, rule in rules.items()}
    print(json.dumps(rows) if options.json else "\n".join(table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
