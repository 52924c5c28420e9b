"""What ACC and SET share: a view of `a`, given as ggml gives it, by nb1, nb2, nb3 and an offset in bytes.

The view counts bytes of `a` as if `a` were packed: element (i0, i1, i2, i3) of `b` meets the element of `a` whose
flat index is (offset + i0·size + i1·nb1 + i2·nb2 + i3·nb3) / size. How `a` and the output really lie in memory is
their own layouts' business.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from opconform.harness.draw.strategies import (
    among,
    composite,
    few,
    forms,
    inner_sizes,
    integers,
    outer_sizes,
    rare_sizes,
    scales,
    within,
)
from opconform.harness.explain.hypotheses import dimension
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout, contiguous_strides
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Problem
from opconform.harness.model.work import bytes_of, everything_once

PARAMS: Mapping[str, type] = {"nb1": int, "nb2": int, "nb3": int, "offset": int}
VIEWS = ("block", "nested", "free")
_ORDERS = tuple(itertools.permutations((1, 2, 3)))
_GAPS, _SMALL_GAPS = integers(0, 3), integers(0, 1)
_SMALL = 1 << 14  #: elements of b that may have large gaps between them
_BOOLEANS = st.booleans()

Places = npt.NDArray[np.int64]


def view_of(case: Case) -> Layout:
    """The layout of `b`'s elements inside a packed `a`."""
    params, b = case.params, case.inputs["b"]
    strides = (int(params["nb3"]), int(params["nb2"]), int(params["nb1"]), b.type.itemsize)
    return _view(b.dtype, b.shape, strides[4 - len(b.shape) :], int(params["offset"]))


