"""The rules of segmentation hold for any probabilities, and cuts are where a listener would put them."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stt_async.audio.cuts import cut_points
from stt_async.audio.segmentation import Plan, plan, speech_runs
from stt_async.audio.stream import FRAME_SAMPLES, Probabilities
from stt_async.params import SAMPLE_RATE_HZ, SplitParams

PARAMS = SplitParams()
FRAMES_PER_S = SAMPLE_RATE_HZ / FRAME_SAMPLES


def _stretches(*stretches: tuple[float, float]) -> Probabilities:
    """Return probabilities for (seconds, level) pairs."""
    return np.concatenate([np.full(round(s * FRAMES_PER_S), level, np.float32) for s, level in stretches])


def _plan(probabilities: Probabilities, params: SplitParams = PARAMS) -> Plan:
    return plan(probabilities, len(probabilities) * FRAME_SAMPLES, params)


levels = st.one_of(st.sampled_from([0.0, 0.1, 0.2, 0.29, 0.3, 0.6, 0.99, 1.0]), st.floats(0, 1, width=32))
stretches = st.lists(st.tuples(st.integers(1, 400), levels), min_size=1, max_size=30)
thresholds = st.tuples(st.floats(0.02, 0.9), st.floats(0.02, 0.9)).map(sorted)
params_of_all_kinds = st.builds(
    lambda levels, **others: SplitParams(neg_threshold=levels[0], threshold=levels[1], **others),
    thresholds,
    min_speech_duration_ms=st.integers(0, 1_000),
    min_silence_duration_ms=st.integers(0, 2_000),
    speech_pad_ms=st.integers(0, 1_000),
    max_speech_duration_s=st.floats(2, 40),
    min_silence_at_max_speech=st.integers(0, 500),
    max_join_pause_ms=st.integers(0, 5_000),
    target_duration_s=st.floats(0, 40),
    min_segment_duration_s=st.floats(0.2, 1),
)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Probabilities, int]:
    parts = draw(stretches)
    probabilities = np.concatenate([np.full(frames, level, np.float32) for frames, level in parts])
    noise = np.random.default_rng(draw(st.integers(0, 9))).normal(0, draw(st.sampled_from([0, 0.05, 0.3])), 1)
    probabilities = np.clip(probabilities + noise, 0, 1).astype(np.float32)
    return probabilities, len(probabilities) * FRAME_SAMPLES - draw(st.integers(0, FRAME_SAMPLES - 1))


@settings(max_examples=300, deadline=None)
@given(recordings(), st.one_of(st.just(PARAMS), params_of_all_kinds))
def test_segments_are_ordered_bounded_and_hold_all_speech_not_dropped(
    recording: tuple[Probabilities, int], params: SplitParams
) -> None:
    probabilities, samples = recording
    found = plan(probabilities, samples, params)
    edges = [edge for span in found.spans for edge in (span.start, span.end)]
    assert edges == sorted(edges)
    assert not edges or (edges[0] >= 0 and edges[-1] <= samples)
    for span in found.spans:
        assert int(params.min_segment_duration_s * SAMPLE_RATE_HZ) <= span.end - span.start
        assert span.end - span.start <= params.max_speech_duration_s * SAMPLE_RATE_HZ
    inside = np.zeros(samples, np.bool_)
    for span in found.spans:
        inside[span.start : span.end] = True
    speech = np.zeros(samples, np.bool_)
    bounds = speech_runs(probabilities, samples, params)
    for start, end in bounds:
        speech[start:end] = True
    assert found.speech_samples + found.dropped_samples == speech.sum()
    outside = [(start, end) for start, end in bounds if not inside[start:end].all()]
    assert len(outside) <= found.dropped_runs
    assert sum(end - start for start, end in outside) <= found.dropped_samples


@settings(max_examples=100, deadline=None)
@given(recordings())
def test_forced_cuts_leave_no_gap_and_no_overlap(recording: tuple[Probabilities, int]) -> None:
    probabilities, samples = recording
    found = plan(probabilities, samples, replace(PARAMS, max_speech_duration_s=5))
    for span, following in zip(found.spans, found.spans[1:], strict=False):
        if span.end_reason == "max_duration":
            assert span.end == following.start
    assert not found.spans or found.spans[-1].end_reason != "max_duration"


@settings(max_examples=100, deadline=None)
@given(recordings())
def test_speech_runs_start_and_end_at_silero_s_thresholds(recording: tuple[Probabilities, int]) -> None:
    probabilities, _ = recording
    for start, end in speech_runs(probabilities, len(probabilities) * FRAME_SAMPLES, PARAMS) // FRAME_SAMPLES:
        assert probabilities[start] >= PARAMS.threshold
        assert (probabilities[start:end] >= PARAMS.neg_threshold).any()
        assert start == 0 or probabilities[start - 1] < PARAMS.threshold
        assert end == len(probabilities) or probabilities[end] < PARAMS.neg_threshold


def test_silence_has_no_segments() -> None:
    assert _plan(_stretches((60, 0.01))) == Plan(spans=[], speech_samples=0, dropped_samples=0, dropped_runs=0)
    assert _plan(np.empty(0, np.float32)).spans == []


def test_speech_is_padded_on_both_sides_within_the_recording() -> None:
    (span,) = _plan(_stretches((2, 0.0), (4, 0.9), (2, 0.0))).spans
    pad = PARAMS.speech_pad_ms * 16
    assert span.start == pytest.approx(2 * SAMPLE_RATE_HZ - pad, abs=FRAME_SAMPLES)
    assert span.end == pytest.approx(6 * SAMPLE_RATE_HZ + pad, abs=FRAME_SAMPLES)
    assert span.end_reason == "silence"
    (whole,) = _plan(_stretches((4, 0.9))).spans
    assert (whole.start, whole.end, whole.end_reason) == (0, 4 * SAMPLE_RATE_HZ, "end")


def test_one_frame_over_the_maximum_makes_two_segments() -> None:
    frames = int(30 * FRAMES_PER_S)
    assert len(_plan(np.ones(frames, np.float32)).spans) == 1
    assert len(_plan(np.ones(frames + 1, np.float32)).spans) == 2


def test_padding_shrinks_before_speech_is_cut() -> None:
    spans = _plan(_stretches((2, 0.0), (29.7, 0.9), (2, 0.0))).spans
    assert len(spans) == 1
    assert spans[0].end - spans[0].start == 30 * SAMPLE_RATE_HZ


def test_short_run_is_joined_to_a_neighbour() -> None:
    found = _plan(_stretches((3, 0.0), (0.2, 0.9), (1.0, 0.0), (3, 0.9), (3, 0.0)))
    assert len(found.spans) == 1
    assert found.dropped_runs == 0


def test_lone_short_run_is_dropped_and_counted() -> None:
    found = _plan(_stretches((5, 0.0), (0.2, 0.9), (5, 0.0), (3, 0.9), (3, 0.0)))
    assert len(found.spans) == 1
    assert found.dropped_runs == 1
    assert found.dropped_samples == pytest.approx(0.2 * SAMPLE_RATE_HZ, abs=FRAME_SAMPLES)


def test_runs_are_not_joined_beyond_the_target() -> None:
    long_run = PARAMS.target_duration_s
    assert len(_plan(_stretches((long_run, 0.9), (1.2, 0.0), (long_run, 0.9))).spans) == 2


def test_short_run_is_joined_even_beyond_the_target() -> None:
    found = _plan(_stretches((PARAMS.target_duration_s + 5, 0.9), (1.2, 0.0), (0.2, 0.9), (5, 0.0)))
    assert len(found.spans) == 1
    assert found.dropped_runs == 0


def test_cut_is_in_the_pause_not_at_the_midpoint() -> None:
    probabilities = _stretches((12, 0.9), (0.3, 0.05), (25, 0.9))
    (cut,) = cut_points(probabilities, 0, len(probabilities) * FRAME_SAMPLES, PARAMS)
    assert 12 * SAMPLE_RATE_HZ < cut < 12.3 * SAMPLE_RATE_HZ


def test_cut_is_in_the_longer_of_two_pauses() -> None:
    probabilities = _stretches((15, 0.9), (0.15, 0.05), (5, 0.9), (0.5, 0.05), (18, 0.9))
    (cut,) = cut_points(probabilities, 0, len(probabilities) * FRAME_SAMPLES, PARAMS)
    assert 20.15 * SAMPLE_RATE_HZ < cut < 20.65 * SAMPLE_RATE_HZ


def test_cuts_are_chosen_together_not_greedily() -> None:
    # A greedy rule would cut at 29 s, the last pause before 30 s, and find none in the next 30 s. Better: 20 and 48 s.
    probabilities = _stretches((20, 0.9), (0.2, 0.05), (8.8, 0.9), (0.5, 0.05), (18.5, 0.9), (0.2, 0.05), (29, 0.9))
    probabilities[round(47.9 * FRAMES_PER_S) : round(48.3 * FRAMES_PER_S)] = 0.05
    cuts = cut_points(probabilities, 0, len(probabilities) * FRAME_SAMPLES, PARAMS)
    assert all(probabilities[cut // FRAME_SAMPLES] < 0.1 for cut in cuts)


def test_cut_without_a_pause_is_in_the_least_probable_frame() -> None:
    probabilities = _stretches((40, 0.9))
    weakest = round(17 * FRAMES_PER_S)
    probabilities[weakest] = 0.4
    (cut,) = cut_points(probabilities, 0, len(probabilities) * FRAME_SAMPLES, PARAMS)
    assert cut // FRAME_SAMPLES == weakest


def test_pause_under_98_ms_is_ignored() -> None:
    probabilities = _stretches((10, 0.9), (0.064, 0.01), (12, 0.9), (0.128, 0.2), (12, 0.9))
    (cut,) = cut_points(probabilities, 0, len(probabilities) * FRAME_SAMPLES, PARAMS)
    assert cut / SAMPLE_RATE_HZ == pytest.approx(22.1, abs=0.1)


def test_twelve_hours_of_speech_without_a_pause_are_cut() -> None:
    found = _plan(np.full(int(12 * 3600 * FRAMES_PER_S), 0.99, np.float32))
    assert found.speech_samples == found.spans[-1].end
    assert max(span.end - span.start for span in found.spans) <= 30 * SAMPLE_RATE_HZ
