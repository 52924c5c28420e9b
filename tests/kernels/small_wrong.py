"""Wrong kernels for the small ops, each with one fault that real backends had. Each must be caught and named.

KB numbers are documented bugs of real backends.
"""

from __future__ import annotations

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels import wrong
from tests.kernels.base import F32, peek, words
from tests.kernels.correct import Correct
from tests.kernels.small_odd import TruncatesHalves
from tests.kernels.wrong import MIXED, MODIFIED, NAN, NOT_WRITTEN, OUTSIDE, WRONG_VALUES, ReadsPackedA, Wrong

# --- elements that are moved ---


class OtherTriangle(Correct):
    def triangle(self, case: Case) -> np.ndarray:
        return super().triangle(case).T


class DiagonalOffByOne(Correct):
    """Keeps the diagonal where it is to be dropped, and drops it where it is to be kept."""

    def triangle(self, case: Case) -> np.ndarray:
        return super().triangle(case) ^ np.eye(case.inputs["x"].shape[-1], dtype=bool)


class TriangleTimesZero(Correct):
    """Masks by multiplying with 0 instead of selecting."""

    def tri(self, case: Case, buffers: Buffers) -> None:
        x = self.read(buffers, "x")
        self.write(buffers, "out", x * self.triangle(case).astype(x.dtype))


