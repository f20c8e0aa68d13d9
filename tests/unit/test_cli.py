"""The commands: what --help names, what comes out, and the exit codes."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
import typer.main
from typer.core import TyperOption
from typer.testing import CliRunner

from stt_async import cli
from stt_async.corpus.enqueue import Selection, Summary
from stt_async.errors import DependencyError, PermanentError, SettingsError, SttError
from stt_async.local.files import LocalRecording, LocalResult
from stt_async.settings import Settings
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
    """A function that runs `stt-async ARGUMENTS` as the entry point does, and gives its exit code."""

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


@every_command
def test_help_names_each_option_with_its_variable(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    for option in options(command):
        line = next(line for line in result.output.splitlines() if option.opts[0] in line)
        assert str(option.envvar or "") in line
        assert option.help
        assert option.help.split()[0] in line


@every_command
def test_an_option_has_the_variable_of_its_setting(command: str) -> None:
    for option in options(command):
        if option.name in Settings.model_fields:
            assert option.envvar == f"STT_{option.name.upper()}"


def test_without_a_command_the_commands_are_listed() -> None:
    result = CliRunner().invoke(cli.app, [])
    assert result.exit_code == 2
    assert all(command in result.output for command in COMMANDS)


Run = Callable[..., int]
Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
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
def test_a_wrong_word_or_setting_exits_2_with_a_sentence(
    run: Run,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    *,
    arguments: list[str],
    variables: dict[str, str],
    told: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("a setting"), 2),
        (DependencyError("unreachable", "SQS is out of reach"), 3),
        (SttError("a command failed"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_sentence_and_a_code(
    run: Run, capsys: Captured, monkeypatch: pytest.MonkeyPatch, error: SttError, code: int
) -> None:
    async def fail(*_: object) -> Summary:
        raise error

    monkeypatch.setattr(cli, "send_jobs", fail)
    assert run("enqueue") == code
    said = capsys.readouterr().err
    assert said == f"stt-async: {getattr(error, 'message', str(error))}\n"


class TestEnqueue:
    @pytest.fixture
    def selections(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Selection]]:
        """What the two functions behind the command were asked for."""
        asked: list[tuple[str, Selection]] = []

        def standing_in_for(name: str) -> Callable[..., Any]:
            async def call(_: Settings, selection: Selection, progress: Callable[[Summary], None]) -> Summary:
                asked.append((name, selection))
                summary = Summary(listed=9, sent=2, sent_bytes=2_000_000, unusable_keys=["a [/] \n.mp3"])
                progress(summary)
                return summary

            return call

        monkeypatch.setattr(cli, "send_jobs", standing_in_for("send"))
        monkeypatch.setattr(cli, "preview", standing_in_for("preview"))
        return asked

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
    def test_options_are_a_selection(
        self, run: Run, selections: list[tuple[str, Selection]], arguments: list[str], selection: Selection
    ) -> None:
        assert run("enqueue", *arguments) == 0
        assert selections == [("send", selection)]

    def test_a_dry_run_sends_nothing(self, run: Run, capsys: Captured, selections: list[tuple[str, Selection]]) -> None:
        assert run("enqueue", "--dry-run") == 0
        assert [name for name, _ in selections] == ["preview"]
        assert "2 jobs would be sent" in capsys.readouterr().out

    def test_it_says_what_it_did(self, run: Run, capsys: Captured, selections: list[tuple[str, Selection]]) -> None:
        assert run("enqueue") == 0
        said = capsys.readouterr().out
        assert "9 objects listed" in said
        assert "'a [/] \\n.mp3'" in said
        assert "2 jobs sent, 2.0 MB" in said
        assert len(selections) == 1

    def test_as_json_it_is_one_object(
        self, run: Run, capsys: Captured, selections: list[tuple[str, Selection]]
    ) -> None:
        assert run("enqueue", "--json", "--dry-run") == 0
        said = orjson.loads(capsys.readouterr().out)
        assert said["dry_run"] is True
        assert (said["listed"], said["sent"], said["unusable_keys"]) == (9, 2, ["a [/] \n.mp3"])
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
        """A function that says what splitting comes to."""

        def set_results(*results: LocalResult) -> None:
            async def split_files(
                recordings: Sequence[LocalRecording], out: Path, settings: Settings
            ) -> AsyncIterator[LocalResult]:
                del recordings, out, settings
                for result in results:
                    yield result
                    await asyncio.sleep(0)

            monkeypatch.setattr(cli, "split_files", split_files)

        return set_results

    def good(self) -> LocalResult:
        return LocalResult(LocalRecording(Path("in/good.mp3"), self.NAMES[0]), a_manifest(), None, skipped=True)

    def bad(self) -> LocalResult:
        error = PermanentError("undecodable", "[bold] is no audio")
        return LocalResult(LocalRecording(Path("in/bad [x].mp3"), self.NAMES[1]), None, error, skipped=False)

    def test_all_done_exits_0(self, run: Run, capsys: Captured, source: Path, result_of: Callable[..., None]) -> None:
        result_of(self.good())
        assert run("split", str(source), "--out", "out [dir]") == 0
        said = capsys.readouterr()
        assert self.NAMES[0] in said.out
        assert "out [dir]/ holds them" in said.out
        assert "done before" in said.out
        assert said.err == ""

    def test_some_failed_exits_4_with_a_line_for_each(
        self, run: Run, capsys: Captured, source: Path, result_of: Callable[..., None]
    ) -> None:
        result_of(self.bad(), self.good())
        assert run("split", str(source), "--out", "out") == 4
        said = capsys.readouterr()
        assert said.err == "in/bad [x].mp3: [bold] is no audio\n"
        assert all(name in said.out for name in self.NAMES)
        assert "failed: undecodable" in said.out

    def test_as_json_each_is_one_object_with_the_same_keys(
        self, run: Run, capsys: Captured, source: Path, result_of: Callable[..., None]
    ) -> None:
        result_of(self.good(), self.bad())
        assert run("split", str(source), "--out", "out", "--json") == 4
        bad, good = (orjson.loads(line) for line in capsys.readouterr().out.splitlines())
        assert list(bad) == list(good)
        assert (bad["status"], bad["code"], good["status"], good["segments"]) == ("failed", "undecodable", "ok", 1)


class TestWorker:
    @pytest.mark.parametrize(
        ("tally", "code"),
        [({}, 0), ({"job_succeeded": 3, "job_retried": 2, "job_skipped": 1}, 0), ({"job_failed": 1}, 4)],
        ids=str,
    )
    def test_once_tells_by_its_exit_code_whether_a_job_failed(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, tally: dict[str, int], code: int
    ) -> None:
        async def work_until_empty(_: Settings) -> Counter[str]:
            return Counter(tally)

        monkeypatch.setattr(cli, "work_until_empty", work_until_empty)
        assert run("worker", "--once") == code

    def test_options_win_over_the_environment(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Settings] = []

        async def work(settings: Settings) -> Counter[str]:
            seen.append(settings)
            return Counter({"job_failed": 7})

        monkeypatch.setattr(cli, "work", work)
        monkeypatch.setenv("STT_PROCESSES", "2")
        monkeypatch.setenv("STT_UPLOADS", "9")
        assert run("worker", "--processes", "3", "--format", "wav") == 0
        [ours] = seen
        assert (ours.processes, ours.uploads, ours.format) == (3, 9, "wav")


class TestDoctor:
    @pytest.mark.parametrize("as_json", [False, True])
    @pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 3)])
    def test_one_line_for_each_check_and_3_when_one_failed(
        self, run: Run, capsys: Captured, monkeypatch: pytest.MonkeyPatch, *, ok: bool, code: int, as_json: bool
    ) -> None:
        async def examine(_: Settings) -> AsyncIterator[Check]:
            yield Check("queue [x]", None if ok else DependencyError("unreachable", "no"), "detail [/]")
            yield Check("model", None, "loaded")

        monkeypatch.setattr(cli, "examine", examine)
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


def test_the_parent_imports_neither_torch_nor_the_model() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL], cwd=ROOT, check=True, capture_output=True, text=True)
    count, _, heavy = done.stdout.strip().partition(" ")
    assert int(count) > 30
    assert heavy == "[]"
