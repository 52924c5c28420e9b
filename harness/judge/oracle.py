"""The oracle: runs no backend, only compares what one returned with the reference and its error bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, Mask, Raw
from opconform.harness.model.expected import Comparison, Expected
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op

#: Cases up to this size are computed together: the calls of NumPy cost more than what they compute.
_SMALL_BYTES = 1 << 15


def expectation(case: Case, op: Op, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The reference and its bound for the raw inputs of `case`; NaN and overflow pass through in silence."""
    with np.errstate(all="ignore"):
        return op.expect(case, raw, numerics)


def expectations(op: Op, runs: Sequence[tuple[Case, Mapping[str, Raw], Numerics]]) -> list[Expected]:
    """The reference and its bound for each run. Small cases that differ in their values alone are computed together."""
    groups: dict[object, list[int]] = {}
    for index, (case, _, numerics) in enumerate(runs):
        groups.setdefault(_what_counts(op, case, numerics) or index, []).append(index)
    found: dict[int, Expected] = {}
    for group in groups.values():
        case, raw, numerics = runs[group[0]]
        if len(group) == 1:
            found[group[0]] = expectation(case, op, raw, numerics)
            continue
        stacked = {name: np.stack([runs[index][1][name] for index in group]) for name in raw}
        together = expectation(case, op, stacked, numerics)
        found.update((index, _one_of(together, place)) for place, index in enumerate(group))
    return [found[index] for index in range(len(runs))]


def _what_counts(op: Op, case: Case, numerics: Numerics) -> object:
    """What the reference of a case follows from beside its values; None where it is better computed alone."""
    if not op.stacks or case.nbytes > _SMALL_BYTES:
        return None
    sizes = tuple((layout.dtype, layout.shape) for layout in case.layouts.values())
    return sizes, tuple(case.params.items()), numerics


def _one_of(together: Expected, place: int) -> Expected:
    exact = None if together.exact is None else together.exact[place]
    bits = None if together.bits is None else together.bits[place]
    others = {name: _one_of(other, place) for name, other in together.others.items()}
    return Expected(together.value[place], together.bound[place], exact, bits, others)


def compare(
    case: Case, op: Op, raw: Mapping[str, Raw], expected: Expected, got_raw: Raw, numerics: Numerics, name: str = ""
) -> Comparison:
    """Hold the output `name` (raw elements of its shape; by default the first) against the op's expectation."""
    name = name or op.outputs[0]
    first = name == op.outputs[0]
    expected = expected if first else expected.others[name]
    dtype = case.outputs[name].type
    with np.errstate(all="ignore"):
        got = dtype.decode(got_raw)
        if op.composite.judge is None or not first:
            error, bound = np.abs(got - expected.value), expected.bound
        else:
            residual = op.composite.judge(case, raw, expected, got, numerics)
            error, bound = residual.error, residual.bound
        free = np.isnan(expected.value) | np.isinf(bound)
        right = (error <= bound) | free
        if expected.exact is not None and expected.bits is not None:
            same = _same_bits(expected.bits, got_raw, expected.value, got, numerics, dtype.smallest_normal)
            right = np.where(expected.exact, same, right)
            free = free & ~expected.exact
    return Comparison(name, got, got_raw, expected, error, bound, ~right, int(np.count_nonzero(free)))


def _same_bits(bits: Raw, got_bits: Raw, value: F64, got: F64, numerics: Numerics, smallest_normal: float) -> Mask:
    """Which elements are copies: the same bits, any NaN for a NaN, and 0 for a denormal where the device flushes."""
    same: Mask = bits == got_bits
    if same.shape != value.shape:  # of whole blocks
        same = np.repeat(same, value.shape[-1] // max(same.shape[-1], 1), axis=-1)
    if same.all():
        return same
    same |= np.isnan(value) & np.isnan(got)
    if numerics.flushes_denormals:
        same |= (np.abs(value) < smallest_normal) & (got == 0)
    return same
