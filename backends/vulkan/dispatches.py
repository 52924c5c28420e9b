"""The dispatches that each op's launches become on Vulkan, and the words of their push constants.

All places are bytes from the start of the arena, all sizes elements, innermost first. Push constants are at most
`WORDS` 32-bit words, for 128 bytes is what every Vulkan device has (maxPushConstantsSize): the fields of the shader's
`uniform Arguments`, filled by their names. `items` is the number of all work items, `first` and `end` are the range of
items, or of the steps of a walk, that the dispatch takes.

A shader with more fields than that has them in a `readonly buffer Table` at binding 1, the same for all dispatches of a
case; the push constants are left to what differs from dispatch to dispatch.

An op of several kernels has a part of its shader for each: `layout(constant_id = 0) const uint part = 0;` is what
`Dispatch.part` says. A pipeline is then made for each part and holds nothing else; a part told by a push constant would
cost llvmpipe the time of all parts, for it walks through every branch with the lanes masked that do not take it.

Intermediate results stand behind the arguments in the arena and have slots in the plan that the functions here get, so
that their places are found as an argument's are. What the case does not have has no slot, and its fields hold 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from opconform.backends.kernels import mla
from opconform.backends.kernels.families import Row
from opconform.backends.kernels.fields import Values
from opconform.backends.kernels.launch import Launch, Shapes
from opconform.backends.kernels.source import Struct, struct_in
from opconform.backends.kernels.table import Kernel
from opconform.harness.model.buffers import ALIGNMENT, Plan, Slot
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout

WORDS = 32  #: of push constants
TABLE_WORDS = 128  #: of an op's table

#: The parts of the shaders that have several, in the order in which they number them.
PARTS: Mapping[str, tuple[str, ...]] = {
    "acc": ("copy", "view", "copy_packed"),
    "set": ("copy", "view", "copy_packed"),
    "cpy": ("cpy", "packed"),
    "row": ("sum", "second_sum", "out"),
    "gated_delta_net": ("norm", "decay", "tokens"),
    "gated_delta_net_chunk": (
        *("norm", "gates", "scale", "decay", "whole", "blocks", "clear", "place", "solve", "states", "out"),
    ),
    "mla_absorbed": (
        *("query", "join_queries", "join_rows", "scores_two_part", "scores_concat"),
        *("top", "weights", "total", "divide", "context", "flash", "out"),
    ),
}

_MLA_TILE = 4  #: keys that the flash attention of mla_absorbed.comp looks at together

LOCAL_SIZE = 64  #: local_size_x of every shader
INVOCATIONS = 1 << 16  #: the most that a dispatch starts; each then takes several items

#: Workgroups of a dispatch; every shader strides on until all its items are done.
_GROUPS = (1, 64, INVOCATIONS // LOCAL_SIZE)

#: Turns of all its loops that an invocation may make in one dispatch. Mesa's llvmpipe leaves every loop after 65,535
#: turns in all (LP_MAX_TGSI_LOOP_ITERATIONS) and says nothing: longer work is cut into several dispatches.
TURNS = 30_000


@dataclass(frozen=True)
class Dispatch:
    """One run of a shader: how many work items it has (0 is run too: the shader must do nothing), which part of it is
    run (the specialization constant 0, for shaders that have one), and the fields that are its own."""

    items: int
    part: int = 0
    own: Mapping[str, int] = field(default_factory=dict)


def groups_of(items: int) -> int:
    """How many workgroups a dispatch for `items` work items has."""
    return next((groups for groups in _GROUPS if groups * LOCAL_SIZE >= items), _GROUPS[-1])


@dataclass(frozen=True)
class Blocks:
    """The blocks of fields that a shader has."""

    pushed: Struct
    table: Struct

    @classmethod
    def of(cls, text: str) -> Blocks:
        """Those of a shader's source."""
        return cls(struct_in(text, "uniform Arguments"), struct_in(text, "buffer Table"))


def scratch_of(kernel: Kernel, case: Case) -> Shapes:
    """The case's intermediate results: those of the op, and the sums of rows, which here outlast a dispatch."""
    if not isinstance(kernel.family, Row):
        return kernel.scratch(case)
    sums = ("sums", "second_sums") if kernel.family.second else ("sums",)
    return dict.fromkeys(sums, (*case.inputs["x"].shape[:-1], 1))


