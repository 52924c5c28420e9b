"""The command line: `opconform list`, `support`, `test` and `replay`; `commands_history.py` adds those for histories.

Exit status: 0 all passed, 1 a failure (or nothing was executed), 2 usage.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opconform import __version__
from opconform.campaign import Campaign
from opconform.commands_ci import add_to as add_matrix_to
from opconform.commands_history import COMMANDS
from opconform.commands_repro import add_to as add_repro_to
from opconform.harness.draw.known import known_cases
from opconform.harness.model.op import Op
from opconform.harness.model.ops import chosen_ops, ops
from opconform.harness.model.text import speak_any_encoding
from opconform.harness.model.usage import UsageError
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.target import Target
from opconform.harness.search.changes import DEFAULT_BASE, changed_files, ops_concerned
from opconform.harness.search.known_failures import fixed
from opconform.harness.search.result import Result
from opconform.harness.search.session import Missing, Session, targets_of
from opconform.harness.search.settings import positive
from opconform.options import OPTIONS, Option, settings_from
from opconform.output import FORMATS, printing
from opconform.progress import Progress
from opconform.reports.commands import commands
from opconform.reports.console import counts, matrix, screen, text_of
from opconform.reports.history import history_path

F = TypeVar("F", bound=Callable[..., Any])


def _shared(*names: str) -> Callable[[F], F]:
    """Add options of the shared table to a command; the command receives them as one dict, `values`."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            own = {key: values.pop(key) for key in list(values) if key not in keys}
            try:
                return function(values=values, **own)
            except UsageError as error:
                raise click.UsageError(str(error)) from None
            except Unavailable as error:
                raise click.ClickException(str(error)) from None

        decorated: Any = command
        for option in reversed([option for option in OPTIONS if option.name in names]):
            decorated = _click_option(option)(decorated)
        return decorated  # type: ignore[no-any-return]

    keys = {option.key for option in OPTIONS if option.name in names}
    return decorate


def _click_option(option: Option) -> Callable[[Any], Any]:
    if option.flag:
        return click.option(option.name, option.key, is_flag=True, help=option.help)
    kind: Any = click.Choice(option.choices) if option.choices else option.type
    return click.option(
        option.name, option.key, type=kind, multiple=option.many, metavar=option.metavar or None, help=option.help
    )


_output = click.option(
    "--output",
    type=click.Choice(FORMATS),
    default="console",
    help="what goes to stdout: text, one JSON document, or rows as test-backend-ops prints them",
)


@click.group()
@click.version_option(__version__, prog_name="opconform")
def main() -> None:
    """Does a compute backend compute tensor ops correctly, for every shape, stride and offset?"""
    speak_any_encoding(sys.stdout, sys.stderr)


for _command in COMMANDS:
    main.add_command(_command)
add_repro_to(main, _shared)
add_matrix_to(main, _shared)


@main.command("list")
@_shared("--ggml-lib")
@click.option("--cases", is_flag=True, help="list the known cases instead")
def list_command(values: dict[str, Any], cases: bool) -> None:
    """Ops, backends and devices; for what is missing, why, and how to get it."""
    if cases:
        table = Table("known case", "about", "source", box=None, pad_edge=False)
        for known in known_cases().values():
            table.add_row(known.id, known.about, known.source)
        _show(table)
        return
    table = Table("op", "what it computes", "arguments", box=None, pad_edge=False)
    for op in ops().values():
        table.add_row(op.name, op.summary, Text(", ".join((*op.inputs, *op.params))))
    _show(table)
    click.echo()
    targets, missing = targets_of((), settings_from(values))
    for target in targets:
        click.echo(f"{target.label}  {target.about}")
    _name_missing(missing)


def _show(table: Table) -> None:
    """Print a table: as wide as the terminal, and whole where a file or a pipe takes it."""
    if sys.stdout.isatty():
        Console().print(table)
    else:
        click.echo(text_of(table, 240))


@main.command()
@_shared("--backend", "--op", "--ggml-lib", "--strict-supports", "--no-isolation")
def support(values: dict[str, Any]) -> None:
    """What each device takes of each op, with the reason where it does not."""
    chosen = chosen_ops(values["op"])
    settings = settings_from(values)
    targets, missing = targets_of(values["backend"], settings)
    _name_missing(missing, err=True)
    with Session(settings) as session:
        for target in targets:
            click.echo(f"{target.label}  {target.about}")
            runner = session.runner(target)
            for op in chosen:
                cases = [known.case for known in known_cases().values() if known.case.op == op.name]
                reasons = list(dict.fromkeys(runner.supports(cases)))
                answer = "yes" if None in reasons else f"no: {'; '.join(map(str, reasons))}"
                click.echo(f"  {op.name}: {answer}")
                if None in reasons:
                    for limit in runner.limits(op):
                        click.echo(f"    {limit.kind}: {limit.reason}  [{limit.source}]")