@lru_cache(maxsize=256)
def _view(dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Layout:
    """The same layout each time: all variants of a problem share it, and what it has computed."""
    return Layout(dtype, shape, strides, offset)


def through_view(case: Case, packed: np.ndarray) -> np.ndarray:
    """The elements of a packed C-contiguous array of `a`'s shape that the view covers, as a writable view. Axes before
    those of `a` stay as they are."""
    view = view_of(case)
    size, item = view.type.itemsize, packed.itemsize
    axes = packed.ndim - len(case.inputs["a"].shape)
    strides = [stride // size * item if n > 1 else 0 for n, stride in zip(view.shape, view.strides)]
    shape, start = (*packed.shape[:axes], *view.shape), view.offset // size * item
    covered: np.ndarray = np.ndarray(shape, packed.dtype, packed.data, start, (*packed.strides[:axes], *strides))
    return covered


def traits(case: Case) -> dict[str, Any]:
    """view: "block" has the strides of `a` itself; "nested" strides that grow outwards, each past the extent of the
    dimensions inside it; "free" any other order. inplace: whether the output takes over `a`'s memory."""
    return {"view": _kind_of_view(case), "inplace": case.inplace is not None}


def moves(case: Case) -> int:
    """Bytes that ACC must move: a, b and the output; in place only the elements in the view, read and written."""
    touched = 3 * bytes_of(case.inputs["b"])
    return touched if case.inplace else everything_once(case)


def moves_without_reading(case: Case) -> int:
    """The same for SET, which need not read the elements that it replaces."""
    b = bytes_of(case.inputs["b"])
    return 2 * b if case.inplace else everything_once(case) - b


def _kind_of_view(case: Case) -> str:
    a, view = case.inputs["a"], view_of(case)
    if view.strides == contiguous_strides(a.shape, a.type.itemsize):
        return "block"
    extent = view.type.itemsize
    for size, stride in zip(view.shape[::-1], view.strides[::-1]):
        if stride < extent:
            return "free"
        extent = stride * max(size, 1)
    return "nested"


def check(case: Case) -> None:
    """Raises `CaseError` unless the view lies inside `a` and keeps the elements of `b` apart."""
    a, b, out = case.inputs["a"], case.inputs["b"], case.outputs["out"]
    if out.shape != a.shape:
        raise CaseError(f"out has shape {out.shape}; it must be that of a, {a.shape}")
    if case.inplace not in (None, "a"):
        raise CaseError(f"case.inplace is {case.inplace!r}; {case.op} writes over 'a' or not at all")
    size = a.type.itemsize
    view = view_of(case)
    if min(*view.strides, view.offset) < 0 or any(step % size for step in (*view.strides, view.offset)):
        raise CaseError(f"nb1, nb2, nb3 and offset must be multiples of {size} from 0, for they are bytes of {a.dtype}")
    if view.end > a.size * size:
        raise CaseError(f"the view ends at byte {view.end}; a has {a.size * size}")
    if b.size > a.size or view.overlaps:
        raise CaseError("two elements of b meet the same element of a; nb1, nb2 and nb3 must keep them apart")


@composite
def problems(draw: st.DrawFn, freedom: Freedom, dtypes: tuple[str, ...], empty: bool = True) -> Problem:
    """Views into `a`: a block of it, or strides of its own, now and then of a rare form; shrinks to one element into
    one."""
    dtype = draw(among(freedom.choices("dtype", dtypes)))
    view = draw(among(freedom.choices("view", VIEWS)))
    inplace = draw(among(freedom.choices("inplace", (False, True))))
    size = DTYPES[dtype].itemsize
    scale = draw(scales())
    form = draw(forms())
    if form == "usual":
        inner = inner_sizes(scale)
        b_ne = [draw(inner), draw(inner_sizes(min(scale, 33))), draw(outer_sizes()), draw(outer_sizes())]
    else:
        b_ne = draw(rare_sizes(form, range(4), 0, (1, 2, 3)))
    b_ne = list(within(b_ne, size, freedom))
    if form == "usual" and empty and freedom.choices("empty", (True,)) and draw(integers(0, 31)) == 31:
        b_ne[draw(integers(0, 3))] = 0
    gap = _GAPS if math.prod(b_ne) <= _SMALL else _SMALL_GAPS  # else `a` would be many times b
    if view == "block":
        gaps = [gap if form == "usual" or n > 1 else st.just(0) for n in b_ne]
        corner = [draw(each) for each in gaps]
        a_ne = [max(n, 1) + before + draw(each) for n, before, each in zip(b_ne, corner, gaps)]
        nb = contiguous_strides(tuple(a_ne[::-1]), size)[::-1]
        offset = sum(before * step for before, step in zip(corner, nb))
    else:
        order = _ORDERS[draw(integers(0, len(_ORDERS) - 1))] if view == "free" else (1, 2, 3)
        nb_list, extent = [size] * 4, size * max(b_ne[0], 1)
        for axis in order:
            nb_list[axis] = extent + size * draw(gap)
            extent = nb_list[axis] * max(b_ne[axis], 1)
        nb = tuple(nb_list)
        offset = size * draw(_GAPS)
        reach = tuple(max(n, 1) for n in b_ne[::-1])  # an empty b too has its view inside a: ggml's CPU asserts it
        end = Layout(dtype, reach, nb[::-1], offset).end
        elements = max(end // size, math.prod(b_ne), 1)
        rows = [draw(inner_sizes(min(scale, 65))), draw(integers(1, 4)), draw(integers(1, 3))]
        if form == "many":
            rows = [draw(few()), 1, 1]
        while rows[0] * rows[1] * rows[2] > elements:
            rows = [max(rows[0] // 2, 1), max(rows[1] // 2, 1), max(rows[2] // 2, 1)]
        a_ne = rows
        rest = 3 if form == "usual" else draw(among((3, 1, 1, 2)))  # many rows of `a`, or many matrices
        a_ne.insert(rest, -(-elements // (rows[0] * rows[1] * rows[2])))
    if math.prod(a_ne) * size > freedom.max_bytes // 4:  # gaps have made it too large: a view of the whole
        a_ne, offset = [max(n, 1) for n in b_ne], 0
        nb = contiguous_strides(tuple(a_ne[::-1]), size)[::-1]
    params = {"nb1": nb[1], "nb2": nb[2], "nb3": nb[3], "offset": offset}
    a_shape, b_shape = tuple(a_ne[::-1]), tuple(b_ne[::-1])
    return Problem(params, dtype, {"a": a_shape, "b": b_shape}, a_shape, "a" if inplace else None)


def places(b: Layout, nb: tuple[int, ...], offset: int) -> Places:
    """The flat index in `a` that each element of `b` meets, for a view of strides `nb` (innermost first)."""
    flat = np.full((), offset, dtype=np.int64)
    for size, stride in zip(b.shape, nb[: len(b.shape)][::-1]):
        flat = flat[..., None] + np.arange(size) * stride
    return flat // b.type.itemsize


def sources(case: Case) -> dict[str, Places]:
    """Which element of `a` and of `b` goes into each element of the output; -1 for none of `b`."""
    a, b, view = case.inputs["a"], case.inputs["b"], view_of(case)
    from_b = np.full(a.size, -1, dtype=np.int64)
    from_b[places(b, view.nb, view.offset)] = np.arange(b.size).reshape(b.shape)
    return {"a": np.arange(a.size).reshape(a.shape), "b": from_b.reshape(a.shape)}


def alone(case: Case) -> tuple[int, ...] | str:
    """The outermost axis that has slices, where each one of b lies in the one of a with its number: the view of one
    slice counts bytes as that of all of them does."""
    a, b, view = case.inputs["a"], case.inputs["b"], view_of(case)
    axis = 0 if a.shape[0] > 1 else 1
    step = contiguous_strides(a.shape, a.type.itemsize)[axis]
    one = replace(view, shape=(*view.shape[:axis], 1, *view.shape[axis + 1 :]))
    if a.shape[:2] == b.shape[:2] and view.strides[axis] == step and one.end <= step:
        return (axis,)
    return "the view of a crosses its slices" if max(a.shape[:2]) > 1 else ()


NOT_COPIED = "only the view is written, a is not copied"


def inside_only(case: Case) -> Places:
    """The flat index of each element of the output inside the view, -1 outside."""
    both = sources(case)
    return np.where(both["b"] < 0, -1, both["a"])


def misplaced(case: Case) -> Iterator[tuple[str, Places]]:
    """Wrong views with their names: where each element of `b` goes, as a flat index in `a`; -1 for nowhere."""
    a, b, view = case.inputs["a"], case.inputs["b"], view_of(case)
    size, rank, nb, right = b.type.itemsize, len(b.shape), view.nb, places(b, view.nb, view.offset)
    for k in reversed(range(rank)):
        first = np.arange(b.ne[k]).reshape([-1 if axis == rank - 1 - k else 1 for axis in range(rank)]) == 0
        yield f"{dimension(rank, k)} of b is not handled: only i{k} = 0 is processed", np.where(first, right, -1)
    yield "b is ignored: the output is a", np.full_like(right, -1)
    yield "the view's offset is dropped", places(b, nb, 0)
    yield "the view's offset is counted in elements", places(b, nb, view.offset * size)
    once_more = view.offset // size // size * size
    yield "the view's offset is divided by the element size once too often", places(b, nb, once_more)
    nb_a, nb_b = (contiguous_strides(layout.shape[-rank:], size)[::-1] for layout in (a, b))
    for k in reversed(range(1, min(rank, len(nb_a)))):
        of_a = (*nb[:k], nb_a[k], *nb[k + 1 :])
        yield f"the view's nb{k} is ignored: that of a is taken", places(b, of_a, view.offset)
        upon = (*nb[:k], nb[k - 1] * max(b.ne[k - 1], 1), *nb[k + 1 :])
        yield f"the view's nb{k} is ignored: i{k} is taken as packed", places(b, upon, view.offset)
    if len(nb_a) == rank:
        yield "the view's strides are ignored: those of a are taken", places(b, nb_a, view.offset)
    yield "the view's strides are ignored: it is taken as packed", places(b, nb_b, view.offset)
    for j, k in itertools.combinations(range(1, rank), 2):
        exchanged = list(nb)
        exchanged[j], exchanged[k] = nb[k], nb[j]
        yield f"the view's nb{j} and nb{k} are exchanged", places(b, tuple(exchanged), view.offset)


def put(base: np.ndarray, where: Places, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`base` with `values` at the flat indices `where` (none where that lies outside), and which elements they are."""
    found, inside = base.copy().reshape(-1), np.zeros(base.size, dtype=bool)
    there = (where >= 0) & (where < base.size)
    found[where[there]] = values[there]
    inside[where[there]] = True
    return found.reshape(base.shape), inside.reshape(base.shape)
