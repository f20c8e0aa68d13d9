"""Logs: JSON lines on stderr, or lines for people where stderr is a terminal."""

import json
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MOST_BYTES = 1024**2
"""Bound on unwritten lines: about ten minutes of a busy worker's log."""

MOST_CHARACTERS = 4000
"""Bound on a text in a line, such as a server's error page: journald cuts lines at 48 KB (`LineMax=`), and a cut JSON
object is unreadable."""

FLUSH_TIMEOUT_S = 2.0
"""For unwritten lines at the end."""

_log = structlog.get_logger()


def configure(level: int) -> None:
    """Set up structlog for this process, from `logging`'s `level` upward. The calling thread writes each line.

    Events are `snake_case` in the past tense; each line includes the bound fields.
    """
    structlog.configure(
        processors=_processors(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
    )


@contextmanager
def in_background(level: int, *additions: Processor) -> Iterator[None]:
    """Log like `configure`, but write from a thread: logging never waits for stderr, and never fails with it.

    Warnings of libraries and asyncio's errors become log lines, too. The end of the block waits up to
    `FLUSH_TIMEOUT_S` for unwritten lines.

    Args:
        level: One of `logging`'s.
        additions: Further processors for JSON lines.
    """
    processors = _processors(*additions)
    wrapper = structlog.make_filtering_bound_logger(level)

    def report(dropped: int) -> bytes:
        log = structlog.wrap_logger(structlog.ReturnLogger(), processors, wrapper)
        line: bytes = log.warning("log_lines_dropped", lines=dropped)
        return line

    before = structlog.get_config()
    writer = Writer(sys.stderr.fileno(), most_bytes=MOST_BYTES, report=report)
    libraries = _LibraryHandler(logging.WARNING)
    structlog.configure(processors=processors, wrapper_class=wrapper, logger_factory=lambda *_: writer)
    logging.getLogger().addHandler(libraries)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(libraries)
        structlog.configure(**before)
        writer.close(FLUSH_TIMEOUT_S)


class Writer:
    """Writes lines to a file descriptor from its own thread: a sink that blocks or fails costs lines, not time.

    Lines keep their order, and each is one write. Lines beyond `most_bytes`, and lines that the sink refuses, are
    dropped and counted. A report of the count precedes the next line that is written.

    Args:
        fd: The sink.
        most_bytes: Bound on unwritten lines.
        report: Returns the line that reports the number of dropped lines.
    """

    def __init__(self, fd: int, *, most_bytes: int, report: Callable[[int], bytes]) -> None:
        self._fd = fd
        self._most_bytes = most_bytes
        self._report = report
        self._lines: deque[tuple[bytes, int]] = deque()
        """Each line, and the number of lines dropped before it."""
        self._lines_bytes = 0
        self._dropped = 0
        self._closing = False
        self._changed = Condition()
        self._torn = False  # whether the last write ended within a line
        self._thread = Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue a line, without its newline. Never waits for the sink."""
        with self._changed:
            if self._lines_bytes + len(line) > self._most_bytes:
                self._dropped += 1
                return
            self._lines.append((line, self._dropped))
            self._lines_bytes += len(line)
            self._dropped = 0
            self._changed.notify()

    debug = info = warning = error = critical = exception = write
    """The methods that structlog calls."""

    def close(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` until all lines are written. Lines queued later are lost."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (entry := self._next()) is not None:
            line, dropped = entry
            lines = [self._report(dropped), line] if dropped else [line]
            if not self._put(b"".join(each + b"\n" for each in lines)):
                with self._changed:
                    self._dropped += dropped + 1
        if self._dropped:
            self._put(self._report(self._dropped) + b"\n")

    def _next(self) -> tuple[bytes, int] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closing)
            if not self._lines:
                return None
            line, dropped = self._lines.popleft()
            self._lines_bytes -= len(line)
            return line, dropped

    def _put(self, text: bytes) -> bool:
        """Write all of `text`; return False if the sink refused it or a part of it."""
        unwritten = memoryview(b"\n" + text if self._torn else text)
        text_bytes = len(unwritten)
        try:
            # Not through sys.stderr: a blocked write would hold its lock, and the exit of the process would hang, too.
            while unwritten:
                unwritten = unwritten[os.write(self._fd, unwritten) :]
        except OSError:
            self._torn = self._torn or len(unwritten) < text_bytes
            return False
        self._torn = False
        return True


class _LibraryHandler(logging.Handler):
    """Logs the warnings of libraries by structlog: `logging` itself would write to stderr, even from the event loop."""

    def emit(self, record: logging.LogRecord) -> None:
        log = _log.error if record.levelno >= logging.ERROR else _log.warning
        log("library_warned", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)


def _processors(*additions: Processor) -> list[Processor]:
    """Return the processors that turn an event into bytes; `additions` are left out on a terminal."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _time_and_event_first,
    ]
    if sys.stderr.isatty():
        # The default formatter shows the locals of each frame, secrets included.
        console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        return [*shared, console, _encoded]
    renderer = structlog.processors.JSONRenderer(serializer=_dumps)
    return [*shared, *additions, structlog.processors.format_exc_info, _shortened, renderer]


def _time_and_event_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Move these fields to the front, where people look first."""
    first = ("timestamp", "level", "event")
    return {name: event[name] for name in first} | {n: value for n, value in event.items() if n not in first}


def _shortened(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut long texts in the middle: the end of a traceback names the error."""
    half = MOST_CHARACTERS // 2
    return {
        name: f"{value[:half]} … {value[-half:]}" if isinstance(value, str) and len(value) > MOST_CHARACTERS else value
        for name, value in event.items()
    }


def _encoded(_logger: WrappedLogger, _method: str, line: Any) -> bytes:
    text: str = line
    return text.encode(errors="backslashreplace")


def _dumps(event: EventDict, default: Callable[[Any], Any]) -> bytes:
    """Encode any line: a lone surrogate in a file name or a huge number must not fail a job."""
    try:
        return orjson.dumps(event, default=default)
    except orjson.JSONEncodeError:
        return json.dumps(event, default=default, ensure_ascii=False).encode(errors="replace")
