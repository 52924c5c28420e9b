"""One kernel for each fault that the small ops' own hypotheses know, with the hint that must be given for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels import small_wrong as wrong
from tests.kernels.base import F32
from tests.kernels.correct import Correct
from tests.kernels.faults import TILES, Fault
from tests.kernels.small_odd import TruncatesHalves

_TRIANGLES = {
    "lower": "the lower triangle without its diagonal is kept",
    "lower_diag": "the lower triangle with its diagonal is kept",
    "upper": "the upper triangle without its diagonal is kept",
    "upper_diag": "the upper triangle with its diagonal is kept",
}


def made(name: str, base: type[Correct], **members: Any) -> type[Correct]:
    """A class of this module, so that a runner finds it by its name."""
    kernel = type(name, (base,), {**members, "__module__": __name__})
    setattr(sys.modules[__name__], name, kernel)
    return kernel


class Always(Correct):
    """Keeps one kind of triangle, whatever was asked for."""

    kind = "lower"

    def tri(self, case: Case, buffers: Buffers) -> None:
        super().tri(Case(case.op, {"kind": self.kind}, case.inputs, case.outputs), buffers)


class CopiesX(Correct):
    """x as it is, where a part of it, or something computed of it, was asked for."""

    def tri(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", self.read(buffers, "x"))

    l2_norm = tri


class DiagonalBelow(Correct):
    def diag(self, case: Case, buffers: Buffers) -> None:
        x = self.read(buffers, "x")[..., 0, :]
        out = self.blank(case, x)
        for i in range(x.shape[-1] - 1):
            out[..., i + 1, i] = x[..., i]
        self.write(buffers, "out", out)


class DiagonalAbove(Correct):
    def diag(self, case: Case, buffers: Buffers) -> None:
        x = self.read(buffers, "x")[..., 0, :]
        out = self.blank(case, x)
        for i in range(x.shape[-1] - 1):
            out[..., i, i + 1] = x[..., i + 1]
        self.write(buffers, "out", out)


class DiagonalBackwards(Correct):
    def diag(self, case: Case, buffers: Buffers) -> None:
        x = self.read(buffers, "x")[..., 0, ::-1]
        out = self.blank(case, x)
        for i in range(x.shape[-1]):
            out[..., i, i] = x[..., i]
        self.write(buffers, "out", out)


class RowsOfX(Correct):
    def diag(self, case: Case, buffers: Buffers) -> None:
        self.write(buffers, "out", np.broadcast_to(self.read(buffers, "x"), case.outputs["out"].shape))


def exchanges(k: int) -> dict[str, Any]:
    """Takes the zeros before i{k} for those after it."""

    def corner(self: Correct, case: Case) -> list[int]:
        names = [f"rp{i}" if i == k else f"lp{i}" for i in (3, 2, 1, 0)]
        return [int(case.params[name]) for name in names]

    return {"corner": corner}


def drops(k: int) -> dict[str, Any]:
    """Puts no zeros before i{k}."""

    def corner(self: Correct, case: Case) -> list[int]:
        return [0 if i == k else int(case.params[f"lp{i}"]) for i in (3, 2, 1, 0)]

    return {"corner": corner}


class EpsAdded(Correct):
    def divisor(self, case: Case, squares: F32) -> F32:
        return np.sqrt(squares + np.float32(case.params["eps"]))


class EpsLeast(Correct):
    def divisor(self, case: Case, squares: F32) -> F32:
        return np.maximum(np.sqrt(squares), np.float32(case.params["eps"]))


class WithoutLastTap(Correct):
    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        return super().convolved(x, np.where(np.arange(c.shape[-1]) == c.shape[-1] - 1, np.float32(0), c), tokens)


class WithoutFirstTap(Correct):
    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        return super().convolved(x, np.where(np.arange(c.shape[-1]) == 0, np.float32(0), c), tokens)


class Mean(Correct):
    def summed(self, x: F32) -> F32:
        return super().summed(x) / np.float32(max(x.shape[-1], 1))


class WithoutLast(Correct):
    def summed(self, x: F32) -> F32:
        return super().summed(x[..., :-1] if x.shape[-1] > 1 else x)


class FullTiles(Correct):
    """What a tile does not fill is lost (where there is a full one)."""

    tile = 8

    def summed(self, x: F32) -> F32:
        n = x.shape[-1]
        return super().summed(x[..., : n // self.tile * self.tile] if n > self.tile else x)


class FirstTile(FullTiles):
    def summed(self, x: F32) -> F32:
        return Correct.summed(self, x[..., : self.tile])


class ThroughHalf(Correct):
    """Knows bf16 only by way of f16."""

    def converted(self, case: Case, x: np.ndarray) -> np.ndarray:
        types = {case.inputs["x"].dtype, case.dtype}
        if types not in ({"bf16"}, {"bf16", "f32"}):
            return super().converted(case, x)
        wide = (x.astype(np.uint32) << 16).view(np.float32) if case.inputs["x"].dtype == "bf16" else x
        return self.narrowed(case.dtype, wide.astype(np.float16).astype(np.float32))


def _faults() -> Iterator[Fault]:
    for kind, hint in _TRIANGLES.items():
        yield Fault("tri", made(f"Always{kind}", Always, kind=kind), hint)
    yield Fault("tri", CopiesX, "x is copied whole")
    yield Fault("tri", wrong.NoZeros, "the triangle is written, the zeros are not")
    yield Fault("diag", DiagonalAbove, "the diagonal stands one place above its own")
    yield Fault("diag", DiagonalBelow, "the diagonal stands one place below its own")
    yield Fault("diag", DiagonalBackwards, "the diagonal runs backwards")
    yield Fault("diag", RowsOfX, "every row is x: there are no zeros")
    yield Fault("diag", wrong.NoZeros, "the diagonal is written, the zeros are not")
    yield Fault("pad", wrong.PadsAfterOnly, "the padding before x is ignored: x stands at the start")
    for k in (0, 3):
        yield Fault("pad", made(f"Drops{k}", Correct, **drops(k)), f"lp{k} is ignored: all zeros stand after i{k}")
        yield Fault("pad", made(f"Exchanges{k}", Correct, **exchanges(k)), f"lp{k} and rp{k} are exchanged")
    yield Fault("pad", wrong.NoZeros, "x is written, the padding is not")
    inside = "eps is compared with the sum of squares, not with its root (x / √max(Σx², eps))"
    yield Fault("l2_norm", wrong.EpsInsideRoot, inside)
    yield Fault("l2_norm", EpsAdded, "eps is added to the sum of squares, not a lower limit of the norm")
    yield Fault("l2_norm", EpsLeast, "eps is a lower limit of the norm, not added to the sum of squares")
    yield Fault("l2_norm", wrong.NoEps, "eps is left out")
    yield Fault("l2_norm", wrong.MeanSquare, "the mean of the squares is taken, not their sum (RMS_NORM)")
    yield Fault("l2_norm", CopiesX, "x is copied, not divided")
    yield Fault("ssm_conv", wrong.FlippedTaps, "the taps are read backwards")
    yield Fault("ssm_conv", WithoutLastTap, "the last tap is left out")
    yield Fault("ssm_conv", WithoutFirstTap, "the first tap is left out")
    yield Fault("ssm_conv", wrong.WindowLate, "the window starts one token late")
    yield Fault("ssm_conv", wrong.StateOfFirst, "every sequence starts from the first one's conv state")
    yield Fault("sum_rows", Mean, "the mean of each row is returned, not its sum")
    yield Fault("sum_rows", WithoutLast, "the last element of each row is left out")
    for tile in (TILES[0], TILES[3]):
        hint = f"what a tile of {tile} does not fill is left out of the sum"
        yield Fault("sum_rows", made(f"SumsFull{tile}", FullTiles, tile=tile), hint)
        yield Fault(
            "sum_rows", made(f"SumsFirst{tile}", FirstTile, tile=tile), f"only the first tile of {tile} is summed"
        )
    yield Fault("cpy", TruncatesHalves, "conversions cut off instead of rounding")
    yield Fault("cpy", wrong.Saturates, "conversions saturate instead of giving infinities")
    yield Fault("cpy", ThroughHalf, "elements go through f16 on their way")


SMALL_FAULTS: tuple[Fault, ...] = tuple(_faults())
