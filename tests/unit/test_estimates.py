"""Estimates of time and scratch space, from the jobs done before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.params import SplitLimits
from stt_async.worker.estimates import (
    ENOUGH,
    LAST,
    PER_SOURCE_BYTE,
    UNKNOWN_SOURCE_BYTES,
    Estimates,
    JobCost,
    SplitRate,
)

HOUR_S = 3600
PCM_BYTES_S = 32_000


def estimates(*jobs: tuple[str, int, float, float]) -> Estimates:
    """Estimates after jobs of (key, source bytes, busy s, waited s)."""
    made = Estimates(SplitLimits())
    for key, source_bytes, busy_s, waited_s in jobs:
        made.add(key, JobCost(source_bytes, scratch_bytes=0, busy_s=busy_s, waited_s=waited_s))
    return made


def took(source_bytes: int, scratch_bytes: int) -> JobCost:
    return JobCost(source_bytes, scratch_bytes, busy_s=1.0, waited_s=0.0)


@pytest.mark.parametrize(
    ("key", "bytes_s"), [("a.mp3", 8_000), ("a.opus", 2_000), ("a.M4A", 2_000), ("a.ogg", 2_000), ("a.wav", 16_000)]
)
def test_usual_recordings_fit_before_anything_is_known(key: str, bytes_s: int) -> None:
    took_bytes = (bytes_s + PCM_BYTES_S + PCM_BYTES_S / 2) * HOUR_S
    assert estimates().scratch_bytes_needed(key, bytes_s * HOUR_S) >= took_bytes


def test_larger_scratch_use_raises_the_estimate_of_its_suffix_only() -> None:
    known = estimates()
    known.add("a.mp3", took(1_000, 63_000))
    assert known.scratch_bytes_needed("b.mp3", 1_000) == 63_000
    assert known.scratch_bytes_needed("b.wav", 1_000) == PER_SOURCE_BYTE * 1_000


def test_outlier_is_forgotten_after_enough_jobs() -> None:
    known = estimates()
    for scratch_bytes in [330_000] + LAST * [3_000]:
        known.add("a.mp3", took(1_000, scratch_bytes))
    assert known.scratch_bytes_needed("b.mp3", 1_000) == PER_SOURCE_BYTE * 1_000


def test_unknown_size_is_assumed() -> None:
    assert estimates().scratch_bytes_needed("a.mp3", None) == UNKNOWN_SOURCE_BYTES * PER_SOURCE_BYTE


@given(st.integers(1, 10**12), st.sampled_from(["a.mp3", "a.opus", "a"]))
def test_scratch_estimate_never_exceeds_the_limits(source_bytes: int, key: str) -> None:
    known = Estimates(SplitLimits(max_decoded_s=HOUR_S))
    assert known.scratch_bytes_needed(key, source_bytes) <= source_bytes + 2 * HOUR_S * PCM_BYTES_S


def test_time_is_work_by_size_plus_the_usual_wait() -> None:
    known = estimates(*[("a.mp3", 1000, 2.0, 5.0)] * ENOUGH)
    assert known.seconds_needed("b.mp3", 3000) == 3 * 2.0 + 5.0


def test_each_suffix_has_its_own_rate() -> None:
    known = estimates(*[("a.mp3", 1000, 2.0, 0.0)] * ENOUGH, *[("a.WAV", 1000, 0.1, 0.0)] * ENOUGH)
    assert known.seconds_needed("b.MP3", 1000) == 2.0
    assert known.seconds_needed("b.flac", 1000) is None


def test_time_is_unknown_without_enough_jobs_or_a_size() -> None:
    assert estimates().seconds_needed("a.mp3", 1000) is None
    assert estimates(*[("a.mp3", 1000, 2.0, 0.0)] * (ENOUGH - 1)).seconds_needed("b.mp3", 1) is None
    assert estimates(*[("a.mp3", 1000, 2.0, 0.0)] * ENOUGH).seconds_needed("b.mp3", None) is None
    assert estimates(*[("a.mp3", 0, 2.0, 0.0)] * ENOUGH).seconds_needed("b.mp3", 1) is None


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e4), st.floats(0, 1e4)), min_size=ENOUGH),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)
def test_larger_recording_never_takes_less_time(jobs: list[tuple[int, float, float]], one: int, other: int) -> None:
    known = estimates(*[("a.mp3", *job) for job in jobs])
    smaller, larger = (known.seconds_needed("b.mp3", size) for size in sorted((one, other)))
    assert smaller is not None
    assert larger is not None
    assert 0 <= smaller <= larger


@pytest.mark.parametrize(
    ("source_bytes", "bytes_s", "expected_s"),
    [
        (1_000, None, 600.0),  # the minimum
        (100_000_000, 1e9, 600.0),
        (100_000_000, 1e6, 2_000.0),  # twenty times the expected time
        (100_000_000, None, 12_500.0),  # nothing measured: a slow machine is assumed
        (10**12, 1e6, 21_600.0),  # the job timeout
    ],
)
def test_split_timeout_follows_the_size(source_bytes: int, bytes_s: float | None, expected_s: float) -> None:
    rate = SplitRate(21_600.0)
    if bytes_s is not None:
        rate.add(int(bytes_s), 1.0)
    assert rate.timeout_s(source_bytes) == expected_s
