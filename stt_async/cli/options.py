"""Options that several commands share, and options that set a setting."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stt_async.params import Format, Layout
from stt_async.settings import variable, variables

_VARIABLES = {each.name: each for group in variables().values() for each in group}

_UNITS = {"_ms": "In milliseconds.", "_s": "In seconds."}


def setting(flag: str, *path: str, note: str = "") -> Any:
    """Return an option with the variable, the description and the default of the setting at `path`."""
    each = _VARIABLES[variable(path)]
    unit = next((sentence for suffix, sentence in _UNITS.items() if path[-1].endswith(suffix)), "")
    default = f"Default: {each.default}." if each.default else ""
    return typer.Option(flag, envvar=each.name, help=" ".join(filter(None, (each.description, unit, note, default))))


def cut(flag: str, field: str) -> Any:
    """Return an option for a parameter that has the name `field` in Silero's `get_speech_timestamps`."""
    return setting(flag, "vad", field, note=f"Silero's {field}.")


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, with stable keys.")]
EnvFile = Annotated[
    Path | None,
    typer.Option(envvar="STT_ENV_FILE", help="File with settings. Environment variables take precedence over it."),
]
OutputLayout = Annotated[Layout | None, setting("--layout", "layout")]
Processes = Annotated[int | None, setting("--processes", "processes")]
SegmentFormat = Annotated[Format | None, setting("--format", "format")]
