"""The commands that read histories: `opconform runs`, `compare`, `merge` and `report`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from opconform.harness.registry import UsageError
from opconform.harness.settings import positive
from opconform.reports.compare import compare, summary_of, table_of
from opconform.reports.console import text_of
from opconform.reports.database import read_history
from opconform.reports.merge import merge
from opconform.reports.states import Pair, State, states_of

DEFAULT_HISTORY = "reports/history.sqlite"

_history_option = click.option(
    "--history", "history", metavar="PATH", default=DEFAULT_HISTORY, help=f"the history (default: {DEFAULT_HISTORY})"
)


def _with_usage_errors(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def command(**values: Any) -> None:
        try:
            function(**values)
        except UsageError as error:
            raise click.UsageError(str(error)) from None

    return command


@click.command("compare")
@click.argument("old")
@click.argument("new")
@_history_option
@click.option("--slow", type=float, default=2.0, metavar="F", help="the factor that is newly slow (default: 2)")
@_with_usage_errors
def compare_command(old: str, new: str, history: str, slow: float) -> None:
    """Compare the last results of two histories: OLD and NEW are files, or ids of runs in --history.

    Exit status 1 only on a regression: a new failure, or something that was tested and is not any more.
    """
    before, after = _states(old, history), _states(new, history)
    changes = compare(before, after, positive("--slow", slow))
    if changes:
        click.echo(table_of(changes) + "\n")
    click.echo(summary_of(changes, before, after))
    if any(change.regression for change in changes):
        sys.exit(1)


def _states(name: str, history: str) -> dict[Pair, State]:
    """What the file or run `name` says. A name with a dot or a slash is meant as a file."""
    if Path(name).exists() or set(name) & set("./\\"):
        return states_of(Path(name))
    return states_of(Path(history), name)


@click.command("merge")
@click.argument("out", type=Path)
@click.argument("inputs", metavar="IN...", type=Path, nargs=-1, required=True)
@_with_usage_errors
def merge_command(out: Path, inputs: tuple[Path, ...]) -> None:
    """Put the runs of histories IN (of shards, of several machines) into the history OUT.

    Merging again changes nothing: a run that OUT has is replaced only by a copy with more in it.
    """
    for merged in merge(out, inputs):
        click.echo(f"{merged.path}: {merged.added} runs added, {merged.replaced} completed, {merged.known} known")


@click.command("report")
@click.argument("run", required=False)
@_history_option
@click.option("--out", type=Path, metavar="FILE", help="where the page goes (default: report.html beside the history)")
@_with_usage_errors
def report_command(run: str | None, history: str, out: Path | None) -> None:
    """Make one HTML page of a history, to read without a network: the last state of each op on each device, or RUN."""
    from opconform.reports.html.data import report_of  # both take a while to import
    from opconform.reports.html.page import write_report

    path = Path(history)
    report = report_of(path, run)
    out = out or path.parent / "report.html"
    write_report(report, out)
    failing = len({shown.pair for shown in report.failures})
    click.echo(f"{out}  {failing} of {len(report.entries)} pairs of op and device fail")


@click.command("runs")
@_history_option
@_with_usage_errors
def runs_command(history: str) -> None:
    """The runs in a history, the oldest first; `unfinished` is one that goes on still, or was killed."""
    table = Table("run", "started", "ended", "what", "seed", "shard", "cases", "failing", box=None, pad_edge=False)
    with closing(read_history(Path(history))) as db:
        for row in db.execute(_RUNS):
            table.add_row(*map(str, row))
    click.echo(text_of(table))


_RUNS = """
SELECT run_id, substr(started, 1, 19), coalesce(substr(ended, 1, 19), 'unfinished'), command, seed,
  shard || '/' || shards,
  (SELECT count(*) FROM test_backend_ops WHERE test_backend_ops.run_id = runs.run_id),
  (SELECT count(*) FROM results WHERE results.run_id = runs.run_id AND kind <> '')
FROM runs ORDER BY started, rowid
"""

COMMANDS = (compare_command, merge_command, report_command, runs_command)
