"""Settings: variables, precedence, and refused values."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from stt_async.errors import SettingsError
from stt_async.params import SplitLimits, SplitParams, VadParams
from stt_async.settings import Settings, load, usable_vcpus, variable, variables
from tests.support.recordings import ROOT

pytestmark = pytest.mark.usefixtures("bare_environment")


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("STT_MINIO_ENDPOINT", "localhost:9000", "minio_endpoint", "localhost:9000"),
        ("STT_MINIO_SECURE", "false", "minio_secure", False),
        ("STT_SOURCE_BUCKET", "a", "source_bucket", "a"),
        ("STT_OUTPUT_BUCKET", "b", "output_bucket", "b"),
        ("STT_SPLIT_QUEUE", "https://sqs/1/q", "split_queue", "https://sqs/1/q"),
        ("STT_SCRATCH_DIR", "/scratch", "scratch_dir", Path("/scratch")),
        ("STT_SCRATCH_MAX_BYTES", "1000", "scratch_max_bytes", 1000),
        ("STT_PROCESSES", "3", "processes", 3),
        ("STT_DOWNLOADS", "5", "downloads", 5),
        ("STT_UPLOADS", "6", "uploads", 6),
        ("STT_SLOTS", "700", "slots", 700),
        ("STT_VISIBILITY_TIMEOUT_S", "60", "visibility_timeout_s", 60),
        ("STT_DRAIN_TIMEOUT_S", "12.5", "drain_timeout_s", 12.5),
        ("STT_WAIT_TIME_S", "1", "wait_time_s", 1),
        ("STT_FORMAT", "wav", "format", "wav"),
        ("STT_LAYOUT", "tar", "layout", "tar"),
        ("AWS_REGION", "eu-central-1", "aws_region", "eu-central-1"),
        ("AWS_DEFAULT_REGION", "eu-west-1", "aws_region", "eu-west-1"),
    ],
)
def test_each_setting_has_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object
) -> None:
    assert getattr(load(), field) != expected
    monkeypatch.setenv(name, value)
    assert getattr(load(), field) == expected


@pytest.mark.parametrize("field", [field.name for field in fields(VadParams)])
def test_each_parameter_of_the_vad_has_its_variable(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    value = getattr(VadParams(), field) * 2
    monkeypatch.setenv(f"STT_VAD_{field.upper()}", str(value))
    assert load().vad == VadParams(**{field: value})


@pytest.mark.parametrize("field", [field.name for field in fields(SplitLimits)])
def test_each_limit_has_its_variable(monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setenv(f"STT_LIMITS_{field.upper()}", "77")
    assert load().limits == SplitLimits(**{field: 77})


def test_split_parameters_come_from_the_vad_settings_and_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().split_params == SplitParams()
    monkeypatch.setenv("STT_VAD_THRESHOLD", "0.5")
    monkeypatch.setenv("STT_FORMAT", "wav")
    assert load().split_params == SplitParams(threshold=0.5, format="wav")


def test_integer_value_of_a_float_parameter_has_the_same_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_VAD_MAX_SPEECH_DURATION_S", "30")
    assert load().split_params.digest() == SplitParams().digest()


def test_empty_variable_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_PROCESSES", "")
    assert load().processes == usable_vcpus() == len(os.sched_getaffinity(0))


def test_option_takes_precedence_over_environment_and_that_over_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env_file = tmp_path / "stt.env"
    env_file.write_text("STT_PROCESSES=2\nSTT_DOWNLOADS=2\nexport STT_UPLOADS='2'\nSTT_VAD_THRESHOLD=0.2\n")
    monkeypatch.setenv("STT_PROCESSES", "3")
    monkeypatch.setenv("STT_DOWNLOADS", "3")
    loaded = load(env_file, processes=4, downloads=None, uploads=None)
    assert (loaded.processes, loaded.downloads, loaded.uploads, loaded.vad.threshold) == (4, 3, 2, 0.2)


def test_missing_env_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.env does not exist"):
        load(tmp_path / "nowhere.env")


def test_buckets_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_SOURCE_BUCKET", "audio")
    monkeypatch.setenv("STT_ALLOWED_SOURCE_BUCKETS", " one, two ,,")
    assert load().source_buckets == {"audio", "one", "two"}


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_MINIO_ACCESS_KEY", "canary-access")
    monkeypatch.setenv("STT_MINIO_SECRET_KEY", "canary-secret")
    loaded = load()
    assert loaded.minio_access_key.get_secret_value() == "canary-access"
    assert loaded.minio_secret_key.get_secret_value() == "canary-secret"
    assert "canary" not in f"{loaded!r} {loaded} {loaded.model_dump()} {loaded.model_dump_json()}"


def test_secrets_are_read_from_systemd_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stt_minio_access_key").write_text("of-the-file\n")
    (tmp_path / "stt_minio_secret_key").write_text("canary-secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("STT_MINIO_ACCESS_KEY", "of-the-environment")
    loaded = load()
    assert loaded.minio_access_key.get_secret_value() == "of-the-environment"
    assert loaded.minio_secret_key.get_secret_value() == "canary-secret"


def test_secrets_are_not_shown_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_MINIO_SECRET_KEY", "canary-secret")
    monkeypatch.setenv("STT_MINIO_ENDPOINT", "https://minio")
    monkeypatch.setenv("STT_SLOTS", "many")
    with pytest.raises(SettingsError) as caught:
        load()
    assert "canary" not in str(caught.value)
    monkeypatch.delenv("STT_SLOTS")
    with pytest.raises(SettingsError) as caught:
        load()
    assert "canary" not in str(caught.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load().processes = 7  # type: ignore[misc]  # the test of frozen fields


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STT_PROCESSES", "0"),
        ("STT_PROCESSES", "many"),
        ("STT_DOWNLOADS", "0"),
        ("STT_UPLOADS", "-1"),
        ("STT_SLOTS", "0"),
        ("STT_WAIT_TIME_S", "21"),
        ("STT_VISIBILITY_TIMEOUT_S", "2"),
        ("STT_VISIBILITY_TIMEOUT_S", "43201"),
        ("STT_JOB_TIMEOUT_S", "43200"),
        ("STT_MULTIPART_CHUNKSIZE_BYTES", "1000"),
        ("STT_MINIO_SECURE", "perhaps"),
        ("STT_FORMAT", "mp3"),
        ("STT_LAYOUT", "zip"),
        ("STT_VAD_THRESHOLD", "loud"),
        ("STT_LIMITS_MAX_CHANNELS", "1.5"),
    ],
)
def test_invalid_value_is_reported_with_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    [sentence] = str(caught.value).splitlines()
    assert sentence.startswith(f"{name}: ")
    assert value in sentence


def test_all_malformed_and_contradictory_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "STT_PROCESSES": "0",
        "STT_FORMAT": "mp3",
        "STT_VISIBILITY_TIMEOUT_S": "10",
        "STT_LAUNCH_HOOK": "ready",
        "STT_TERMINATION_HOOK": "ending",
        "STT_MINIO_ENDPOINT": "http://minio",
        "STT_VAD_NEG_THRESHOLD": "0.9",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    lines = str(caught.value).splitlines()
    assert {re.split("[ :]", line)[0] for line in lines} == wrong.keys()
    assert len(lines) == len(wrong)


def test_invalid_option_is_reported_with_its_variable() -> None:
    with pytest.raises(SettingsError, match=r"^STT_PROCESSES: "):
        load(processes=0)


def test_contradictory_vad_parameters_are_all_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_VAD_THRESHOLD", "0.1")
    monkeypatch.setenv("STT_VAD_MAX_SPEECH_DURATION_S", "1.5")
    with pytest.raises(SettingsError) as caught:
        load()
    assert "STT_VAD_NEG_THRESHOLD is 0.15 and STT_VAD_THRESHOLD 0.1: choose" in str(caught.value)
    assert "STT_VAD_MAX_SPEECH_DURATION_S is 1.5 and STT_VAD_MIN_SEGMENT_DURATION_S 1.0: choose" in str(caught.value)


@pytest.mark.parametrize("endpoint", ["https://s3.monlam.ai", "http://localhost:9000"])
def test_endpoint_with_a_scheme_is_refused(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("STT_MINIO_ENDPOINT", endpoint)
    with pytest.raises(SettingsError, match=r"(?s)STT_MINIO_ENDPOINT.*STT_MINIO_SECURE"):
        load()


def test_fewer_slots_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_PROCESSES", "4")
    monkeypatch.setenv("STT_SLOTS", "3")
    with pytest.raises(SettingsError, match="STT_SLOTS is 3 and STT_PROCESSES 4"):
        load()
    monkeypatch.setenv("STT_SLOTS", "4")
    assert load().job_slots == 4


def test_default_slots_cover_processes_and_downloads() -> None:
    assert load(processes=2, downloads=5).job_slots == 9


def test_each_setting_is_a_described_variable_of_one_group() -> None:
    listed = [each.name for group in variables().values() for each in group]
    nested = {"vad": VadParams, "limits": SplitLimits}
    names: list[tuple[str, ...]] = [(name,) for name in Settings.model_fields if name not in nested]
    names += [(group, field.name) for group, params in nested.items() for field in fields(params)]
    assert sorted(listed) == sorted(variable(path) for path in names)
    assert all(each.description and each.type for group in variables().values() for each in group)


def test_page_of_the_settings_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "from make_settings import page; print(page(), end='')"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'docs'}:{ROOT}"},
    )
    assert (ROOT / "docs" / "settings.md").read_text() == made.stdout, "run docs/make_settings.py"


@pytest.mark.parametrize(
    ("path", "name"),
    [(("processes",), "STT_PROCESSES"), (("vad", "threshold"), "STT_VAD_THRESHOLD"), (("AWS_REGION",), "AWS_REGION")],
)
def test_path_of_a_field_becomes_a_variable(path: tuple[str, ...], name: str) -> None:
    assert variable(path) == name


@pytest.mark.parametrize("scheme", ["", "https://"])
def test_keys_in_the_endpoint_are_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("STT_MINIO_ENDPOINT", f"{scheme}reader:planted@localhost:9000")
    with pytest.raises(SettingsError, match="STT_MINIO_SECRET_KEY") as caught:
        load()
    assert "planted" not in str(caught.value)


def test_newline_after_a_key_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STT_MINIO_ACCESS_KEY", "reader\n")
    assert load().minio_access_key.get_secret_value() == "reader"
