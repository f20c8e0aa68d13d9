"""`doctor`: a check of everything that a worker needs."""

import asyncio

import typer

from stt_async import settings
from stt_async.cli.options import AsJson, EnvFile
from stt_async.cli.terminal import OUT_OF_REACH, out, print_json, print_out
from stt_async.fleet.doctor import examine


def doctor(*, as_json: AsJson = False, env_file: EnvFile = None) -> None:
    """Check everything that a worker needs. Prints one line for each check."""
    loaded = settings.load(env_file)

    async def run() -> bool:
        passed = True
        async for check in examine(loaded):
            passed = passed and check.ok
            if as_json:
                print_json({"check": check.name, "ok": check.ok, "detail": check.detail})
            else:
                out.print("[green]ok    [/]" if check.ok else "[red]FAILED[/]", end=" ")
                print_out(f"{check.name}: {check.detail}")
        return passed

    if not asyncio.run(run()):
        raise typer.Exit(OUT_OF_REACH)
