"""A watched node's verdict: what a running graph left in its output, against the reference of its actual inputs.

Nothing ran a case here, so there are no guards to look at; what the output holds is judged like any other. A node with
many products is judged on a sample of its output (`Op.independent`), and every element of it is looked at for what no
kernel writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from opconform.harness.judge.judging import Verdict
from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.buffers import unwritten
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Mask, Raw
from opconform.harness.model.expected import Comparison
from opconform.harness.model.findings import Finding, Kind
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op

WORK = 1 << 24  #: products of a node that are judged one and all
_SUSPECTS = 16  #: indices with an element that is no number, or was not written, that a sample takes in


def judge_node(
    case: Case, op: Op, values: Mapping[str, Raw], outputs: Mapping[str, Raw], numerics: Numerics, seed: int = 0
) -> tuple[Verdict, bool]:
    """The verdict on a node with these inputs and outputs (raw elements), and whether it is that on a sample."""
    cut = _sample(case, op, values, outputs, seed)
    asked, inputs, got = cut or (case, values, outputs)
    expected = expectation(asked, op, inputs, numerics)
    comparisons = tuple(compare(asked, op, inputs, expected, got[name], numerics, name) for name in asked.outputs)
    findings = [finding for each in comparisons for finding in _findings(case, each)]
    return Verdict(case, tuple(findings), comparisons=comparisons, numerics=numerics), cut is not None


def _findings(case: Case, comparison: Comparison) -> list[Finding]:
    wrong = comparison.wrong
    if not wrong.any():
        return []
    missing = wrong & _untouched(case, comparison.name, comparison.raw)
    odd = wrong & ~missing & ~np.isfinite(comparison.got) & np.isfinite(comparison.expected.value)
    of = f"of {wrong.size} elements"
    found = []
    if missing.any():
        what = f"{int(missing.sum())} {of} still hold what was there before the run"
        found.append(Finding("finite", Kind.NOT_WRITTEN, what))
    if odd.any():
        what = f"{int(odd.sum())} {of} are NaN or infinite where the reference is not"
        found.append(Finding("finite", Kind.NAN_INF, what))
    if (wrong & ~missing & ~odd).any():
        what = f"{int((wrong & ~missing & ~odd).sum())} {of} differ from the reference by more than the bound"
        found.append(Finding("value", Kind.WRONG_VALUES, what))
    return found


def _untouched(case: Case, name: str, raw: Raw) -> Mask:
    if case.inplace or case.outputs[name].type.block > 1:
        return np.zeros(raw.shape, bool)
    same: Mask = raw == unwritten(case.outputs[name].type)
    return same


def _sample(
    case: Case, op: Op, values: Mapping[str, Raw], outputs: Mapping[str, Raw], seed: int
) -> tuple[Case, dict[str, Raw], dict[str, Raw]] | None:
    """The problem that remains of a large one at some indices along an axis; None for one that is not so large."""
    name = op.outputs[0]
    out = outputs[name]
    for axis, arguments in op.independent.items():
        length = out.shape[axis]
        rows = [(case.inputs[it], at) for it, at in arguments.items()]
        work = out.size * max((layout.size // max(layout.shape[at], 1) for layout, at in rows), default=1)
        if work <= WORK or length < 2 or len(op.outputs) > 1:
            continue
        kept = _indices(case, name, out, axis, max(4, length * WORK // work), seed)
        inputs = {it: np.take(raw, kept, arguments[it]) if it in arguments else raw for it, raw in values.items()}
        got = np.take(out, kept, axis)
        layouts = {it: _taken(layout, arguments.get(it), len(kept)) for it, layout in case.inputs.items()}
        results = {name: replace(case.outputs[name], shape=got.shape).packed()}
        return replace(case, inputs=layouts, outputs=results, inplace=None, shares={}, data=None), inputs, {name: got}
    return None


def _taken(layout: Layout, axis: int | None, count: int) -> Layout:
    """The layout of so many indices along an axis, packed."""
    if axis is None:
        return layout.packed()
    return replace(layout, shape=(*layout.shape[:axis], count, *layout.shape[axis + 1 :])).packed()


def _indices(case: Case, name: str, out: Raw, axis: int, count: int, seed: int) -> np.ndarray:
    """Which indices along an axis are judged: the first, the last, others at random, and those that look odd."""
    length = out.shape[axis]
    rest = tuple(i for i in range(out.ndim) if i != axis)
    decoded = case.outputs[name].type.decode(out)
    odd = np.flatnonzero((~np.isfinite(decoded) | _untouched(case, name, out)).any(rest))
    random = np.random.default_rng(seed).choice(length, min(count, length), replace=False)
    return np.unique(np.concatenate([[0, length - 1], random, odd[:_SUSPECTS]]).astype(np.int64))
