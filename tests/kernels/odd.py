"""Right kernels that compute in another order or with another arithmetic. Each must pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64
from opconform.harness.model.numerics import EXACT, Numerics
from tests.kernels.base import F32
from tests.kernels.correct import Correct, shifted

TINY = np.float32(2.0**-126)


class Float64(Correct):
    """Everything in float64, rounded to float32 once at the end."""

    def added(self, a: F32, b: F32) -> F32:
        return (a.astype(np.float64) + b).astype(np.float32)

    def inclusive(self, case: Case, x: F32) -> F32:
        return np.add.accumulate(x, axis=0, dtype=np.float64).astype(np.float32)

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        return super().solved(case, a.astype(np.float64), b.astype(np.float64)).astype(np.float32)


class HillisSteele(Correct):
    """A scan in log n steps: each element adds the one 1, 2, 4, … places before it."""

    def inclusive(self, case: Case, x: F32) -> F32:
        sums, distance = np.array(x), 1
        while distance < len(sums):
            sums[distance:] = sums[distance:] + sums[:-distance]
            distance *= 2
        return sums


class Blelloch(Correct):
    """A scan over a tree of partial sums, up and down; it yields the exclusive sums."""

    def inclusive(self, case: Case, x: F32) -> F32:
        return self.exclusive(case, x) + x

    def exclusive(self, case: Case, x: F32) -> F32:
        size = 1 << (len(x) - 1).bit_length()
        tree = np.zeros((size, *x.shape[1:]), np.float32)
        tree[: len(x)] = x
        step = 1
        while step < size:
            tree[2 * step - 1 :: 2 * step] += tree[step - 1 :: 2 * step]
            step *= 2
        tree[-1] = 0
        while step > 1:
            step //= 2
            left = tree[step - 1 :: 2 * step].copy()
            tree[step - 1 :: 2 * step] = tree[2 * step - 1 :: 2 * step]
            tree[2 * step - 1 :: 2 * step] += left
        return tree[: len(x)]


class Tiled(Correct):
    """Tiles are scanned on their own, then the sum of all tiles before (the carry) is added to each."""

    tile = 32

    def inclusive(self, case: Case, x: F32) -> F32:
        tiles = self.tiles(x)
        local = np.add.accumulate(tiles, axis=1, dtype=np.float32)
        return (local + self.carries(local)[:, None]).reshape(-1, *x.shape[1:])[: len(x)]

    def exclusive(self, case: Case, x: F32) -> F32:
        local = np.add.accumulate(self.tiles(x), axis=1, dtype=np.float32)
        local[:, 1:], local[:, 0] = local[:, :-1].copy(), 0
        carries = self.carries(np.add.accumulate(self.tiles(x), axis=1, dtype=np.float32))
        return (local + carries[:, None]).reshape(-1, *x.shape[1:])[: len(x)]

    def tiles(self, x: F32) -> F32:
        """`x` cut into tiles along axis 0, the last one filled up with zeros."""
        tiles = np.zeros((-(-len(x) // self.tile) * self.tile, *x.shape[1:]), np.float32)
        tiles[: len(x)] = x
        return tiles.reshape(-1, self.tile, *x.shape[1:])

    def carries(self, local: F32) -> F32:
        """The sum of the tiles before each one."""
        return shifted(np.add.accumulate(local[:, -1], axis=0, dtype=np.float32))


class Tiled256(Tiled):
    tile = 256


class LastFirst(Correct):
    """Every prefix summed on its own, from its last element back to its first: O(n²)."""

    def inclusive(self, case: Case, x: F32) -> F32:
        sums = np.array(x)
        for distance in range(1, len(x)):
            sums[distance:] += x[:-distance]
        return sums


class Compensated(Correct):
    """Kahan's summation."""

    def inclusive(self, case: Case, x: F32) -> F32:
        out = np.empty(x.shape, np.float32)
        total, lost = np.zeros_like(x[0]), np.zeros_like(x[0])
        for i, term in enumerate(x):
            y = term - lost
            new = total + y
            lost = (new - total) - y
            out[i] = total = new
        return out


class RowDots(Correct):
    """SOLVE_TRI by rows: the products of a row are summed first and then taken off b."""

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        x = np.array(b)
        for i in range(a.shape[-1]):
            x[..., i, :] = b[..., i, :] - self.dot(a[..., i, :i], x[..., :i, :])
            if not case.params["unit"]:
                x[..., i, :] = self.divided(x[..., i, :], a[..., i, i, None])
        return x

    def dot(self, row: F32, x: F32) -> F32:
        total: F32 = np.add.reduce(row[..., None] * x, axis=-2, dtype=np.float32)
        return total

    def divided(self, x: F32, by: F32) -> F32:
        return x / by


