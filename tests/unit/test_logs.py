"""Log lines: one JSON object each, with the bound fields; written by a thread in the background."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import structlog

from stt_async import logs


@pytest.fixture(autouse=True)
def _reset_structlog() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def read(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in captured.readouterr().err.splitlines()]


def test_line_is_one_object_with_time_level_and_event_first(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.INFO)
    structlog.get_logger().info("job_succeeded", segments=3, recording="amdo/བཀྲ་ཤིས།.mp3", note="two\nlines")
    [line] = read(capsys)
    assert list(line) == ["timestamp", "level", "event", "segments", "recording", "note"]
    assert (line["level"], line["event"], line["segments"]) == ("info", "job_succeeded", 3)
    assert (line["recording"], line["note"]) == ("amdo/བཀྲ་ཤིས།.mp3", "two\nlines")
    assert line["timestamp"].endswith("Z")


def test_bound_fields_are_in_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.INFO)
    structlog.contextvars.bind_contextvars(job_id="j", message_id="m", receive_count=2)
    structlog.get_logger().info("first")
    structlog.get_logger().warning("second", job_id="other")
    first, second = read(capsys)
    assert (first["job_id"], first["message_id"], first["receive_count"]) == ("j", "m", 2)
    assert (second["job_id"], second["message_id"]) == ("other", "m")


def test_traceback_is_a_field_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.INFO)
    try:
        int("a bug")
    except ValueError:
        structlog.get_logger().exception("job_crashed")
    [line] = read(capsys)
    assert line["level"] == "error"
    assert "ValueError: invalid literal" in line["exception"]
    assert "test_logs.py" in line["exception"]


@pytest.mark.parametrize(("level", "logged"), [(logging.INFO, ["info", "error"]), (logging.ERROR, ["error"])])
def test_lower_levels_are_not_logged(capsys: pytest.CaptureFixture[str], level: int, logged: list[str]) -> None:
    logs.configure(level)
    log = structlog.get_logger()
    log.debug("d")
    log.info("i")
    log.error("e")
    assert [orjson.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == logged


@pytest.mark.parametrize(
    "value", ["\ud800 lone", 2**70, {"a", "b"}, b"\xff", object()], ids=lambda value: type(value).__name__
)
def test_any_value_is_logged(capsys: pytest.CaptureFixture[str], value: object) -> None:
    logs.configure(logging.INFO)
    structlog.get_logger().info("odd", value=value)
    [line] = read(capsys)
    assert line["event"] == "odd"
    assert "value" in line


def test_long_texts_are_cut_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    """journald cuts lines at 48 KB, and a cut object is unreadable."""
    logs.configure(logging.INFO)
    try:
        os.environ["x" * 100_000 + "the end"]
    except KeyError:
        structlog.get_logger().exception("job_crashed", error="the start" + "ཀ" * 100_000)
    [text] = capsys.readouterr().err.splitlines()
    assert len(text.encode()) < 48 * 1024
    line = orjson.loads(text)
    assert line["error"].startswith("the start")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("the end'")


def test_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    logs.configure(logging.INFO)
    structlog.get_logger().info("job_succeeded", segments=3)
    text = capsys.readouterr().err
    assert "job_succeeded" in text
    assert not text.startswith("{")


def test_traceback_on_a_terminal_shows_no_locals(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("CANARY", "planted")
    with logs.in_background(logging.INFO):
        try:
            secret = os.environ["CANARY"]
            next(iter(secret[:0]))
        except StopIteration:
            structlog.get_logger().exception("job_crashed")
    text = capfdbinary.readouterr().err
    assert b"StopIteration" in text
    assert b"planted" not in text


def test_background_lines_keep_their_order_and_are_all_written(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with logs.in_background(logging.INFO):
        for number in range(1000):
            structlog.get_logger().info("counted", number=number)
    assert [line["number"] for line in read(capfd)] == list(range(1000))


def test_additions_apply_to_json_lines_only(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def add(_logger: object, _method: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {**line, "added": True}

    with logs.in_background(logging.INFO, add):
        structlog.get_logger().info("logged")
    [line] = read(capfd)
    assert line["added"] is True
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with logs.in_background(logging.INFO, add):
        structlog.get_logger().info("logged")
    assert "added" not in capfd.readouterr().err


def test_warning_of_a_library_is_a_json_line(capfd: pytest.CaptureFixture[str]) -> None:
    with logs.in_background(logging.INFO):
        try:
            int("a bug")
        except ValueError:
            logging.getLogger("asyncio").exception("Task %s was never retrieved", "a")
        logging.getLogger("botocore.credentials").info("not worth a line")
    [line] = read(capfd)
    assert (line["level"], line["event"]) == ("error", "library_warned")
    assert (line["logger"], line["message"]) == ("asyncio", "Task a was never retrieved")
    assert "ValueError" in line["exception"]


def test_configuration_is_restored_after_the_block(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.ERROR)
    with logs.in_background(logging.INFO):
        structlog.get_logger().info("within")
    structlog.get_logger().info("after")
    assert [line["event"] for line in read(capfd)] == ["within"]
    assert "log-writer" not in {thread.name for thread in threading.enumerate()}


def report(dropped: int) -> bytes:
    return b"dropped %d" % dropped


def read_lines(fd: int, *, until: bytes) -> list[bytes]:
    """Read lines up to and including `until`."""
    with os.fdopen(os.dup(fd), "rb", buffering=0) as file:
        text = b""
        while not text.endswith(until + b"\n"):
            read = file.read(65536)
            assert read, f"the end came before {until!r}: {text[-200:]!r}"
            text += read
    return text.splitlines()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue  # the test closed it


def test_unread_sink_drops_lines_and_reports_their_number_in_place(
    pipe: tuple[int, int],
) -> None:
    reader, sink = pipe
    writer = logs.Writer(sink, most_bytes=10_000, report=report)
    numbered = [b"%06d" % number + b"." * 94 for number in range(2000)]
    for line in numbered:
        writer.write(line)
    written = len(numbered) - writer._dropped
    assert 100 <= written < len(numbered)
    assert read_lines(reader, until=numbered[written - 1]) == numbered[:written]
    writer.write(b"late")
    assert read_lines(reader, until=b"late") == [b"dropped %d" % (len(numbered) - written), b"late"]
    writer.close(5)


def test_sink_that_recovers_gets_a_report_of_dropped_lines(pipe: tuple[int, int]) -> None:
    reader, sink = pipe
    full = os.open("/dev/full", os.O_WRONLY)
    through = os.dup(full)
    writer = logs.Writer(through, most_bytes=10_000, report=report)
    for number in range(3):
        writer.write(b"lost %d" % number)
    wait_until(lambda: writer._dropped == 3)
    os.dup2(sink, through)
    writer.write(b"written")
    assert read_lines(reader, until=b"written") == [b"dropped 3", b"written"]
    writer.close(5)
    os.close(through)
    os.close(full)


def test_broken_pipe_drops_lines_only(pipe: tuple[int, int]) -> None:
    reader, sink = pipe
    os.close(reader)
    writer = logs.Writer(sink, most_bytes=10_000, report=report)
    writer.write(b"lost")
    writer.close(5)
    assert writer._dropped == 1


def test_line_after_a_torn_line_starts_on_its_own(pipe: tuple[int, int]) -> None:
    reader, sink = pipe
    os.set_blocking(sink, False)
    writer = logs.Writer(sink, most_bytes=10_000_000, report=report)
    torn = b"x" * 1_000_000
    writer.write(torn)
    wait_until(lambda: writer._dropped == 1)
    part = os.read(reader, len(torn))
    assert 0 < len(part) < len(torn)
    writer.write(b"whole")
    assert read_lines(reader, until=b"whole") == [b"", b"dropped 1", b"whole"]
    writer.close(5)


def test_close_waits_a_bounded_time_for_an_unread_sink(pipe: tuple[int, int]) -> None:
    _, sink = pipe
    writer = logs.Writer(sink, most_bytes=10_000_000, report=report)
    for _ in range(100):
        writer.write(b"." * 10_000)
    writer.close(0.05)
    assert writer._thread.is_alive()
    os.set_blocking(sink, False)


def test_dropped_lines_are_reported_at_the_end(pipe: tuple[int, int]) -> None:
    reader, sink = pipe
    writer = logs.Writer(sink, most_bytes=10, report=report)
    writer.write(b"longer than the bound")
    writer.close(5)
    assert read_lines(reader, until=b"dropped 1") == [b"dropped 1"]


def wait_until(condition: Any) -> None:
    moment = threading.Event()
    for _ in range(1000):
        if condition():
            return
        moment.wait(0.01)
    raise AssertionError("the condition is still false after 10 s")


CRASH = """
import logging, structlog
from stt_async import logs
with logs.in_background(logging.INFO):
    structlog.get_logger().info("last_words")
    raise RuntimeError("a bug")
"""


def test_traceback_of_a_crash_follows_all_lines() -> None:
    ended = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, check=False)
    first, *traceback = ended.stderr.splitlines()
    assert orjson.loads(first)["event"] == "last_words"
    assert traceback[0].startswith("Traceback")
    assert traceback[-1] == "RuntimeError: a bug"
    assert ended.returncode == 1


BLOCKED = """
import logging, os, structlog
from stt_async import logs
logs.FLUSH_TIMEOUT_S = 0.1
reader, sink = os.pipe()
os.dup2(sink, 2)
with logs.in_background(logging.INFO):
    for _ in range(1000):
        structlog.get_logger().info("logged", much="." * 1000)
"""


def test_process_with_a_blocked_sink_exits() -> None:
    ended = subprocess.run([sys.executable, "-c", BLOCKED], check=False, timeout=60)
    assert ended.returncode == 0
