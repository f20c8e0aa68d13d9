"""Parameters and their digest."""

import random
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.params import SplitParams

FIELDS = [field.name for field in fields(SplitParams)]
_OTHER: dict[str, Any] = {"threshold": 0.5, "neg_threshold": 0.2, "format": "wav", "layout": "tar"}


def other(name: str) -> Any:
    """Return a value other than the default."""
    return _OTHER.get(name) or getattr(SplitParams(), name) + 1


@pytest.mark.parametrize("name", FIELDS)
def test_digest_changes_with_any_field(name: str) -> None:
    changed = replace(SplitParams(), **{name: other(name)})
    assert changed.digest() != SplitParams().digest()


@given(st.sets(st.sampled_from(FIELDS)), st.randoms())
def test_digest_depends_only_on_the_values(names: set[str], rng: random.Random) -> None:
    values = [(name, other(name)) for name in sorted(names)]
    shuffled = rng.sample(values, len(values))
    assert SplitParams(**dict(values)).digest() == SplitParams(**dict(shuffled)).digest()
    assert (SplitParams(**dict(values)).digest() == SplitParams().digest()) == (not names)


def test_digest_has_16_hex_digits() -> None:
    digest = SplitParams().digest()
    assert len(digest) == 16
    assert set(digest) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 1.0},
        {"threshold": 0.1},
        {"neg_threshold": 0.0},
        {"neg_threshold": 0.31},
        {"min_segment_duration_s": 0.0},
        {"min_segment_duration_s": 15.1},
        {"max_speech_duration_s": 1.9},
    ],
    ids=str,
)
def test_contradicting_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SplitParams(**values)  # type: ignore[arg-type]  # mypy expects the str of `format` and `layout`
