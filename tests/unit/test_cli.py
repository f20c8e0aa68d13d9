"""The commands: their help, output and exit codes."""

import asyncio
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest
import soundfile
import structlog
import typer.main
from typer.core import TyperOption
from typer.testing import CliRunner

from stt_async import cli
from stt_async.cli import doctor, enqueue, split, worker
from stt_async.corpus.enqueue import Selection, Summary
from stt_async.errors import DependencyError, PermanentError, SettingsError, SttError
from stt_async.local.files import LocalRecording, LocalResult
from stt_async.params import VadParams
from stt_async.settings import Settings, variables
from stt_async.worker.preflight import Check
from tests.support.recordings import ROOT
from tests.unit.fakes import a_manifest

pytestmark = pytest.mark.usefixtures("bare_environment")

COMMANDS = typer.main.get_group(cli.app).commands
every_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that runs `stt-async ARGUMENTS` as the entry point does, and returns the exit code."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["stt-async", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code or 0
        assert isinstance(code, int)
        return code

    return call


def options(command: str) -> list[TyperOption]:
    return [each for each in COMMANDS[command].params if isinstance(each, TyperOption)]


def help_of(*command: str) -> str:
    """The help in one line: how it is wrapped does not matter."""
    result = CliRunner().invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0
    return " ".join(result.output.split())


@every_command
def test_help_names_each_option_with_its_variable(command: str) -> None:
    shown = help_of(command)
    for option in options(command):
        assert option.opts[0] in shown
        assert f"[env var: {option.envvar}" in shown or not option.envvar
        assert option.help
        assert option.help.split()[0] in shown


@every_command
def test_help_shows_a_flag_without_a_value(command: str) -> None:
    shown = help_of(command)
    for option in options(command):
        assert (f"{option.opts[0]} <" in shown) is not option.is_flag
    assert "--help Show" in shown


def test_help_of_worker_lists_every_setting() -> None:
    shown = help_of("worker")
    for heading, group in variables().items():
        assert f" {heading}: {group[0].name} " in shown
        for each in group:
            assert f" {each.name} {each.description} [{each.type}" in shown
    assert "STT_WAIT_TIME_S Long poll of the queue. [int; default: 20]" in shown


