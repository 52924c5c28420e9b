"""Right kernels for the families' ops that compute in another order or with another arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64
from opconform.harness.model.numerics import Numerics
from tests.kernels import odd, small_odd
from tests.kernels.base import F32
from tests.kernels.correct import Correct
from tests.kernels.odd import Odd
from tests.kernels.rows import ONE


class Float64(Correct):
    """Everything in float64, rounded to the type of the output once at the end."""

    def loaded(self, buffers: Buffers, name: str) -> F64:  # type: ignore[override]
        return self.read(buffers, name).astype(np.float64)

    def exponential(self, x: F64) -> F64:  # type: ignore[override]
        return np.exp(x)

    def summed(self, x: F64) -> F64:  # type: ignore[override]
        total: F64 = x.sum(-1)
        return total

    def narrowed(self, goes: str, x: F64) -> np.ndarray:  # type: ignore[override]
        return x.astype(np.float32 if goes == "f32" else np.float16)


class Backwards(Correct):
    """Sums from the end of a row."""

    def summed(self, x: F32) -> F32:
        return super().summed(x[..., ::-1])


class Compensated(Correct):
    """Kahan's summation."""

    def summed(self, x: F32) -> F32:
        total, lost = np.zeros(x.shape[:-1], np.float32), np.zeros(x.shape[:-1], np.float32)
        for i in range(x.shape[-1]):
            y = x[..., i] - lost
            new = total + y
            total, lost = new, (new - total) - y
        return total


class FusedSquares(Correct):
    """Sums of squares, and scale · x + bias, in fused operations (float64 holds a product of float32 exactly)."""

    def scaled(self, x: F32, scale: F32, bias: F32) -> F32:
        return (x.astype(np.float64) * scale + bias).astype(np.float32)

    def multiplied(self, a: F32, b: F32) -> F32:
        exact: Any = a.astype(np.float64) * b if a is b else a * b
        return exact  # type: ignore[no-any-return]

    def summed(self, x: F32) -> F32:
        total = np.zeros(x.shape[:-1], np.float32)
        for i in range(x.shape[-1]):
            total = (total.astype(np.float64) + x[..., i]).astype(np.float32)
        return total


class ByReciprocal(Correct):
    """Multiplies with 1/n, with 1/√ and with 1/(1 + e^−x)."""

    def divided(self, a: F32, b: F32) -> F32:
        product: F32 = a * (ONE / b)
        return product


class LooseReciprocal(Correct):
    """The same with a reciprocal two units in the last place off."""

    def divided(self, a: F32, b: F32) -> F32:
        b = np.ascontiguousarray(b)
        product: F32 = a * odd.loosened(b, ONE / b)
        return product


class LooseInverseRoot(Correct):
    """1/√ as one operation, two units in the last place off, as CUDA, OpenCL and Vulkan allow."""

    def over_root(self, case: Case, x: F32, squares: F32) -> F32:
        inverse = (1 / np.sqrt(squares.astype(np.float64))).astype(np.float32)
        return x * odd.loosened(np.ascontiguousarray(squares), inverse)


class LooseExp(Correct):
    """An exponential two units in the last place off."""

    def exponential(self, x: F32) -> F32:
        exact = super().exponential(x)
        return np.where(np.isfinite(exact), odd.loosened(np.ascontiguousarray(x), exact), exact)


class Exp2(Correct):
    """e^x as 2^(x·log₂e), the product rounded to float32."""

    def exponential(self, x: F32) -> F32:
        return np.exp2((x * np.float32(np.log2(np.e))).astype(np.float64)).astype(np.float32)


class BySigmoid(Correct):
    """x times the sigmoid, which is e^x / (1 + e^x) below 0."""

    def gated(self, x: F32) -> F32:
        small = self.exponential(-np.abs(x))
        return x * (np.where(x < 0, small, ONE) / (ONE + small))