@main.command()
@_shared(*(option.name for option in OPTIONS))
@click.option("--minutes", type=float, metavar="M", help="share this much time among all ops and devices")
@click.option(
    "--changed-ops",
    is_flag=False,
    flag_value=DEFAULT_BASE,
    metavar="[BASE]",
    help="only ops whose files differ from this commit (default: origin/main); the profile is quick unless chosen",
)
@_output
def test(values: dict[str, Any], minutes: float | None, changed_ops: str | None, output: str) -> None:
    """Search for failing cases of each op on each device; ends with the matrix."""
    if changed_ops is not None:
        values = {**values, "profile": values["profile"] or "quick"}
    seconds = None if minutes is None else 60 * positive("--minutes", minutes)
    campaign = Campaign.of(values)
    if changed_ops is not None:
        campaign.pairs = _changed(campaign.pairs, changed_ops)
    settings = campaign.settings
    printers = click.get_current_context().with_resource(printing(campaign.run, output))
    progress = Progress(len(campaign.pairs), settings)
    results: list[Result] = []
    lost = 0
    with campaign.open([*printers, progress]) as session:
        _announce(campaign)
        deadline = None if seconds is None else time.monotonic() + seconds
        for index, (op, target) in enumerate(campaign.pairs):
            if deadline is not None:
                share = max(deadline - time.monotonic(), 0.0) / (len(campaign.pairs) - index)
                session.settings = replace(settings, seconds=share, examples=sys.maxsize)
            try:
                results.append(campaign.result(session, op, target))
            except Unavailable as error:
                click.echo(f"FAILED      {op.name} on {target.label} cannot run: {error}", err=True)
                lost += 1
    _finish(results, lost, campaign.faults(results))


def _announce(campaign: Campaign) -> None:
    """Say what runs, and how to run the same again."""
    seed = campaign.settings.seed
    click.echo(f"seed {seed}: --seed {seed} draws the same cases again")
    for target in campaign.targets:
        click.echo(f"{target.label}  {target.about}")
    _name_missing(campaign.missing)
    path = history_path(campaign.settings)
    if path is not None:
        click.echo(f"run {campaign.run.id}, recorded in {path}")


def _name_missing(missing: Sequence[Missing], err: bool = False) -> None:
    for absent in missing:
        click.echo(f"{absent.spec}  not available: {absent.reason}; {absent.remedy}", err=err)


@main.command()
@click.argument("case")
@_shared(
    "--backend",
    "--ggml-lib",
    "--max-bytes",
    "--time-limit",
    "--no-isolation",
    "--strict-supports",
    "--check",
    "--sanitize",
    "--report-dir",
    "--also-seconds",
    "--history",
)
@_output
def replay(values: dict[str, Any], case: str, output: str) -> None:
    """Run one case, from a file or by id, on the devices named."""
    campaign = Campaign.of({**values, "case": [case]})
    _name_missing(campaign.missing, err=True)
    printers = click.get_current_context().with_resource(printing(campaign.run, output))
    with campaign.open(printers, bundles=False) as session:
        results = [campaign.result(session, op, target) for op, target in campaign.pairs]
    for result in results:
        if result.failure is not None:
            click.echo(screen(result.failure, commands(result.failure, campaign.settings)) + "\n")
    _finish(results)


def _changed(todo: Sequence[tuple[Op, Target]], base: str) -> list[tuple[Op, Target]]:
    """Those of `todo` that a change since `base` concerns. Where it concerns none there is nothing to test: that is
    said, and is no failure."""
    root, files = changed_files(base)
    names = list(dict.fromkeys(op.name for op, _ in todo))
    concerned = {spec: ops_concerned(files, root, spec, names) for spec in {target.spec for _, target in todo}}
    left = [(op, target) for op, target in todo if op.name in concerned[target.spec]]
    said = ", ".join(dict.fromkeys(op.name for op, _ in left)) or "none that is tested here"
    click.echo(f"{len(files)} files differ from {base}; they concern {said}")
    if not left:
        click.echo("nothing to test")
        sys.exit(0)
    return left


def _finish(results: Sequence[Result], lost: int = 0, faults: Sequence[str] = ()) -> None:
    """Print the matrix and leave with the status that the results deserve. `lost` pairs could not run at all; `faults`
    are those of the list of expected failures."""
    click.echo()
    click.echo(matrix(results))
    click.echo(counts(results))
    for line in fixed(results):
        click.echo(line)
    for fault in faults:
        click.echo(fault, err=True)
    if not sum(result.tally.executed for result in results):
        click.echo("nothing was executed: that is a failure, not a pass", err=True)
        sys.exit(1)
    if lost or faults or any(result.failure is not None for result in results):
        sys.exit(1)
