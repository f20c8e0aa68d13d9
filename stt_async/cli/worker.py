"""`worker`: the daemon."""

import logging
from typing import Annotated, Any

import typer
import uvloop
from typer.core import TyperCommand

from stt_async import logs, metrics, settings
from stt_async.cli.options import EnvFile, OutputLayout, Processes, SegmentFormat, setting
from stt_async.cli.terminal import SOME_FAILED
from stt_async.worker.assembly import work, work_until_empty


class WorkerCommand(TyperCommand):
    """A command whose help ends with all settings, by group."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # typer's own types are private
        """Write the settings below the options."""
        del ctx
        for heading, group in settings.variables().items():
            with formatter.section(heading):
                formatter.write_dl([(each.name, _meaning(each)) for each in group], col_max=36)


def worker(
    *,
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    format: SegmentFormat = None,  # noqa: A002 - the option's name
    layout: OutputLayout = None,
    processes: Processes = None,
    slots: Annotated[int | None, setting("--slots", "slots")] = None,
    downloads: Annotated[int | None, setting("--downloads", "downloads")] = None,
    uploads: Annotated[int | None, setting("--uploads", "uploads")] = None,
    env_file: EnvFile = None,
) -> None:
    """Run the daemon. It takes jobs from SQS and recordings from MinIO, and puts segments into S3.

    It reads the settings below from environment variables, or from the env file.
    """
    loaded = settings.load(
        env_file, format=format, layout=layout, processes=processes, slots=slots, downloads=downloads, uploads=uploads
    )
    with logs.in_background(logging.INFO, *metrics.processors(loaded.environment, loaded.split_queue)):
        if not once:
            uvloop.run(work(loaded))
        elif uvloop.run(work_until_empty(loaded))["job_failed"]:
            raise typer.Exit(SOME_FAILED)


def _meaning(each: settings.Variable) -> str:
    return f"{each.description} [{each.type}{f'; default: {each.default}' if each.default else ''}]"
