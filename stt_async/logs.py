"""Logs: JSON lines on stderr, or lines for people where stderr is a terminal."""

import json
import sys
from collections.abc import Callable
from typing import Any

import orjson
import structlog


def configure(level: int) -> None:
    """Set up structlog for this process, from `logging`'s `level` upward.

    Events are `snake_case` past tense; what is bound stands in each line.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _time_and_event_first,
    ]
    if sys.stderr.isatty():
        structlog.configure(
            processors=[*shared, structlog.dev.ConsoleRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
    else:
        structlog.configure(
            processors=[
                *shared,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(serializer=_dumps),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        )


def _time_and_event_first(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Order a line as people read it."""
    first = ("timestamp", "level", "event")
    return {name: event[name] for name in first} | {n: value for n, value in event.items() if n not in first}


def _dumps(event: structlog.typing.EventDict, default: Callable[[Any], Any]) -> bytes:
    """Write a line whatever it holds: a lone surrogate of a file's name or a huge number must not fail a job."""
    try:
        return orjson.dumps(event, default=default)
    except orjson.JSONEncodeError:
        return json.dumps(event, default=default, ensure_ascii=False).encode(errors="replace")
