"""What every op's shader gets: its dispatches, and the words of its push constants in the order the shader names them.

All places are bytes from the start of the arena, all sizes elements, innermost first. Push constants are at most
`WORDS` 32-bit words, for 128 bytes is what every Vulkan device has (maxPushConstantsSize).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from opconform.harness.buffers import Plan
from opconform.harness.case import Case
from opconform.harness.layouts import Layout

WORDS = 32
COPY, VIEW = 0, 1  #: the two parts of acc.comp and set.comp
INVOCATIONS = 1 << 16  #: the most that a dispatch starts; each then takes several items

#: Turns of all its loops that an invocation may make in one dispatch. Mesa's llvmpipe leaves every loop after 65,535
#: turns in all (LP_MAX_TGSI_LOOP_ITERATIONS) and says nothing: longer work is cut into several dispatches.
TURNS = 30_000


@dataclass(frozen=True)
class Dispatch:
    """One run of a shader: how many work items it has (0 is run too: the shader must do nothing), and its words."""

    items: int
    words: list[int]


def _ne(layout: Layout) -> list[int]:
    """Four sizes, innermost first."""
    return [*layout.ne, 1, 1, 1, 1][:4]


def _nb(layout: Layout) -> list[int]:
    """Four byte strides, innermost first; 0 along an axis of one element, where the stride is any number at all."""
    steps = [stride if size > 1 else 0 for size, stride in zip(layout.ne, layout.nb)]
    return [*steps, 0, 0, 0, 0][:4]


def _place(case: Case, plan: Plan, name: str) -> list[int]:
    """Where an argument's elements stand in the arena: the first one, and the strides."""
    layout = case.layouts[name]
    return [plan.slots[name].start + layout.offset, *_nb(layout)]


def _view(case: Case) -> list[int]:
    """Where b's elements stand in a packed a: the first one, and the strides. Zeros where b has no elements."""
    b, params = case.inputs["b"], case.params
    if b.size == 0:
        return [0, 0, 0, 0, 0]
    steps = [b.type.itemsize, int(params["nb1"]), int(params["nb2"]), int(params["nb3"])]
    return [int(params["offset"]), *(step if size > 1 else 0 for size, step in zip(_ne(b), steps))]


def _acc(case: Case, plan: Plan) -> list[Dispatch]:
    a, b = case.inputs["a"], case.inputs["b"]
    words = [*_ne(a), *_place(case, plan, "a"), *_place(case, plan, "out"), *_ne(b), *_place(case, plan, "b")]
    words += _view(case)
    copy, view = Dispatch(a.size, [COPY, *words]), Dispatch(b.size, [VIEW, *words])
    return [view] if case.inplace else [copy, view]


def _set(case: Case, plan: Plan) -> list[Dispatch]:
    itemsize = case.inputs["a"].type.itemsize
    return [Dispatch(dispatch.items, [*dispatch.words, itemsize]) for dispatch in _acc(case, plan)]


def _cumsum(case: Case, plan: Plan) -> list[Dispatch]:
    x, axis = case.inputs["x"], int(case.params["axis"])
    lines = x.size // max(_ne(x)[axis], 1)
    words = [*_ne(x), *_place(case, plan, "x"), *_place(case, plan, "out"), axis]
    words += [int(case.params["exclusive"]), int(case.params["reverse"])]
    return [Dispatch(lines, [*words, first, end]) for first, end in _parts(_ne(x)[axis], lines, lambda place: 1)]


def _solve_tri(case: Case, plan: Plan) -> list[Dispatch]:
    b, params = case.inputs["b"], case.params
    unknowns = _ne(b)[1 if params["left"] else 0]
    words = [*_ne(b), *_place(case, plan, "a"), *_place(case, plan, "b"), *_place(case, plan, "out")]
    words += [int(params["left"]), int(params["lower"]), int(params["unit"])]
    sides = b.size // max(unknowns, 1)
    return [Dispatch(sides, [*words, *part]) for part in _parts(unknowns, sides, lambda known: known + 1)]


def _parts(steps: int, items: int, turns: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """Ranges that cover `steps` steps of `turns(step)` turns each, none longer than an invocation may loop."""
    allowed = TURNS // -(-max(items, 1) // INVOCATIONS)
    first = spent = 0
    if steps * turns(steps) <= allowed:
        yield first, steps
        return
    for step in range(steps):
        if spent and spent + turns(step) > allowed:
            yield first, step
            first, spent = step, 0
        spent += turns(step)
    yield first, steps


#: Each op's dispatches, in order; there is always one.
DISPATCHES: Mapping[str, Callable[[Case, Plan], list[Dispatch]]] = {
    "acc": _acc,
    "set": _set,
    "cumsum": _cumsum,
    "solve_tri": _solve_tri,
}

#: The element types of each op's shader.
DTYPES: Mapping[str, tuple[str, ...]] = {
    "acc": ("f32",),
    "set": ("f32", "f16", "bf16", "i32"),
    "cumsum": ("f32",),
    "solve_tri": ("f32",),
}
