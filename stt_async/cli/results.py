"""Tables of recordings and their results."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from stt_async.local.demo import RecordingOutcome
from stt_async.local.files import LocalResult
from stt_async.manifest import Manifest


def split_table(results: Iterable[LocalResult]) -> Table:
    """Return the table of `split`."""
    table = _table()
    for result in results:
        failed = f"failed: {result.error.code}" if result.error else ""
        status = failed or _status(result.manifest) + (", already done" if result.skipped else "")
        table.add_row(Text(result.recording.name), *_numbers(result.manifest), Text(status))
    return table


def outcome_table(outcomes: Iterable[RecordingOutcome]) -> Table:
    """Return the table of `demo`."""
    table = _table()
    for outcome in outcomes:
        reason = "lost" if outcome.dead_letter is None else f"dead-lettered: {outcome.dead_letter}"
        status = "; ".join(outcome.problems) or _status(outcome.manifest) or reason
        table.add_row(Text(outcome.name), *_numbers(outcome.manifest), Text(status))
    return table


def _table() -> Table:
    table = Table()
    table.add_column("recording", overflow="fold")
    for column in ("length", "segments", "speech"):
        table.add_column(column, justify="right")
    table.add_column("status")
    return table


def _status(manifest: Manifest | None) -> str:
    if manifest is None:
        return ""
    return manifest.status.replace("_", " ") + (", truncated" if manifest.recording.truncated else "")


def _numbers(manifest: Manifest | None) -> tuple[str, str, str]:
    if manifest is None:
        return "", "", ""
    length_s = manifest.recording.decoded_duration_s
    return f"{length_s:.1f} s", str(manifest.total_segments), f"{manifest.speech_s:.1f} s"