class ScaleAndShift(Correct):
    """x·s − mean·s instead of (x − mean)·s."""

    def norm(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        mean = self.averaged(x)
        variance = self.variance(x, x - mean)
        scale = ONE / np.sqrt(variance + self.number(case, "eps", variance))
        self.stored(case, buffers, x * scale + (-mean * scale))


class Welford(Correct):
    """Mean and variance updated with each element."""

    def norm(self, case: Case, buffers: Buffers) -> None:
        x = self.loaded(buffers, "x")
        mean, total = np.zeros(x.shape[:-1], np.float32), np.zeros(x.shape[:-1], np.float32)
        for i in range(x.shape[-1]):
            apart = x[..., i] - mean
            mean = mean + apart / np.float32(i + 1)
            total = total + apart * (x[..., i] - mean)
        variance = (total / np.float32(max(x.shape[-1], 1)))[..., None]
        found = (x - mean[..., None]) / np.sqrt(variance + self.number(case, "eps", variance))
        self.stored(case, buffers, found.astype(np.float32))


class OnePass(Correct):
    """The variance as Σx²/n − mean², on a device that declares it."""

    def variance(self, x: F32, apart: F32) -> F32:
        mean = self.averaged(x)
        return self.averaged(x * x) - mean * mean


class FlushingRows(odd.Flushing):
    """Operands, steps and results below 2^-126 become 0, and denormals of float16."""

    def loaded(self, buffers: Buffers, name: str) -> F32:
        x = self.read(buffers, name)
        least = np.finfo(x.dtype).tiny
        return np.where(np.abs(x) < least, 0, x).astype(np.float32)

    def exponential(self, x: F32) -> F32:
        return odd.flushed(super().exponential(odd.flushed(x)))

    def rooted(self, x: F32) -> F32:
        return np.sqrt(odd.flushed(x))

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        near = super().narrowed(goes, x)
        return np.where(np.abs(near) < np.finfo(near.dtype).tiny, near.dtype.type(0), near)


class VulkanRows(small_odd.VulkanRoot):
    """The least that Vulkan promises of exp too: 3 + 2·|x| units in the last place, and conversions cut off."""

    loaded = FlushingRows.loaded

    def exponential(self, x: F32) -> F32:
        exact = np.exp(x.astype(np.float64))
        off = 1 + (2 + 1.5 * np.abs(x.astype(np.float64))) * 2.0**-23 * np.where(x.view(np.uint32) & 1, 1, -1)
        loose = exact * np.where(np.isinf(exact), 1, np.maximum(off, 0))  # an infinity has no last place
        return odd.flushed(loose.astype(np.float32))

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        near = super().narrowed(goes, x)
        if goes != "f16":
            return near
        bits = near.view(np.uint16)
        return np.where(np.abs(near.astype(np.float32)) > np.abs(x), bits - np.uint16(1), bits).view(np.float16)


ELEMENTS = ("add", "mul", "scale", "clamp", "exp", "silu")
NORMS = ("norm", "rms_norm")
_ALL = (*ELEMENTS, *NORMS)
_ANY_ROUNDING = Numerics(any_rounding=True)
_VULKAN = Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5, sqrt_ulps=5.0, exp_ulps_per_unit=2.0)

ROW_ODD: tuple[Odd, ...] = (
    Odd(Correct, _ALL),
    Odd(Float64, _ALL),
    Odd(FlushingRows, _ALL, Numerics(flushes_denormals=True)),
    Odd(VulkanRows, _ALL, _VULKAN),
    Odd(small_odd.RootTowardZero, ("add", "mul", "scale", "clamp", *NORMS), _ANY_ROUNDING),
    Odd(small_odd.RootAwayFromZero, ("add", "mul", "scale", "clamp", *NORMS), _ANY_ROUNDING),
    Odd(odd.ToOdd, ("add", "mul", "scale"), _ANY_ROUNDING),
    Odd(FusedSquares, ("scale", *NORMS)),
    Odd(small_odd.Pairwise, NORMS),
    Odd(small_odd.Lanes, NORMS),
    Odd(small_odd.Blocks, NORMS),
    Odd(Backwards, NORMS),
    Odd(Compensated, NORMS),
    Odd(ByReciprocal, ("silu", *NORMS)),
    Odd(LooseReciprocal, ("silu", *NORMS), Numerics(division_ulps=2.5)),
    Odd(small_odd.LooseRoot, NORMS, Numerics(division_ulps=2.5, sqrt_ulps=2.5)),
    Odd(LooseInverseRoot, NORMS),
    Odd(LooseExp, ("exp", "silu")),
    Odd(Exp2, ("exp", "silu"), Numerics(exp_ulps_per_unit=1.0)),
    Odd(BySigmoid, ("silu",)),
    Odd(ScaleAndShift, ("norm",)),
    Odd(Welford, ("norm",)),
    Odd(OnePass, ("norm",), Numerics(one_pass_variance=True)),
)
