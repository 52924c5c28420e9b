"""Right kernels for the small ops that compute in another order or with another arithmetic."""

from __future__ import annotations

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.numerics import Numerics
from tests.kernels import odd
from tests.kernels.base import F32
from tests.kernels.correct import Correct
from tests.kernels.odd import Odd


class Float64(Correct):
    """Everything in float64, rounded to float32 once at the end."""

    def sum_rows(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", self.read(buffers, "x").sum(-1, dtype=np.float64, keepdims=True).astype(np.float32))

    def l2_norm(self, case: Case, buffers: Buffers) -> None:
        x = self.read(buffers, "x").astype(np.float64)
        squares = (x * x).sum(-1, keepdims=True)
        self.write(buffers, "out", self.normalised(case, x, squares).astype(np.float32))

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        return super().convolved(x.astype(np.float64), c.astype(np.float64), tokens).astype(np.float32)

    def summed(self, x: F32) -> F32:
        return x.sum(-1)


class Pairwise(Correct):
    """Sums halves of halves."""

    def summed(self, x: F32) -> F32:
        n = x.shape[-1]
        if n < 2:
            return x.sum(-1, dtype=np.float32)
        return self.summed(x[..., : n // 2]) + self.summed(x[..., n // 2 :])


class Lanes(Correct):
    """Sums with a stride of 8, as that many threads do, and then the lanes."""

    lanes = 8

    def summed(self, x: F32) -> F32:
        groups = -(-x.shape[-1] // self.lanes)
        filled = np.zeros((*x.shape[:-1], groups * self.lanes), np.float32)
        filled[..., : x.shape[-1]] = x
        parts = filled.reshape(*x.shape[:-1], groups, self.lanes)
        return super().summed(super().summed(parts.swapaxes(-1, -2)))


class Blocks(Lanes):
    """Sums blocks of 32, and then those sums."""

    def summed(self, x: F32) -> F32:
        starts = range(0, x.shape[-1], 32)
        sums = [Correct.summed(self, x[..., start : start + 32]) for start in starts]
        return Correct.summed(self, np.stack(sums, -1)) if sums else np.zeros(x.shape[:-1], np.float32)


class FusedTaps(Correct):
    """x·c added in one fused operation (float64 holds the product exactly)."""

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        total = np.zeros((*x.shape[:-1], tokens), np.float32)
        for j in range(c.shape[-1]):
            total = (total + x[..., j : j + tokens].astype(np.float64) * c[None, :, j, None]).astype(np.float32)
        return total


class InverseRoot(Correct):
    """x · (1/√(Σx²)), the inverse root cut off at 1/eps."""

    def normalised(self, case: Case, x: F32, squares: F32) -> F32:
        eps = np.float32(case.params["eps"])
        if case.params["eps_mode"] == "add":
            return x * self.inverse(squares + eps)
        least = np.float32(1) / eps
        return x * np.minimum(self.inverse(squares), least)

    def inverse(self, squares: F32) -> F32:
        """1/√ rounded once."""
        return (1 / np.sqrt(squares.astype(np.float64))).astype(np.float32)


class LooseInverseRoot(InverseRoot):
    """An inverse root up to two units in the last place off, as CUDA, OpenCL and Vulkan allow."""

    def inverse(self, squares: F32) -> F32:
        exact, near = 1 / np.sqrt(squares.astype(np.float64)), super().inverse(squares)
        loose = odd.loosened(np.ascontiguousarray(squares), near)
        beyond = np.abs(loose - exact) > 2 * np.spacing(near)
        return np.where(beyond, np.nextafter(loose, near), loose)


class ByMean(InverseRoot):
    """x·r·c as of RMS_NORM: r the inverse root of the mean of the squares, c = 1/√n."""

    def normalised(self, case: Case, x: F32, squares: F32) -> F32:
        n, eps = np.float32(max(x.shape[-1], 1)), np.float32(case.params["eps"])
        is_added = case.params["eps_mode"] == "add"
        mean = squares / n + eps / n if is_added else np.maximum(squares / n, eps * eps / n)
        return x * self.inverse(mean) * (np.float32(1) / np.sqrt(n))


class LooseRoot(odd.Stepwise):
    """Roots and quotients two units in the last place off."""

    def rooted(self, x: F32) -> F32:
        return odd.loosened(np.ascontiguousarray(x), np.sqrt(x))

    def divided(self, a: F32, b: F32) -> F32:
        return odd.loosened(np.ascontiguousarray(a), (a / b).astype(np.float32))


class RootTowardZero(odd.TowardZero):
    def rooted(self, x: F32) -> F32:
        return self.rounded(np.sqrt(x.astype(np.float64)))


class RootAwayFromZero(odd.AwayFromZero):
    def rooted(self, x: F32) -> F32:
        return self.rounded(np.sqrt(x.astype(np.float64)))


class VulkanRoot(odd.Vulkan):
    """The least that Vulkan promises of a root too: 1 / inversesqrt, both loose."""

    def rooted(self, x: F32) -> F32:
        exact = 1 / np.sqrt(flushed(x).astype(np.float64))
        return self.divided(np.ones_like(x), odd.loosened(np.ascontiguousarray(x), exact.astype(np.float32)))


def flushed(x: F32) -> F32:
    return odd.flushed(np.asarray(x))


class TruncatesHalves(Correct):
    """Conversions rounded toward zero, where the device promises no rounding mode."""

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        near = super().narrowed(goes, x)
        if goes == "f32":
            return near
        wide = near.astype(np.float32) if goes == "f16" else (near.astype(np.uint32) << 16).view(np.float32)
        bits = near.view(np.uint16)
        return np.where(np.abs(wide) > np.abs(x), bits - np.uint16(1), bits).astype(np.uint16).view(near.dtype)


class FlushesHalves(odd.Flushing):
    """Denormals of either type become 0 in a conversion."""

    def converted(self, case: Case, x: np.ndarray) -> np.ndarray:
        if case.inputs["x"].dtype == "bf16":
            x = np.where(x & 0x7F80, x, x & 0x8000).astype(np.uint16)
        elif x.dtype.kind == "f":
            least = case.inputs["x"].type.smallest_normal
            x = np.where(np.abs(x) < least, np.copysign(x.dtype.type(0), x), x)
        return super().converted(case, x)


_COMPUTED = ("sum_rows", "l2_norm", "ssm_conv")
_MOVED = ("tri", "diag", "pad", "cont", "cpy")
_ANY_ROUNDING = Numerics(any_rounding=True)
_FLUSHING = Numerics(flushes_denormals=True)

SMALL_ODD: tuple[Odd, ...] = (
    Odd(Correct, (*_COMPUTED, *_MOVED)),
    Odd(Float64, _COMPUTED),
    Odd(Pairwise, _COMPUTED),
    Odd(Lanes, _COMPUTED),
    Odd(Blocks, ("sum_rows", "l2_norm")),
    Odd(FusedTaps, ("ssm_conv",)),
    Odd(InverseRoot, ("l2_norm",)),
    Odd(LooseInverseRoot, ("l2_norm",)),
    Odd(ByMean, ("l2_norm",)),
    Odd(LooseRoot, ("l2_norm",), Numerics(division_ulps=2.5, sqrt_ulps=2.5)),
    Odd(odd.Flushing, ("sum_rows", "l2_norm", "ssm_conv", "tri", "diag", "pad", "cont"), _FLUSHING),
    Odd(FlushesHalves, ("cpy",), _FLUSHING),
    Odd(RootTowardZero, _COMPUTED, _ANY_ROUNDING),
    Odd(RootAwayFromZero, _COMPUTED, _ANY_ROUNDING),
    Odd(odd.ToOdd, ("sum_rows", "ssm_conv"), _ANY_ROUNDING),
    Odd(TruncatesHalves, ("cpy",), _ANY_ROUNDING),
    Odd(VulkanRoot, _COMPUTED, Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5, sqrt_ulps=5.0)),
)
