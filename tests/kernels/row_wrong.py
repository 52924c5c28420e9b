"""Wrong kernels for the families' ops, each with one fault that real backends had, and the hints for the faults.

KB numbers are documented bugs of real backends.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels import small_faults, small_wrong, wrong
from tests.kernels.base import F32, gather
from tests.kernels.correct import Correct
from tests.kernels.faults import Fault
from tests.kernels.row_odd import OnePass
from tests.kernels.wrong import MIXED, MODIFIED, NAN, OUTSIDE, WRONG_VALUES, Wrong

# --- elements ---


class Subtracts(Correct):
    def add(self, case: Case, buffers: Buffers) -> None:
        a, b = self.loaded(buffers, "a"), self.loaded(buffers, "b")
        self.stored(case, buffers, a - self.repeated(case, b))


class Multiplies(Correct):
    def add(self, case: Case, buffers: Buffers) -> None:
        self.mul(case, buffers)


class Adds(Correct):
    def mul(self, case: Case, buffers: Buffers) -> None:
        self.add(case, buffers)


class RepeatsEach(Correct):
    """Repeats each element of b instead of all of b: i / r where i mod n was to be taken."""

    def repeated(self, case: Case, b: F32) -> F32:
        for axis, n in enumerate(case.inputs["a"].shape):
            b = np.repeat(b, n // max(b.shape[axis], 1), axis)
        return b


class RepeatsEachRow(Correct):
    """The same along i1 only."""

    def repeated(self, case: Case, b: F32) -> F32:
        each = np.repeat(b, case.inputs["a"].shape[2] // max(b.shape[2], 1), 2)
        return super().repeated(case, each)


class ClampsIndex(Correct):
    """Takes the last element of b along i0 for all that lie beyond it."""

    def repeated(self, case: Case, b: F32) -> F32:
        index = np.minimum(np.arange(case.inputs["a"].shape[3]), max(b.shape[3] - 1, 0))
        return super().repeated(case, b[..., index] if b.size else b)


class CopiesA(Correct):
    def add(self, case: Case, buffers: Buffers) -> None:
        self.stored(case, buffers, self.loaded(buffers, "a"))

    mul = add


class CopiesB(Correct):
    def add(self, case: Case, buffers: Buffers) -> None:
        self.stored(case, buffers, self.repeated(case, self.loaded(buffers, "b")))

    mul = add


class CopiesX(Correct):
    def scale(self, case: Case, buffers: Buffers) -> None:
        self.stored(case, buffers, self.loaded(buffers, "x"))

    clamp = exp = silu = norm = rms_norm = scale


class BiasFirst(Correct):
    def scaled(self, x: F32, scale: F32, bias: F32) -> F32:
        return (x + bias) * scale


class Ignores(Correct):
    """Takes a parameter for the number that makes it no matter."""

    parameter, taken_for = "bias", 0.0

    def number(self, case: Case, name: str, like: F32) -> F32:
        return np.full_like(like, self.taken_for) if name == self.parameter else super().number(case, name, like)


class IgnoresScale(Ignores):
    parameter, taken_for = "scale", 1.0


class IgnoresMin(Ignores):
    parameter, taken_for = "min", -np.inf


class IgnoresMax(Ignores):
    parameter, taken_for = "max", np.inf


class IgnoresEps(Ignores):
    parameter = "eps"


class Symmetric(Correct):
    def clamped(self, x: F32, least: F32, most: F32) -> F32:
        return np.minimum(np.maximum(x, -most), most)


class PowersOfTwo(Correct):
    def exponential(self, x: F32) -> F32:
        return np.exp2(x.astype(np.float64)).astype(np.float32)


class HalfExp(Correct):
    """An exponential with 11 bits, as from a table of float16."""

    def exponential(self, x: F32) -> F32:
        bits = super().exponential(x).view(np.uint32)
        return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


class WrongSign(Correct):
    def gated(self, x: F32) -> F32:
        return super().gated(-x) * np.float32(-1)


class SigmoidOnly(Correct):
    def gated(self, x: F32) -> F32:
        return self.divided(np.ones_like(x), self.added(np.ones_like(x), self.exponential(-x)))


class InHalf(Correct):
    """Computes in float16 what is float32."""

    def loaded(self, buffers: Buffers, name: str) -> F32:
        return self.read(buffers, name).astype(np.float16).astype(np.float32)


class RowsAsIfPacked(Correct):
    """Finds row i1 of matrix i2 as if all rows followed each other in steps of nb1, as ggml's CLAMP on the CPU does."""

    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        layout = buffers.plan.slots[name].layout
        nb1 = layout.strides[2]
        rows = (nb1 * layout.shape[1] * layout.shape[2], nb1 * layout.shape[2], nb1, layout.strides[3])
        return gather(buffers, name, rows, layout.offset)


