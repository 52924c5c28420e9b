"""How far a run is, and its failures as soon as they are shrunk: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from opconform import colours
from opconform.harness.explain.failure import Failure
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.op import Op
from opconform.harness.run.target import Target
from opconform.harness.search.observer import Observer
from opconform.harness.search.result import Result, Tally
from opconform.harness.search.settings import Settings
from opconform.reports.commands import commands
from opconform.reports.screen import head, said, tail

_EVERY = 30.0  #: seconds between two lines, where there is no terminal


class Screens(Observer):
    """Shows each failure as soon as it is described, and once others have been asked, who is to blame."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def write(self, text: str) -> None:
        """Print lines."""
        colours.echo(text)

    def failure(self, op: Op, target: Target, failure: Failure) -> None:
        self.write("\n" + colours.screen(head(failure)))

    def result(self, op: Op, target: Target, result: Result) -> None:
        if result.failure is not None:
            self.write(colours.screen(tail(result.failure, commands(result.failure, self._settings))) + "\n")


class Replay(Screens):
    """Shows also what a backend has printed while it computed a case that passes."""

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.passed and verdict.stderr:
                self.write("\n".join([f"{target.label} said", *(f"    {line}" for line in said(verdict.stderr))]))


class Progress(Screens):
    """Shows each op and device while it runs, and what came of it. `deadline`: when the time of the run is up, if it
    has one (`time.monotonic`)."""

    def __init__(self, pairs: int, settings: Settings, deadline: Callable[[], float | None] = lambda: None) -> None:
        super().__init__(settings)
        self._pairs = pairs
        self._deadline = deadline
        self._begun = 0
        self._pair = ""
        self._does = ""  #: what it does instead of searching
        self._said = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        if sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(highlight=False), transient=True)
            self._bar.start()

    def write(self, text: str) -> None:
        self._said = time.monotonic()
        if self._bar is None:
            colours.echo(text)
        else:
            self._bar.console.print(Text.from_ansi(text), soft_wrap=True)

    def begins(self, op: Op, target: Target) -> None:
        self._begun += 1
        self._pair, self._does = f"{op.name} on {target.label}", ""
        if self._bar is not None:
            self._forget()
            self._task = self._bar.add_task(self._words(), total=self._settings.examples)

    def progress(self, op: Op, target: Target, tally: Tally) -> None:
        self._show(tally.executed)

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        self._does = f"shrinking {verdict.kind}"
        self._show()

    def failure(self, op: Op, target: Target, failure: Failure) -> None:
        super().failure(op, target, failure)
        self._does = "asking the other devices"
        self._show()

    def result(self, op: Op, target: Target, result: Result) -> None:
        self._forget()
        super().result(op, target, result)
        tally = result.tally
        if not (tally.executed or tally.vacuous or result.failure or result.known):
            return  # an op that the device does not take; the matrix says why
        word = "passed" if tally.executed else "vacuous"
        word = "FAILED" if result.failure else "known" if result.known else word
        ran = f"{tally.executed} cases in {tally.seconds:.1f} s"
        if result.coverage.possible:
            ran += f", {result.coverage}"
        self.write(f"{colours.state(word)} {result.op} on {result.target}: {ran}")

    def _words(self) -> str:
        """Which of how many pairs it is at, what it does there, and how much time is left."""
        found = [f"{self._begun} of {self._pairs}  {self._pair}", self._does]
        deadline = self._deadline()
        if deadline is not None:
            found.append(f"{_minutes(deadline - time.monotonic())} left")
        return ", ".join(filter(None, found))

    def _show(self, executed: int | None = None) -> None:
        if self._bar is None:
            if time.monotonic() - self._said >= _EVERY:
                ran = "" if executed is None else f": {executed} cases so far"
                self.write(f"{'…':<11} {self._words()}{ran}")
        elif self._task is not None:
            self._bar.update(self._task, description=self._words(), completed=executed)

    def _forget(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _minutes(seconds: float) -> str:
    """A time as one reads it: "4:05 min"."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes}:{rest:02} min"
