"""How far a run is: a bar on a terminal, one plain line for each op and device elsewhere."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from opconform.harness.model.op import Op
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import Result, Tally
from opconform.harness.search.settings import Settings
from opconform.reports.commands import commands
from opconform.reports.console import screen


class Progress(Observer):
    """Shows each op and device while it runs, and what came of it: one line, and the screen of its failure."""

    def __init__(self, pairs: int, settings: Settings) -> None:
        self._settings = settings
        self._pairs = pairs
        self._begun = 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(), transient=True)
            self._bar.start()

    def begins(self, op: Op, target: Target) -> None:
        self._begun += 1
        if self._bar is not None:
            self._forget()
            words = f"{self._begun} of {self._pairs}  {op.name} on {target.label}"
            self._task = self._bar.add_task(words, total=self._settings.examples)

    def progress(self, op: Op, target: Target, tally: Tally) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=tally.executed)

    def result(self, op: Op, target: Target, result: Result) -> None:
        self._forget()
        write = self._bar.console.out if self._bar is not None else click.echo
        tally = result.tally
        state = "passed" if tally.executed else "unsupported"
        state = "FAILED" if result.failure else "known" if result.known else state
        write(f"{state:<11} {result.op} on {result.target}: {tally.executed} cases in {tally.seconds:.1f} s")
        if result.failure is not None:
            write("\n" + screen(result.failure, commands(result.failure, self._settings)) + "\n")

    def _forget(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
