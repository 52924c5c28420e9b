"""One kernel for each fault that a diagnosis knows, with the hint that must be given for it.

Written in terms of addresses and loops, not of the hypotheses that are to be found.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from opconform.harness.explain.hypotheses import COARSE
from opconform.harness.model.buffers import GUARD, Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout
from tests.kernels import wrong
from tests.kernels.base import F32, arena, gather, places, words
from tests.kernels.correct import Correct
from tests.kernels.misplaced import (
    Place,
    ViewOf,
    ignored,
    no_offset,
    offset_divided_twice,
    offset_in_elements,
    packed,
    packed_at_0,
    right_view,
    still,
    swapped,
    view_of_a,
    view_offset,
    view_packed,
    view_swapped,
    view_upon,
)
from tests.kernels.wrong import ReadsElsewhere, with_params

TILES = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Fault:
    """A kernel with one fault, for one op, and the hint that names it."""

    op: str
    kernel: type[Correct]
    hint: str

    def __str__(self) -> str:
        return f"{self.op}-{self.kernel.__name__}"


def made(name: str, base: type[Correct], **members: Any) -> type[Correct]:
    """A class of this module, so that a runner finds it by its name."""
    kernel = type(name, (base,), {**members, "__module__": __name__})
    setattr(sys.modules[__name__], name, kernel)
    return kernel


def reads(argument: str, place: Callable[[Layout], Place]) -> dict[str, Any]:
    """The members of a kernel that reads `argument` at wrong places."""
    return {
        "argument": argument,
        "strides": lambda self, layout: place(layout)[0],
        "offset": lambda self, layout: place(layout)[1],
    }


class WritesElsewhere(Correct):
    """Writes the output at wrong places; what falls outside its memory is lost."""

    place: Callable[[Layout], Place]

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        slot = buffers.plan.slots[name]
        size = slot.layout.type.itemsize
        index = words(buffers, name, *type(self).place(slot.layout))
        inside = (index >= (slot.start - GUARD) // size) & (index < (slot.start + slot.size + GUARD) // size)
        arena(buffers, name)[index[inside]] = values[inside]


class EveryInputPacked(Correct):
    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        return gather(buffers, name, *packed(buffers.plan.slots[name].layout))


class ArgumentsExchanged(Correct):
    """Takes a for b and b for a, where their shapes allow it."""

    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        a, b = buffers.array("a"), buffers.array("b")
        other = b if name == "a" else a
        return np.array(other if a.shape == b.shape else buffers.array(name))


# --- parts of the output that are not written ---


class WritesSome(Correct):
    """Writes only where `chosen` says so."""

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        chosen = np.zeros(values.shape, dtype=bool)
        self.choose(chosen)
        buffers.array(name)[chosen] = values[chosen]

    def choose(self, chosen: np.ndarray) -> None:
        """Set `chosen` where something is to be written."""


class WritesNothing(WritesSome):
    pass


def only_first(k: int) -> Any:
    def choose(self: Correct, chosen: np.ndarray) -> None:
        np.moveaxis(chosen, 3 - k, 0)[:1] = True

    return choose


def full_tiles(k: int, tile: int) -> Any:
    def choose(self: Correct, chosen: np.ndarray) -> None:
        n = chosen.shape[3 - k]
        np.moveaxis(chosen, 3 - k, 0)[: n - n % tile] = True

    return choose


def full_groups(tile: int) -> Any:
    def choose(self: Correct, chosen: np.ndarray) -> None:
        chosen.reshape(-1)[: chosen.size - chosen.size % tile] = True

    return choose


def repeats(k: int) -> Any:
    """Every slice along i{k} gets the first one's result."""

    def write(self: Correct, buffers: Buffers, name: str, values: np.ndarray) -> None:
        first = np.moveaxis(values, 3 - k, 0)[:1]
        np.moveaxis(buffers.array(name), 3 - k, 0)[...] = first

    return write


# --- ACC and SET ---


class View(Correct):
    """ACC and SET element by element, with a view that may be misunderstood."""

    def acc(self, case: Case, buffers: Buffers) -> None:
        self.put(case, buffers, self.added)

    def set(self, case: Case, buffers: Buffers) -> None:
        self.put(case, buffers, lambda a, b: b)

    def put(self, case: Case, buffers: Buffers, how: Callable[[Any, Any], Any]) -> None:
        out, b = np.array(self.read(buffers, "a"), order="C"), self.read(buffers, "b")
        original, flat, size = out.reshape(-1).copy(), out.reshape(-1), out.dtype.itemsize
        nb, offset = self.view(case)
        for index in np.ndindex(b.shape):
            place = (offset + sum(i * step for i, step in zip(index[::-1], nb))) // size
            if place < flat.size and self.takes(index):
                flat[place] = how(original[place], b[index])
        self.write(buffers, "out", out)

    def view(self, case: Case) -> tuple[tuple[int, ...], int]:
        """The view's strides (innermost first) and offset, in bytes."""
        return right_view(case)

    def takes(self, index: tuple[int, ...]) -> bool:
        """Whether this element of b is looked at."""
        return True