class DiagonalAbove(Correct):
    def diagonal(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(n - 1), np.arange(1, n)


class NoZeros(Correct):
    """Writes the elements of x, and nothing where zeros are to stand."""

    def tri(self, case: Case, buffers: Buffers) -> None:
        kept = np.broadcast_to(self.triangle(case), case.inputs["x"].shape)
        buffers.array("out")[kept] = self.read(buffers, "x")[kept]

    def blank(self, case: Case, x: np.ndarray) -> np.ndarray:
        return np.array(self.before)

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        buffers.array(name)[...] = values

    def run(self, case: Case, buffers: Buffers) -> None:
        self.before = buffers.array("out")
        super().run(case, buffers)


class PadsAfterOnly(Correct):
    """Knows no zeros before x: all of them stand after it."""

    def corner(self, case: Case) -> list[int]:
        return [0, 0, 0, 0]


class PadsOtherSide(Correct):
    def corner(self, case: Case) -> list[int]:
        return [int(case.params[f"rp{k}"]) for k in (3, 2, 1, 0)]


class Saturates(Correct):
    """An f16 or bf16 that is too small for the value becomes the largest number."""

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        largest = {"f16": 65504.0, "bf16": float((2 - 2.0**-7) * 2.0**127)}.get(goes, np.inf)
        finite = np.where(np.isfinite(x), np.clip(x, -largest, largest), x).astype(np.float32)
        return super().narrowed(goes, finite)


class RoundsHalfUp(Correct):
    """bf16 by adding half a unit: ties away from zero."""

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        if goes != "bf16":
            return super().narrowed(goes, x)
        bits = (x.view(np.uint32) + np.uint32(0x8000)) >> 16
        return np.where(np.isnan(x), np.uint32(0x7FC0), bits).astype(np.uint16)


class NeverCarries(Correct):
    """bf16 by cutting the lower half off, which makes an infinity of a NaN whose payload stands there."""

    def narrowed(self, goes: str, x: F32) -> np.ndarray:
        return (x.view(np.uint32) >> 16).astype(np.uint16) if goes == "bf16" else super().narrowed(goes, x)


class CopiesByIndex(Correct):
    """Moves along the indices of the output instead of in flat order, where x has them."""

    def cpy(self, case: Case, buffers: Buffers) -> None:
        x = np.array(self.read(buffers, "x"))
        out = case.outputs["out"].shape
        index = tuple(np.minimum(i, n - 1) for i, n in zip(np.indices(out), x.shape, strict=True))
        self.write(buffers, "out", self.converted(case, x[index] if x.size else x.reshape(out)))


class ReadsPackedX(ReadsPackedA):
    argument = "x"


class ReadsPackedC(ReadsPackedA):
    argument = "c"


# --- elements that are computed ---


class SumsPaddedRow(Correct):
    """Sums all that stands from the start of a row to that of the next one."""

    def sum_rows(self, case: Case, buffers: Buffers) -> None:
        layout = case.inputs["x"]
        n = (
            max(layout.nb[1] // max(layout.nb[0], 1), layout.ne[0])
            if layout.ne[0] and layout.ne[1] > 1
            else layout.ne[0]
        )
        starts = words(buffers, "x", layout.strides, layout.offset)[..., :1]
        x = peek(buffers, "x", starts + np.arange(n) * (layout.nb[0] // 4))
        self.write(buffers, "out", self.summed(x)[..., None])


class DropsPartialGroup(Correct):
    """KB031: what the last, partial group of 8 lanes summed is lost."""

    def summed(self, x: F32) -> F32:
        n = x.shape[-1]
        return super().summed(x[..., : n // 8 * 8] if n > 8 else x)


class HalfSums(Correct):
    """Sums in f16."""

    def added(self, a: F32, b: F32) -> F32:
        return (a.astype(np.float16) + b.astype(np.float16)).astype(np.float32)


class ScalesInPlace(Correct):
    """Leaves its squares in the input."""

    def l2_norm(self, case: Case, buffers: Buffers) -> None:
        super().l2_norm(case, buffers)
        x = buffers.array("x")
        x[...] = x * x + np.float32(1)


class EpsInsideRoot(Correct):
    """KB106: eps compared with the sum of squares."""

    def divisor(self, case: Case, squares: F32) -> F32:
        eps = np.float32(case.params["eps"])
        return np.sqrt(np.maximum(squares, eps)) if case.params["eps_mode"] == "max" else super().divisor(case, squares)


class NoEps(Correct):
    def divisor(self, case: Case, squares: F32) -> F32:
        return np.sqrt(squares)


class MeanSquare(Correct):
    """RMS_NORM: the mean of the squares."""

    def divisor(self, case: Case, squares: F32) -> F32:
        return super().divisor(case, squares / np.float32(max(case.inputs["x"].shape[-1], 1)))


class FastInverseRoot(Correct):
    """An inverse root of 12 bits, as x86's rsqrtps gives it, without a Newton step."""

    def divisor(self, case: Case, squares: F32) -> F32:
        bits = super().divisor(case, squares).view(np.uint32)
        return ((bits + np.uint32(0x800)) & np.uint32(0xFFFFF000)).view(np.float32)


class WindowLate(Correct):
    """The window starts one token late; past the last token there is nothing."""

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        return super().convolved(np.concatenate([x[..., 1:], np.zeros_like(x[..., :1])], -1), c, tokens)


class StateOfFirst(Correct):
    """KB096: every sequence starts from the conv state of the first one."""

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        state = c.shape[-1] - 1
        first = np.broadcast_to(x[:1], x.shape)
        return super().convolved(np.concatenate([first[..., :state], x[..., state:]], -1), c, tokens)


class FlippedTaps(Correct):
    """Turns the filter round, as a convolution does in signal processing."""

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        return super().convolved(x, c[..., ::-1], tokens)


class ThreadsFilterStride(Correct):
    """KB017: the last of the groups of 4 channels is short, and takes its own size for the stride of the taps."""

    def convolved(self, x: F32, c: F32, tokens: int) -> F32:
        channels, taps = c.shape
        rest = channels % 4
        if rest:
            table = np.zeros((taps, 4), np.float32)
            table[:, :rest] = c[channels - rest :].T
            c = np.array(c)
            c[channels - rest :] = table.reshape(-1)[: taps * rest].reshape(taps, rest).T
        return super().convolved(x, c, tokens)


SMALL_WRONG: tuple[Wrong, ...] = (
    Wrong("tri", OtherTriangle, WRONG_VALUES, (NAN,)),
    Wrong("tri", DiagonalOffByOne, WRONG_VALUES),
    Wrong("tri", TriangleTimesZero, WRONG_VALUES, (NAN,)),
    Wrong("tri", NoZeros, NOT_WRITTEN),
    Wrong("tri", ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("diag", DiagonalAbove, WRONG_VALUES),
    Wrong("diag", NoZeros, NOT_WRITTEN),
    Wrong("diag", wrong.IgnoresNb3, NAN, (WRONG_VALUES, MIXED)),
    Wrong("diag", wrong.WritesPacked, OUTSIDE, (WRONG_VALUES, MIXED)),
    Wrong("pad", PadsAfterOnly, WRONG_VALUES, (NAN, MIXED)),
    Wrong("pad", PadsOtherSide, WRONG_VALUES, (NAN, MIXED)),
    Wrong("pad", NoZeros, NOT_WRITTEN),
    Wrong("pad", ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cont", ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cont", wrong.IgnoresNb3, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cont", wrong.WritesPacked, OUTSIDE, (WRONG_VALUES, MIXED)),
    Wrong("cont", wrong.ThroughF16, WRONG_VALUES),
    Wrong("cpy", TruncatesHalves, WRONG_VALUES),
    Wrong("cpy", RoundsHalfUp, WRONG_VALUES),
    Wrong("cpy", NeverCarries, WRONG_VALUES),
    Wrong("cpy", Saturates, WRONG_VALUES),
    Wrong("cpy", CopiesByIndex, WRONG_VALUES, (MIXED,)),
    Wrong("cpy", ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cpy", wrong.WritesPacked, OUTSIDE, (WRONG_VALUES, MIXED)),
    Wrong("sum_rows", SumsPaddedRow, NAN, (MIXED, WRONG_VALUES)),
    Wrong("sum_rows", DropsPartialGroup, WRONG_VALUES),
    Wrong("sum_rows", HalfSums, WRONG_VALUES, (NAN, MIXED)),
    Wrong("sum_rows", wrong.IgnoresNb3, NAN, (WRONG_VALUES, MIXED)),
    Wrong("l2_norm", EpsInsideRoot, WRONG_VALUES),
    Wrong("l2_norm", NoEps, WRONG_VALUES, (NAN,)),
    Wrong("l2_norm", MeanSquare, WRONG_VALUES),
    Wrong("l2_norm", FastInverseRoot, WRONG_VALUES),
    Wrong("l2_norm", HalfSums, WRONG_VALUES, (NAN,)),
    Wrong("l2_norm", ScalesInPlace, MODIFIED),
    Wrong("l2_norm", ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("ssm_conv", WindowLate, WRONG_VALUES),
    Wrong("ssm_conv", StateOfFirst, WRONG_VALUES, (MIXED,)),
    Wrong("ssm_conv", FlippedTaps, WRONG_VALUES),
    Wrong("ssm_conv", ThreadsFilterStride, WRONG_VALUES),
    Wrong("ssm_conv", ReadsPackedC, NAN, (WRONG_VALUES, MIXED)),
    Wrong("ssm_conv", ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
)
