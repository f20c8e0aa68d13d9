"""Cuts a stretch of speech that is too long for one segment.

Dynamic programming chooses all cuts of a stretch together, among its pauses and the least probable frames between.
"""

import numpy as np
from numpy.typing import NDArray

from stt_async.audio.stream import FRAME_SAMPLES, Probabilities
from stt_async.params import SAMPLE_RATE_HZ, SplitParams

_CUT_COST = 0.2
"""Cost of any cut: fewer cuts are better."""

_HALVING_PAUSE_S = 0.2
"""A pause this long costs half of the shortest one: better to cut in a breath than in the closure of a consonant."""

_SPEECH_COST = 10.0
"""Cost of a cut outside a pause: higher than that of the cuts in pauses that could avoid it."""

_SHORT_COST, _SHORT_S = 1.0, 8.0
"""Cost of a part shorter than `_SHORT_S`: `_SHORT_COST`, times the square of the share that is missing."""

_COARSE_FRAMES = 31
"""Outside pauses, only the least probable frame of each second is considered: 12 h without a pause stay cheap."""

Positions = NDArray[np.int64]
Costs = NDArray[np.float64]


def cut_points(probabilities: Probabilities, start: int, end: int, params: SplitParams) -> list[int]:
    """Return where to cut the samples [start, end) so that each part is neither too long nor too short.

    Args:
        probabilities: One per frame of the whole recording.
        start: First sample of the stretch, padding included.
        end: The sample after the last one, padding included.
        params: `max_speech_duration_s` bounds each part; `threshold` and `min_silence_at_max_speech` define a pause.

    Returns:
        Sample positions, ascending, without `start` and `end`. Each is in the middle of a pause if the bounds allow
        that, else in the least probable frame.
    """
    longest = int(params.max_speech_duration_s * SAMPLE_RATE_HZ)
    if end - start <= longest:
        return []
    shortest = min(int(params.min_segment_duration_s * SAMPLE_RATE_HZ), longest // 2)
    places, costs = _places(probabilities, start, end, (longest - 2 * shortest) // (4 * FRAME_SAMPLES), params)
    chosen = _cheapest(places, costs, longest, shortest)
    return chosen or _even(start, end, longest)


def _places(
    probabilities: Probabilities, start: int, end: int, spare_frames: int, params: SplitParams
) -> tuple[Positions, Costs]:
    first, last = -(-start // FRAME_SAMPLES), min(end // FRAME_SAMPLES, len(probabilities))
    inside = probabilities[first:last]
    pause_starts, pause_ends = runs(inside < params.threshold)
    pause_s = (pause_ends - pause_starts) * FRAME_SAMPLES / SAMPLE_RATE_HZ
    long_enough = pause_s >= params.min_silence_at_max_speech / 1000
    pause_starts, pause_ends, pause_s = pause_starts[long_enough], pause_ends[long_enough], pause_s[long_enough]
    least = _least_probable(inside, min(max(spare_frames, 1), _COARSE_FRAMES))
    samples = np.concatenate(
        (
            [start],
            (2 * first + pause_starts + pause_ends) * FRAME_SAMPLES // 2,
            (first + least) * FRAME_SAMPLES + FRAME_SAMPLES // 2,
            [end],
        )
    )
    costs = np.concatenate(
        (
            [0.0],
            _CUT_COST + _HALVING_PAUSE_S / (_HALVING_PAUSE_S + pause_s),
            _CUT_COST + _SPEECH_COST * (1 + inside[least]),
            [0.0],
        )
    )
    order = np.argsort(samples, kind="stable")
    return samples[order].astype(np.int64), costs[order]


def _least_probable(probabilities: Probabilities, group: int) -> Positions:
    """Return the frame of the lowest probability in each group of frames."""
    filled = np.full(-(-len(probabilities) // group) * group, np.inf, np.float32)
    filled[: len(probabilities)] = probabilities
    least: Positions = filled.reshape(-1, group).argmin(1) + np.arange(0, len(filled), group)
    return least


def _cheapest(places: Positions, costs: Costs, longest: int, shortest: int) -> list[int]:
    total = np.full(len(places), np.inf)
    total[0] = 0.0
    before = np.zeros(len(places), np.int64)
    lows = np.searchsorted(places, places - longest, "left")
    highs = np.searchsorted(places, places - shortest, "right")
    for at in range(1, len(places)):
        low, high = lows[at], highs[at]
        if low >= high:
            continue
        missing = np.clip(1 - (places[at] - places[low:high]) / (_SHORT_S * SAMPLE_RATE_HZ), 0, None)
        reached = total[low:high] + _SHORT_COST * missing**2
        best = int(reached.argmin())
        total[at] = reached[best] + costs[at]
        before[at] = low + best
    if not np.isfinite(total[-1]):
        return []
    chosen, at = [], int(before[-1])
    while at:
        chosen.append(int(places[at]))
        at = int(before[at])
    return chosen[::-1]


def _even(start: int, end: int, longest: int) -> list[int]:
    parts = -(-(end - start) // longest)
    return [start + (end - start) * part // parts for part in range(1, parts)]


def runs(flags: NDArray[np.bool_]) -> tuple[Positions, Positions]:
    """Return the starts and the exclusive ends of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return edges[::2], edges[1::2]
