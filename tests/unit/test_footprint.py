"""What a recording takes on disk is not underestimated, whatever its bit rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.params import SplitLimits
from stt_async.worker.footprint import PER_SOURCE_BYTE, UNKNOWN_SOURCE_BYTES, Footprints
from stt_async.worker.rates import LAST

HOUR_S = 3600
PCM_BYTES_S = 32_000


def footprints() -> Footprints:
    return Footprints(SplitLimits())


@pytest.mark.parametrize(
    ("key", "bytes_s"), [("a.mp3", 8_000), ("a.opus", 2_000), ("a.M4A", 2_000), ("a.ogg", 2_000), ("a.wav", 16_000)]
)
def test_usual_recordings_fit_from_the_first(key: str, bytes_s: int) -> None:
    took_bytes = (bytes_s + PCM_BYTES_S + PCM_BYTES_S / 2) * HOUR_S
    assert footprints().bytes_needed(key, bytes_s * HOUR_S) >= took_bytes


def test_recordings_that_took_more_raise_the_estimate_for_their_kind_alone() -> None:
    known = footprints()
    known.add("a.mp3", source_bytes=1_000 * HOUR_S, decoded_s=HOUR_S, segment_bytes=30_000 * HOUR_S)
    assert known.bytes_needed("b.mp3", 1_000) == 63_000
    assert known.bytes_needed("b.wav", 1_000) == PER_SOURCE_BYTE * 1_000


def test_an_odd_one_is_forgotten() -> None:
    known = footprints()
    for bytes_s in [100] + LAST * [16_000]:
        known.add("a.mp3", source_bytes=bytes_s * HOUR_S, decoded_s=HOUR_S, segment_bytes=0)
    assert known.bytes_needed("b.mp3", 1_000) == PER_SOURCE_BYTE * 1_000


def test_the_size_of_an_unknown_recording_is_assumed() -> None:
    assert footprints().bytes_needed("a.mp3", None) == UNKNOWN_SOURCE_BYTES * PER_SOURCE_BYTE


@given(st.integers(1, 10**12), st.sampled_from(["a.mp3", "a.opus", "a"]))
def test_none_is_thought_to_take_more_than_it_can(source_bytes: int, key: str) -> None:
    limits = SplitLimits(max_decoded_s=HOUR_S)
    assert Footprints(limits).bytes_needed(key, source_bytes) <= source_bytes + 2 * HOUR_S * PCM_BYTES_S