def takes_first(k: int) -> Any:
    return lambda self, index: index[3 - k] == 0


class WritesViewOnly(Correct):
    """Does not copy what of a lies outside the view."""

    def acc(self, case: Case, buffers: Buffers) -> None:
        where = places(case)
        buffers.array("out")[where] = self.added(self.read(buffers, "a")[where], self.read(buffers, "b"))

    def set(self, case: Case, buffers: Buffers) -> None:
        buffers.array("out")[places(case)] = self.read(buffers, "b")


class AddsInSet(Correct):
    def set(self, case: Case, buffers: Buffers) -> None:
        self.acc(case, buffers)

    def supports(self, case: Case) -> str | None:
        return "adds f32 only" if case.dtype != "f32" else None


# --- CUMSUM and SOLVE_TRI ---


class SumsAlong(Correct):
    """Sums along one axis, whatever was asked for."""

    axis = 0

    def cumsum(self, case: Case, buffers: Buffers) -> None:
        params = {**case.params, "axis": self.axis}
        super().cumsum(Case(case.op, params, case.inputs, case.outputs), buffers)


class Copies(Correct):
    def inclusive(self, case: Case, x: F32) -> F32:
        return np.array(x)

    exclusive = inclusive


class Exclusive(Correct):
    """Exclusive sums always."""

    def cumsum(self, case: Case, buffers: Buffers) -> None:
        super().cumsum(with_params(case, exclusive=True), buffers)


class Forwards(Correct):
    def cumsum(self, case: Case, buffers: Buffers) -> None:
        super().cumsum(with_params(case, reverse=False), buffers)


class Backwards(Correct):
    def cumsum(self, case: Case, buffers: Buffers) -> None:
        super().cumsum(with_params(case, reverse=True), buffers)


class AlwaysUpper(Correct):
    def solve_tri(self, case: Case, buffers: Buffers) -> None:
        super().solve_tri(with_params(case, lower=False), buffers)


class AlwaysRight(Correct):
    """Solves X A = B, where the shapes allow it."""

    def solve_tri(self, case: Case, buffers: Buffers) -> None:
        b = case.inputs["b"]
        super().solve_tri(with_params(case, left=False) if b.shape[-1] == b.shape[-2] else case, buffers)


def _reads() -> Iterator[Fault]:
    arguments = (("cumsum", "x"), ("acc", "b"), ("solve_tri", "a"))
    for op, argument in arguments:
        table: dict[str, tuple[Callable[[Layout], Place], str]] = {
            "Packed": (packed, f"{argument} is read as if it were packed"),
            "PackedAt0": (packed_at_0, f"{argument} is read as if it were packed and at offset 0"),
            "NoOffset": (no_offset, f"the byte offset of {argument} is dropped"),
            "OffsetInElements": (offset_in_elements, f"the byte offset of {argument} is counted in elements"),
            "OffsetDivided": (
                offset_divided_twice,
                f"the offset of {argument} is divided by the element size once too often",
            ),
        }
        for k in range(4):
            table[f"Nb{k}"] = (ignored(k), f"the stride nb{k} of {argument} is ignored: i{k} is read as if packed")
            table[f"Still{k}"] = (still(k), f"every i{k} of {argument} is read from i{k} = 0")
        for name, (place, hint) in table.items():
            yield Fault(op, made(f"Reads{argument}{name}", ReadsElsewhere, **reads(argument, place)), hint)
    for j, k in itertools.combinations(range(4), 2):
        kernel = made(f"ReadsSwapped{j}{k}", ReadsElsewhere, **reads("x", swapped(j, k)))
        yield Fault("cumsum", kernel, f"i{j} and i{k} of x are exchanged (the strides nb{j} and nb{k} are swapped)")
    yield Fault("solve_tri", EveryInputPacked, "every input is read as if it were packed")
    yield Fault("solve_tri", ArgumentsExchanged, "a and b are exchanged")
    yield Fault("set", ArgumentsExchanged, "a and b are exchanged")


