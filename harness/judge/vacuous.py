"""Cases that say nothing: what any kernel passes that writes zeros, copies an input, or writes at all.

Such a case is judged like any other, and is counted apart: a thousand of them must not read as a thousand that passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Comparison
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op
from opconform.harness.model.values import inputs_of

_NEAR = 1e-3  #: where the error is a residual: how near to the reference a value must be to be worth a judgement


def vacuous(
    op: Op, case: Case, values: Mapping[str, Raw], comparisons: Sequence[Comparison], numerics: Numerics
) -> str:
    """Why a case that passed says nothing; "" for one that says something. `comparisons` has one for each output.

    A copied input is the right answer of an op that is a copy (`Op.copies`), and speaks against no case of it.
    """
    if all(comparison.wrong.size == 0 for comparison in comparisons):
        return "it has no element"
    if all(comparison.free == comparison.wrong.size for comparison in comparisons):
        return "nothing can be demanded of any element"
    if all(_passes(op, case, values, comparisons, it, None, numerics) for it in comparisons):
        return "an output of zeros passes too"
    if op.copies or len(comparisons) > 1:
        return ""
    out = case.outputs[comparisons[0].name]
    for name, layout in case.inputs.items():
        same = layout.dtype == out.dtype and layout.shape == out.shape
        if same and _passes(op, case, values, comparisons, comparisons[0], values[name], numerics):
            return f"a copy of {name} passes too"
    return ""


def _passes(
    op: Op,
    case: Case,
    values: Mapping[str, Raw],
    comparisons: Sequence[Comparison],
    about: Comparison,
    raw: Raw | None,
    numerics: Numerics,
) -> bool:
    """Whether `raw` (None: zeros) is right as the output that `about` compares. A few elements mostly tell."""
    size, dtype = about.wrong.size, case.outputs[about.name].type
    near = 0.0 if op.composite.judge is None else _NEAR
    for place in {0, size // 2, size - 1} if size and dtype.block == 1 else ():
        want, bound = float(about.expected.value.flat[place]), float(about.bound.flat[place])
        would = 0.0 if raw is None else float(dtype.decode(np.array([raw.flat[place]]))[0])
        if abs(would - want) > bound + near * abs(want):
            return False
    output = np.zeros(about.raw.shape, about.raw.dtype) if raw is None else np.ascontiguousarray(raw)
    return not compare(case, op, values, comparisons[0].expected, output, numerics, about.name).wrong.any()


def says_nothing(op: Op, case: Case, numerics: Numerics = EXACT) -> str:
    """Why every kernel that is right and many that are wrong pass a case; "" for one that says something."""
    values = inputs_of(case, op)
    expected = expectation(case, op, values, numerics)
    comparisons = []
    for name in op.outputs:
        its = expected if name == op.outputs[0] else expected.others[name]
        right = case.outputs[name].type.encode(its.value)
        comparisons.append(compare(case, op, values, expected, right, numerics, name))
    return vacuous(op, case, values, comparisons, numerics)