def with_scratch(kernel: Kernel, case: Case, plan: Plan) -> Plan:
    """The plan with a slot for each of the case's intermediate results, behind the arguments."""
    slots, size = dict(plan.slots), plan.size
    for name, shape in scratch_of(kernel, case).items():
        layout = Layout.contiguous("f32", shape)
        slots[name] = Slot(name, layout, size, -(-layout.end // ALIGNMENT) * ALIGNMENT)
        size += slots[name].size
    return Plan(slots, size)


def values_of(kernel: Kernel, case: Case, plan: Plan) -> Values:
    """What the fields of the blocks hold, `items`, `first` and `end` still 0."""

    def place(name: str) -> tuple[int, Layout] | None:
        slot = plan.slots.get(name)
        return None if slot is None else (slot.start + slot.layout.offset, slot.layout)

    return kernel.values(case, place, plan.slots, {"items": 0, "first": 0, "end": 0})


def pushed(struct: Struct, numbers: Sequence[int], dispatch: Dispatch) -> np.ndarray:
    """The push constants of one dispatch, as uint32 all the way: as floats, some would pass for NaNs. `numbers` are
    those of the case, the same for all of its dispatches."""
    found = np.zeros(WORDS, dtype=np.uint32)
    found[: len(numbers)] = numbers
    for name, value in dispatch.own.items():
        if name in struct.places:
            found[struct.places[name]] = value
    return found


def dispatches(kernel: Kernel, case: Case) -> list[Dispatch]:
    """The dispatches of a case, in order; there is always one."""
    return [dispatch for launch in kernel.launches(case) for dispatch in _cut(kernel, case, launch)]


def _cut(kernel: Kernel, case: Case, launch: Launch) -> list[Dispatch]:
    """What a launch is here: one dispatch, or as many as its loops take."""
    if launch.kernel in _OWN:
        return _OWN[launch.kernel](kernel, case)
    stem = kernel.stem(case.op)
    part = PARTS[stem].index(launch.kernel.removeprefix(f"{stem}_")) if stem in PARTS else 0
    if launch.steps is not None:
        return _walk(part, launch.items, launch.steps, launch.turns)
    return _sliced(part, launch.items, launch.turns(0))


def _walk(part: int, items: int, steps: int, turns: Callable[[int], int]) -> list[Dispatch]:
    """Dispatches that cover all steps of a walk."""
    ranges = _ranges(steps, items, turns)
    return [Dispatch(items, part, {"items": items, "first": first, "end": end}) for first, end in ranges]


def _ranges(steps: int, items: int, turns: Callable[[int], int]) -> Iterator[tuple[int, int]]:
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


def _sliced(part: int, items: int, turns: int) -> list[Dispatch]:
    """Dispatches that cover the items of a part, each of `turns` turns."""
    most = INVOCATIONS * max(TURNS // (turns + 1), 1)
    found = []
    for first in range(0, max(items, 1), most):
        own = {"items": items, "first": first, "end": min(first + most, items)}
        found.append(Dispatch(min(most, items - first), part, own))
    return found


def _row(kernel: Kernel, case: Case) -> list[Dispatch]:
    """A walk for each sum; then all elements, but for those that the walk itself has written."""
    assert isinstance(kernel.family, Row)
    (launch,), name = kernel.launches(case), PARTS["row"].index
    steps = launch.row or 0
    found = _walk(name("sum"), launch.items, steps, lambda step: 1)
    if kernel.family.second:
        found += _walk(name("second_sum"), launch.items, steps, lambda step: 1)
    if not kernel.family.reduces:
        found += _sliced(name("out"), case.outputs["out"].size, 0)
    return found


def _flash(kernel: Kernel, case: Case) -> list[Dispatch]:
    """A walk over tiles of keys."""
    n = mla.Sizes(case)
    turns = _MLA_TILE * (n.d_c + n.d_r + n.d_c + 2) + n.d_c + 1
    part = PARTS["mla_absorbed"].index("flash")
    return _walk(part, n.all_queries, -(-n.kv_len // _MLA_TILE), lambda step: turns)


def _softmax(kernel: Kernel, case: Case) -> list[Dispatch]:
    """Its steps one by one, for rows may be long."""
    n, name = mla.Sizes(case), PARTS["mla_absorbed"].index
    scores = n.all_queries * n.rows
    found = _walk(name("top"), n.all_queries, n.rows, lambda step: 1)
    found += _sliced(name("weights"), scores, 0)
    found += _walk(name("total"), n.all_queries, n.rows, lambda step: 1)
    return [*found, *_sliced(name("divide"), scores, 0)]


#: The kernels that become dispatches in their own way.
_OWN: Mapping[str, Callable[[Kernel, Case], list[Dispatch]]] = {
    "row": _row,
    "mla_absorbed_flash": _flash,
    "mla_absorbed_softmax": _softmax,
}
