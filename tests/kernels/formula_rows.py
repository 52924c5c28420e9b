"""Kernels for every row of a table of formulas: right ones that compute differently, and wrong ones. A new row needs
nothing here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from opconform.harness.model.approx import Approx
from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F16, F64
from opconform.harness.model.numerics import EXACT, Numerics
from opconform.harness.model.ops import ops
from tests.kernels import wrong
from tests.kernels.correct import Correct
from tests.kernels.formulas import Row, Single, rows
from tests.kernels.odd import flushed, loosened, truncated

# --- right ---


class Wide(Single):
    """Everything in float64."""

    kept = np.float64

    def nearest(self, exact: F64) -> F64:
        return np.asarray(exact)

    def constant(self, value: float, roundings: int = 1) -> Single:
        return self.exactly(np.asarray(value, np.float64))


class OtherForm(Single):
    """The second form where a formula has two, and sums from the end."""

    def sum(self) -> Approx:
        return super(OtherForm, self.exactly(self.value[..., ::-1])).sum()

    def either(self, other: Approx) -> Approx:
        return other


class TowardZero(Single):
    """Rounded toward zero."""

    def nearest(self, exact: F64) -> F64:
        return truncated(np.asarray(exact), 0.0)[0].astype(np.float64)


class Flushing(Single):
    """Operands and results below 2^-126 become zeros of their sign."""

    @staticmethod
    def loaded(values: np.ndarray) -> F64:
        least = np.finfo(values.dtype).tiny
        return np.where(np.abs(values) < least, np.copysign(0, values), values).astype(np.float64)

    def nearest(self, exact: F64) -> F64:
        return flushed(np.asarray(exact).astype(np.float32)).astype(np.float64)


class LooseFunctions(Single):
    """exp, log, tanh and erf two units in the last place off."""

    def _monotone(self, function: Callable[[F64], F64], *_: Any) -> Single:
        near = np.ascontiguousarray(function(self.value)).astype(np.float32)
        if function is np.sqrt:
            return self.exactly(near.astype(np.float64))
        off = loosened(np.ascontiguousarray(self.value).astype(np.float32), near)
        return self.exactly(np.where(np.isfinite(near), off, near).astype(np.float64))


# --- wrong ---


class Halves(Single):
    """A wrong one: everything in float16."""

    @staticmethod
    def loaded(values: np.ndarray) -> F64:
        return values.astype(np.float16).astype(np.float64)

    def nearest(self, exact: F64) -> F64:
        return F16.decode(F16.encode(np.asarray(exact)))


class InHalf(Correct):
    arithmetic = Halves


class Exchanges(Correct):
    """Takes the first argument for the second one where they are of one shape."""

    def by_formula(self, row: Row, case: Case, buffers: Buffers) -> None:
        names = tuple(case.inputs)
        if len(names) > 1 and case.inputs[names[0]].shape == case.inputs[names[1]].shape:
            turned = row.formula
            row = replace(row, formula=lambda a, b, *more: turned(b, a, *more))
        super().by_formula(row, case, buffers)


class Mistaken(Correct):
    """Computes one of the formulas that a wrong kernel may compute."""

    which: str

    def by_formula(self, row: Row, case: Case, buffers: Buffers) -> None:
        super().by_formula(replace(row, formula=row.mistakes[self.which]), case, buffers)


class LeavesLast(Correct):
    """Does not write the last element."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        flat = np.array(values).reshape(-1)
        flat[-1:] = np.array(buffers.array(name)).reshape(-1)[-1:]
        super().write(buffers, name, flat.reshape(values.shape))


class LeavesOutKept(Correct):
    """A piece in one kernel that never writes what stands between, though it is read again."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        if name != "mid":
            super().write(buffers, name, values)


class OneOff(Correct):
    """Writes each element of a row one place on."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        axis = next((axis for axis in (3, 2, 1, 0) if values.shape[axis] > 1), 3)
        super().write(buffers, name, np.roll(values, 1, axis))


def made(name: str, base: type[Correct], **members: Any) -> type[Correct]:
    """A class of this module."""
    return type(name, (base,), {**members, "__module__": __name__})


@cache
def by_formula() -> tuple[str, ...]:
    """The ops that have no method among the kernels: all of them are computed by their formula."""
    return tuple(name for name in rows() if not hasattr(Correct, name))


def right_kernels() -> dict[type[Correct], Numerics]:
    """Each with what its device promises."""
    arithmetics = {
        Single: EXACT,
        Wide: EXACT,
        OtherForm: EXACT,
        LooseFunctions: EXACT,
        TowardZero: Numerics(any_rounding=True),
        Flushing: Numerics(flushes_denormals=True),
    }
    return {made(f"In{its.__name__}", Correct, arithmetic=its): numerics for its, numerics in arithmetics.items()}


def wrong_kernels(op: str) -> Iterator[type[Correct]]:
    """Wrong ones of the row, and those that all rows share; of an op with kernels of its own or with no formula those
    that write to wrong places."""
    yield LeavesLast
    yield OneOff
    if op not in by_formula():
        return
    for number, says in enumerate(rows()[op].mistakes):
        yield made(f"Mistaken{number}", Mistaken, which=says)
    first, *others = ops()[op].inputs
    if rows()[op].chain is not None:
        yield LeavesOutKept
    yield made("IgnoresStrides", wrong.ReadsPackedA, argument=first)
    yield made("IgnoresNb2", wrong.IgnoresNb2, argument=first)
    yield made("DropsOffset", wrong.DropsOffsetA, argument=first)
    yield wrong.LeavesTail
    yield wrong.WritesPacked
    yield InHalf
    if others and op not in ("add1", "adds", "muls", "add_rms_norm_mul"):  # a sum is the same exchanged
        yield Exchanges
