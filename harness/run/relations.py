"""What several runs of a case say together: the checks on request, and the op's own relations between runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from opconform.harness.judge.checks import TwinCheck
from opconform.harness.judge.judging import Verdict
from opconform.harness.model.case import Case
from opconform.harness.model.expected import Comparison
from opconform.harness.model.findings import Finding
from opconform.harness.model.op import Op
from opconform.harness.model.ops import ops
from opconform.harness.model.values import inputs_of
from opconform.harness.run.runner import Runner


def related(
    runner: Runner, op: Op, verdict: Verdict, checks: Sequence[TwinCheck], time_limit: float | None = None
) -> Verdict:
    """A verdict that passed, with what other runs of the same or a related case say of it. `time_limit` is as
    `Runner.verdicts` takes it.

    Where a relation has led to a case of the same op that is wrong by itself, it is that case's verdict: there is
    more to see.
    """
    others = Others(runner, op, time_limit)
    findings = _twin_findings(runner, op, verdict, checks, time_limit) + metamorphic_findings(op, verdict, others)
    if others.wrong:
        return others.wrong[0]
    return replace(verdict, findings=findings) if findings else verdict


def _twin_findings(
    runner: Runner, op: Op, verdict: Verdict, checks: Sequence[TwinCheck], time_limit: float | None
) -> tuple[Finding, ...]:
    """What the checks on request say of a case that passed."""
    found = []
    for check in checks:
        twin = check.twin(verdict.case, op, inputs_of(verdict.case, op))
        if twin is None:
            continue
        other = runner.verdicts(op, [twin], time_limit=time_limit)[0]
        if other.failed:
            found.append(Finding(check.name, check.kind, f"its twin fails: {other.findings[0].detail}"))
        elif not all(check.same(twin, one.raw, two.raw) for one, two in zip(verdict.comparisons, other.comparisons)):
            found.append(Finding(check.name, check.kind, f"not {check.reason}"))
    return tuple(found)


@dataclass
class Others:
    """Runs other cases for a relation, right or wrong. wrong: the verdicts on cases of the op that are wrong by
    themselves. ends: why runs of the op gave nothing to compare."""

    runner: Runner
    op: Op
    time_limit: float | None
    wrong: list[Verdict] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)

    def __call__(self, case: Case) -> dict[str, Comparison] | None:
        """What the device returns; None where nothing came back."""
        verdict = self.runner.verdicts(ops()[case.op], [case], time_limit=self.time_limit)[0]
        if verdict.failed and case.op == self.op.name:  # another op's faults are found where that op is tested
            if verdict.comparisons:
                self.wrong.append(verdict)
            else:
                self.ends.append(verdict.findings[0].detail)
        return {comparison.name: comparison for comparison in verdict.comparisons} or None


def metamorphic_findings(op: Op, verdict: Verdict, others: Others) -> tuple[Finding, ...]:
    """What the op's relations between runs say of a case that passed; nothing unless all its layouts are packed."""
    case = verdict.case
    if not op.composite.metamorphic or case.keep is not None or case.packed() != case:
        return ()
    values = inputs_of(case, op)
    comparisons = {comparison.name: comparison for comparison in verdict.comparisons}
    found = []
    for check in op.composite.metamorphic:
        others.ends.clear()
        detail = check.look(op, case, values, comparisons, others)
        if detail is None and others.ends:
            detail = f"a run to compare with fails: {others.ends[0]}"
        if detail is not None:
            found.append(Finding(check.name, check.kind, detail))
    return tuple(found)
