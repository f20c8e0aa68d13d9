"""Simulates a run over the whole corpus: `python -m tests.simulation --help`."""

import random
import sys
from typing import Annotated

import typer

from tests.simulation.fleet import Simulation
from tests.simulation.rules import Rules
from tests.simulation.world import Minute, Recording, Run, World
from tests.support.stack.cloudformation import load, refusals, resolve

CORPUS = {
    "amdo": (290, 145),
    "kham": (278, 138),
    "utsang": (648, 328),
    "loc": (1_420, 4_771),
    "other": (45_891, 3_916),
    "voa": (83_678, 76_390),
}
"""Recordings and hours of each collection, in the order in which they are split."""

MBPS = 0.064
"""Bit rate of a recording: 64 kbit/s."""


def corpus(collections: list[str]) -> list[Recording]:
    """Return as many recordings as the collections have, with lengths from half to one and a half of their mean."""
    lengths = random.Random(0)  # noqa: S311 - repeatable
    return [
        Recording(seconds, seconds * MBPS)
        for files, hours in (CORPUS[name] for name in collections)
        for seconds in (hours * 3600 / files * lengths.uniform(0.5, 1.5) for _ in range(files))
    ]


def simulate(parameters: dict[str, str], recordings: list[Recording], *, interruptions_an_hour: float = 0.05) -> Run:
    """Simulate the template with these parameters. All recordings are sent at once.

    Raises:
        ValueError: CloudFormation would reject the parameters.
    """
    given = {"ArtifactBucket": "any", "ArtifactSha256": "0" * 64} | parameters
    template = load()
    if reasons := refusals(template, given):
        raise ValueError("; ".join(reasons))
    stack = resolve(template, given)
    world = World(link_mbps=float(stack.parameters["SourceLinkMbps"]), interruptions_an_hour=interruptions_an_hour)
    return Simulation(Rules.of(stack), world, [(0.0, each) for each in recordings]).run()


def main(
    collections: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(CORPUS)}. (default: all)")] = None,
    parameter: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of a template parameter.")] = None,
    every_minutes: Annotated[int, typer.Option(min=1, help="Minutes between two lines.")] = 240,
    interruptions_an_hour: Annotated[float, typer.Option(min=0, help="Spot interruptions per instance.")] = 0.05,
) -> None:
    """Simulate the fleet over the corpus: backlog, instances and cost over time."""
    chosen = dict(each.partition("=")[::2] for each in parameter or [])
    try:
        run = simulate(chosen, corpus(collections or list(CORPUS)), interruptions_an_hour=interruptions_an_hour)
    except (KeyError, ValueError) as error:
        typer.echo(f"unknown collection or wrong parameter: {error}", err=True)
        sys.exit(2)
    typer.echo(f"{'hour':>7} {'waiting':>8} {'in flight':>9} {'desired':>7} {'in service':>10} {'US$':>7}")
    for minute in [*run.minutes[::every_minutes], run.minutes[-1]]:
        typer.echo(_line(minute))
    typer.echo(f"{run.done} done, {run.released} released in {run.interrupted} Spot interruptions")


def _line(minute: Minute) -> str:
    numbers = f"{minute.visible:>8} {minute.inflight:>9} {minute.desired:>7} {minute.inservice:>10}"
    return f"{minute.at_s / 3600:>7.1f} {numbers} {minute.usd:>7.2f}"


if __name__ == "__main__":
    typer.run(main)
