"""Cases that say nothing: what any kernel passes that writes zeros, copies an input, or writes at all.

Such a case is judged like any other, and is counted apart: a thousand of them must not read as a thousand that passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Comparison, Expected
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op

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


def weaknesses(op: Op, case: Case, values: Mapping[str, Raw], numerics: Numerics = EXACT) -> Iterator[str]:
    """What wrong kernels pass a case, one line each: those that `vacuous` knows, and those that stop after a tile.

    A known case with a weakness pins nothing. That it has no element is no weakness of a case that is about that.
    """
    expected = expectation(case, op, values, numerics)
    outputs = {name: _expected_of(op, expected, name) for name in op.outputs}
    right = {name: case.outputs[name].type.encode(each.value) for name, each in outputs.items()}
    comparisons = [compare(case, op, values, expected, raw, numerics, name) for name, raw in right.items()]
    if all(comparison.wrong.size == 0 for comparison in comparisons):
        return
    nothing = vacuous(op, case, values, comparisons, numerics)
    if nothing:
        yield nothing
        return
    for about in comparisons:
        for says, cut in _cut(right[about.name]):
            as_it_was = np.array_equal(cut, right[about.name])
            if not as_it_was and not compare(case, op, values, expected, cut, numerics, about.name).wrong.any():
                yield f"{about.name} passes with 0 {says}"
    read = {name: layout for name, layout in case.inputs.items() if name not in op.shape_only}
    for name, layout in read.items():
        for says, cut in _cut(values[name]) if layout.type.is_float and layout.type.block == 1 else ():
            other = expectation(case, op, {**values, name: cut}, numerics)
            if _pass_for(op, case, values, expected, other, numerics):
                yield f"what {name} holds {says} does not count"


def _expected_of(op: Op, expected: Expected, name: str) -> Expected:
    return expected if name == op.outputs[0] else expected.others[name]


def _cut(raw: Raw) -> Iterator[tuple[str, Raw]]:
    """Elements with zeros after a tile along their longest axis, and in the last place of it."""
    axis = int(np.argmax(raw.shape))
    n = raw.shape[axis]
    for start in sorted({1 << (n - 1).bit_length() - 1, n - 1} - {0}) if n > 1 else ():
        cut = np.array(raw)
        cut[(slice(None),) * axis + (slice(start, None),)] = 0
        yield f"from place {start} of {n} on", cut


def _pass_for(
    op: Op, case: Case, values: Mapping[str, Raw], expected: Expected, other: Expected, numerics: Numerics
) -> bool:
    """Whether the right answer to other elements passes for the case, though it is another one."""
    another = False
    for name in op.outputs:
        one, two = _expected_of(op, expected, name), _expected_of(op, other, name)
        raw = case.outputs[name].type.encode(two.value)
        if compare(case, op, values, expected, raw, numerics, name).wrong.any():
            return False
        another |= not np.array_equal(one.value, two.value, equal_nan=True)
    return another