class RowDots64(RowDots):
    """The dot product accumulated in float64 and rounded once."""

    def dot(self, row: F32, x: F32) -> F32:
        return (row[..., None, :].astype(np.float64) @ x.astype(np.float64))[..., 0, :].astype(np.float32)


class BlasDots(RowDots):
    """The dot product in whatever order BLAS sums."""

    def dot(self, row: F32, x: F32) -> F32:
        return (np.ascontiguousarray(row)[..., None, :] @ np.ascontiguousarray(x))[..., 0, :]


class Reciprocal(RowDots):
    """Multiplies by 1 / a_ii instead of dividing."""

    def divided(self, x: F32, by: F32) -> F32:
        reciprocal: F32 = np.float32(1) / by
        return x * reciprocal


class Fused(Correct):
    """x − a·y in one fused multiply-add (float64 holds the product exactly)."""

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        x = np.array(b)
        for i in range(a.shape[-1]):
            if not case.params["unit"]:
                x[..., i, :] /= a[..., i, i, None]
            product = a[..., i + 1 :, i, None].astype(np.float64) * x[..., i, None, :]
            x[..., i + 1 :, :] = (x[..., i + 1 :, :] - product).astype(np.float32)
        return x


class Blocked(Correct):
    """Diagonal blocks by substitution; what they contribute to the rows below by a matrix product."""

    block = 16

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        x = np.array(b)
        n = a.shape[-1]
        for start in range(0, n, self.block):
            end = min(start + self.block, n)
            x[..., start:end, :] = super().solved(case, a[..., start:end, start:end], x[..., start:end, :])
            panel = np.ascontiguousarray(a[..., end:, start:end])
            x[..., end:, :] -= panel @ np.ascontiguousarray(x[..., start:end, :])
        return x


class Blocked32(Blocked):
    block = 32


class InvertedBlocks(Blocked):
    """As rocBLAS, MAGMA and cuBLAS do: diagonal blocks are inverted, by columns, and multiplied with."""

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        x = np.array(b)
        n = a.shape[-1]
        for start in range(0, n, self.block):
            end = min(start + self.block, n)
            own = a[..., start:end, start:end]
            x[..., start:end, :] = self.inverse(case, own) @ np.ascontiguousarray(x[..., start:end, :])
            panel = np.ascontiguousarray(a[..., end:, start:end])
            x[..., end:, :] -= panel @ np.ascontiguousarray(x[..., start:end, :])
        return x

    def inverse(self, case: Case, own: F32) -> F32:
        return Correct.solved(self, case, own, np.broadcast_to(np.eye(own.shape[-1], dtype=np.float32), own.shape))


class InvertedByRows(InvertedBlocks):
    """Y D = I solved instead of D Y = I."""

    def inverse(self, case: Case, own: F32) -> F32:
        back = np.ascontiguousarray(own.swapaxes(-1, -2)[..., ::-1, ::-1])
        return np.ascontiguousarray(super().inverse(case, back)[..., ::-1, ::-1].swapaxes(-1, -2))


class InvertedByHalves(InvertedBlocks):
    """The inverse of a block from those of its halves: −D22^-1 D21 D11^-1 stands below them."""

    def inverse(self, case: Case, own: F32) -> F32:
        n = own.shape[-1]
        if n == 1:
            return np.ones_like(own) if case.params["unit"] else np.float32(1) / own
        h = n // 2
        found = np.zeros_like(own)
        found[..., :h, :h] = one = self.inverse(case, own[..., :h, :h])
        found[..., h:, h:] = two = self.inverse(case, own[..., h:, h:])
        found[..., h:, :h] = -(two @ (np.ascontiguousarray(own[..., h:, :h]) @ one))
        return found


class InvertedFromTheEnd(InvertedBlocks):
    """The blocks aligned to the last row: the first one is short."""

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        x = np.array(b)
        n = a.shape[-1]
        start = 0
        while start < n:
            end = start + ((n - start) % self.block or self.block)
            own = a[..., start:end, start:end]
            x[..., start:end, :] = self.inverse(case, own) @ np.ascontiguousarray(x[..., start:end, :])
            panel = np.ascontiguousarray(a[..., end:, start:end])
            x[..., end:, :] -= panel @ np.ascontiguousarray(x[..., start:end, :])
            start = end
        return x


class SubtractsItself(Correct):
    """The exclusive sum as the inclusive one less the element."""

    def exclusive(self, case: Case, x: F32) -> F32:
        return self.inclusive(case, x) - x