class OverwritesB(Correct):
    """Leaves its result in b where the shapes are the same."""

    def add(self, case: Case, buffers: Buffers) -> None:
        super().add(case, buffers)
        if case.inputs["a"].shape == case.inputs["b"].shape:
            buffers.array("b")[...] = buffers.array("out")

    mul = add


# --- rows ---


class SampleVariance(Correct):
    def variance(self, x: F32, apart: F32) -> F32:
        n = x.shape[-1]
        return super().variance(x, apart) * np.float32(n / max(n - 1, 1))


class NotCentred(Correct):
    def norm(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        variance = self.variance(x, x - self.averaged(x))
        self.stored(case, buffers, self.over_root(case, x, variance + self.number(case, "eps", variance)))


class EpsOutside(Correct):
    """Adds eps to the standard deviation."""

    def norm(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        apart = x - self.averaged(x)
        deviation = np.sqrt(self.variance(x, apart))
        self.stored(case, buffers, apart / (deviation + self.number(case, "eps", deviation)))


class SumOfSquares(Correct):
    """The norm of a row and not its root mean square."""

    def mean_square(self, x: F32) -> F32:
        return self.summed(self.multiplied(x, x))[..., None]


class NormsFullTiles(small_faults.FullTiles):
    """What a tile of 8 does not fill is lost."""


class EpsOnRoot(Correct):
    def rms_norm(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        root = np.sqrt(self.mean_square(x))
        self.stored(case, buffers, x / (root + self.number(case, "eps", root)))


class TurnsWithoutEps(Correct):
    def rms_norm_mul_rope(self, case: Case, buffers: Buffers) -> None:
        self.by_reference(wrong.with_params(case, eps=0.0), buffers)


class TurnsFullTiles(Correct):
    """What a tile of 8 does not fill is lost from the mean (where there is a full one)."""

    def rms_norm_mul_rope(self, case: Case, buffers: Buffers) -> None:
        self.by_reference(case, buffers)
        x = self.loaded(buffers, "x").astype(np.float64)
        n, eps = x.shape[-1], float(case.params["eps"])
        squares = x * x
        part = squares[..., : n // 8 * 8 if n > 8 else n]
        whole, left = (it.sum(-1, keepdims=True) / n + eps for it in (squares, part))
        for name in case.outputs:
            self.write(buffers, name, buffers.array(name) * np.sqrt(whole / left))


ROW_WRONG: tuple[Wrong, ...] = (
    Wrong("add", Subtracts, WRONG_VALUES),
    Wrong("add", RepeatsEach, WRONG_VALUES, (NAN, MIXED)),
    Wrong("add", ClampsIndex, WRONG_VALUES),
    Wrong("add", InHalf, WRONG_VALUES, (NAN,)),
    Wrong("add", OverwritesB, MODIFIED),
    Wrong("add", wrong.ReadsPackedB, NAN, (WRONG_VALUES, MIXED)),
    Wrong("mul", Adds, WRONG_VALUES, (NAN,)),
    Wrong("mul", RepeatsEachRow, WRONG_VALUES, (NAN, MIXED)),
    Wrong("mul", wrong.ReadsPackedA, NAN, (WRONG_VALUES, MIXED)),
    Wrong("scale", Ignores, WRONG_VALUES),
    Wrong("scale", BiasFirst, WRONG_VALUES),
    Wrong("scale", wrong.WritesPacked, OUTSIDE, (WRONG_VALUES, MIXED)),
    Wrong("clamp", IgnoresMin, WRONG_VALUES, (NAN,)),
    Wrong("clamp", Symmetric, WRONG_VALUES),
    Wrong("clamp", RowsAsIfPacked, NAN, (WRONG_VALUES, MIXED)),
    Wrong("exp", PowersOfTwo, WRONG_VALUES),
    Wrong("exp", HalfExp, WRONG_VALUES),
    Wrong("exp", small_wrong.ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("silu", WrongSign, WRONG_VALUES, (NAN,)),
    Wrong("silu", SigmoidOnly, WRONG_VALUES),
    Wrong("silu", HalfExp, WRONG_VALUES),
    Wrong("norm", SampleVariance, WRONG_VALUES),
    Wrong("norm", NotCentred, WRONG_VALUES, (NAN,)),
    Wrong("norm", IgnoresEps, NAN, (WRONG_VALUES, MIXED)),
    Wrong("norm", small_wrong.DropsPartialGroup, WRONG_VALUES),
    Wrong("norm", small_wrong.HalfSums, WRONG_VALUES, (NAN, MIXED)),
    Wrong("norm", OnePass, WRONG_VALUES, (NAN, MIXED)),
    Wrong("norm", small_wrong.ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("rms_norm", SumOfSquares, WRONG_VALUES),
    Wrong("rms_norm", EpsOnRoot, WRONG_VALUES, (NAN, MIXED)),
    Wrong("rms_norm", IgnoresEps, WRONG_VALUES, (NAN, MIXED)),
    Wrong("rms_norm", small_wrong.DropsPartialGroup, WRONG_VALUES, (NAN, MIXED)),
    Wrong("rms_norm", small_wrong.HalfSums, WRONG_VALUES, (NAN, MIXED)),
    Wrong("rms_norm", InHalf, WRONG_VALUES, (NAN, MIXED)),
    Wrong("rms_norm", wrong.IgnoresNb3, NAN, (WRONG_VALUES, MIXED)),
)


FULL_TILES_OF_8 = "what a tile of 8 does not fill is left out of the sum"


def _faults() -> Iterator[Fault]:
    yield Fault("add", Subtracts, "b is subtracted")
    yield Fault("add", Multiplies, "a and b are multiplied")
    yield Fault("add", CopiesA, "a is copied, not computed")
    yield Fault("mul", CopiesB, "b is copied, not computed")
    yield Fault("mul", Adds, "a and b are added")
    says = "b is repeated element by element along i1 (i1 / r), not as a whole (i1 mod n)"
    yield Fault("add", RepeatsEachRow, says)
    yield Fault("mul", ClampsIndex, "b is not repeated along i0: its last element stands for all beyond")
    yield Fault("scale", CopiesX, "x is copied, not computed")
    yield Fault("scale", IgnoresScale, "scale is left out")
    yield Fault("scale", Ignores, "bias is left out")
    yield Fault("scale", BiasFirst, "bias is added before x is scaled")
    yield Fault("clamp", IgnoresMin, "min is left out")
    yield Fault("clamp", IgnoresMax, "max is left out")
    yield Fault("clamp", Symmetric, "x is cut at ±max")
    yield Fault("exp", PowersOfTwo, "2^x is computed")
    yield Fault("silu", WrongSign, "the sign of the exponent is wrong: x / (1 + e^x)")
    yield Fault("silu", SigmoidOnly, "the sigmoid is returned, not multiplied by x")
    yield Fault("norm", NotCentred, "the mean is not subtracted from x")
    yield Fault("norm", SampleVariance, "the variance is taken over n − 1")
    yield Fault("norm", EpsOutside, "the standard deviation and eps are added: (x − mean) / (√variance + eps)")
    yield Fault("norm", IgnoresEps, "eps is left out")
    yield Fault("norm", CopiesX, "x is copied, not normalised")
    yield Fault("rms_norm", SumOfSquares, "the sum of the squares is taken, not their mean")
    yield Fault("rms_norm", EpsOnRoot, "eps is added to the root, not under it")
    yield Fault("rms_norm", CopiesX, "x is copied, not normalised")
    yield Fault("rms_norm", NormsFullTiles, FULL_TILES_OF_8)
    yield Fault("norm", small_faults.WithoutLast, "the last element of each row is left out")
    yield Fault("group_norm", NormsFullTiles, FULL_TILES_OF_8)
    yield Fault("group_norm", small_faults.WithoutLast, "the last element of each group is left out")
    yield Fault("group_norm", IgnoresEps, "eps is left out")
    yield Fault("rms_norm_mul_rope", TurnsWithoutEps, "eps is left out")
    yield Fault("rms_norm_mul_rope", TurnsFullTiles, FULL_TILES_OF_8)


ROW_FAULTS: tuple[Fault, ...] = tuple(_faults())
