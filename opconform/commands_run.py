"""The commands that run ops on devices: `opconform test` and `replay`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click

from opconform import colours, parallel
from opconform.arguments import complete_case, shared
from opconform.budget import Budget
from opconform.campaign import Campaign
from opconform.commands_look import name_lost, name_missing
from opconform.harness.model.op import Op
from opconform.harness.model.usage import UsageError
from opconform.harness.run.target import Target
from opconform.harness.search.changes import DEFAULT_BASE, changed_files, ops_concerned
from opconform.harness.search.known_failures import fixed
from opconform.harness.search.observer import Observer, Observers
from opconform.harness.search.result import Result
from opconform.options import OPTIONS
from opconform.output import FORMATS, printing
from opconform.parallel import processes_of
from opconform.pieces import piece_in, replay_piece
from opconform.progress import Progress, Replay
from opconform.reports.console import counts, matrix
from opconform.reports.history import history_path
from opconform.reports.repro.place import repro_dir

_output = click.option(
    "--output",
    type=click.Choice(FORMATS),
    default="console",
    help="what goes to stdout: text, text with annotations for GitHub, one JSON or SARIF document, or upstream's rows",
)


@click.command()
@shared(*(option.name for option in OPTIONS))
@click.option("-n", "processes", metavar="N", help="share the ops and devices among N processes, or auto")
@click.option(
    "--changed-ops",
    is_flag=False,
    flag_value=DEFAULT_BASE,
    metavar="[BASE]",
    help="only ops whose files differ from this commit (default: origin/main); the profile is quick unless chosen",
)
@_output
def test(values: dict[str, Any], processes: str | None, changed_ops: str | None, output: str) -> None:
    """Search for failing cases of each op on each device; ends with the matrix."""
    if changed_ops is not None:
        values = {**values, "profile": values["profile"] or "quick"}
    count = processes_of(processes)
    if count > 1 and output in ("csv", "sql"):
        raise UsageError(
            f"--output {output} has a row for each case, which the processes of -n do not tell; leave out -n"
        )
    campaign = Campaign.of(values, early=count == 1)
    if changed_ops is not None:
        campaign.pairs = _changed(campaign.pairs, changed_ops)
    printers = click.get_current_context().with_resource(printing(campaign.run, output))
    budget = Budget(len(campaign.pairs), campaign.settings, campaign.seconds, count)
    progress = Progress(len(campaign.pairs), campaign.settings, lambda: budget.deadline)
    results: list[Result] = []
    lost, stopped = 0, False
    run = _here(campaign, budget, [*printers, progress])
    if count > 1:
        run = _shared_out(campaign, values, count, budget, [*printers, progress])
    try:
        for found in run:
            if isinstance(found, Result):
                results.append(found)
            else:
                name_lost(found)
                lost += 1
    except KeyboardInterrupt:
        stopped = True
    finally:
        run.close()
    devices = [target.label for target in campaign.targets]
    results.sort(key=lambda result: devices.index(result.target))  # processes are done with them in any order
    if stopped:
        _stopped(results, campaign)
    _finish(results, lost, campaign.faults(results), repro_dir(campaign.settings))


def _here(campaign: Campaign, budget: Budget, observers: Sequence[Observer]) -> Generator[Result | str]:
    """The results of the pairs, one after the other; for a pair that has none, why."""
    with campaign.open(observers) as session:
        _announce(campaign)
        for op, target in campaign.pairs:
            with budget.pair() as share:
                session.settings = replace(session.settings, **share)
                found = campaign.outcome(session, op, target)
            yield found  # what is printed of it is no time of the pair's


def _shared_out(
    campaign: Campaign, values: dict[str, Any], count: int, budget: Budget, observers: Sequence[Observer]
) -> Generator[Result | str]:
    """The same from several processes, each of which records what it does."""
    campaign.run.pairs[:] = [(op.name, target.label) for op, target in campaign.pairs]
    _announce(campaign)
    with contextlib.closing(Observers(observers)) as observer:
        yield from parallel.results(campaign, values, count, budget, observer)


def _stopped(results: Sequence[Result], campaign: Campaign) -> NoReturn:
    """Ctrl-C: what there is until now, and the status that a shell gives to a program that SIGINT ended."""
    click.echo()
    if results:
        colours.echo(colours.matrix(matrix(results, repro_dir(campaign.settings))))
        click.echo(counts(results))
    done = f"{len(results)} of {len(campaign.pairs)} pairs of op and device"
    click.echo(f"stopped by Ctrl-C after {done}", err=True)
    sys.exit(128 + signal.SIGINT)


def _announce(campaign: Campaign) -> None:
    """Say what runs, and how to run the same again."""
    seed = campaign.settings.seed
    click.echo(f"seed {seed}: --seed {seed} draws the same cases again")
    for target in campaign.targets:
        click.echo(f"{target.label}  {target.about}")
    name_missing(campaign.missing)
    path = history_path(campaign.settings)
    if path is not None:
        click.echo(f"run {campaign.run.id}, recorded in {path}")


@click.command()
@click.argument("case", shell_complete=complete_case)
@shared(
    "--backend",
    "--ggml-lib",
    "--max-bytes",
    "--time-limit",
    "--no-isolation",
    "--strict-supports",
    "--check",
    "--times",
    "--sanitize",
    "--report-dir",
    "--also-seconds",
    "--history",
)
@_output
def replay(values: dict[str, Any], case: str, output: str) -> None:
    """Run one case, from a file or by id, on the devices named; or a piece of a graph, from a file."""
    piece = piece_in(case, values)
    if piece is not None:
        sys.exit(replay_piece(piece, values))
    campaign = Campaign.of({**values, "case": [case]}, early=True)
    name_missing(campaign.missing, err=True)
    printers = click.get_current_context().with_resource(printing(campaign.run, output))
    results: list[Result] = []
    lost = 0
    with campaign.open([*printers, Replay(campaign.settings)], bundles=False) as session:
        for op, target in campaign.pairs:
            found = campaign.outcome(session, op, target)
            if isinstance(found, Result):
                results.append(found)
            else:
                name_lost(found)
                lost += 1
    _finish(results, lost, campaign.faults(results))


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


def _finish(results: Sequence[Result], lost: int, faults: Sequence[str], bundles: Path | None = None) -> None:
    """Print the matrix and leave with the status that the results deserve. `lost` pairs could not run at all; `faults`
    are what else is wrong with the run; `bundles` is the folder of its bundles."""
    click.echo()
    colours.echo(colours.matrix(matrix(results, bundles)))
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
