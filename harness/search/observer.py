"""Who watches a run: progress, history, bundles. Each learns of every verdict as soon as it is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opconform.harness.judge.judging import Verdict
    from opconform.harness.model.op import Op
    from opconform.harness.run.target import Target
    from opconform.harness.search.result import Result


class Observer:
    """Told of what happens in a session; every method may be left out. Shrinking's own attempts are told too."""

    def begins(self, op: Op, target: Target) -> None:
        """One op on one device begins, before its device is opened."""

    def verdicts(self, op: Op, target: Target, verdicts: Sequence[Verdict]) -> None:
        """Cases have been judged (or found unsupported). Called in order, while the search goes on."""

    def shrinking(self, op: Op, target: Target, verdict: Verdict) -> None:
        """The search has found this failure; the verdicts from here to the result are attempts to shrink it."""

    def result(self, op: Op, target: Target, result: Result) -> None:
        """One op on one device is done."""

    def close(self) -> None:
        """The session is over, also after an error or Ctrl-C."""
