"""`demo`: the whole system on loopback."""

import asyncio
import shlex
from pathlib import Path
from typing import Annotated

import typer

from stt_async.cli.results import outcome_table
from stt_async.cli.terminal import UNEXPECTED, out, print_out
from stt_async.local.demo import demonstration


def demo(
    directory: Annotated[
        Path | None, typer.Argument(help="Folder of recordings. Default: the samples of the package.")
    ] = None,
    *,
    out_dir: Annotated[
        Path, typer.Option("--out", help="Folder for the segments, the data of the servers, and the logs.")
    ] = Path("demo-output"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the servers running until Ctrl-C.")] = False,
) -> None:
    """Run the whole system on this machine. Starts an S3 server and a queue, then enqueue and a worker."""

    async def run() -> bool:
        async with demonstration(directory, out_dir) as shown:
            accounted_for = sum(outcome.accounted_for for outcome in shown.outcomes)
            out.print(outcome_table(shown.outcomes))
            print_out(
                f"{accounted_for} of {len(shown.outcomes)} recordings accounted for: {shown.done_before} were done "
                f"before, {shown.sent} jobs were sent; every segment was checked against its manifest"
            )
            print_out(f"segments and metadata.json: {shown.segments}\nlog of the worker: {shown.log}")
            if keep:
                for name, value in shown.environment.items():
                    print_out(f"export {name}={shlex.quote(value)}")
                print_out("The servers run with these settings until Ctrl-C.")
                await asyncio.Event().wait()
            return accounted_for == len(shown.outcomes)

    if not asyncio.run(run()):
        raise typer.Exit(UNEXPECTED)
