"""What every op's kernels get: the launches, and the fields of `struct arguments` in the order the kernel names them.

Every field is a 64-bit unsigned integer. Places are bytes from the start of the argument's own buffer, which begins
with a guard; sizes are elements, innermost first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opconform.harness.buffers import GUARD
from opconform.harness.case import Case
from opconform.harness.layouts import Layout


@dataclass(frozen=True)
class Launch:
    """One run of a kernel: its name, its number of work-items (0 is run too: the kernel must do nothing), the fields
    of its struct, and the case's arguments whose buffers follow."""

    kernel: str
    items: int
    fields: list[int]
    buffers: tuple[str, ...]


def _ne(layout: Layout) -> list[int]:
    """Four sizes, innermost first."""
    return [*layout.ne, 1, 1, 1, 1][:4]


def _nb(layout: Layout) -> list[int]:
    """Four byte strides, innermost first; 0 along an axis of one element, where the stride is any number at all."""
    steps = [stride if size > 1 else 0 for size, stride in zip(layout.ne, layout.nb)]
    return [*steps, 0, 0, 0, 0][:4]


def _place(case: Case, name: str) -> list[int]:
    """Where an argument's elements stand in its buffer: the first one, and the strides."""
    layout = case.layouts[name]
    return [GUARD + layout.offset, *_nb(layout)]


def _view(case: Case) -> list[int]:
    """Where b's elements stand in a packed a: the first one, and the strides. Zeros where b has no elements."""
    b, params = case.inputs["b"], case.params
    if b.size == 0:
        return [0, 0, 0, 0, 0]
    steps = [b.type.itemsize, int(params["nb1"]), int(params["nb2"]), int(params["nb3"])]
    return [int(params["offset"]), *(step if size > 1 else 0 for size, step in zip(_ne(b), steps))]


def _through_view(case: Case, more: list[int]) -> list[Launch]:
    a, b = case.inputs["a"], case.inputs["b"]
    fields = [*_ne(a), *_place(case, "a"), *_place(case, "out"), *_ne(b), *_place(case, "b"), *_view(case), *more]
    copy = Launch(f"{case.op}_copy", a.size, fields, ("a", "out"))
    view = Launch(f"{case.op}_view", b.size, fields, ("b", "out"))
    return [view] if case.inplace else [copy, view]


def _acc(case: Case) -> list[Launch]:
    return _through_view(case, [])


def _set(case: Case) -> list[Launch]:
    return _through_view(case, [case.inputs["a"].type.itemsize])


def _cumsum(case: Case) -> list[Launch]:
    x, axis = case.inputs["x"], int(case.params["axis"])
    lines = x.size // max(_ne(x)[axis], 1)
    fields = [*_ne(x), *_place(case, "x"), *_place(case, "out"), axis]
    fields += [int(case.params["exclusive"]), int(case.params["reverse"])]
    return [Launch("cumsum", lines, fields, ("x", "out"))]


def _solve_tri(case: Case) -> list[Launch]:
    b, params = case.inputs["b"], case.params
    unknowns = _ne(b)[1 if params["left"] else 0]
    fields = [*_ne(b), *_place(case, "a"), *_place(case, "b"), *_place(case, "out")]
    fields += [int(params["left"]), int(params["lower"]), int(params["unit"])]
    return [Launch("solve_tri", b.size // max(unknowns, 1), fields, ("a", "b", "out"))]


#: Each op's launches, in order; there is always one.
LAUNCHES: Mapping[str, Callable[[Case], list[Launch]]] = {
    "acc": _acc,
    "set": _set,
    "cumsum": _cumsum,
    "solve_tri": _solve_tri,
}

#: The element types of each op's kernels.
DTYPES: Mapping[str, tuple[str, ...]] = {
    "acc": ("f32",),
    "set": ("f32", "f16", "bf16", "i32"),
    "cumsum": ("f32",),
    "solve_tri": ("f32",),
}
