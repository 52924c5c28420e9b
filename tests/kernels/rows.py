"""The ops that are rows of a family, in float32: of each element, and of a row. Every step is a method that other
kernels replace."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.op import Op
from tests.kernels.base import F32, Kernel
from tests.kernels.formulas import Row, Single

ONE = np.float32(1)


def op_of(case: Case) -> Op:
    """The op of a case."""
    from opconform.harness.model.ops import ops  # where a bundle runs a kernel there are no ops to be found

    return ops()[case.op]


class Rows(Kernel):
    """add, mul, scale, clamp, exp, silu and the norms, every operation rounded to float32, the result to its type.

    What has no method here is computed by its row's formula, or, if it is in no table of formulas, is its reference
    rounded once, in every output.
    """

    #: The arithmetic of a formula.
    arithmetic: ClassVar[type[Single]] = Single

    def run(self, case: Case, buffers: Buffers) -> None:
        if hasattr(self, case.op):
            super().run(case, buffers)
            return
        row = Row.of(op_of(case))
        with np.errstate(all="ignore"):
            if row is not None:
                self.by_formula(row, case, buffers)
            else:
                self.by_reference(case, buffers)

    def by_formula(self, row: Row, case: Case, buffers: Buffers) -> None:
        """A row that has no method here."""
        shape = next(iter(case.inputs.values())).shape
        read = (self.read(buffers, name) for name in case.inputs)
        arguments = [
            self.arithmetic.holding(np.tile(x, [n // max(m, 1) for n, m in zip(shape, x.shape)])) for x in read
        ]
        given = (*arguments, *([case.params] if case.params else []))
        found = row.formula(*given).value
        self.stored(case, buffers, np.broadcast_to(found, case.outputs["out"].shape).astype(self.arithmetic.kept))
        if "mid" in case.outputs and row.chain is not None:
            kept = row.chain(*given)[row.steps.index(str(case.params["kept"]))].value
            self.write(buffers, "mid", np.broadcast_to(kept, case.outputs["mid"].shape).astype(np.float32))

    def by_reference(self, case: Case, buffers: Buffers) -> None:
        """What is demanded of what is read, in the type of the output."""
        read = {
            name: np.ascontiguousarray(self.read(buffers, name)).view(layout.type.raw)
            for name, layout in case.inputs.items()
        }
        first = op_of(case).expect(case, read, EXACT)
        for name, expected in {"out": first, **first.others}.items():
            out = case.outputs[name].type
            raw = out.encode(expected.value)
            if expected.exact is not None and expected.bits is not None:
                exact = expected.exact[..., :: out.block]
                raw = np.where(exact, expected.bits, raw)
            self.write(buffers, name, raw.view(out.native))

    # --- one operation at a time ---

    def added(self, a: F32, b: F32) -> F32:
        return a + b

    def multiplied(self, a: F32, b: F32) -> F32:
        return a * b

    def divided(self, a: F32, b: F32) -> F32:
        return a / b

    def rooted(self, x: F32) -> F32:
        return np.sqrt(x)

    def exponential(self, x: F32) -> F32:
        """e^x. NumPy's own is 2.5 units off; that of float64, rounded, is right but for half a unit."""
        return np.exp(x.astype(np.float64)).astype(np.float32)

    def summed(self, x: F32) -> F32:
        """Sums along the last axis."""
        raise NotImplementedError

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        """float32 in another type."""
        raise NotImplementedError

    # --- in and out ---

    def loaded(self, buffers: Buffers, name: str) -> F32:
        """An argument's elements in the compute precision."""
        return self.read(buffers, name).astype(np.float32)

    def stored(self, case: Case, buffers: Buffers, values: F32) -> None:
        found = self.narrowed(case.dtype, values)
        self.write(buffers, "out", np.where(np.isnan(found), found.dtype.type(np.nan), found))  # the sign of a NaN too

    def repeated(self, case: Case, b: F32) -> F32:
        """b as often as a has it."""
        return np.tile(b, [n // max(m, 1) for n, m in zip(case.inputs["a"].shape, b.shape, strict=True)])

    def number(self, case: Case, name: str, like: F32) -> F32:
        """A parameter, for each element."""
        return np.broadcast_to(like.dtype.type(case.params[name]), like.shape)

    # --- elements ---

    def add(self, case: Case, buffers: Buffers) -> None:
        a, b = self.loaded(buffers, "a"), self.loaded(buffers, "b")
        self.stored(case, buffers, self.added(a, self.repeated(case, b)))

    def mul(self, case: Case, buffers: Buffers) -> None:
        a, b = self.loaded(buffers, "a"), self.loaded(buffers, "b")
        self.stored(case, buffers, self.multiplied(a, self.repeated(case, b)))

    def scale(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        self.stored(case, buffers, self.scaled(x, self.number(case, "scale", x), self.number(case, "bias", x)))

    def scaled(self, x: F32, scale: F32, bias: F32) -> F32:
        return self.added(self.multiplied(x, scale), bias)

    def clamp(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        self.stored(case, buffers, self.clamped(x, self.number(case, "min", x), self.number(case, "max", x)))

    def clamped(self, x: F32, least: F32, most: F32) -> F32:
        return np.minimum(np.maximum(x, least), most)

    def exp(self, case: Case, buffers: Buffers) -> None:
        self.stored(case, buffers, self.exponential(self.loaded(buffers, "x")))

    def silu(self, case: Case, buffers: Buffers) -> None:
        self.stored(case, buffers, self.gated(self.loaded(buffers, "x")))

    def gated(self, x: F32) -> F32:
        return self.divided(x, self.added(np.ones_like(x), self.exponential(-x)))

    # --- rows ---

    def norm(self, case: Case, buffers: Buffers) -> None:
        self.stored(case, buffers, self.standardised(case, self.loaded(buffers, "x")))

    def group_norm(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        out, channels = np.empty_like(x), -(-x.shape[1] // int(case.params["n_groups"]))
        for first in range(0, x.shape[1], channels):
            part = x[:, first : first + channels]
            rows = part.reshape(x.shape[0], 1, 1, -1)
            out[:, first : first + channels] = self.standardised(case, rows).reshape(part.shape)
        self.stored(case, buffers, out)

    def standardised(self, case: Case, x: F32) -> F32:
        apart = self.added(x, -self.averaged(x))
        variance = self.variance(x, apart)
        return self.over_root(case, apart, self.added(variance, self.number(case, "eps", variance)))

    def rms_norm(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        squares = self.mean_square(x)
        self.stored(case, buffers, self.over_root(case, x, self.added(squares, self.number(case, "eps", squares))))

    def mean_square(self, x: F32) -> F32:
        return self.averaged(self.multiplied(x, x))

    def averaged(self, x: F32) -> F32:
        """Means of rows, which keep one place."""
        total = self.summed(x)[..., None]
        return self.divided(total, np.full_like(total, max(x.shape[-1], 1)))

    def variance(self, x: F32, apart: F32) -> F32:
        return self.averaged(self.multiplied(apart, apart))

    def over_root(self, case: Case, x: F32, squares: F32) -> F32:
        return self.divided(x, np.broadcast_to(self.rooted(squares), x.shape))