def _writes() -> Iterator[Fault]:
    places_of: dict[str, tuple[Callable[[Layout], Place], str]] = {
        "Packed": (packed, "out is written as if it were packed"),
        "PackedAt0": (packed_at_0, "out is written as if it were packed and at offset 0"),
        "NoOffset": (no_offset, "the byte offset of out is dropped"),
        "OffsetInElements": (offset_in_elements, "the byte offset of out is counted in elements"),
        "OffsetDivided": (offset_divided_twice, "the offset of out is divided by the element size once too often"),
    }
    for k in range(1, 4):
        places_of[f"Nb{k}"] = (ignored(k), f"the stride nb{k} of out is ignored: i{k} is written as if packed")
    for j, k in ((0, 1), (2, 3)):
        words_ = f"i{j} and i{k} of out are exchanged (the strides nb{j} and nb{k} are swapped)"
        places_of[f"Swapped{j}{k}"] = (swapped(j, k), words_)
    for name, (place, hint) in places_of.items():
        yield Fault("cumsum", made(f"Writes{name}", WritesElsewhere, place=staticmethod(place)), hint)
    yield Fault("cumsum", WritesNothing, "out is not written at all")
    yield Fault("solve_tri", wrong.Transposed, "out is written transposed")
    for k in range(4):
        dimension = f"the outermost dimension (ne{k})" if k == 3 else f"dimension ne{k}"
        hint = f"{dimension} of out is not handled: only i{k} = 0 is written"
        yield Fault("cumsum", made(f"WritesFirst{k}", WritesSome, choose=only_first(k)), hint)
        hint = f"{dimension} is not handled: every i{k} of out gets the result of i{k} = 0"
        yield Fault("solve_tri", made(f"Repeats{k}", Correct, write=repeats(k)), hint)
    for tile in TILES:
        kernel = made(f"FullGroups{tile}", WritesSome, choose=full_groups(tile))
        yield Fault("cumsum", kernel, f"the last elements are not written: what a workgroup of {tile} does not fill")
    for k, tile in ((0, 8), (0, 64), (0, 1024), (1, 16), (1, 128)):
        hint = f"the tail along i{k} is not written: what a tile of {tile} does not fill"
        yield Fault("cumsum", made(f"FullTiles{k}x{tile}", WritesSome, choose=full_tiles(k, tile)), hint)


def _views() -> Iterator[Fault]:
    views: dict[str, tuple[ViewOf, str]] = {
        "NoOffset": (view_offset(lambda offset, size: 0), "the view's offset is dropped"),
        "OffsetInElements": (
            view_offset(lambda offset, size: offset * size),
            "the view's offset is counted in elements",
        ),
        "OffsetDivided": (
            view_offset(lambda offset, size: offset // size // size * size),
            "the view's offset is divided by the element size once too often",
        ),
        "OfA": (view_of_a(1, 2, 3), "the view's strides are ignored: those of a are taken"),
        "Packed": (lambda self, case: view_packed(case), "the view's strides are ignored: it is taken as packed"),
    }
    for k in (1, 2, 3):
        views[f"OfA{k}"] = (view_of_a(k), f"the view's nb{k} is ignored: that of a is taken")
        views[f"Upon{k}"] = (view_upon(k), f"the view's nb{k} is ignored: i{k} is taken as packed")
    for j, k in ((1, 2), (1, 3), (2, 3)):
        views[f"Swapped{j}{k}"] = (view_swapped(j, k), f"the view's nb{j} and nb{k} are exchanged")
    for number, (name, (view, hint)) in enumerate(views.items()):
        yield Fault(("acc", "set")[number % 2], made(f"View{name}", View, view=view), hint)
    for k in range(4):
        dimension = f"the outermost dimension (ne{k})" if k == 3 else f"dimension ne{k}"
        hint = f"{dimension} of b is not handled: only i{k} = 0 is processed"
        yield Fault(("acc", "set")[k % 2], made(f"TakesFirst{k}", View, takes=takes_first(k)), hint)
    for op in ("acc", "set"):
        kernel = made("IgnoresB", View, takes=lambda self, index: False)
        yield Fault(op, kernel, "b is ignored: the output is a")
        yield Fault(op, WritesViewOnly, "only the view is written, a is not copied")
    sums: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
        "SetsB": (lambda a, b: b, "b replaces what it should be added to (SET instead of ACC)"),
        "AddsTwice": (lambda a, b: a + b + b, "b is added twice"),
        "Subtracts": (lambda a, b: a - b, "b is subtracted"),
    }
    for name, (how, hint) in sums.items():
        yield Fault("acc", made(name, Correct, added=staticmethod(how)), hint)
    yield Fault("set", AddsInSet, "b is added to what it should replace (ACC instead of SET)")
    zero = made("SetsZero", View, put=lambda self, case, buffers, how: View.put(self, case, buffers, lambda a, b: 0))
    yield Fault("set", zero, "what b covers is set to 0")


