"""`enqueue`: a job for each recording without a result."""

from dataclasses import asdict
from typing import Annotated

import typer
import uvloop
from rich.filesize import decimal

from stt_async import settings
from stt_async.cli.options import AsJson, EnvFile
from stt_async.cli.terminal import print_json, print_out
from stt_async.corpus.enqueue import Selection, preview
from stt_async.corpus.enqueue import enqueue as send_jobs
from stt_async.errors import SettingsError
from stt_async.progress import progress


def enqueue(
    *,
    collection: Annotated[str | None, typer.Option(help="First folder of the keys, such as amdo.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Beginning of the keys.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Send at most this many jobs.")] = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Also send recordings split with other parameters or from another source."),
    ] = False,
    retry_unsplittable: Annotated[
        bool, typer.Option("--retry-unsplittable", help="Also send unsplittable recordings that have not changed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the jobs, but send none.")] = False,
    as_json: AsJson = False,
    env_file: EnvFile = None,
) -> None:
    """Send a job for each recording in MinIO that is not done."""
    if collection is not None and prefix is not None:
        raise SettingsError("--collection and --prefix both select keys: give only one of them")
    loaded = settings.load(env_file)
    selection = Selection(
        prefix=f"{collection.rstrip('/')}/" if collection else prefix or "",
        limit=limit,
        replace=replace,
        retry_unsplittable=retry_unsplittable,
    )

    with progress("sending jobs") as report:
        sending = preview if dry_run else send_jobs
        summary = uvloop.run(sending(loaded, selection, lambda summary: report(summary.sent, limit)))
    if as_json:
        print_json({"dry_run": dry_run, **asdict(summary)})
        return
    print_out(
        f"{summary.listed} objects listed: {summary.done} already done, {summary.other_params} made from other "
        f"parameters or another source, {summary.unsplittable} unsplittable, {summary.not_audio} not audio"
    )
    for key in summary.unusable_keys:
        print_out(f"skipped, its key cannot be an output prefix: {key!r}")
    verb = "would be sent" if dry_run else "sent"
    print_out(f"{summary.sent} jobs {verb}, {decimal(summary.sent_bytes)} of recordings")
