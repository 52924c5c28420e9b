"""Wrong kernels, each with one fault that real backends had. Each must be caught, and the finding must name it.

KB numbers are documented bugs of real backends.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F16
from opconform.harness.model.layouts import Layout, contiguous_strides
from tests.kernels.base import F32, arena, below_diagonal, gather, lines, peek, places, words
from tests.kernels.correct import Correct
from tests.kernels.odd import LastFirst, RowDots, Tiled, flushed

# --- wrong addresses ---


class ReadsElsewhere(Correct):
    """Reads one argument at addresses that `strides` and `offset` make of its layout."""

    argument: ClassVar[str] = "a"

    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        if name != self.argument:
            return super().read(buffers, name)
        layout = buffers.plan.slots[name].layout
        return gather(buffers, name, self.strides(layout), self.offset(layout))

    def strides(self, layout: Layout) -> tuple[int, ...]:
        return layout.strides

    def offset(self, layout: Layout) -> int:
        return layout.offset


class ReadsPackedA(ReadsElsewhere):
    def strides(self, layout: Layout) -> tuple[int, ...]:
        return contiguous_strides(layout.shape, layout.type.itemsize)


class ReadsPackedB(ReadsPackedA):
    argument = "b"


class ReadsPackedX(ReadsPackedA):
    argument = "x"


class IgnoresStride(ReadsElsewhere):
    """Reads as if one dimension were packed upon the one inside it."""

    argument = "x"
    axis: ClassVar[int] = 1  # of the shape, outermost first

    def strides(self, layout: Layout) -> tuple[int, ...]:
        packed = (*layout.strides, layout.type.itemsize)[self.axis + 1]
        if self.axis + 1 < len(layout.shape):
            packed *= layout.shape[self.axis + 1]
        return (*layout.strides[: self.axis], packed, *layout.strides[self.axis + 1 :])


class IgnoresNb0(IgnoresStride):
    axis = 3


class IgnoresNb1(IgnoresStride):
    axis = 2


class IgnoresNb2(IgnoresStride):
    axis = 1


class IgnoresNb3(IgnoresStride):
    axis = 0


class DropsOffsetA(ReadsElsewhere):
    def offset(self, layout: Layout) -> int:
        return 0


class DropsOffsetX(DropsOffsetA):
    argument = "x"


class OffsetInElementsA(ReadsElsewhere):
    def offset(self, layout: Layout) -> int:
        return layout.offset * layout.type.itemsize


class OffsetInElementsX(OffsetInElementsA):
    argument = "x"


class WritesPacked(Correct):
    """KB010, KB020: the output's strides are never read."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        layout = buffers.plan.slots[name].layout
        memory = arena(buffers, name)
        packed = contiguous_strides(layout.shape, layout.type.itemsize)
        memory[words(buffers, name, packed, layout.offset) % memory.size] = values


class WritesOnePastEnd(Correct):
    """One element too many, behind the last."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        super().write(buffers, name, values)
        slot = buffers.plan.slots[name]
        arena(buffers, name)[(slot.start + slot.layout.end) // slot.layout.type.itemsize] = 0


class ClearsSpan(Correct):
    """Clears the output's memory from its first to its last element, what lies between them included."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        layout = buffers.plan.slots[name].layout
        buffers.bytes_of(name)[layout.offset : layout.end] = 0
        super().write(buffers, name, values)