class SubtractsFromScan(HillisSteele):
    """The same of a scan in log n steps."""

    def exclusive(self, case: Case, x: F32) -> F32:
        return self.inclusive(case, x) - x


class Stepwise(Correct):
    """One operation at a time, in an arithmetic that subclasses replace."""

    def added(self, a: F32, b: F32) -> F32:
        return a + b

    def multiplied(self, a: F32, b: F32) -> F32:
        return a * b

    def divided(self, a: F32, b: F32) -> F32:
        return a / b

    def inclusive(self, case: Case, x: F32) -> F32:
        sums = np.array(x)
        for i in range(1, len(x)):
            sums[i] = self.added(sums[i - 1], sums[i])
        return sums

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        x = np.array(b)
        for i in range(a.shape[-1]):
            if not case.params["unit"]:
                x[..., i, :] = self.divided(x[..., i, :], a[..., i, i, None])
            product = self.multiplied(a[..., i + 1 :, i, None], x[..., i, None, :])
            x[..., i + 1 :, :] = self.added(x[..., i + 1 :, :], -product)
        return x


def flushed(x: F32) -> F32:
    """Denormals become zeros of their sign."""
    return np.where(np.abs(x) < TINY, np.copysign(np.float32(0), x), x)


class Flushing(Stepwise):
    """Operands and results below 2^-126 become 0; so do copied elements."""

    def added(self, a: F32, b: F32) -> F32:
        return flushed(flushed(a) + flushed(b))

    def multiplied(self, a: F32, b: F32) -> F32:
        return flushed(flushed(a) * flushed(b))

    def divided(self, a: F32, b: F32) -> F32:
        return flushed(flushed(a) / flushed(b))

    def inclusive(self, case: Case, x: F32) -> F32:
        return super().inclusive(case, flushed(x))

    def moved(self, case: Case, values: np.ndarray) -> np.ndarray:
        if case.dtype == "bf16":
            return np.where(values & 0x7F80, values, values & 0x8000)
        if values.dtype.kind != "f":
            return values
        smallest = case.outputs["out"].type.smallest_normal
        return np.where(np.abs(values) < smallest, np.copysign(values.dtype.type(0), values), values)


class TowardZero(Stepwise):
    """Additions, products and quotients rounded toward zero."""

    def added(self, a: F32, b: F32) -> F32:
        a64, b64 = a.astype(np.float64), b.astype(np.float64)
        total = a64 + b64
        part = total - a64
        return self.rounded(total, (a64 - (total - part)) + (b64 - part))  # Knuth's two-sum: the rest is exact

    def multiplied(self, a: F32, b: F32) -> F32:
        return self.rounded(a.astype(np.float64) * b)

    def divided(self, a: F32, b: F32) -> F32:
        return self.rounded(a.astype(np.float64) / b)

    def rounded(self, exact: F64, rest: F64 | float = 0.0) -> F32:
        """`exact + rest` (the rest is below `exact`'s own roundoff) as float32; infinities and NaN stay."""
        finite = np.isfinite(exact)
        found = self.neighbour(*truncated(np.where(finite, exact, 0.0), np.where(finite, rest, 0.0)))
        return np.where(finite, found, exact).astype(np.float32)

    def neighbour(self, below: F32, inexact: np.ndarray, sign: F64) -> F32:
        """The one chosen of the two float32 numbers around the exact result."""
        return below


def truncated(exact: F64, rest: F64 | float) -> tuple[F32, np.ndarray, F64]:
    """`exact + rest` rounded toward zero, where that is inexact, and its sign."""
    near = exact.astype(np.float32)
    excess = np.where(near == exact, -np.asarray(rest), near - exact)
    below = np.where(excess * np.sign(exact) > 0, np.nextafter(near, np.float32(0)), near)
    return below.astype(np.float32), excess != 0, np.copysign(1.0, exact)  # −0 has a sign too


class ToOdd(TowardZero):
    """Every inexact result gets the neighbour whose last bit is 1."""

    def neighbour(self, below: F32, inexact: np.ndarray, sign: F64) -> F32:
        below = np.copysign(below, sign).astype(np.float32)
        return np.where(inexact, (below.view(np.uint32) | 1).view(np.float32), below)


class AwayFromZero(TowardZero):
    """Every inexact result gets the neighbour of larger magnitude."""

    def neighbour(self, below: F32, inexact: np.ndarray, sign: F64) -> F32:
        return np.where(inexact, np.nextafter(below, np.copysign(np.float32(np.inf), sign).astype(np.float32)), below)


