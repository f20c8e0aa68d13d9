"""metadata.json: its schema, its names, and which jobs it matches."""

from typing import Any

import jsonschema
import orjson
import pytest

from stt_async.errors import PermanentError
from stt_async.manifest import Archive, Manifest, content_name, json_schema, shipped_json_schema
from stt_async.params import SplitParams
from tests.unit.fakes import a_job, a_manifest, a_recording, a_result, a_segment

NO_SPEECH = a_result(segments=(), speech_s=0.0)
TAR = a_result(
    segments=(a_segment(tar_offset=512),),
    archive=Archive(filename="segments-0a1b2c3d.tar", bytes=20_480, sha256="0a1b2c3d" + "0" * 56),
)
ODD = a_manifest(
    a_job(metadata={"speaker": "ལྷ་མོ", "nested": {"none": None, "list": [1, 2.5, True]}}, source_etag=None),
    a_result(recording=a_recording(declared_duration_s=None, truncated=True)),
    source_etag=None,
)
MANIFESTS = {
    "ok": a_manifest(),
    "no_speech": a_manifest(result=NO_SPEECH),
    "tar": a_manifest(result=TAR, params=SplitParams(layout="tar")),
    "odd": ODD,
}
every_kind = pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)


def written(manifest: Manifest) -> dict[str, Any]:
    data: dict[str, Any] = orjson.loads(manifest.to_json())
    return data


def test_shipped_schema_matches_the_code() -> None:
    assert shipped_json_schema() == json_schema()


@every_kind
def test_manifest_is_valid_by_the_shipped_schema(manifest: Manifest) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(written(manifest), shipped_json_schema(), format_checker=checker)


@pytest.mark.parametrize("name", ["job_id", "processed_at", "segments", "params_sha256", "recording"])
def test_manifest_without_a_required_field_is_invalid(name: str) -> None:
    data = written(a_manifest())
    del data[name]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, shipped_json_schema())


@every_kind
def test_manifest_survives_a_round_trip(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_fields_that_consumers_rely_on_come_first() -> None:
    data = written(a_manifest())
    assert list(data)[:9] == [
        "job_id",
        "source_bucket",
        "source_key",
        "output_bucket",
        "output_prefix",
        "processed_at",
        "total_segments",
        "max_segment_duration",
        "metadata",
    ]
    assert list(data["segments"][0])[:4] == ["filename", "start_sec", "end_sec", "duration_sec"]


def test_manifest_is_indented_utf_8() -> None:
    text = ODD.to_json().decode()
    assert text.endswith("}\n")
    assert '  "job_id": "split-1",\n' in text
    assert "ལྷ་མོ" in text


def test_manifest_repeats_the_job_the_result_and_the_parameters() -> None:
    params = SplitParams(max_speech_duration_s=20.0, format="wav")
    manifest = a_manifest(a_job(max_duration=20), params=params)
    assert (manifest.job_id, manifest.source_key) == ("split-1", "amdo/001.mp3")
    assert manifest.output_prefix == "amdo/001.mp3/"
    assert (manifest.total_segments, manifest.status) == (1, "ok")
    assert (manifest.max_segment_duration, manifest.format, manifest.layout) == (20.0, "wav", "objects")
    assert manifest.params_sha256 == params.digest()
    assert manifest.params["threshold"] == params.threshold
    assert a_manifest(result=NO_SPEECH).status == "no_speech"


def test_object_names_are_those_beside_the_manifest() -> None:
    assert MANIFESTS["ok"].object_names() == ["segment_00001-3fa9c2d1.flac"]
    assert MANIFESTS["tar"].object_names() == ["segments-0a1b2c3d.tar"]
    assert MANIFESTS["no_speech"].object_names() == []


@pytest.mark.parametrize(
    "data",
    [b"", b"not json", b"[]", b'{"job_id": "a"}', a_manifest().to_json().replace(b'"ok"', b'"well"'), b"\xff"],
    ids=["empty", "not JSON", "array", "other fields", "unknown status", "not UTF-8"],
)
def test_foreign_manifest_is_refused_with_advice(data: bytes) -> None:
    with pytest.raises(PermanentError, match='"replace": true') as caught:
        Manifest.from_json(data)
    assert caught.value.code == "foreign_manifest"


@pytest.mark.parametrize(
    ("manifest", "job", "params", "etag", "matches"),
    [
        pytest.param({}, {}, {}, "e1", True, id="same job"),
        pytest.param({}, {"job_id": "another"}, {}, "e1", True, id="another job id"),
        pytest.param({}, {"metadata": {"a": 1}}, {}, "e1", True, id="other metadata"),
        pytest.param({}, {"source_bucket": "other"}, {}, "e1", False, id="another bucket"),
        pytest.param({}, {"source_key": "other.mp3"}, {}, "e1", False, id="another key"),
        pytest.param({}, {}, {"threshold": 0.9}, "e1", False, id="other parameters"),
        pytest.param({}, {}, {"layout": "tar"}, "e1", False, id="another layout"),
        pytest.param({}, {}, {}, "e2", False, id="another ETag"),
        pytest.param({}, {}, {}, None, True, id="no ETag in the job"),
        pytest.param({"source_etag": None}, {}, {}, "e1", True, id="no ETag in the manifest"),
        pytest.param({"source_etag": None}, {}, {}, None, True, id="no ETag in either"),
        pytest.param({}, {"source_size": 4001}, {}, "e1", False, id="another size"),
        pytest.param({}, {"source_size": 4001}, {}, None, False, id="another size, no ETag"),
        pytest.param({}, {"source_size": None}, {}, "e1", True, id="no size in the job"),
    ],
)
def test_manifest_matches_jobs_that_would_have_the_same_result(
    manifest: dict[str, Any], job: dict[str, Any], params: dict[str, Any], etag: str | None, *, matches: bool
) -> None:
    assert a_manifest(**manifest).matches(a_job(**job), SplitParams(**params), source_etag=etag) is matches


def test_object_name_depends_on_its_content() -> None:
    assert content_name("segment_00001", "3fa9c2d1" + "0" * 56, "flac") == "segment_00001-3fa9c2d1.flac"
    assert content_name("segment_00001", "3fa9c2d2" + "0" * 56, "flac") == "segment_00001-3fa9c2d2.flac"