class DropsRowsAbove65535(Correct):
    """KB041: a grid dimension that ends at 65535."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        target = buffers.array(name)
        kept = list(itertools.islice(np.ndindex(*target.shape[:-1]), 65535))
        index = tuple(np.array(kept, dtype=np.intp).reshape(-1, target.ndim - 1).T)
        target[index] = values[index]


# --- ACC and SET ---


class IgnoresI3(Correct):
    """KB001, as far as ne3 goes: only the first slice of b along i3 is added."""

    def acc(self, case: Case, buffers: Buffers) -> None:
        a, b, where = self.read(buffers, "a"), self.read(buffers, "b"), places(case)
        out = np.array(a)
        first = tuple(index[:1] for index in where)
        out[first] = a[first] + b[:1]
        self.write(buffers, "out", out)


class VulkanAcc(Correct):
    """KB001 whole, ggml's acc.comp before February 2026: the place in b found from nb1 and nb2 alone, b read packed."""

    def acc(self, case: Case, buffers: Buffers) -> None:
        a, b, params = self.read(buffers, "a"), case.inputs["b"], case.params
        nb1, nb2 = (max(int(params[name]) // 4, 1) for name in ("nb1", "nb2"))
        place = np.arange(a.size).reshape(a.shape) - int(params["offset"]) // 4
        i2, rest = np.divmod(place, nb2)
        i1, i0 = rest // nb1, place % nb1
        n0, n1, n2, _ = b.ne
        inside = (place >= 0) & (i0 < n0) & (i1 < n1) & (i2 < n2)
        start = (buffers.plan.slots["b"].start + b.offset) // 4
        packed = peek(buffers, "b", start + i0 + n0 * (i1 + n1 * i2))
        self.write(buffers, "out", np.where(inside, a + packed, a))


class ReadsAfterOverwrite(Correct):
    """KB082: writes the sum over a and then adds b once more to what it takes for a."""

    def acc(self, case: Case, buffers: Buffers) -> None:
        super().acc(case, buffers)
        where = places(case)
        total = buffers.array("a")[where] + buffers.array("b")
        buffers.array("out")[where] = total


class CanonicalZero(Correct):
    """Adds 0 to what it copies, which makes -0 a +0."""

    def moved(self, case: Case, values: np.ndarray) -> np.ndarray:
        return values if case.dtype == "bf16" else values + values.dtype.type(0)


class FlushesUnasked(Correct):
    """Flushes denormals on a device that does not say so."""

    def added(self, a: F32, b: F32) -> F32:
        return flushed(flushed(a) + flushed(b))

    def moved(self, case: Case, values: np.ndarray) -> np.ndarray:
        return flushed(values) if case.dtype == "f32" else values

    def inclusive(self, case: Case, x: F32) -> F32:
        return flushed(super().inclusive(case, flushed(x)))


class ThroughF16(Correct):
    """Converts bf16 by way of (saturating) f16."""

    def moved(self, case: Case, values: np.ndarray) -> np.ndarray:
        if case.dtype != "bf16":
            return values
        wide = (values.astype(np.uint32) << 16).view(np.float32)
        half = np.clip(wide, -F16.largest, F16.largest).astype(np.float16)
        return (half.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


# --- CUMSUM ---


class TileTailOffByOne(Tiled):
    """The last element of a partial tile is not added."""

    def inclusive(self, case: Case, x: F32) -> F32:
        if len(x) % self.tile:
            x = np.array(x)
            x[-1] = 0
        return super().inclusive(case, x)


class LeavesTail(Correct):
    """Only full tiles of 32 rows' elements are written."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        full = values.shape[-1] // 32 * 32
        buffers.array(name)[..., :full] = values[..., :full]


class LosesCarry(Tiled):
    def carries(self, local: F32) -> F32:
        return np.zeros_like(local[:, -1])


class CarryTwice(Tiled):
    """KB066: the carry is updated before everybody has read it."""

    def carries(self, local: F32) -> F32:
        return 2 * super().carries(local)


class ReadsPastRow(Correct):
    """Reads one element past each row and multiplies it by 0."""

    def cumsum(self, case: Case, buffers: Buffers) -> None:
        super().cumsum(case, buffers)
        layout = case.inputs["x"]
        axis = len(layout.shape) - 1 - int(case.params["axis"])
        past = layout.offset + layout.shape[axis] * layout.strides[axis]
        first = np.moveaxis(gather(buffers, "x", layout.strides, past), axis, 0)[:1]
        lines(case, buffers.array("out"))[-1:] += 0 * first


class InPlace(Correct):
    """KB086: scans its input where it stands and copies the result."""

    def inclusive(self, case: Case, x: F32) -> F32:
        x[...] = super().inclusive(case, x)
        return np.array(x)


class TotalMinusPrefix(Correct):
    """KB064: the reverse sum as total − prefix + x."""

    def inclusive(self, case: Case, x: F32) -> F32:
        if not case.params["reverse"]:
            return super().inclusive(case, x)
        prefix = np.add.accumulate(x[::-1], axis=0, dtype=np.float32)
        backward: F32 = prefix[-1] - prefix + x[::-1]
        return backward[::-1]


class ExclusiveBySubtraction(Correct):
    """The exclusive sum as inclusive − x."""

    def exclusive(self, case: Case, x: F32) -> F32:
        return self.inclusive(case, x) - x


class HalfSums(Correct):
    """Accumulates in f16."""

    def inclusive(self, case: Case, x: F32) -> F32:
        return np.add.accumulate(x.astype(np.float16), axis=0, dtype=np.float16).astype(np.float32)


class IgnoresExclusive(Correct):
    def exclusive(self, case: Case, x: F32) -> F32:
        return self.inclusive(case, x)


class TouchesNeighbour(Correct):
    """Adds 0 times the batch slice before."""

    weight: ClassVar[np.float32] = np.float32(0)

    def cumsum(self, case: Case, buffers: Buffers) -> None:
        super().cumsum(case, buffers)
        buffers.array("out")[1:] += self.weight * buffers.array("x")[:-1]


class DependsOnNeighbour(TouchesNeighbour):
    """A hundredth of the slice before leaks in."""

    weight = np.float32(0.01)


class Unsteady(LastFirst):
    """Sums from the other end on every second run: within the bound, but not the same bits."""

    runs = 0

    def inclusive(self, case: Case, x: F32) -> F32:
        self.runs += 1
        return super().inclusive(case, x) if self.runs % 2 else Correct.inclusive(self, case, x)


# --- SOLVE_TRI ---


class OtherTriangleTimesZero(Correct):
    """Masks by multiplying with 0 instead of selecting."""

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        mask = below_diagonal(a.shape[-1]) | np.eye(a.shape[-1], dtype=bool)
        x = super().solved(case, a, b)
        return x + np.add.reduce(a * ~mask, axis=-1, keepdims=True)


class Transposed(Correct):
    """KB091: X[j·n + i] instead of X[i·k + j]."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        super().write(buffers, name, values.swapaxes(-1, -2).reshape(values.shape))


class UpperAsLower(Correct):
    def solve_tri(self, case: Case, buffers: Buffers) -> None:
        super().solve_tri(with_params(case, lower=True), buffers)


class IgnoresLeft(Correct):
    """Solves A X = B where X A = B is asked (and the shapes allow it)."""

    def solve_tri(self, case: Case, buffers: Buffers) -> None:
        b = case.inputs["b"]
        super().solve_tri(with_params(case, left=True) if b.shape[-1] == b.shape[-2] else case, buffers)


class IgnoresUnit(Correct):
    def solve_tri(self, case: Case, buffers: Buffers) -> None:
        super().solve_tri(with_params(case, unit=False), buffers)


class AlwaysUnit(Correct):
    def solve_tri(self, case: Case, buffers: Buffers) -> None:
        super().solve_tri(with_params(case, unit=True), buffers)


def with_params(case: Case, **changed: bool) -> Case:
    """`case` as a kernel sees it that overlooks a parameter."""
    return Case(case.op, {**case.params, **changed}, case.inputs, case.outputs)


class ByInverse(Correct):
    """Multiplies by an explicit float32 inverse."""

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        n = a.shape[-1]
        identity = np.broadcast_to(np.eye(n, dtype=np.float32), a.shape)
        return super().solved(case, a, identity) @ b


class HalfDots(RowDots):
    """Sums the products of a row in f16."""

    def dot(self, row: F32, x: F32) -> F32:
        products = (row[..., None] * x).astype(np.float16)
        total: F32 = np.add.reduce(products, axis=-2, dtype=np.float16).astype(np.float32)
        return total


class SkipsLastRow(Correct):
    """The last row of a system keeps what b holds there."""

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        x = super().solved(case, a, b)
        x[..., -1:, :] = b[..., -1:, :]
        return x


class FirstSliceOfA(Correct):
    """Every batch is solved with the first one's matrix."""

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        return super().solved(case, np.broadcast_to(a[:1], a.shape), b)


@dataclass(frozen=True)
class Wrong:
    """A wrong kernel for one op, the kind that must head its report, and what else may rightly head it.

    `also`: a value read from the wrong place is NaN where that is a gap or, in a case with `keep`, another slice, and
    some other number elsewhere. `check` names the check on request that finds it, where no other does.
    """

    op: str
    kernel: type[Correct]
    kind: str
    also: tuple[str, ...] = ()
    check: str | None = None

    def __str__(self) -> str:
        return f"{self.op}-{self.kernel.__name__}"


WRONG_VALUES, NAN, NOT_WRITTEN, MIXED = "WRONG VALUES", "NAN/INF", "NOT WRITTEN", "SLICES MIXED"
OUTSIDE, MODIFIED = "WROTE OUTSIDE", "INPUT MODIFIED"

WRONG: tuple[Wrong, ...] = (
    Wrong("acc", IgnoresI3, WRONG_VALUES),
    Wrong("acc", VulkanAcc, WRONG_VALUES, (NAN, MIXED)),
    Wrong("acc", ReadsPackedA, NAN, (WRONG_VALUES, MIXED)),
    Wrong("acc", ReadsPackedB, NAN, (WRONG_VALUES, MIXED)),
    Wrong("acc", DropsOffsetA, NAN, (WRONG_VALUES, MIXED)),
    Wrong("acc", OffsetInElementsA, NAN, (WRONG_VALUES, MIXED)),
    Wrong("acc", WritesPacked, OUTSIDE, (WRONG_VALUES, MIXED)),
    Wrong("acc", WritesOnePastEnd, OUTSIDE),
    Wrong("acc", ClearsSpan, OUTSIDE),
    Wrong("acc", ReadsAfterOverwrite, WRONG_VALUES),
    Wrong("acc", FlushesUnasked, WRONG_VALUES),
    Wrong("set", CanonicalZero, WRONG_VALUES),
    Wrong("set", FlushesUnasked, WRONG_VALUES),
    Wrong("set", ThroughF16, WRONG_VALUES),
    Wrong("set", ReadsPackedB, NAN, (WRONG_VALUES, MIXED)),
    Wrong("set", WritesPacked, OUTSIDE, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", ReadsPackedX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", IgnoresNb0, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", IgnoresNb1, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", IgnoresNb2, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", IgnoresNb3, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", DropsOffsetX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", OffsetInElementsX, NAN, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", WritesPacked, OUTSIDE, (WRONG_VALUES, MIXED)),
    Wrong("cumsum", WritesOnePastEnd, OUTSIDE),
    Wrong("cumsum", ClearsSpan, OUTSIDE),
    Wrong("cumsum", TileTailOffByOne, WRONG_VALUES),
    Wrong("cumsum", LeavesTail, NOT_WRITTEN),
    Wrong("cumsum", LosesCarry, WRONG_VALUES),
    Wrong("cumsum", CarryTwice, WRONG_VALUES),
    Wrong("cumsum", ReadsPastRow, NAN, (MIXED,)),
    Wrong("cumsum", InPlace, MODIFIED),
    Wrong("cumsum", TotalMinusPrefix, WRONG_VALUES, (MIXED,)),
    Wrong("cumsum", ExclusiveBySubtraction, WRONG_VALUES, (NAN,)),
    Wrong("cumsum", HalfSums, WRONG_VALUES, (NAN, MIXED)),
    Wrong("cumsum", IgnoresExclusive, WRONG_VALUES, (NAN,)),
    Wrong("cumsum", TouchesNeighbour, MIXED, (NAN,)),  # an exclusive sum of nothing is 0 in a slice of NaN
    Wrong("cumsum", DependsOnNeighbour, WRONG_VALUES, (MIXED, NAN)),
    Wrong("cumsum", FlushesUnasked, WRONG_VALUES),
    Wrong("cumsum", Unsteady, "NOT DETERMINISTIC", check="deterministic"),
    Wrong("solve_tri", ReadsPackedA, NAN, (WRONG_VALUES, MIXED)),
    Wrong("solve_tri", ReadsPackedB, NAN, (WRONG_VALUES, MIXED)),
    Wrong("solve_tri", DropsOffsetA, NAN, (WRONG_VALUES, MIXED)),
    Wrong("solve_tri", WritesPacked, OUTSIDE, (WRONG_VALUES, MIXED)),
    Wrong("solve_tri", OtherTriangleTimesZero, NAN, (MIXED,)),
    Wrong("solve_tri", Transposed, WRONG_VALUES, (NAN, MIXED)),
    Wrong("solve_tri", UpperAsLower, NAN, (MIXED,)),
    Wrong("solve_tri", IgnoresLeft, WRONG_VALUES, (NAN, MIXED)),
    Wrong("solve_tri", IgnoresUnit, NAN, (MIXED,)),
    Wrong("solve_tri", AlwaysUnit, WRONG_VALUES),
    Wrong("solve_tri", HalfDots, WRONG_VALUES, (NAN, MIXED)),
    Wrong("solve_tri", SkipsLastRow, WRONG_VALUES),
    Wrong("solve_tri", FirstSliceOfA, WRONG_VALUES, (MIXED,)),
    Wrong("solve_tri", ByInverse, WRONG_VALUES),
)
