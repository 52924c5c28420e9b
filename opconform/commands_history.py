"""The commands that read histories: `opconform runs`, `compare`, `merge` and `report`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from opconform.arguments import with_usage_errors
from opconform.harness.model.text import printable
from opconform.harness.model.usage import UsageError
from opconform.harness.model.version import VERSION
from opconform.harness.search.known_failures import DEFAULT_FILE, fixed_line, load, stale
from opconform.harness.search.settings import OUT
from opconform.reports.compare import compare, summary_of, table_of
from opconform.reports.console import text_of
from opconform.reports.listing import run_lines
from opconform.reports.merge import merge
from opconform.reports.states import Pair, State, devices_in, states_of
from opconform.reports.summary import markdown_of
from opconform.reports.timings import Timing, timings_of

DEFAULT_HISTORY = f"{OUT}/history.sqlite"

_history_option = click.option(
    "--history", "history", metavar="PATH", default=DEFAULT_HISTORY, help=f"the history (default: {DEFAULT_HISTORY})"
)


@click.command("compare")
@click.argument("old")
@click.argument("new")
@_history_option
@click.option("--known-failures", metavar="FILE", help=f"expected failures, or none (default: {DEFAULT_FILE})")
@click.option("--summary", type=Path, metavar="FILE", help="append matrix and changes to this file as Markdown")
@click.option("--output", type=click.Choice(("console", "json")), default="console", help="what goes to stdout")
@with_usage_errors
def compare_command(
    old: str, new: str, history: str, known_failures: str | None, summary: Path | None, output: str
) -> None:
    """Compare the last results of two histories: OLD and NEW are files, or ids of runs in --history. OLD may be `none`:
    then every failure is a new one.

    Exit status 1 only on a regression: a new failure, something that was tested and is not any more, a case that
    `perf --vs` has called slower and had not before, or an expected failure that has expired or that no device tested
    in NEW matches.
    """
    entries = load(known_failures)
    before, timed = ({}, []) if old == "none" else _said(old, history)
    after, timed_now = _said(new, history)
    changes = compare(before, after, timed, timed_now)
    faults = stale(entries, devices_in(*_place(new, history))) if after else []
    notes = [*_fixed(after), *faults]
    said = summary_of(changes, before, after)
    if output == "json":
        plain = [change.to_json() for change in changes]
        click.echo(json.dumps({"opconform": VERSION, "summary": said, "changes": plain, "notes": notes}, indent=1))
    else:
        if changes:
            click.echo(table_of(changes) + "\n")
        click.echo("\n".join(map(printable, [*notes, said])))
    if summary is not None:
        _append(summary, markdown_of(changes, before, after, notes))
    if faults or any(change.regression for change in changes):
        sys.exit(1)


def _fixed(states: Mapping[Pair, State]) -> list[str]:
    """The expected failures that have nothing left to cover; an entry is shown once for each op and device."""
    found = [
        fixed_line(op, target, known)
        for (op, target, _), state in states.items()
        for known in state.listed
        if known.fixed and state.outcome == "passed"
    ]
    return list(dict.fromkeys(found))


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"--summary {path}: {error.strerror}") from None


def _said(name: str, history: str) -> tuple[dict[Pair, State], list[Timing]]:
    """What the file or run `name` says of each pair, and what it says of two builds that were timed in turn."""
    path, run = _place(name, history)
    return states_of(path, run, needed=not timings_of(path, run)), timings_of(path, run, compared=True)


def _place(name: str, history: str) -> tuple[Path, str | None]:
    """The history that `name` means, and the run in it where it means one. A name with a dot or a slash is meant as a
    file."""
    if os.path.lexists(name) or set(name) & set("./\\\0"):
        return Path(name), None
    return Path(history), name


@click.command("merge")
@click.argument("out", type=Path)
@click.argument("inputs", metavar="IN...", type=Path, nargs=-1, required=True)
@click.option("--results", is_flag=True, help="leave out the row of each case: a small file that can be kept for years")
@with_usage_errors
def merge_command(out: Path, inputs: tuple[Path, ...], results: bool) -> None:
    """Put the runs of several histories into one: those of IN (of shards, of several machines) into OUT.

    Merging again changes nothing: a run that OUT has is replaced only by a copy with more in it.
    """
    for merged in merge(out, inputs, cases=not results):
        click.echo(f"{merged.path}: {merged.added} runs added, {merged.replaced} completed, {merged.known} known")


@click.command("report")
@click.argument("run", required=False)
@_history_option
@click.option("--out", type=Path, metavar="FILE", help="where the page goes (default: report.html beside the history)")
@with_usage_errors
def report_command(run: str | None, history: str, out: Path | None) -> None:
    """Make one HTML page of a history, to read without a network: the last state of each op on each device, or RUN."""
    from opconform.reports.html.data import report_of  # both take a while to import
    from opconform.reports.html.page import write_report

    path = Path(history)
    report = report_of(path, run)
    out = out or path.parent / "report.html"
    write_report(report, out)
    failing = sum(entry.state.outcome == "failed" for entry in report.entries.values())
    said = [f"{failing} of {len(report.entries)} pairs of op and device fail"] if report.entries else []
    if report.timings:
        timed, slower = (sum(getattr(timing, what) for timing in report.timings) for what in ("timed", "slower"))
        said.append(f"{slower} of {timed} timed cases slower")
    click.echo(f"{out}  {', '.join(said)}")


@click.command("runs")
@_history_option
@with_usage_errors
def runs_command(history: str) -> None:
    """The runs in a history, the oldest first: what was tested, on which build, and what came of it.

    `unfinished` is one that goes on still, or was killed.
    """
    names = ("run", "started", "ended", "what", "target", "build", "ops", "result", "seed", "shard")
    table = Table(*names, box=None, pad_edge=False)
    for line in run_lines(Path(history)):
        table.add_row(*map(Text, line))
    click.echo(text_of(table, 400))