class LooseDivision(Stepwise):
    """Quotients 2 to 2.5 units in the last place off, up or down by the dividend's last bit."""

    def divided(self, a: F32, b: F32) -> F32:
        return loosened(a, (a / b).astype(np.float32))


def loosened(a: F32, quotient: F32) -> F32:
    """`quotient` two units in the last place off, unless it is 0."""
    step = np.where(a.view(np.uint32) & 1, 2, -2)
    bits = quotient.view(np.int32)
    return np.where((bits & 0x7FFFFFFF) > 2, (bits + step).astype(np.int32).view(np.float32), quotient)


class LooseReciprocal(Stepwise):
    """The dividend times a reciprocal that is two units in the last place off."""

    def divided(self, a: F32, b: F32) -> F32:
        return a * loosened(np.array(b), (np.float32(1) / b).astype(np.float32))


class Vulkan(TowardZero):
    """The least that Vulkan promises: denormals flushed, rounded toward zero, loose division."""

    def added(self, a: F32, b: F32) -> F32:
        return flushed(super().added(flushed(a), flushed(b)))

    def multiplied(self, a: F32, b: F32) -> F32:
        return flushed(super().multiplied(flushed(a), flushed(b)))

    def divided(self, a: F32, b: F32) -> F32:
        return flushed(loosened(a, flushed(a) / flushed(b)))

    def inclusive(self, case: Case, x: F32) -> F32:
        return super().inclusive(case, flushed(x))


class HalfPrecision(Stepwise):
    """Operands and results rounded to f16, on a device that declares that precision."""

    def added(self, a: F32, b: F32) -> F32:
        return (a.astype(np.float16) + b.astype(np.float16)).astype(np.float32)

    def multiplied(self, a: F32, b: F32) -> F32:
        return (a.astype(np.float16) * b.astype(np.float16)).astype(np.float32)

    def divided(self, a: F32, b: F32) -> F32:
        return (a.astype(np.float16) / b.astype(np.float16)).astype(np.float32)

    def inclusive(self, case: Case, x: F32) -> F32:
        return super().inclusive(case, x.astype(np.float16).astype(np.float32))


@dataclass(frozen=True)
class Odd:
    """A right kernel for some ops, and what its device promises."""

    kernel: type[Correct]
    ops: tuple[str, ...]
    numerics: Numerics = EXACT

    def __str__(self) -> str:
        return self.kernel.__name__


_ARITHMETIC = ("acc", "cumsum", "solve_tri")
_ANY_ROUNDING = Numerics(any_rounding=True)
_LOOSE = Numerics(division_ulps=2.5)
_INVERTED = Numerics(inverted_blocks=Blocked.block)
_SUBTRACTED = Numerics(subtracted_sums=True)

ODD: tuple[Odd, ...] = (
    Odd(Correct, ("acc", "set", "cumsum", "solve_tri")),
    Odd(Float64, _ARITHMETIC),
    Odd(HillisSteele, ("cumsum",)),
    Odd(Blelloch, ("cumsum",)),
    Odd(Tiled, ("cumsum",)),
    Odd(Tiled256, ("cumsum",)),
    Odd(LastFirst, ("cumsum",)),
    Odd(Compensated, ("cumsum",)),
    Odd(RowDots, ("solve_tri",)),
    Odd(RowDots64, ("solve_tri",)),
    Odd(BlasDots, ("solve_tri",)),
    Odd(Reciprocal, ("solve_tri",)),
    Odd(Fused, ("solve_tri",)),
    Odd(Blocked, ("solve_tri",)),
    Odd(Blocked32, ("solve_tri",)),
    Odd(InvertedBlocks, ("solve_tri",), _INVERTED),
    Odd(InvertedByRows, ("solve_tri",), _INVERTED),
    Odd(InvertedByHalves, ("solve_tri",), _INVERTED),
    Odd(InvertedFromTheEnd, ("solve_tri",), _INVERTED),
    Odd(SubtractsItself, ("cumsum",), _SUBTRACTED),
    Odd(SubtractsFromScan, ("cumsum",), _SUBTRACTED),
    Odd(Stepwise, _ARITHMETIC),
    Odd(Flushing, (*_ARITHMETIC, "set"), Numerics(flushes_denormals=True)),
    Odd(TowardZero, _ARITHMETIC, _ANY_ROUNDING),
    Odd(ToOdd, _ARITHMETIC, _ANY_ROUNDING),
    Odd(AwayFromZero, _ARITHMETIC, _ANY_ROUNDING),
    Odd(LooseDivision, ("solve_tri",), _LOOSE),
    Odd(LooseReciprocal, ("solve_tri",), _LOOSE),
    Odd(Vulkan, _ARITHMETIC, Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5)),
)