def _sums() -> Iterator[Fault]:
    yield Fault("cumsum", wrong.IgnoresExclusive, "exclusive is ignored: each sum includes its own element")
    yield Fault("cumsum", Exclusive, "each sum leaves its own element out")
    yield Fault("cumsum", Forwards, "reverse is ignored: sums run forwards")
    yield Fault("cumsum", Backwards, "sums run backwards")
    yield Fault("cumsum", Copies, "x is copied, not summed")
    for axis in (0, 3):
        hint = f"sums run along i{axis} instead of the axis asked for"
        yield Fault("cumsum", made(f"SumsAlong{axis}", SumsAlong, axis=axis), hint)
    for tile in TILES:
        hint = f"the carry between tiles of {tile} is "
        yield Fault("cumsum", made(f"Loses{tile}", wrong.LosesCarry, tile=tile), f"{hint}lost")
        yield Fault("cumsum", made(f"Twice{tile}", wrong.CarryTwice, tile=tile), f"{hint}added twice")


def _solutions() -> Iterator[Fault]:
    yield Fault("solve_tri", wrong.UpperAsLower, "the lower triangle is read instead of the upper")
    yield Fault("solve_tri", AlwaysUpper, "the upper triangle is read instead of the lower")
    yield Fault("solve_tri", wrong.IgnoresUnit, "unit is ignored: the diagonal is read")
    yield Fault("solve_tri", wrong.AlwaysUnit, "the diagonal is taken as 1")
    yield Fault("solve_tri", wrong.IgnoresLeft, "A X = B is solved instead of X A = B")
    yield Fault("solve_tri", AlwaysRight, "X A = B is solved instead of A X = B")


def _narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values once they have been stored in a narrower type."""
    kind = DTYPES[dtype]
    with np.errstate(all="ignore"):
        return kind.decode(kind.encode(np.asarray(values, np.float64))).astype(np.float32)


class WritesThrough(Correct):
    """Stores float32 results by way of a narrower type."""

    dtype = "f16"

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        is_f32 = buffers.case.outputs[name].dtype == "f32"
        super().write(buffers, name, _narrow(values, self.dtype) if is_f32 else values)


class ReadsThrough(Correct):
    """Loads float32 arguments by way of a narrower type."""

    dtype = "f16"

    def read(self, buffers: Buffers, name: str) -> np.ndarray:
        values = super().read(buffers, name)
        return _narrow(values, self.dtype) if buffers.case.inputs[name].dtype == "f32" else values


class RoundsSums(Correct):
    """Rounds each partial sum to a narrower type."""

    dtype = "bf16"

    def inclusive(self, case: Case, x: F32) -> F32:
        sums = np.array(x)
        for i in range(1, len(sums)):
            sums[i] = _narrow(sums[i - 1] + sums[i], self.dtype)
        return sums


class HalfReciprocal(Correct):
    """Multiplies by a reciprocal in f16."""

    def normalised(self, case: Case, x: F32, squares: F32) -> F32:
        reciprocal = (np.float32(1) / self.divisor(case, squares)).astype(np.float16).astype(np.float32)
        return x * reciprocal

    def over_root(self, case: Case, x: F32, squares: F32) -> F32:
        return x * (np.float32(1) / self.rooted(squares)).astype(np.float16).astype(np.float32)


class WritesTile(Correct):
    """One workgroup along a dimension, and no loop."""

    k, tile = 0, 8

    def write(self, buffers: Buffers, name: str, values: np.ndarray) -> None:
        there = (..., slice(self.tile), *(slice(None),) * self.k)
        buffers.array(name)[there] = values[there]


def _precision() -> Iterator[Fault]:
    for dtype in ("f16", "bf16"):
        yield Fault("cumsum", made(f"WritesThrough_{dtype}", WritesThrough, dtype=dtype), f"out is rounded to {dtype}")
        hint = f"x is rounded to {dtype} before it is used"
        yield Fault("cumsum", made(f"ReadsThrough_{dtype}", ReadsThrough, dtype=dtype), hint)
        hint = f"every input is rounded to {dtype} before it is used"
        yield Fault("ssm_conv", made(f"ReadsAllThrough_{dtype}", ReadsThrough, dtype=dtype), hint)
    yield Fault("set", made("MovesThrough_f16", WritesThrough), "out is rounded to f16")
    says = "each sum is the inclusive one less its own element, which loses digits (Numerics.subtracted_sums)"
    yield Fault("cumsum", wrong.ExclusiveBySubtraction, says)
    yield Fault("cumsum", wrong.HalfSums, COARSE[0])
    yield Fault("cumsum", RoundsSums, COARSE[1])
    for op in ("l2_norm", "norm", "rms_norm", "group_norm"):
        yield Fault(op, HalfReciprocal, "1 / norm is rounded to f16")
    for k in (0, 1):
        hint = f"only the first 8 along i{k} are written"
        yield Fault("cumsum", made(f"WritesTile{k}", WritesTile, k=k), hint)


FAULTS: tuple[Fault, ...] = (*_reads(), *_writes(), *_views(), *_sums(), *_solutions(), *_precision())
