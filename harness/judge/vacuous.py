"""Cases that say nothing: what any kernel passes that writes zeros, copies an input, or writes at all.

Such a case is judged like any other, and is counted apart: a thousand of them must not read as a thousand that passed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from opconform.harness.judge.oracle import compare, expectation
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, Mask, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.op import Op

NO_ELEMENT = "it has no element"  #: what is said of a case with empty outputs
_NEAR = 1e-3  #: where the error is a residual: how near to the reference a value must be to be worth a judgement


@dataclass(frozen=True)
class _Output:
    """What a right output of a case holds, how far from it another one may be, and of which elements a copy is
    demanded."""

    name: str
    value: F64
    bound: F64
    exact: Mask | None

    @property
    def is_free(self) -> bool:
        """Whether nothing is demanded of any element."""
        free = np.isnan(self.value) | np.isinf(self.bound)
        return bool(np.all(free if self.exact is None else free & ~self.exact))


def vacuous(op: Op, case: Case, values: Mapping[str, Raw], expected: Expected, numerics: Numerics) -> str:
    """Why a case says nothing, though a backend passes it; "" for one that says something.

    A copied input is the right answer of an op that is a copy (`Op.copies`), and speaks against no case of it.
    """
    first, *others = case.outputs
    output = _output(op, case, values, expected, numerics, first)
    if _passes(op, case, values, expected, output, None, numerics):
        outputs = [output, *(_output(op, case, values, expected, numerics, name) for name in others)]
        if all(_passes(op, case, values, expected, other, None, numerics) for other in outputs[1:]):
            return _of_zeros(outputs)
    if op.copies or others:
        return ""
    out = case.outputs[first]
    for name, layout in case.inputs.items():
        same = layout.dtype == out.dtype and layout.shape == out.shape
        if same and _passes(op, case, values, expected, output, values[name], numerics):
            return f"a copy of {name} passes too"
    return ""


def _of_zeros(outputs: Sequence[_Output]) -> str:
    """What to say of a case that outputs of zeros pass."""
    if all(output.value.size == 0 for output in outputs):
        return NO_ELEMENT
    if all(output.is_free for output in outputs):
        return "nothing can be demanded of any element"
    return "an output of zeros passes too"


def _output(
    op: Op, case: Case, values: Mapping[str, Raw], expected: Expected, numerics: Numerics, name: str
) -> _Output:
    each = _expected_of(op, expected, name)
    if op.composite.judge is not None and name == op.outputs[0]:  # the bound is of the error that it finds
        right = case.outputs[name].type.encode(each.value)
        judged = compare(case, op, values, expected, right, numerics, name)
        return _Output(name, each.value, judged.bound, None)
    return _Output(name, each.value, each.bound, None if each.bits is None else each.exact)


def _passes(
    op: Op,
    case: Case,
    values: Mapping[str, Raw],
    expected: Expected,
    output: _Output,
    raw: Raw | None,
    numerics: Numerics,
) -> bool:
    """Whether `raw` (None: zeros) is right as an output. A few elements mostly tell."""
    size, layout = output.value.size, case.outputs[output.name]
    near = 0.0 if op.composite.judge is None else _NEAR
    for place in {0, size // 2, size - 1} if size and (raw is None or layout.type.block == 1) else ():
        want, bound = float(output.value.flat[place]), float(output.bound.flat[place])
        would = 0.0 if raw is None else float(layout.type.decode(np.array([raw.flat[place]]))[0])
        if abs(would - want) > bound + near * abs(want):
            return False
    wrote = layout.type.encode(np.zeros(layout.shape)) if raw is None else np.ascontiguousarray(raw)
    return not compare(case, op, values, expected, wrote, numerics, output.name).wrong.any()


def weaknesses(op: Op, case: Case, values: Mapping[str, Raw], numerics: Numerics = EXACT) -> Iterator[str]:
    """What wrong kernels pass a case, one line each: those that `vacuous` knows, and those that stop after a tile.

    A known case with a weakness pins nothing. That it has no element is no weakness of a case that is about that.
    """
    expected = expectation(case, op, values, numerics)
    outputs = {name: _expected_of(op, expected, name) for name in case.outputs}
    right = {name: case.outputs[name].type.encode(each.value) for name, each in outputs.items()}
    comparisons = [compare(case, op, values, expected, raw, numerics, name) for name, raw in right.items()]
    if all(comparison.wrong.size == 0 for comparison in comparisons):
        return
    nothing = vacuous(op, case, values, expected, numerics)
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
    for name in case.outputs:
        one, two = _expected_of(op, expected, name), _expected_of(op, other, name)
        raw = case.outputs[name].type.encode(two.value)
        if compare(case, op, values, expected, raw, numerics, name).wrong.any():
            return False
        another |= not np.array_equal(one.value, two.value, equal_nan=True)
    return another
