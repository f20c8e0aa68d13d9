"""`deploy`: the release, the stack and the instances of a fleet."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from stt_async import settings
from stt_async.cli.options import AsJson, EnvFile
from stt_async.cli.terminal import err, print_err, print_json, print_out
from stt_async.errors import SettingsError
from stt_async.fleet import artifact, deployment, group
from stt_async.fleet.account import AwsAccount, open_account
from stt_async.fleet.stack import Event, Proposal, Stack
from stt_async.fleet.status import Status
from stt_async.fleet.status import status as read_status
from stt_async.fleet.template import PATH, parse_parameters, read_template
from stt_async.progress import progress

STACK = "stt-async"
DIST = Path("dist")

deploy = typer.Typer(help="Manage the fleet: its release, stack and instances.", no_args_is_help=True)

StackName = Annotated[str, typer.Option("--stack", envvar="STT_STACK", help="Name of the stack.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the changes, but make none.")]


@deploy.command()
def build(
    *,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the tarball and the wheels.")] = DIST,
    as_json: AsJson = False,
) -> None:
    """Build a release. It is one tarball, named by its sha256; the same checkout gives the same bytes."""
    built = artifact.build(out_dir)
    if as_json:
        print_json({"file": str(built.file), "sha256": built.sha256, "bytes": built.size_bytes})
        return
    wheels = [size for name, size in built.members_bytes.items() if name.startswith("wheels/")]
    print_out(f"{built.file}: {decimal(built.size_bytes)}")
    print_out(f"{len(wheels)} wheels: {decimal(sum(wheels))}")
    for name, size in sorted(built.members_bytes.items(), key=lambda member: -member[1])[:5]:
        print_out(f"  {decimal(size):>8} {name}")
    print_out(f"sha256 {built.sha256}")


@deploy.command("deploy")
def deploy_stack(
    *,
    stack: StackName = STACK,
    given: Annotated[
        list[str] | None,
        typer.Option("--set", help="Name=Value of a template parameter; the other parameters keep their values."),
    ] = None,
    build: Annotated[bool, typer.Option("--build", help="Build a release of this checkout and deploy it.")] = False,
    release: Annotated[
        Path | None,
        typer.Option("--artifact", help="Deploy a release that `build` made. Default: the stack's release."),
    ] = None,
    template: Annotated[Path, typer.Option("--template", help="CloudFormation template.", show_default=False)] = PATH,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    env_file: EnvFile = None,
) -> None:
    """Create or update the stack. Shows the changes, asks, uploads the release, and waits until the stack is stable."""
    loaded = settings.load(env_file)
    if build and release is not None:
        raise SettingsError("--build and --artifact both name a release: give only one of them")
    parameters, read = parse_parameters(given or []), read_template(template)
    read.check(parameters)  # before the build, which takes minutes
    order = deployment.Order(
        stack=stack,
        template=read,
        given=parameters,
        artifact=artifact.build(DIST).file if build else release,
    )
    with ExitStack() as bar:
        operator = _Terminal(f"{stack} in {loaded.aws_region}", bar, asks=not yes, declines=dry_run)
        outcome = asyncio.run(deployment.deploy(loaded, order, operator))
    outputs = dict(sorted(outcome.stack.outputs.items())) if outcome.stack else {}
    if as_json:
        print_json({"result": outcome.result, "dry_run": dry_run, "stack": stack, "outputs": outputs})
        return
    match outcome.result:
        case "unchanged":
            print_out(f"{stack} is up to date: no changes")
        case "declined":
            print_out("nothing was changed")
        case "deployed":
            for name, value in outputs.items():
                print_out(f"{name}: {value}")


@deploy.command()
def status(*, stack: StackName = STACK, as_json: AsJson = False, env_file: EnvFile = None) -> None:
    """Show the stack, its release, instances, queues and alarms."""
    found = asyncio.run(read_status(settings.load(env_file), stack))
    if as_json:
        print_json(found.facts())
        return
    for line in _status_lines(found):
        print_out(line)


@deploy.command()
def scale(
    *,
    count: Annotated[int, typer.Option(min=0, help="Number of instances.")],
    stack: StackName = STACK,
    dry_run: DryRun = False,
    env_file: EnvFile = None,
) -> None:
    """Change the number of instances. An instance that ends releases its unfinished jobs first."""

    async def run() -> group.Scaling:
        async with open_account(settings.load(env_file)) as account:
            plan = group.scaling(await deployment.group_of(account, stack), count)
            if not dry_run:
                await group.scale(account, plan)
            return plan

    plan = asyncio.run(run())
    verb = "would be" if dry_run else "is"
    print_out(
        f"the desired capacity of {plan.group.name} {verb} {count}, it was {plan.group.desired}; "
        f"{len(plan.group.staying)} instances run"
    )
    if plan.ends:
        print_out(
            f"{len(plan.ends)} end, one call each because they are protected from scale-in; they release the jobs "
            "that they cannot finish within 100 s"
        )
    if not count:
        print_out(
            "while jobs wait, an alarm starts instances again within minutes; `bin/deploy suspend` prevents that. An "
            "instance without a job ends itself after IdleTimeoutSeconds"
        )
    elif "Launch" in plan.group.suspended:
        print_out("launching is suspended: run `bin/deploy resume` to start instances")


@deploy.command()
def suspend(*, stack: StackName = STACK, dry_run: DryRun = False, env_file: EnvFile = None) -> None:
    """Stop starting instances. Running instances continue, and end themselves when idle."""
    _hold(stack, env_file, None if dry_run else group.suspend, "suspended")


@deploy.command()
def resume(*, stack: StackName = STACK, dry_run: DryRun = False, env_file: EnvFile = None) -> None:
    """Start instances again when jobs wait."""
    _hold(stack, env_file, None if dry_run else group.resume, "resumed")


@deploy.command()
def delete(*, stack: StackName = STACK, yes: Yes = False, dry_run: DryRun = False, env_file: EnvFile = None) -> None:
    """End all instances and delete the stack. The queues with their jobs and the bucket with its segments stay."""
    loaded = settings.load(env_file)

    async def run() -> Stack:
        async with open_account(loaded) as account:
            return await deployment.existing(account, stack)

    found = asyncio.run(run())
    print_err(
        f"stack {stack} in {loaded.aws_region} is {found.status}; its instances, roles, alarms and logs will be deleted"
    )
    if dry_run:
        print_out("nothing was changed")
        return
    if not yes and typer.prompt("Type the stack's name to delete it", err=True) != stack:
        raise SettingsError(f"that is not {stack}: nothing was changed")
    with ExitStack() as bar:
        retained = asyncio.run(
            deployment.delete(
                loaded,
                stack,
                _Events(bar),
                lambda left: print_err(f"{left} instances end; they release their jobs"),
            )
        )
    print_out(f"stack {stack} is deleted; retained: {', '.join(retained) or 'nothing'}")


def _hold(
    stack: str,
    env_file: Path | None,
    act: Callable[[AwsAccount, str, Sequence[str]], Awaitable[None]] | None,
    done: str,
) -> None:
    async def run() -> group.FleetGroup:
        async with open_account(settings.load(env_file)) as account:
            found = await deployment.group_of(account, stack)
            if act is not None:
                await act(account, found.name, group.HELD_BACK)
            return found

    found = asyncio.run(run())
    verb = "are" if act is not None else "would be"
    print_out(f"{found.name}: {' and '.join(group.HELD_BACK)} {verb} {done}; {len(found.staying)} instances run")


class _Events:
    """Prints a line for each event of the stack, and shows a bar of the finished resources."""

    def __init__(self, bar: ExitStack, total: int | None = None) -> None:
        self._report = bar.enter_context(progress("resources"))
        self._total = total
        self._done: set[str] = set()

    def __call__(self, event: Event) -> None:
        _print_event(event)
        if event.status.endswith("_COMPLETE") and not event.is_of_stack:
            self._done.add(event.logical_id)
            self._report(len(self._done), self._total)


class _Terminal:
    """The operator at the terminal: a `deployment.Operator`."""

    def __init__(self, what: str, bar: ExitStack, *, asks: bool, declines: bool) -> None:
        self._what = what
        self._bar = bar
        self._asks = asks
        self._declines = declines
        self._on_event: Callable[[Event], None] = _print_event

    def approve(self, proposal: Proposal) -> bool:
        err.print(_changes(proposal))
        if self._declines or (self._asks and not typer.confirm(f"Go on with {self._what}?", err=True)):
            return False
        # Start the bar after the question: they cannot share a terminal.
        self._on_event = _Events(self._bar, len(proposal.changes))
        return True

    def confirm_cleanup(self, leftover: Stack) -> bool:
        print_err(
            f"{leftover.name} is {leftover.status}, left by a create that failed: it is empty and will be deleted first"
        )
        return not self._declines

    def on_event(self, event: Event) -> None:
        self._on_event(event)

    def on_progress(self, sentence: str) -> None:
        print_err(sentence)


def _print_event(event: Event) -> None:
    reason = f": {event.reason}" if event.reason and not event.is_of_stack else ""
    print_err(f"{event.status:<20} {event.logical_id} ({event.resource_type}){reason}")


def _changes(proposal: Proposal) -> Table:
    table = Table(title="Changes" if proposal.kind == "UPDATE" else "A new stack")
    for column in ("action", "resource", "type", "replaced"):
        table.add_column(column)
    for change in proposal.changes:
        table.add_row(change.action, change.logical_id, change.resource_type, change.replacement)
    return table


def _status_lines(found: Status) -> Iterator[str]:
    yield f"stack {found.stack.name}: {found.stack.status} {found.stack.status_reason}".rstrip()
    yield f"release {found.release}"
    if (fleet := found.group) is not None:
        states = ", ".join(f"{count} {state}" for state, count in sorted(fleet.states.items())) or "no instance"
        yield f"instances: {fleet.desired} desired, at most {fleet.max_size}; {states}"
        if found.earlier:
            yield f"  {found.earlier} run an earlier release or earlier settings"
        yield f"  suspended: {', '.join(fleet.suspended) or 'nothing'}"
    for queue in found.queues:
        jobs = queue.jobs
        counts = f"{jobs.visible} waiting, {jobs.in_flight} in flight, {jobs.delayed} delayed"
        yield f"queue {queue.name}: {counts}; {queue.dead_letters} dead letters"
    yield f"alarms: {', '.join(found.alarms) or 'none'}"
