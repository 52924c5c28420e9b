"""How far a run is, and its failures as soon as they are shrunk: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
_TELLING = 3  #: pairs that must be done before it is told how long the others will take


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


@dataclass
class _Running:
    """A pair that is not done: which of all it is and its name, what it does instead of searching, and its bar."""

    name: str
    does: str = ""
    task: TaskID | None = None


class Progress(Screens):
    """Shows each op and device while it runs, and what came of it. Several may run at the same time. `deadline`: when
    the time of the run is up, if it has one (`time.monotonic`). If not, the time left is estimated: the pairs to come
    take as long as those before did."""

    def __init__(self, pairs: int, settings: Settings, deadline: Callable[[], float | None] = lambda: None) -> None:
        super().__init__(settings)
        self._pairs = pairs
        self._deadline = deadline
        self._begun = self._done = 0
        self._running: dict[tuple[str, str], _Running] = {}
        self._started = self._said = time.monotonic()
        self._bar: Bar | None = None
        if sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
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
        pair = _Running(f"{self._begun} of {self._pairs}  {op.name} on {target.label}")
        if self._bar is not None:
            pair.task = self._bar.add_task(self._words(pair), total=self._settings.examples)
        self._running[op.name, target.label] = pair

    def progress(self, op: Op, target: Target, tally: Tally) -> None:
        self._show(op, target, executed=tally.executed)

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        self._show(op, target, f"shrinking {verdict.kind}")

    def failure(self, op: Op, target: Target, failure: Failure) -> None:
        super().failure(op, target, failure)
        self._show(op, target, "asking the other devices")

    def lost(self, op: Op, target: Target, reason: str) -> None:
        self._forget(op, target)

    def result(self, op: Op, target: Target, result: Result) -> None:
        self._forget(op, target)
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

    def _words(self, pair: _Running) -> str:
        """Which of how many pairs it is, what it does there, and how much time is left."""
        found = [pair.name, pair.does]
        return ", ".join(filter(None, [*found, self._left()]))

    def _left(self) -> str:
        """How much time is left, in words; "" as long as nothing is known of it."""
        now, deadline = time.monotonic(), self._deadline()
        if deadline is not None:
            return f"{_minutes(deadline - now)} left"
        if self._done < _TELLING:
            return ""
        return f"about {_minutes((now - self._started) / self._done * (self._pairs - self._done))} left"

    def _show(self, op: Op, target: Target, does: str = "", executed: int | None = None) -> None:
        pair = self._running[op.name, target.label]
        pair.does = does or pair.does
        if self._bar is None:
            if time.monotonic() - self._said >= _EVERY:
                ran = "" if executed is None else f": {executed} cases so far"
                self.write(f"{'…':<11} {self._words(pair)}{ran}")
        elif pair.task is not None:
            self._bar.update(pair.task, description=self._words(pair), completed=executed)

    def _forget(self, op: Op, target: Target) -> None:
        self._done += 1
        pair = self._running.pop((op.name, target.label), None)
        if self._bar is not None and pair is not None and pair.task is not None:
            self._bar.remove_task(pair.task)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _minutes(seconds: float) -> str:
    """A time as one reads it: "4:05 min"."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    return f"{minutes}:{rest:02} min"
