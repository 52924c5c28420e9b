"""From two memory images to a verdict: the checks applied to one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from opconform.harness.buffers import Buffers
from opconform.harness.case import Case
from opconform.harness.checks import ALWAYS, Finding, Run, run_intact
from opconform.harness.dtypes import Raw
from opconform.harness.numerics import Numerics
from opconform.harness.op import Expected, Op
from opconform.harness.oracle import Comparison, compare, expectation


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    `unsupported` is the reason why it was not run, or None. `findings` are empty where it passed; the first one heads
    the report. `comparison` is there if the backend returned. `stderr` is what the worker printed, kept for failures.
    """

    case: Case
    findings: tuple[Finding, ...] = ()
    unsupported: str | None = None
    comparison: Comparison | None = field(default=None, compare=False)
    stderr: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return bool(self.findings)

    @property
    def passed(self) -> bool:
        return not self.findings and self.unsupported is None

    @property
    def kind(self) -> str:
        """The kind of the first finding; "" where there is none."""
        return self.findings[0].kind if self.findings else ""


def judge(
    case: Case,
    op: Op,
    values: Mapping[str, Raw],
    before: np.ndarray,
    after: np.ndarray,
    numerics: Numerics,
    expected: Expected | None = None,
) -> Verdict:
    """The verdict on one finished run.

    `before` and `after` are the arena's bytes as the backend got and left them; the output's elements in `after` are
    overwritten here. `values` are the raw elements of the inputs; `expected` is computed unless it is given.
    """
    left = Buffers(case, after)
    expected = expected or expectation(case, op, values, numerics)
    comparison = compare(case, op, values, expected, np.array(left.raw(op.outputs[0])), numerics)
    run = Run(case, op, values, Buffers(case, before, left.plan), left, comparison)
    if run_intact(run) and not comparison.wrong.any():
        return Verdict(case, comparison=comparison)
    findings = tuple(found for check in ALWAYS if (found := check.look(run)) is not None)
    return Verdict(case, findings, comparison=comparison)
