"""Who watches a run: progress, history, bundles. Each learns of every verdict as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opconform.harness.explain.failure import Failure
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.op import Op
from opconform.harness.run.interrupts import uninterrupted
from opconform.harness.run.target import Target
from opconform.harness.search.result import Result, Tally

if TYPE_CHECKING:
    from opconform.harness.search.speed import Measured


class Observer:
    """Told of what happens in a session; every method may be left out. Shrinking's own attempts are told too."""

    def begins(self, op: Op, target: Target) -> None:
        """One op on one device begins, before its device is opened."""

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        """Cases have been judged (or found unsupported). Called in order, while the search goes on."""

    def progress(self, op: Op, target: Target, tally: Tally) -> None:
        """How many cases have been counted so far; called after `verdicts`."""

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        """The search has found this failure; the verdicts from here to the result are attempts to shrink it."""

    def failure(self, op: Op, target: Target, failure: Failure) -> None:
        """A failure is shrunk and described; whom it puts the blame on is found out from here to the result."""

    def result(self, op: Op, target: Target, result: Result) -> None:
        """One op on one device is done."""

    def watched(self, result: Result) -> None:
        """A model on one device is done."""

    def timed(self, measured: Measured) -> None:
        """A case on one device has been timed, or compared with another build."""

    def lost(self, op: Op, target: Target, reason: str) -> None:
        """One op on one device cannot run, or not any more, or has raised: there is no result."""

    def close(self) -> None:
        """The session is over, also after an error or Ctrl-C."""


class Observers(Observer):
    """Several observers as one. Ctrl-C waits until all of them know of an event."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begins(self, op: Op, target: Target) -> None:
        self._tell(lambda observer: observer.begins(op, target))

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        self._tell(lambda observer: observer.verdicts(op, target, verdicts))

    def progress(self, op: Op, target: Target, tally: Tally) -> None:
        self._tell(lambda observer: observer.progress(op, target, tally))

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        self._tell(lambda observer: observer.shrinking(op, target, verdict))

    def failure(self, op: Op, target: Target, failure: Failure) -> None:
        self._tell(lambda observer: observer.failure(op, target, failure))

    def result(self, op: Op, target: Target, result: Result) -> None:
        self._tell(lambda observer: observer.result(op, target, result))

    def watched(self, result: Result) -> None:
        self._tell(lambda observer: observer.watched(result))

    def timed(self, measured: Measured) -> None:
        self._tell(lambda observer: observer.timed(measured))

    def lost(self, op: Op, target: Target, reason: str) -> None:
        self._tell(lambda observer: observer.lost(op, target, reason))

    def close(self) -> None:
        for observer in self._observers:
            observer.close()

    def _tell(self, event: Callable[[Observer], None]) -> None:
        with uninterrupted():
            for observer in self._observers:
                event(observer)
