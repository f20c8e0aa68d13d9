"""How long a job will take, from those before it."""

from hypothesis import given
from hypothesis import strategies as st

from stt_async.worker.rates import ENOUGH, Rates


def rates(*jobs: tuple[str, int, float, float]) -> Rates:
    made = Rates()
    for key, source_bytes, busy_s, waited_s in jobs:
        made.add(key, source_bytes=source_bytes, busy_s=busy_s, waited_s=waited_s)
    return made


def test_a_job_takes_its_share_of_work_and_the_usual_wait() -> None:
    known = rates(*[("a.mp3", 1000, 2.0, 5.0)] * ENOUGH)
    assert known.seconds_needed("b.mp3", 3000) == 3 * 2.0 + 5.0


def test_a_kind_of_its_own_is_measured_on_its_own() -> None:
    known = rates(*[("a.mp3", 1000, 2.0, 0.0)] * ENOUGH, *[("a.WAV", 1000, 0.1, 0.0)] * ENOUGH)
    assert known.seconds_needed("b.MP3", 1000) == 2.0
    assert known.seconds_needed("b.flac", 1000) is None


def test_little_is_known_at_first_and_of_what_does_not_tell_its_size() -> None:
    assert Rates().seconds_needed("a.mp3", 1000) is None
    assert rates(*[("a.mp3", 1000, 2.0, 0.0)] * (ENOUGH - 1)).seconds_needed("b.mp3", 1) is None
    assert rates(*[("a.mp3", 1000, 2.0, 0.0)] * ENOUGH).seconds_needed("b.mp3", None) is None
    assert rates(*[("a.mp3", 0, 2.0, 0.0)] * ENOUGH).seconds_needed("b.mp3", 1) is None


@given(
    st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1e4), st.floats(0, 1e4)), min_size=ENOUGH),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
)
def test_a_larger_recording_never_takes_less(jobs: list[tuple[int, float, float]], one: int, other: int) -> None:
    known = rates(*[("a.mp3", *job) for job in jobs])
    smaller, larger = (known.seconds_needed("b.mp3", size) for size in sorted((one, other)))
    assert smaller is not None
    assert larger is not None
    assert 0 <= smaller <= larger
