"""What the plain ops share: sizes of four axes, and an output that has memory of its own."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from opconform.harness.draw.strategies import (
    among,
    composite,
    counts,
    few,
    forms,
    inner_sizes,
    integers,
    outer_sizes,
    rare_sizes,
    scales,
    within,
)
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.limits import Freedom

_MOST_ROWS = 64  #: of the usual form: a driver without a GPU takes a millisecond for the work group of one


def check_out(case: Case, shape: tuple[int, ...]) -> None:
    """Raises `CaseError` unless the output has `shape` and does not lie in an input's memory."""
    out = case.outputs["out"]
    if out.shape != shape:
        raise CaseError(f"out has shape {out.shape}; {case.op} of these inputs and parameters gives {shape}")
    if case.inplace is not None:
        raise CaseError(f"case.inplace must be null: {case.op} does not work in place")


def is_aligned(case: Case) -> bool:
    """Whether every argument starts at a multiple of 256 bytes, the most that a Vulkan device may want of a storage
    buffer (minStorageBufferOffsetAlignment)."""
    return all(layout.offset % 256 == 0 for layout in case.layouts.values())


@composite
def rows(draw: st.DrawFn, freedom: Freedom, itemsize: int) -> tuple[int, ...]:
    """Shapes of four axes, the innermost up to 1025 and longest, now and then empty, or in a rare form; shrinks to one
    element."""
    form = draw(forms())
    if form != "usual":
        return within(draw(rare_sizes(form, range(4), 0, (1, 2, 3))), itemsize, freedom)[::-1]
    ne = [draw(inner_sizes(draw(scales()))), draw(inner_sizes(9)), draw(outer_sizes()), draw(outer_sizes())]
    while math.prod(ne[1:]) > _MOST_ROWS:
        most = max((1, 2, 3), key=ne.__getitem__)
        ne[most] //= 2
    if freedom.choices("empty", (True,)) and draw(integers(0, 15)) == 15:
        ne[draw(integers(0, 3))] = 0
    return within(ne, itemsize, freedom)[::-1]


@composite
def squares(draw: st.DrawFn, freedom: Freedom, itemsize: int) -> tuple[int, ...]:
    """Shapes of square matrices, up to 257 wide, in two outer dimensions, now and then many of them or a larger one;
    shrinks to one element."""
    form = draw(forms())
    if form == "many":
        count, n = draw(counts()), draw(few())
        i3, i2 = draw(st.permutations((count, draw(few()))))
        return (*within((i3, i2), itemsize * n * n, freedom), n, n)
    if form != "usual":
        n = draw(among((65, 129, 258, 321) if form == "tiles" else (385, 513)))
        beside = (draw(few()), draw(few())) if form == "tiles" else (1, 1)
        n = min(n, math.isqrt(max(freedom.max_bytes // 16 // itemsize // (beside[0] * beside[1]), 1)))
        return (*beside, n, n)
    outer = (draw(outer_sizes()), draw(outer_sizes()))
    largest = math.isqrt(max(freedom.max_bytes // 16 // itemsize // (outer[0] * outer[1]), 1))
    n = min(draw(inner_sizes(min(draw(scales()), 257))), largest)
    if freedom.choices("empty", (True,)) and draw(integers(0, 15)) == 15:
        n = 0
    return (outer[1], outer[0], n, n)


@composite
def tensors(draw: st.DrawFn, freedom: Freedom, itemsize: int) -> tuple[int, ...]:
    """Shapes like `rows`, with the long axis in any place: once strides are permuted, it is worth as much in each."""
    shape = draw(rows(freedom, itemsize))
    turned = draw(among((0, 1, 2, 3, 0, 0)))
    return (*shape[turned:], *shape[:turned])


@composite
def diagonals(draw: st.DrawFn, freedom: Freedom, itemsize: int) -> tuple[int, ...]:
    """Shapes of the diagonals of `squares`, each a matrix of one row."""
    shape = draw(squares(freedom, itemsize))
    return (*shape[:2], 1, shape[3])