@pytest.mark.skipif(find_spec("silero_vad") is None, reason="torch's CPU build and silero-vad are not installed")
def test_version_lists_the_packages_of_the_engine(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    versions = dict(line.split(" ") for line in capsys.readouterr().out.splitlines())
    assert versions.keys() == {"stt-async", "silero-vad", "torch", "soundfile", "soxr", "av", "Python"}
    assert versions["Python"] == platform.python_version()
    assert versions["soundfile"] == soundfile.__version__


def test_completion_offers_the_choices_of_an_option() -> None:
    words = {"_STT_ASYNC_COMPLETE": "complete_bash", "COMP_WORDS": "stt-async split --format ", "COMP_CWORD": "3"}
    result = CliRunner().invoke(cli.app, prog_name="stt-async", env=words)
    assert result.output.split() == ["flac", "wav"]


def test_without_a_command_the_commands_are_listed() -> None:
    result = CliRunner().invoke(cli.app, [])
    assert result.exit_code == 2
    assert all(command in result.output for command in COMMANDS)


Run = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["split", "."], {}, "--out"),
        (["no-such-command"], {}, "no-such-command"),
        (["worker", "--processes", "many"], {}, "STT_PROCESSES"),
        (["worker", "--processes", "0"], {}, "STT_PROCESSES"),
        (["worker"], {"STT_SLOTS": "0"}, "STT_SLOTS"),
        (["worker"], {"STT_VISIBILITY_TIMEOUT_S": "1"}, "STT_VISIBILITY_TIMEOUT_S"),
        (["enqueue", "--collection", "amdo", "--prefix", "amdo/"], {}, "--collection and --prefix"),
        (["enqueue", "--env-file", "/nowhere.env"], {}, "/nowhere.env"),
        (["doctor"], {"STT_MINIO_ENDPOINT": "https://minio"}, "STT_MINIO_ENDPOINT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | dict) else "",
)
def test_wrong_argument_or_setting_exits_2_and_is_named(
    run: Run,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    *,
    arguments: list[str],
    environment: dict[str, str],
    named: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert named in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("a setting"), 2),
        (DependencyError("unreachable", "SQS is out of reach"), 3),
        (SttError("a command failed"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_is_one_message_and_an_exit_code(
    run: Run, capsys: Captured, monkeypatch: pytest.MonkeyPatch, error: SttError, code: int
) -> None:
    async def fail(*_: object) -> Summary:
        raise error

    monkeypatch.setattr(enqueue, "send_jobs", fail)
    assert run("enqueue") == code
    assert capsys.readouterr().err == f"stt-async: {getattr(error, 'message', str(error))}\n"


def test_all_contradictory_settings_are_named_at_once(
    run: Run, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STT_VISIBILITY_TIMEOUT_S", "10")
    monkeypatch.setenv("STT_LAUNCH_HOOK", "ready")
    assert run("worker", "--processes", "4", "--slots", "3") == 2
    printed = capsys.readouterr().err
    assert "STT_VISIBILITY_TIMEOUT_S is 10 and STT_WAIT_TIME_S 20" in printed
    assert "STT_LAUNCH_HOOK is 'ready' without STT_AUTOSCALING_GROUP" in printed
    assert "STT_SLOTS is 3 and STT_PROCESSES 4" in printed


class TestEnqueue:
    @pytest.fixture
    def selections(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Selection]]:
        """The calls of the two functions behind the command."""
        calls: list[tuple[str, Selection]] = []

        def fake(name: str) -> Callable[..., Any]:
            async def call(_: Settings, selection: Selection, progress: Callable[[Summary], None]) -> Summary:
                calls.append((name, selection))
                summary = Summary(listed=9, sent=2, sent_bytes=2_000_000, unusable_keys=["a [/] \n.mp3"])
                progress(summary)
                return summary

            return call

        monkeypatch.setattr(enqueue, "send_jobs", fake("send"))
        monkeypatch.setattr(enqueue, "preview", fake("preview"))
        return calls

    @pytest.mark.parametrize(
        ("arguments", "selection"),
        [
            ([], Selection()),
            (["--collection", "amdo"], Selection(prefix="amdo/")),
            (["--collection", "amdo/"], Selection(prefix="amdo/")),
            (["--prefix", "am"], Selection(prefix="am")),
            (["--limit", "7", "--replace"], Selection(limit=7, replace=True)),
        ],
        ids=str,
    )
    def test_options_become_a_selection(
        self, run: Run, selections: list[tuple[str, Selection]], arguments: list[str], selection: Selection
    ) -> None:
        assert run("enqueue", *arguments) == 0
        assert selections == [("send", selection)]

    def test_a_dry_run_sends_nothing(self, run: Run, capsys: Captured, selections: list[tuple[str, Selection]]) -> None:
        assert run("enqueue", "--dry-run") == 0
        assert [name for name, _ in selections] == ["preview"]
        assert "2 jobs would be sent" in capsys.readouterr().out

    def test_result_is_printed_in_sentences(
        self, run: Run, capsys: Captured, selections: list[tuple[str, Selection]]
    ) -> None:
        assert run("enqueue") == 0
        printed = capsys.readouterr().out
        assert "9 objects listed" in printed
        assert "'a [/] \\n.mp3'" in printed
        assert "2 jobs sent, 2.0 MB" in printed
        assert len(selections) == 1

    def test_json_result_is_one_object(
        self, run: Run, capsys: Captured, selections: list[tuple[str, Selection]]
    ) -> None:
        assert run("enqueue", "--json", "--dry-run") == 0
        printed = orjson.loads(capsys.readouterr().out)
        assert printed["dry_run"] is True
        assert (printed["listed"], printed["sent"], printed["unusable_keys"]) == (9, 2, ["a [/] \n.mp3"])
        assert len(selections) == 1


class TestSplit:
    NAMES = ("good [live] [/].mp3", "bad [red].mp3")

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        for name in ("a.mp3", "b.mp3"):
            (tmp_path / name).touch()
        return tmp_path

    @pytest.fixture
    def result_of(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """A function that sets the results of the split."""

        def set_results(*results: LocalResult) -> None:
            async def split_files(
                recordings: Sequence[LocalRecording], out: Path, settings: Settings
            ) -> AsyncIterator[LocalResult]:
                del recordings, out, settings
                for result in results:
                    yield result
                    await asyncio.sleep(0)

            monkeypatch.setattr(split, "split_files", split_files)

        return set_results

    def test_cut_options_set_the_vad_parameters(self, run: Run, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Settings] = []

        async def split_files(
            recordings: Sequence[LocalRecording], out: Path, settings: Settings
        ) -> AsyncIterator[LocalResult]:
            del recordings, out
            seen.append(settings)
            yield self.good()

        monkeypatch.setattr(split, "split_files", split_files)
        monkeypatch.setenv("STT_VAD_SPEECH_PAD_MS", "300")
        monkeypatch.setenv("STT_VAD_THRESHOLD", "0.4")
        flags = "--threshold 0.5 --neg-threshold 0.2 --min-silence 700 --max-duration 20 --target-duration 10"
        assert run("split", str(source), "--out", "out", *flags.split(), "--min-duration", "2") == 0
        assert seen[0].vad == VadParams(
            threshold=0.5,
            neg_threshold=0.2,
            min_silence_duration_ms=700,
            max_speech_duration_s=20,
            target_duration_s=10,
            min_segment_duration_s=2,
            speech_pad_ms=300,
        )

    def good(self) -> LocalResult:
        return LocalResult(LocalRecording(Path("in/good.mp3"), self.NAMES[0]), a_manifest(), None, skipped=True)

    def bad(self) -> LocalResult:
        error = PermanentError("undecodable", "[bold] is no audio")
        return LocalResult(LocalRecording(Path("in/bad [x].mp3"), self.NAMES[1]), None, error, skipped=False)

    def test_success_exits_0_and_prints_a_table(
        self, run: Run, capsys: Captured, source: Path, result_of: Callable[..., None]
    ) -> None:
        result_of(self.good())
        assert run("split", str(source), "--out", "out [dir]") == 0
        printed = capsys.readouterr()
        assert self.NAMES[0] in printed.out
        assert "The segments are in out [dir]/" in printed.out
        assert "already done" in printed.out
        assert printed.err == ""

    def test_failed_recording_exits_4_with_a_line_on_stderr(
        self, run: Run, capsys: Captured, source: Path, result_of: Callable[..., None]
    ) -> None:
        result_of(self.bad(), self.good())
        assert run("split", str(source), "--out", "out") == 4
        printed = capsys.readouterr()
        assert printed.err == "in/bad [x].mp3: [bold] is no audio\n"
        assert all(name in printed.out for name in self.NAMES)
        assert "failed: undecodable" in printed.out

    def test_json_has_one_object_per_recording_with_the_same_keys(
        self, run: Run, capsys: Captured, source: Path, result_of: Callable[..., None]
    ) -> None:
        result_of(self.good(), self.bad())
        assert run("split", str(source), "--out", "out", "--json") == 4
        bad, good = (orjson.loads(line) for line in capsys.readouterr().out.splitlines())
        assert list(bad) == list(good)
        assert (bad["status"], bad["code"], good["status"], good["segments"]) == ("failed", "undecodable", "ok", 1)


class TestWorker:
    @pytest.mark.parametrize(
        ("counts", "code"),
        [({}, 0), ({"job_succeeded": 3, "job_retried": 2, "job_skipped": 1}, 0), ({"job_failed": 1}, 4)],
        ids=str,
    )
    def test_exit_code_of_once_is_4_if_a_job_failed(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], code: int
    ) -> None:
        async def work_until_empty(_: Settings) -> Counter[str]:
            return Counter(counts)

        monkeypatch.setattr(worker, "work_until_empty", work_until_empty)
        assert run("worker", "--once") == code

    def test_options_take_precedence_over_the_environment(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Settings] = []

        async def work(settings: Settings) -> Counter[str]:
            seen.append(settings)
            return Counter({"job_failed": 7})

        monkeypatch.setattr(worker, "work", work)
        monkeypatch.setenv("STT_PROCESSES", "2")
        monkeypatch.setenv("STT_UPLOADS", "9")
        assert run("worker", "--processes", "3", "--format", "wav") == 0
        [loaded] = seen
        assert (loaded.processes, loaded.uploads, loaded.format) == (3, 9, "wav")


class TestDoctor:
    @pytest.mark.parametrize("as_json", [False, True])
    @pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 3)])
    def test_each_check_is_a_line_and_a_failed_one_exits_3(
        self, run: Run, capsys: Captured, monkeypatch: pytest.MonkeyPatch, *, ok: bool, code: int, as_json: bool
    ) -> None:
        async def examine(_: Settings) -> AsyncIterator[Check]:
            yield Check("queue [x]", None if ok else DependencyError("unreachable", "no"), "detail [/]")
            yield Check("model", None, "loaded")

        monkeypatch.setattr(doctor, "examine", examine)
        assert run("doctor", *(["--json"] if as_json else [])) == code
        first, second = capsys.readouterr().out.splitlines()
        if as_json:
            assert orjson.loads(first) == {"check": "queue [x]", "ok": ok, "detail": "detail [/]"}
        else:
            assert "queue [x]: detail [/]" in first
            assert ("FAILED" in first) is not ok
            assert "model: loaded" in second


_IMPORT_ALL = """
import pkgutil, sys
import stt_async.cli
names = [module.name for module in pkgutil.walk_packages(["stt_async"], "stt_async.")]
parent = [n for n in names if not n.startswith("stt_async.audio") and n != "stt_async.__main__"]
for name in parent:
    __import__(name)
print(len(parent), [name for name in ("torch", "silero_vad") if name in sys.modules])
"""


def test_parent_process_imports_neither_torch_nor_the_model() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL], cwd=ROOT, check=True, capture_output=True, text=True)
    count, _, heavy = done.stdout.strip().partition(" ")
    assert int(count) > 30
    assert heavy == "[]"
