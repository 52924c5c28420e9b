"""From two memory images to a verdict: the checks applied to one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from opconform.harness.judge.checks import ALWAYS, Run, run_intact
from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.judge.vacuous import vacuous
from opconform.harness.model.buffers import Buffers, Plan
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Comparison, Expected
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    `unsupported` is the reason why it was not run, or None. `findings` are empty where it passed; the first one heads
    the report. `comparisons`, one per output, are there if the backend returned; they were made with `numerics`.
    `stderr` is what the worker printed, kept for failures. `vacuous` says why a case that passed says nothing, "" for
    one that says something. `unchecked` has what the checks on request could not look at, and why. `late`: it was run a
    second time, because there was no answer within the time limit at first.
    """

    case: Case
    findings: tuple[Finding, ...] = ()
    unsupported: str | None = None
    comparisons: tuple[Comparison, ...] = field(default=(), compare=False)
    numerics: Numerics = EXACT
    stderr: str = ""
    seconds: float = 0.0
    vacuous: str = ""
    unchecked: tuple[str, ...] = ()
    late: bool = False

    @property
    def comparison(self) -> Comparison | None:
        """The comparison of the first output that is wrong, or of the first output; None if the backend died."""
        return next((it for it in self.comparisons if it.wrong.any()), next(iter(self.comparisons), None))

    @property
    def failed(self) -> bool:
        return bool(self.findings)

    @property
    def passed(self) -> bool:
        return not self.findings and self.unsupported is None

    @property
    def kind(self) -> Kind | Literal[""]:
        """The kind of the first finding; "" where there is none."""
        return self.findings[0].kind if self.findings else ""

    def saying(self, said: str) -> Verdict:
        """The verdict, with what the worker printed while the case ran before what is known of its end."""
        if not said or said in self.stderr:
            return self
        return replace(self, stderr=f"{said}\n{self.stderr}".strip())


def judge(
    case: Case,
    op: Op,
    values: Mapping[str, Raw],
    before: np.ndarray,
    after: np.ndarray,
    numerics: Numerics,
    expected: Expected | None = None,
    plan: Plan | None = None,
    says_nothing: str | None = None,
    seconds: float = 0.0,
) -> Verdict:
    """The verdict on one finished run.

    `before` and `after` are the arena's bytes as the backend got and left them; the output's elements in `after` are
    overwritten here. `values` are the raw elements of the inputs; `expected`, `plan` and why the case says nothing
    (`vacuous`) are found out unless they are given. `seconds` is how long the run took.
    """
    left = Buffers(case, after, plan)
    expected = expected or expectation(case, op, values, numerics)
    comparisons = tuple(
        compare(case, op, values, expected, np.array(left.raw(name)), numerics, name) for name in case.outputs
    )
    runs = [Run(case, op, values, Buffers(case, before, left.plan), left, comparison) for comparison in comparisons]
    if run_intact(runs[0]) and not any(comparison.wrong.any() for comparison in comparisons):
        if says_nothing is None:
            says_nothing = vacuous(op, case, values, expected, numerics)
        return Verdict(case, comparisons=comparisons, numerics=numerics, vacuous=says_nothing, seconds=seconds)
    found = (next((found for run in runs if (found := check.look(run)) is not None), None) for check in ALWAYS)
    findings = tuple(finding for finding in found if finding is not None)
    return Verdict(case, findings, comparisons=comparisons, numerics=numerics, seconds=seconds)


def now_and_then(verdict: Verdict, when: str) -> Verdict:
    """A failing verdict on a case that passes too: it heads the report that the two differ. `when` says what happened
    in which run."""
    finding = Finding("deterministic", Kind.NOT_DETERMINISTIC, f"{when}: {verdict.findings[0].detail}")
    return replace(verdict, findings=(finding, *verdict.findings))
