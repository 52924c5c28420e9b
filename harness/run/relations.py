"""What several runs of a case say together: the checks on request, and the op's own relations between runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    runner: Runner,
    op: Op,
    verdict: Verdict,
    checks: Sequence[TwinCheck],
    time_limit: float | None = None,
    turns: Iterator[int] | None = None,
) -> Verdict:
    """A verdict that passed, with what other runs of the same or a related case say of it. `time_limit` is as
    `Runner.verdicts` takes it; `turns` as `metamorphic_findings` does.

    Where a twin or a relation has led to a case of the same op that is wrong by itself, or that gave no answer, it is
    that case's verdict: there is more to see.
    """
    others = Others(runner, op, time_limit)
    findings, reasons = _twin_findings(op, verdict, checks, others)
    findings += metamorphic_findings(op, verdict, others, turns)
    if others.wrong:
        return others.wrong[0]
    return replace(verdict, findings=findings, unchecked=reasons) if findings or reasons else verdict


def _twin_findings(
    op: Op, verdict: Verdict, checks: Sequence[TwinCheck], others: Others
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """What the checks on request say of a case that passed, and what they could not look at."""
    found, unchecked = [], []
    for check in checks:
        twins = check.twins(verdict.case, op, inputs_of(verdict.case, op))
        if isinstance(twins, str):
            unchecked.append(f"{check.name}: {twins}")
            continue
        left_out = check.left_out(verdict.case, op)
        if left_out:
            unchecked.append(f"{check.name}: {left_out}")
        run = others.runner.verdicts(op, [twin.case for twin in twins], time_limit=others.time_limit)
        for twin, other in zip(twins, run):
            if other.unsupported is not None:
                unchecked.append(f"{check.name}: the twin is unsupported, {other.unsupported}")
            elif other.failed and not other.comparisons and twin.case != verdict.case:
                others.wrong.append(other)
            elif other.failed:
                where = f" ({twin.says})" if twin.says else ""
                found.append(Finding(check.name, check.kind, f"its twin fails{where}: {other.findings[0].detail}"))
            elif not all(
                twin.has_bits_of(one.name, one.raw, two.raw) for one, two in zip(verdict.comparisons, other.comparisons)
            ):
                found.append(check.finding(twin))
            else:
                continue
            break
    return tuple(found), tuple(unchecked)


@dataclass
class Others:
    """Runs other cases for a relation, right or wrong. wrong: the verdicts on cases of the op that are wrong by
    themselves, or that gave no answer. to_blame: another op whose run is wrong by itself, in words: it is then the
    one to look at."""

    runner: Runner
    op: Op
    time_limit: float | None
    wrong: list[Verdict] = field(default_factory=list)
    to_blame: str = ""

    def __call__(self, case: Case) -> dict[str, Comparison] | None:
        """What the device returns; None where nothing came back."""
        verdict = self.runner.verdicts(ops()[case.op], [case], time_limit=self.time_limit)[0]
        if verdict.failed and case.op != self.op.name:  # its faults are found where that op is tested
            self.to_blame = f"{case.op} is wrong there by itself, {verdict.kind}, and {self.op.name} is right"
        elif verdict.failed:
            self.wrong.append(verdict)
        return {comparison.name: comparison for comparison in verdict.comparisons} or None


def metamorphic_findings(
    op: Op, verdict: Verdict, others: Others, turns: Iterator[int] | None = None
) -> tuple[Finding, ...]:
    """What the op's relations between runs say of a case that passed; nothing unless all its layouts are packed.

    With `turns`, which counts, only one of them is asked, each in its turn: of a thousand cases each gets enough.
    """
    case = verdict.case
    if not op.composite.metamorphic or case.keep is not None or case.packed() != case:
        return ()
    values = inputs_of(case, op)
    comparisons = {comparison.name: comparison for comparison in verdict.comparisons}
    found = []
    asked = op.composite.metamorphic
    if turns is not None:
        asked = (asked[next(turns) % len(asked)],)
    for check in asked:
        others.to_blame = ""
        detail = check.look(op, case, values, comparisons, others)
        if detail is not None:
            blamed = f"; {others.to_blame}" if others.to_blame else ""
            found.append(Finding(check.name, check.kind, f"{detail}{blamed}"))
    return tuple(found)
