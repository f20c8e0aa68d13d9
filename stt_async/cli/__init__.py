"""The commands: parse, build Settings, call one function each, print what came of it. No logic."""

import asyncio
import logging
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Never

import typer
import uvloop
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from stt_async import logs, metrics, settings
from stt_async.cli.deployment import deploy
from stt_async.cli.terminal import AsJson, EnvFile, err, out, print_json
from stt_async.corpus.enqueue import Selection, preview
from stt_async.corpus.enqueue import enqueue as send_jobs
from stt_async.errors import ClassifiedError, SettingsError, SttError
from stt_async.fleet.doctor import examine
from stt_async.local.demo import Demonstration, demonstration
from stt_async.local.files import LocalResult, find_recordings, split_files
from stt_async.manifest import Manifest
from stt_async.params import Format, Layout
from stt_async.progress import progress
from stt_async.worker.assembly import work, work_until_empty

UNEXPECTED, USAGE, OUT_OF_REACH, SOME_FAILED = 1, 2, 3, 4
"""Exit codes; 0 is done."""

app = typer.Typer(
    help="Huge piles of recorded speech into clean training segments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(deploy, name="deploy")

Processes = Annotated[int | None, typer.Option(envvar="STT_PROCESSES", help="Pool processes. (default: usable vCPUs)")]
SegmentFormat = Annotated[Format | None, typer.Option(envvar="STT_FORMAT", help="Of the segments. (default: flac)")]
OutputLayout = Annotated[
    Layout | None,
    typer.Option(envvar="STT_LAYOUT", help="An object a segment, or one tar a recording. (default: objects)"),
]


@app.command()
def split(
    files: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder that gets a folder for each recording.")],
    *,
    format: SegmentFormat = None,  # noqa: A002 - the option's name
    layout: OutputLayout = None,
    processes: Processes = None,
    as_json: AsJson = False,
    env_file: EnvFile = None,
) -> None:
    """Split recordings on disk into segments and metadata.json; no services at all."""
    ours = settings.load(env_file, format=format, layout=layout, processes=processes)
    recordings = find_recordings(files)
    results: list[LocalResult] = []

    async def run() -> None:
        with progress("splitting") as report:
            async for result in split_files(recordings, out_dir, ours):
                results.append(result)
                report(len(results), len(recordings))
                if result.error is not None:
                    err.print(f"{result.recording.file}: {result.error.message}", markup=False, highlight=False)

    uvloop.run(run())
    results.sort(key=lambda result: result.recording.name)
    if as_json:
        for result in results:
            print_json(result.facts())
    else:
        out.print(_split_table(results))
        out.print(f"{out_dir}/ holds them", markup=False, highlight=False)
    if any(result.error for result in results):
        raise typer.Exit(SOME_FAILED)


@app.command()
def worker(
    *,
    once: Annotated[bool, typer.Option("--once", help="End when the queue is empty.")] = False,
    format: SegmentFormat = None,  # noqa: A002 - the option's name
    layout: OutputLayout = None,
    processes: Processes = None,
    slots: Annotated[int | None, typer.Option(envvar="STT_SLOTS", help="Jobs held at once.")] = None,
    downloads: Annotated[int | None, typer.Option(envvar="STT_DOWNLOADS", help="Downloads at once.")] = None,
    uploads: Annotated[int | None, typer.Option(envvar="STT_UPLOADS", help="Uploads at once.")] = None,
    env_file: EnvFile = None,
) -> None:
    """Run the daemon: jobs from SQS, recordings from MinIO, segments to S3. All its settings: docs/settings.md."""
    ours = settings.load(
        env_file, format=format, layout=layout, processes=processes, slots=slots, downloads=downloads, uploads=uploads
    )
    with logs.in_background(logging.INFO, *metrics.processors(ours.environment, ours.split_queue)):
        if not once:
            uvloop.run(work(ours))
        elif uvloop.run(work_until_empty(ours))["job_failed"]:
            raise typer.Exit(SOME_FAILED)


@app.command()
def enqueue(
    *,
    collection: Annotated[str | None, typer.Option(help="First folder of the keys, as amdo.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Beginning of the keys.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Send this many jobs at most.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also what was made from other parameters or another source.")
    ] = False,
    retry_unsplittable: Annotated[
        bool, typer.Option("--retry-unsplittable", help="Also what could not be split before, though it is the same.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look and count, send nothing.")] = False,
    as_json: AsJson = False,
    env_file: EnvFile = None,
) -> None:
    """List recordings in MinIO, skip what is done, send a job for each of the rest."""
    if collection is not None and prefix is not None:
        raise SettingsError("--collection and --prefix say the same thing: give one of them")
    ours = settings.load(env_file)
    selection = Selection(
        prefix=f"{collection.rstrip('/')}/" if collection else prefix or "",
        limit=limit,
        replace=replace,
        retry_unsplittable=retry_unsplittable,
    )

    with progress("sending jobs") as report:
        sending = preview if dry_run else send_jobs
        summary = uvloop.run(sending(ours, selection, lambda summary: report(summary.sent, limit)))
    if as_json:
        print_json({"dry_run": dry_run, **asdict(summary)})
        return
    out.print(
        f"{summary.listed} objects listed: {summary.done} done already, {summary.other_params} made from other "
        f"parameters or another source, {summary.unsplittable} known to be unusable, {summary.not_audio} not audio",
        highlight=False,
    )
    for key in summary.unusable_keys:
        out.print(f"left out, its name cannot be an output prefix: {key!r}", markup=False, highlight=False)
    verb = "would be sent" if dry_run else "sent"
    out.print(f"{summary.sent} jobs {verb}, {decimal(summary.sent_bytes)} of recordings", highlight=False)


@app.command()
def doctor(*, as_json: AsJson = False, env_file: EnvFile = None) -> None:
    """Is everything in order? One line for each thing that a worker needs."""
    ours = settings.load(env_file)

    async def run() -> bool:
        in_order = True
        async for check in examine(ours):
            in_order = in_order and check.ok
            if as_json:
                print_json({"check": check.name, "ok": check.ok, "detail": check.detail})
            else:
                mark = "[green]ok    [/]" if check.ok else "[red]FAILED[/]"
                out.print(mark, end=" ")
                out.print(f"{check.name}: {check.detail}", markup=False, highlight=False)
        return in_order

    if not asyncio.run(run()):
        raise typer.Exit(OUT_OF_REACH)


@app.command()
def demo(
    directory: Annotated[Path | None, typer.Argument(help="Recordings. (default: the shipped samples)")] = None,
    *,
    out_dir: Annotated[Path, typer.Option("--out", help="Gets the segments, the servers' data and the logs.")] = Path(
        "demo-output"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the services up until Ctrl-C.")] = False,
) -> None:
    """Run the whole system on loopback: real S3 servers, a queue, enqueue and a worker, over DIRECTORY."""

    async def run() -> bool:
        async with demonstration(directory, out_dir) as shown:
            _show_demonstration(shown)
            if keep:
                for name, value in shown.environment.items():
                    out.print(f"export {name}={shlex.quote(value)}", markup=False, highlight=False)
                out.print("the services are up, with these settings, until Ctrl-C", highlight=False)
                await asyncio.Event().wait()
            return all(outcome.accounted_for for outcome in shown.outcomes)

    if not asyncio.run(run()):
        raise typer.Exit(UNEXPECTED)


def main() -> None:
    """Run a command; errors become one sentence and an exit code."""
    logs.configure(logging.ERROR)
    try:
        app()
    except SettingsError as error:
        _fail(str(error), USAGE)
    except ClassifiedError as error:
        _fail(error.message, OUT_OF_REACH)
    except SttError as error:
        _fail(str(error), UNEXPECTED)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(sentence: str, code: int) -> Never:
    err.print(f"stt-async: {sentence}", markup=False, highlight=False)
    sys.exit(code)


def _split_table(results: list[LocalResult]) -> Table:
    table = _results_table()
    for result in results:
        if result.error is not None:
            table.add_row(Text(result.recording.name), "", "", "", f"failed: {result.error.code}")
        elif result.manifest is not None:
            status = _status(result.manifest) + (", done before" if result.skipped else "")
            table.add_row(Text(result.recording.name), *_manifest_cells(result.manifest), status)
    return table


def _show_demonstration(shown: Demonstration) -> None:
    table = _results_table()
    for outcome in shown.outcomes:
        if outcome.manifest is None:
            reason = "lost" if outcome.dead_letter is None else f"dead-lettered: {outcome.dead_letter}"
            table.add_row(Text(outcome.name), "", "", "", Text(reason))
        else:
            status = "; ".join(outcome.problems) or _status(outcome.manifest)
            table.add_row(Text(outcome.name), *_manifest_cells(outcome.manifest), Text(status))
    out.print(table)
    accounted_for = sum(outcome.accounted_for for outcome in shown.outcomes)
    out.print(
        f"{accounted_for} of {len(shown.outcomes)} recordings accounted for: {shown.done_before} were done before, "
        f"{shown.sent} jobs were sent; every segment was checked against its manifest",
        highlight=False,
    )
    out.print(
        f"segments and metadata.json: {shown.segments}\nthe worker's log: {shown.log}", markup=False, highlight=False
    )


def _results_table() -> Table:
    table = Table()
    table.add_column("recording", overflow="fold")
    for column in ("length", "segments", "speech"):
        table.add_column(column, justify="right")
    table.add_column("status")
    return table


def _status(manifest: Manifest) -> str:
    return manifest.status.replace("_", " ") + (", truncated" if manifest.recording.truncated else "")


def _manifest_cells(manifest: Manifest) -> tuple[str, str, str]:
    length_s = manifest.recording.decoded_duration_s
    return f"{length_s:.1f} s", str(manifest.total_segments), f"{manifest.speech_s:.1f} s"
