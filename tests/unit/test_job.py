"""Jobs: parsed from the body of a message, and validated."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_async.errors import PermanentError
from stt_async.job import (
    MAX_BODY_BYTES,
    MAX_KEY_BYTES,
    MAX_METADATA_BYTES,
    MAX_PREFIX_BYTES,
    MAX_REASON_CHARACTERS,
    SplitJob,
    parse_split_job,
    split_job_id,
)
from stt_async.params import SplitParams

FLAT: dict[str, Any] = {
    "job_id": "split-1",
    "source_type": "minio",
    "source_bucket": "audio",
    "source_key": "amdo/001.mp3",
    "source_size": 4000,
    "source_etag": "e1",
    "output_bucket": "out",
    "output_prefix": "amdo/001.mp3",
    "max_duration": 30,
    "metadata": {"speaker": "ལྷ་མོ", "age": None},
}
OLDER: dict[str, Any] = {
    "job_id": "split-1",
    "raw_audio_path": "audio/amdo/001.mp3",
    "output_prefix": "amdo/001.mp3",
    "metadata": {"speaker": "ལྷ་མོ"},
}


def parsed(body: str) -> SplitJob:
    return parse_split_job(body, output_bucket="out", source_buckets={"audio", "other"})


def reason(body: str) -> str:
    """Return the reason for which the body is refused."""
    with pytest.raises(PermanentError) as caught:
        parsed(body)
    assert caught.value.code == "invalid_job"
    return caught.value.message


def flat(**changes: Any) -> str:
    return json.dumps({**FLAT, **changes})


def without(name: str) -> str:
    return json.dumps({field: value for field, value in FLAT.items() if field != name})


def test_flat_form_is_parsed_unchanged() -> None:
    job = parsed(flat())
    assert job.model_dump() == {**FLAT, "output_prefix": "amdo/001.mp3/", "replace": False}
    assert job.recording == "audio/amdo/001.mp3"


def test_older_form_means_minio_and_the_configured_bucket() -> None:
    job = parsed(json.dumps(OLDER))
    assert (job.source_type, job.source_bucket, job.source_key) == ("minio", "audio", "amdo/001.mp3")
    assert (job.output_bucket, job.output_prefix) == ("out", "amdo/001.mp3/")
    assert job.metadata == OLDER["metadata"]
    assert (job.source_size, job.source_etag, job.max_duration, job.replace) == (None, None, None, False)


@pytest.mark.parametrize(
    "missing", ["source_type", "source_size", "source_etag", "output_bucket", "max_duration", "metadata"]
)
def test_optional_fields_may_be_missing(missing: str) -> None:
    assert parsed(without(missing)).source_key == "amdo/001.mp3"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param("not json", "not JSON", id="not JSON"),
        pytest.param("", "not JSON", id="empty"),
        pytest.param('{"job_id": "a"', "not JSON", id="cut off"),
        pytest.param("\ufeff" + flat(), "not JSON", id="byte order mark"),
        pytest.param("[]", "valid dictionary", id="array"),
        pytest.param("null", "valid dictionary", id="null"),
        pytest.param('"audio/001.mp3"', "valid dictionary", id="string"),
        pytest.param(flat(metadata={"note": "x" * MAX_BODY_BYTES}), f"{MAX_BODY_BYTES} is the most", id="too long"),
        pytest.param("ཀ" * (MAX_BODY_BYTES // 2), f"{MAX_BODY_BYTES} is the most", id="too long in UTF-8"),
        pytest.param(flat(max_duration=float("nan")), "NaN is not a JSON number", id="NaN"),
        pytest.param(flat(max_duration=float("-inf")), "-Infinity is not a JSON number", id="-Infinity"),
        pytest.param('{"source_size": 1' + "0" * 5000 + "}", "not JSON", id="a number of 5000 digits"),
        pytest.param("[" * 60_000, "not JSON", id="deep arrays"),
        pytest.param('{"a":' * 10_000, "not JSON", id="deep objects"),
        pytest.param('{"job_id": "a", "job_id": "b"}', "same name twice", id="a name twice"),
        pytest.param(
            flat()[:-1] + ', "metadata": {"x": {"y": 1, "y": 2}}}', "same name twice", id="a name twice, deeper"
        ),
    ],
)
def test_malformed_message_is_refused(body: str, why: str) -> None:
    assert why in reason(body)


@pytest.mark.parametrize("missing", ["job_id", "source_bucket", "source_key", "output_prefix"])
def test_missing_field_is_named(missing: str) -> None:
    assert reason(without(missing)) == f"{missing}: Field required"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job_id", ""),
        ("job_id", 7),
        ("job_id", "x" * 201),
        ("job_id", "a\nb"),
        ("job_id", "\x1b[2J"),
        ("job_id", "\ud800"),
        ("source_type", "url"),
        ("source_type", None),
        ("source_bucket", ""),
        ("source_bucket", ["audio"]),
        ("source_bucket", "not-allowed"),
        ("source_key", ""),
        ("source_key", "a\x00b"),
        ("source_key", "a\u202egpj.mp3"),
        ("source_key", "ཀ" * (MAX_KEY_BYTES // 3 + 1)),
        ("source_size", -1),
        ("source_size", "4000"),
        ("source_size", 4000.0),
        ("source_size", True),
        ("source_etag", 7),
        ("source_etag", "x" * 201),
        ("output_bucket", "another"),
        ("output_bucket", ""),
        ("output_prefix", ""),
        ("output_prefix", "/"),
        ("output_prefix", "/a"),
        ("output_prefix", "a//b"),
        ("output_prefix", "a//"),
        ("output_prefix", "a/./b"),
        ("output_prefix", "../b"),
        ("output_prefix", "a/.."),
        ("output_prefix", "releases"),
        ("output_prefix", "releases/x"),
        ("output_prefix", "failures/x/"),
        ("output_prefix", "a\tb"),
        ("output_prefix", "a\u2066b"),
        ("output_prefix", "x" * (MAX_PREFIX_BYTES + 1)),
        ("max_duration", 1.99),
        ("max_duration", 60.01),
        ("max_duration", "30"),
        ("max_duration", True),
        ("metadata", []),
        ("metadata", {"note": "x" * MAX_METADATA_BYTES}),
        ("metadata", {"huge": 2**70}),
        ("metadata", {"lone": "\udc00"}),
        ("replace", 1),
        ("replace", "true"),
    ],
)
def test_invalid_field_is_named(field: str, value: object) -> None:
    assert reason(flat(**{field: value})).startswith(f"{field}: ")


@pytest.mark.parametrize("field", ["output_bucket", "source_bucket"])
def test_reason_does_not_repeat_a_whole_foreign_name(field: str) -> None:
    why = reason(flat(**{field: "x" * 50_000}))
    assert why.startswith(f"{field}: ")
    assert len(why) <= MAX_REASON_CHARACTERS


def test_unknown_field_is_named() -> None:
    assert reason(flat(source_url="http://169.254.169.254/")).startswith("source_url: ")


def test_reason_lists_all_errors() -> None:
    why = reason(flat(job_id="", source_size=-1))
    assert "job_id: " in why
    assert "source_size: " in why


def test_reason_has_a_limit() -> None:
    body = json.dumps({**FLAT, **{f"f{n}": 0 for n in range(4000)}})
    assert len(body) < MAX_BODY_BYTES
    assert len(reason(body)) <= MAX_REASON_CHARACTERS


def test_number_that_overflows_to_infinity_is_refused() -> None:
    assert reason(flat(metadata={"x": 1}).replace('{"x": 1}', '{"x": 1e999}')).startswith("metadata: ")


@pytest.mark.parametrize(
    ("path", "why"),
    [("no-slash", "not BUCKET/KEY"), (7, "not BUCKET/KEY"), ("audio/", "source_key: "), ("/key", "source_bucket: ")],
)
def test_raw_audio_path_without_an_object_is_refused(path: object, why: str) -> None:
    assert why in reason(json.dumps({**OLDER, "raw_audio_path": path}))


@pytest.mark.parametrize("field", ["source_type", "source_bucket", "source_key"])
def test_both_forms_in_one_message_are_refused(field: str) -> None:
    assert field in reason(json.dumps({**OLDER, field: FLAT[field]}))


def test_older_form_may_name_allowed_buckets_only() -> None:
    assert reason(json.dumps({**OLDER, "raw_audio_path": "secret/key"})).startswith("source_bucket: ")


KEYS = [
    "amdo/བཀྲ་ཤིས་ བདེ་ལེགས།.flac",
    "a b+c%2F&=?#.mp3",
    "%E0%BD%80.wav",
    "e\u0301 decomposed/\u00e9 composed.ogg",
    "x" * MAX_PREFIX_BYTES,
    "a.mp3/a.mp3",
    "rtl \u05d0\u05d1.mp3",
    "emoji 🎙️.m4a",
]


@pytest.mark.parametrize("key", KEYS, ids=ascii)
@pytest.mark.parametrize("form", ["flat", "older"])
def test_any_valid_key_is_parsed_unchanged(key: str, form: str) -> None:
    fields = {**FLAT, "source_key": key} if form == "flat" else {**OLDER, "raw_audio_path": f"audio/{key}"}
    for ensure_ascii in (True, False):
        job = parsed(json.dumps({**fields, "output_prefix": key}, ensure_ascii=ensure_ascii))
        assert job.source_key == key
        assert job.output_prefix == f"{key}/"
        assert parsed(job.body()) == job


_ANY = st.characters(exclude_categories=["Cs"])
_VISIBLE = st.characters(
    exclude_categories=["Cc", "Cs"], exclude_characters="\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
_NAMES = st.text(_VISIBLE, min_size=1, max_size=60)
_PARTS = st.text(_VISIBLE, min_size=1, max_size=20).filter(lambda part: "/" not in part and part not in {".", ".."})
_PREFIXES = (
    st.lists(_PARTS, min_size=1, max_size=4)
    .filter(lambda parts: parts[0] not in {"releases", "failures"})
    .map("/".join)
)
_NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
_FIELDS = st.text(_ANY, max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.text(_ANY),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_FIELDS, inner, max_size=4),
    max_leaves=12,
)
_JOBS = st.builds(
    SplitJob,
    job_id=_NAMES,
    source_type=st.sampled_from(["minio", "s3"]),
    source_bucket=st.sampled_from(["audio", "other"]),
    source_key=_NAMES,
    source_size=st.none() | st.integers(0, 2**63),
    source_etag=st.none() | st.text(_ANY, max_size=40),
    output_bucket=st.just("out"),
    output_prefix=_PREFIXES,
    max_duration=st.none() | st.floats(2, 60),
    metadata=st.dictionaries(_FIELDS, _JSON, max_size=4),
    replace=st.booleans(),
)


@given(_JOBS)
def test_body_parses_to_the_job_it_was_made_from(job: SplitJob) -> None:
    assert parsed(job.body()) == job


@given(
    st.dictionaries(
        st.sampled_from([*FLAT, "raw_audio_path", "replace", "extra"]), _JSON | st.sampled_from(list(FLAT.values()))
    )
)
def test_any_fields_are_a_job_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        job = parsed(json.dumps({**FLAT, **fields}))
    except PermanentError:
        return
    assert parsed(job.body()) == job


@given(st.text())
def test_any_text_is_refused_with_a_reason(body: str) -> None:
    assert reason(body)


def test_job_id_depends_on_recording_and_parameters() -> None:
    usual = split_job_id("audio", "a.mp3", SplitParams())
    assert split_job_id("audio", "a.mp3", SplitParams()) == usual
    others = [
        split_job_id("other", "a.mp3", SplitParams()),
        split_job_id("audio", "a.wav", SplitParams()),
        split_job_id("audio", "a.mp3", SplitParams(threshold=0.4)),
        split_job_id("audioa", ".mp3", SplitParams()),
    ]
    assert len({usual, *others}) == len(others) + 1


def test_max_duration_of_a_job_overrides_the_settings() -> None:
    defaults = SplitParams(max_speech_duration_s=20.0, threshold=0.7)
    assert parsed(without("max_duration")).params(defaults) == defaults
    assert parsed(flat(max_duration=30)).params(defaults) == SplitParams(max_speech_duration_s=30.0, threshold=0.7)
    assert parsed(flat(max_duration=20)).params(defaults).digest() == defaults.digest()


def test_max_duration_that_contradicts_the_settings_is_refused() -> None:
    with pytest.raises(PermanentError, match="max_duration") as caught:
        parsed(flat(max_duration=2)).params(SplitParams(min_segment_duration_s=5.0))
    assert caught.value.code == "invalid_job"
