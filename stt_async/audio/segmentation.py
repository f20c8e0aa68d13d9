"""Turns speech probabilities into segments: runs of speech, joined across short pauses, padded, cut if too long."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stt_async.audio.cuts import cut_points, runs
from stt_async.audio.stream import FRAME_SAMPLES, Probabilities
from stt_async.manifest import EndReason
from stt_async.params import SAMPLE_RATE_HZ, SplitParams

Bounds = NDArray[np.int64]
"""(n, 2): start and exclusive end of each run, ascending and disjoint, in samples."""


class Span(NamedTuple):
    """A planned segment, in samples of the recording; `end` is exclusive."""

    start: int
    end: int
    end_reason: EndReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The planned segments. Each run of speech is in `spans` or counted as dropped."""

    spans: list[Span]
    speech_samples: int
    dropped_samples: int
    dropped_runs: int


def plan(probabilities: Probabilities, samples: int, params: SplitParams) -> Plan:
    """Plan the segments of a recording of `samples` samples from its probabilities (one per 512 samples)."""
    speech = speech_runs(probabilities, samples, params)
    groups = _join(speech, params)
    groups = groups[groups[:, 1] - groups[:, 0] >= _samples(params.min_speech_duration_ms)]
    padded = _widen(_pad(groups, samples, params), samples, params)
    fits = padded[:, 1] - padded[:, 0] >= _shortest(params)
    spans = [span for start, end in padded[fits] for span in _cut(probabilities, int(start), int(end), samples, params)]
    lengths = speech[:, 1] - speech[:, 0]
    inside = _is_in(speech, groups[fits])
    return Plan(
        spans=spans,
        speech_samples=int(lengths[inside].sum()),
        dropped_samples=int(lengths[~inside].sum()),
        dropped_runs=int((~inside).sum()),
    )


def speech_runs(probabilities: Probabilities, samples: int, params: SplitParams) -> Bounds:
    """Return the runs of speech, without padding.

    As in Silero, a run starts at a frame of at least `threshold`. It ends at the first frame below `neg_threshold`
    that no frame of at least `threshold` follows within `min_silence_duration_ms`.
    """
    starting = probabilities >= params.threshold
    clear = starting | (probabilities < params.neg_threshold)
    latest = np.maximum.accumulate(np.where(clear, np.arange(len(probabilities)), -1))
    starts, ends = runs(starting[latest] & (latest >= 0))
    bounds = np.stack((starts, ends), 1) * FRAME_SAMPLES
    bounds[:, 1] = np.minimum(bounds[:, 1], samples)
    gaps = bounds[1:, 0] - bounds[:-1, 1]
    return _merge(bounds, gaps < _samples(params.min_silence_duration_ms))


def _join(speech: Bounds, params: SplitParams) -> Bounds:
    """Join neighbours, the closest first, while the result is no longer than `target_duration_s`.

    A run that would be dropped alone may be joined up to `max_speech_duration_s`.
    """
    if not len(speech):
        return speech
    pad = 2 * _samples(params.speech_pad_ms)
    longest = int(params.max_speech_duration_s * SAMPLE_RATE_HZ) - pad
    target = min(int(params.target_duration_s * SAMPLE_RATE_HZ) - pad, longest)
    shortest = _samples(params.min_speech_duration_ms)
    gaps = speech[1:, 0] - speech[:-1, 1]
    joined = np.zeros(len(gaps), np.bool_)
    # A group is identified by its outer runs: first_of[last] and last_of[first].
    first_of, last_of = np.arange(len(speech)), np.arange(len(speech))
    for gap in np.argsort(gaps, kind="stable"):
        if gaps[gap] > _samples(params.max_join_pause_ms):
            break
        first, last = first_of[gap], last_of[gap + 1]
        alone = min(speech[gap, 1] - speech[first, 0], speech[last, 1] - speech[gap + 1, 0])
        if speech[last, 1] - speech[first, 0] <= (target if alone >= shortest else longest):
            joined[gap] = True
            last_of[first], first_of[last] = last, first
    return _merge(speech, joined)


def _pad(groups: Bounds, samples: int, params: SplitParams) -> Bounds:
    """Widen each group by `speech_pad_ms` on both sides; neighbours closer than two pads meet halfway.

    A group gets less padding if the padding alone would make it too long.
    """
    padded = groups.copy()
    if not len(groups):
        return padded
    pad = _samples(params.speech_pad_ms)
    gaps = groups[1:, 0] - groups[:-1, 1]
    left = np.concatenate(([groups[0, 0]], gaps - gaps // 2))
    right = np.concatenate((gaps // 2, [samples - groups[-1, 1]]))
    left, right = np.minimum(left, pad), np.minimum(right, pad)
    longest = int(params.max_speech_duration_s * SAMPLE_RATE_HZ)
    lengths = groups[:, 1] - groups[:, 0]
    room = longest - lengths
    too_much = (room >= 0) & (left + right > room)
    left[too_much] = np.minimum(left, room // 2)[too_much]
    right[too_much] = np.minimum(right, room - left)[too_much]
    padded[:, 0] -= left
    padded[:, 1] += right
    return padded


def _widen(padded: Bounds, samples: int, params: SplitParams) -> Bounds:
    """Widen groups below `min_segment_duration_s` by the silence around them, if that is enough."""
    limits = np.concatenate(([0], padded.ravel(), [samples]))
    for index in np.flatnonzero(padded[:, 1] - padded[:, 0] < _shortest(params)):
        before, start, end, after = limits[2 * index : 2 * index + 4]
        missing = _shortest(params) - (end - start)
        left = max(min(missing // 2, start - before), missing - (after - end))
        if left <= start - before:
            limits[2 * index + 1 : 2 * index + 3] = start - left, end + missing - left
    return limits[1:-1].reshape(-1, 2)


def _cut(probabilities: Probabilities, start: int, end: int, samples: int, params: SplitParams) -> list[Span]:
    edges = [start, *cut_points(probabilities, start, end, params), end]
    last: EndReason = "end" if end == samples else "silence"
    spans = [Span(left, right, "max_duration") for left, right in pairwise(edges)]
    return [*spans[:-1], spans[-1]._replace(end_reason=last)]


def _shortest(params: SplitParams) -> int:
    return int(min(params.min_segment_duration_s, params.max_speech_duration_s / 2) * SAMPLE_RATE_HZ)


def _samples(milliseconds: float) -> int:
    return int(milliseconds * SAMPLE_RATE_HZ / 1000)


def _merge(bounds: Bounds, joined: NDArray[np.bool_]) -> Bounds:
    """Merge each run with the next one where `joined` is true."""
    if not len(bounds):
        return bounds
    return np.stack((bounds[np.r_[True, ~joined], 0], bounds[np.r_[~joined, True], 1]), 1)


def _is_in(speech: Bounds, groups: Bounds) -> NDArray[np.bool_]:
    """Return for each run whether it is in one of the groups."""
    at = np.searchsorted(groups[:, 0], speech[:, 0], "right") - 1
    inside: NDArray[np.bool_] = at >= 0
    inside[inside] = speech[inside, 0] < groups[at[inside], 1]
    return inside
