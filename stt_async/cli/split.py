"""`split`: recordings on disk to segments on disk."""

from pathlib import Path
from typing import Annotated

import typer
import uvloop

from stt_async import settings
from stt_async.cli.options import AsJson, EnvFile, OutputLayout, Processes, SegmentFormat, cut, setting
from stt_async.cli.results import split_table
from stt_async.cli.terminal import SOME_FAILED, out, print_err, print_json, print_out
from stt_async.local.files import LocalResult, find_recordings, split_files
from stt_async.progress import progress


def split(
    files: Annotated[list[Path], typer.Argument(help="Recordings, or folders of recordings.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Output folder; each recording gets a folder in it.")],
    *,
    threshold: Annotated[float | None, cut("--threshold", "threshold")] = None,
    neg_threshold: Annotated[float | None, cut("--neg-threshold", "neg_threshold")] = None,
    min_silence: Annotated[int | None, cut("--min-silence", "min_silence_duration_ms")] = None,
    max_duration: Annotated[float | None, cut("--max-duration", "max_speech_duration_s")] = None,
    target_duration: Annotated[float | None, setting("--target-duration", "vad", "target_duration_s")] = None,
    min_duration: Annotated[float | None, setting("--min-duration", "vad", "min_segment_duration_s")] = None,
    format: SegmentFormat = None,  # noqa: A002 - the option's name
    layout: OutputLayout = None,
    processes: Processes = None,
    as_json: AsJson = False,
    env_file: EnvFile = None,
) -> None:
    """Split recordings on disk. Each gets a folder with segments and metadata.json. No service is needed."""
    loaded = settings.load(
        env_file,
        format=format,
        layout=layout,
        processes=processes,
        vad={
            "threshold": threshold,
            "neg_threshold": neg_threshold,
            "min_silence_duration_ms": min_silence,
            "max_speech_duration_s": max_duration,
            "target_duration_s": target_duration,
            "min_segment_duration_s": min_duration,
        },
    )
    recordings = find_recordings(files)
    results: list[LocalResult] = []

    async def run() -> None:
        with progress("splitting") as report:
            async for result in split_files(recordings, out_dir, loaded):
                results.append(result)
                report(len(results), len(recordings))
                if result.error is not None:
                    print_err(f"{result.recording.file}: {result.error.message}")

    uvloop.run(run())
    results.sort(key=lambda result: result.recording.name)
    if as_json:
        for result in results:
            print_json(result.facts())
    else:
        out.print(split_table(results))
        print_out(f"The segments are in {out_dir}/")
    if any(result.error for result in results):
        raise typer.Exit(SOME_FAILED)
