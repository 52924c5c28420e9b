"""The commands that only look: `opconform list` and `support`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opconform import colours
from opconform.arguments import shared
from opconform.harness.draw.known import known_cases
from opconform.harness.model.op import Op
from opconform.harness.model.ops import chosen_ops, ops
from opconform.harness.model.text import printable
from opconform.harness.run.backend import Unavailable
from opconform.harness.run.runner import Runner
from opconform.harness.run.target import Target
from opconform.harness.search.session import Missing, Session, targets_of
from opconform.options import settings_from
from opconform.reports.console import text_of


@click.command("list")
@shared("--ggml-lib")
@click.option("--cases", is_flag=True, help="list the known cases instead")
def list_command(values: dict[str, Any], cases: bool) -> None:
    """Ops, backends and devices; for what is missing, why, and how to get it."""
    if cases:
        table = Table("known case", "about", "source", box=None, pad_edge=False)
        for known in known_cases().values():
            table.add_row(*map(Text, (known.id, known.about, known.source)))
        _show(table)
        return
    table = Table("op", "what it computes", "arguments", box=None, pad_edge=False)
    for op in ops().values():
        table.add_row(*map(Text, (op.name, op.summary, ", ".join((*op.inputs, *op.params)))))
    _show(table)
    click.echo()
    targets, missing = targets_of((), settings_from(values))
    for target in targets:
        click.echo(f"{target.label}  {target.about}")
    name_missing(missing)


def _show(table: Table) -> None:
    """Print a table: as wide as the terminal, and whole where a file or a pipe takes it."""
    if sys.stdout.isatty():
        Console().print(table)
    else:
        click.echo(text_of(table, 1000))


def name_missing(missing: Sequence[Missing], err: bool = False) -> None:
    """Say which backends cannot run here, why, and what would make them run."""
    for absent in missing:
        click.echo(f"{absent.spec}  not available: {absent.why}", err=err)


def name_lost(says: str) -> None:
    """Say what of a run is lost: lines after the first are a traceback, or what a driver has to say."""
    says = says.replace("\n", "\n    ")
    click.echo(f"{colours.state('FAILED')} {says}", err=True)


@contextlib.contextmanager
def naming_lost(target: Target, lost: list[Target]) -> Iterator[None]:
    """What a device is asked in this context ends where it does not open, or not any more; that is said, and it is
    added to `lost`."""
    try:
        yield
    except Unavailable as error:
        name_lost(f"{target.label} cannot run: {error}")
        lost.append(target)


@click.command()
@shared("--backend", "--op", "--ggml-lib", "--strict-supports", "--no-isolation")
def support(values: dict[str, Any]) -> None:
    """What each device takes of each op, with the reason where it does not.

    Exit status: 0 every device has answered, 1 one did not open.
    """
    chosen = chosen_ops(values["op"])
    settings = settings_from(values)
    targets, missing = targets_of(values["backend"], settings)
    name_missing(missing, err=True)
    lost: list[Target] = []
    with Session(settings) as session:
        for target in targets:
            click.echo(f"{target.label}  {target.about}")
            with naming_lost(target, lost):
                _show_support(session.runner(target), chosen)
    if lost:
        sys.exit(1)


def _show_support(runner: Runner, chosen: Sequence[Op]) -> None:
    for op in chosen:
        cases = [known.case for known in known_cases().values() if known.case.op == op.name]
        reasons = list(dict.fromkeys(runner.supports(cases)))
        answer = "yes" if None in reasons else printable(f"no: {'; '.join(map(str, reasons))}")
        click.echo(f"  {op.name}: {answer}")
        if None in reasons:
            for limit in runner.limits(op):
                click.echo(f"    {limit.kind}: {printable(f'{limit.reason}  [{limit.source}]')}")
