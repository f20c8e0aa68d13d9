"""Log lines: one JSON object each, with what is bound."""

import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import structlog

from stt_async import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def read(captured: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in captured.readouterr().err.splitlines()]


def test_a_line_is_one_object_in_the_order_that_people_read(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.INFO)
    structlog.get_logger().info("job_succeeded", segments=3, recording="amdo/བཀྲ་ཤིས།.mp3", note="two\nlines")
    [line] = read(capsys)
    assert list(line) == ["timestamp", "level", "event", "segments", "recording", "note"]
    assert (line["level"], line["event"], line["segments"]) == ("info", "job_succeeded", 3)
    assert (line["recording"], line["note"]) == ("amdo/བཀྲ་ཤིས།.mp3", "two\nlines")
    assert line["timestamp"].endswith("Z")


def test_what_is_bound_stands_in_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.INFO)
    structlog.contextvars.bind_contextvars(job_id="j", message_id="m", receive_count=2)
    structlog.get_logger().info("first")
    structlog.get_logger().warning("second", job_id="of its own")
    first, second = read(capsys)
    assert (first["job_id"], first["message_id"], first["receive_count"]) == ("j", "m", 2)
    assert (second["job_id"], second["message_id"]) == ("of its own", "m")


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(logging.INFO)
    try:
        int("a bug")
    except ValueError:
        structlog.get_logger().exception("job_crashed")
    [line] = read(capsys)
    assert line["level"] == "error"
    assert "ValueError: invalid literal" in line["exception"]
    assert "test_logs.py" in line["exception"]


@pytest.mark.parametrize(("level", "told"), [(logging.INFO, ["info", "error"]), (logging.ERROR, ["error"])])
def test_a_level_keeps_the_lower_ones_quiet(capsys: pytest.CaptureFixture[str], level: int, told: list[str]) -> None:
    logs.configure(level)
    log = structlog.get_logger()
    log.debug("d")
    log.info("i")
    log.error("e")
    assert [orjson.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == told


@pytest.mark.parametrize(
    "value", ["\ud800 lone", 2**70, {"a", "b"}, b"\xff", object()], ids=lambda value: type(value).__name__
)
def test_no_value_makes_a_log_line_fail(capsys: pytest.CaptureFixture[str], value: object) -> None:
    logs.configure(logging.INFO)
    structlog.get_logger().info("odd", value=value)
    [line] = read(capsys)
    assert line["event"] == "odd"
    assert "value" in line


def test_on_a_terminal_lines_are_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    logs.configure(logging.INFO)
    structlog.get_logger().info("job_succeeded", segments=3)
    told = capsys.readouterr().err
    assert "job_succeeded" in told
    assert not told.startswith("{")
