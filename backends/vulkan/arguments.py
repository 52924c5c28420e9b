"""What every op's shader gets: its dispatches, and the words of its push constants in the order the shader names them.

All places are bytes from the start of the arena, all sizes elements, innermost first. Push constants are at most
`WORDS` 32-bit words, for 128 bytes is what every Vulkan device has (maxPushConstantsSize).

An op with more fields than that has a row in `TABLES`: words that are the same for all dispatches of a case. The shader
reads them from a storage buffer at binding 1 (`readonly buffer Table { uint q_ne[4]; ... }`); the push constants are
left to what differs from dispatch to dispatch. A float32 parameter is its bits (`bits`, `uintBitsToFloat`).

An op of several steps has a part of its shader for each: `layout(constant_id = 0) const uint part = 0;` is what
`Dispatch.part` says. A pipeline is then made for each part and holds nothing else; a part told by a push constant would
cost llvmpipe the time of all parts, for it walks through every branch with the lanes masked that do not take it.

An op with intermediate results names them in `SCRATCH`, with their shapes: each is packed float32 behind the arguments
in the arena, full of NaN before the first dispatch, and has a slot in the plan that the functions here get, so that
its place is found as an argument's is. Their names must not be those of arguments. After the last dispatch the harness
can ask for all of them, and judges those that bear the name of a stage of the op: so give each stage's scratch the
shape of the stage. An argument that the case leaves out has no slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from opconform.backends import delta_net, mla
from opconform.backends.fields import bits, four_nb, four_ne, view_of
from opconform.harness.model.buffers import ALIGNMENT, Plan, Slot
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout

WORDS = 32  #: of push constants
TABLE_WORDS = 128  #: of an op's table
COPY, VIEW = 0, 1  #: the two parts of acc.comp and set.comp
SQUARES, DIVIDE = 0, 1  #: those of l2_norm.comp
CPY_TYPES = ("f32", "f16", "bf16", "i32")  #: as cpy.comp numbers them
NORM, DECAY, TOKENS = 0, 1, 2  #: the parts of gated_delta_net.comp

#: The parts of gated_delta_net_chunk.comp, and what its table ends with: where each intermediate result begins.
CHUNK_NORM, CHUNK_GATES, CHUNK_SCALE, CHUNK_DECAY, CHUNK_WHOLE, CHUNK_BLOCKS = 0, 1, 2, 3, 4, 5
CHUNK_CLEAR, CHUNK_PLACE, CHUNK_SOLVE, CHUNK_STATES, CHUNK_OUT = 6, 7, 8, 9, 10
_CHUNK_SCRATCH = (
    *("G", "decay", "Akk_blocks", "Aqk_blocks", "Akk", "Aqk"),
    *("q_decayed", "k_decayed", "w", "u", "v_new", "states"),
)

#: The parts of mla_absorbed.comp, and what its table ends with: where each intermediate result begins.
MLA_QUERY, MLA_JOIN_QUERIES, MLA_JOIN_ROWS, MLA_SCORES, MLA_JOINED_SCORES, MLA_TOP = 0, 1, 2, 3, 4, 5
MLA_WEIGHTS, MLA_TOTAL, MLA_DIVIDE, MLA_CONTEXT, MLA_FLASH, MLA_OUT = 6, 7, 8, 9, 10, 11
_MLA_SCRATCH = ("q_absorbed", "query", "row", "scores", "weights", "top", "total", "context")
_MLA_TILE = 4  #: keys that its flash attention looks at together

INVOCATIONS = 1 << 16  #: the most that a dispatch starts; each then takes several items

#: Turns of all its loops that an invocation may make in one dispatch. Mesa's llvmpipe leaves every loop after 65,535
#: turns in all (LP_MAX_TGSI_LOOP_ITERATIONS) and says nothing: longer work is cut into several dispatches.
TURNS = 30_000

LOCAL_SIZE = 64  #: local_size_x of every shader
#: Workgroups of a dispatch; every shader strides on until all its items are done.
_GROUPS = (1, 64, INVOCATIONS // LOCAL_SIZE)


@dataclass(frozen=True)
class Dispatch:
    """One run of a shader: how many work items it has (0 is run too: the shader must do nothing), its words, and which
    part of it is run (the specialization constant 0, for shaders that have one)."""

    items: int
    words: list[int]
    part: int = 0


def groups_of(items: int) -> int:
    """How many workgroups a dispatch for `items` work items has."""
    return next((groups for groups in _GROUPS if groups * LOCAL_SIZE >= items), _GROUPS[-1])


def with_scratch(case: Case, plan: Plan) -> Plan:
    """The plan with a slot for each of the case's intermediate results, behind the arguments."""
    slots, size = dict(plan.slots), plan.size
    for name, shape in (SCRATCH[case.op](case) if case.op in SCRATCH else {}).items():
        layout = Layout.contiguous("f32", shape)
        slots[name] = Slot(name, layout, size, -(-layout.end // ALIGNMENT) * ALIGNMENT)
        size += slots[name].size
    return Plan(slots, size)


def _place(case: Case, plan: Plan, name: str) -> list[int]:
    """Where an argument's elements stand in the arena: the first one, and the strides."""
    layout = case.layouts[name]
    return [plan.slots[name].start + layout.offset, *four_nb(layout)]


def _acc(case: Case, plan: Plan) -> list[Dispatch]:
    a, b = case.inputs["a"], case.inputs["b"]
    words = [*four_ne(a), *_place(case, plan, "a"), *_place(case, plan, "out"), *four_ne(b), *_place(case, plan, "b")]
    words += view_of(case)
    copy, view = Dispatch(a.size, [COPY, *words]), Dispatch(b.size, [VIEW, *words])
    return [view] if case.inplace else [copy, view]


def _set(case: Case, plan: Plan) -> list[Dispatch]:
    itemsize = case.inputs["a"].type.itemsize
    return [Dispatch(dispatch.items, [*dispatch.words, itemsize]) for dispatch in _acc(case, plan)]


def _cumsum(case: Case, plan: Plan) -> list[Dispatch]:
    x, axis = case.inputs["x"], int(case.params["axis"])
    lines = x.size // max(four_ne(x)[axis], 1)
    words = [*four_ne(x), *_place(case, plan, "x"), *_place(case, plan, "out"), axis]
    words += [int(case.params["exclusive"]), int(case.params["reverse"])]
    return [Dispatch(lines, [*words, first, end]) for first, end in _parts(four_ne(x)[axis], lines, lambda place: 1)]


def _solve_tri(case: Case, plan: Plan) -> list[Dispatch]:
    b, params = case.inputs["b"], case.params
    unknowns = four_ne(b)[1 if params["left"] else 0]
    words = [*four_ne(b), *_place(case, plan, "a"), *_place(case, plan, "b"), *_place(case, plan, "out")]
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


def _elements(case: Case, plan: Plan, *more: int) -> list[int]:
    """The words that all ops from x to out begin with, then those of the op's own."""
    x, out = case.inputs["x"], case.outputs["out"]
    return [*four_ne(out), *_place(case, plan, "out"), *four_ne(x), *_place(case, plan, "x"), *more]


def _moves(case: Case, plan: Plan, *more: int) -> list[Dispatch]:
    """An op that moves elements: a work item for each element of out."""
    return [Dispatch(case.outputs["out"].size, _elements(case, plan, case.inputs["x"].type.itemsize, *more))]


def _tri(case: Case, plan: Plan) -> list[Dispatch]:
    kind = str(case.params["kind"])
    return _moves(case, plan, int(kind.startswith("lower")), int(kind.endswith("_diag")))


def _pad(case: Case, plan: Plan) -> list[Dispatch]:
    return _moves(case, plan, *(int(case.params[f"lp{k}"]) for k in range(4)))


def _cpy(case: Case, plan: Plan) -> list[Dispatch]:
    types = [CPY_TYPES.index(layout.dtype) for layout in (case.inputs["x"], case.outputs["out"])]
    return [Dispatch(case.outputs["out"].size, _elements(case, plan, *types))]


def _sum_rows(case: Case, plan: Plan) -> list[Dispatch]:
    n, rows = case.inputs["x"].ne[0], case.outputs["out"].size
    return [Dispatch(rows, _elements(case, plan, *part)) for part in _parts(n, rows, lambda place: 1)]


def _l2_norm(case: Case, plan: Plan) -> list[Dispatch]:
    n, n1, n2, n3 = four_ne(case.inputs["x"])
    fields = (plan.slots["squares"].start, bits(float(case.params["eps"])), int(case.params["eps_mode"] == "add"))
    rows = n1 * n2 * n3
    parts = _parts(n, rows, lambda place: 1)
    sums = [Dispatch(rows, _elements(case, plan, SQUARES, *fields, *part)) for part in parts]
    return [*sums, Dispatch(rows * n, _elements(case, plan, DIVIDE, *fields, 0, n))]


def _ssm_conv(case: Case, plan: Plan) -> list[Dispatch]:
    taps, items = case.inputs["c"].ne[0], case.outputs["out"].size
    fields = _elements(case, plan, *_place(case, plan, "c"))
    return [Dispatch(items, [*fields, *part]) for part in _parts(taps, items, lambda tap: 1)]


def _delta_net_place(plan: Plan) -> delta_net.Place:
    def place(name: str) -> list[int]:
        slot = plan.slots[name]
        return [slot.start + slot.layout.offset, *four_nb(slot.layout)]

    return place


def _gated_delta_net_table(case: Case, plan: Plan) -> list[int]:
    place = _delta_net_place(plan)
    states = plan.slots["states" if "states" in plan.slots else "last_state"]
    decay = place("decay" if case.params["gate"] == "log" else "g")
    more = [int(case.params["snapshots"]), states.layout.shape[1], plan.slots["delta"].start, states.start]
    return [*delta_net.fields(case, place), *decay, *more]


def _gated_delta_net(case: Case, plan: Plan) -> list[Dispatch]:
    n, params = delta_net.Sizes(case), case.params
    found: list[Dispatch] = []
    if params["l2norm"]:
        found += _sliced(NORM, n.sequences * n.tokens * n.key_heads, 4 * n.keys)
    if params["gate"] == "log":
        found += _sliced(DECAY, n.sequences * n.tokens * n.heads * n.gates, 0)
    columns = n.sequences * n.heads * n.values
    tokens = _parts(n.tokens, columns, lambda token: 3 * n.keys + 1)
    return [*found, *(Dispatch(columns, [columns, *some], TOKENS) for some in tokens)]


def _gated_delta_net_chunk_table(case: Case, plan: Plan) -> list[int]:
    n, params = delta_net.Sizes(case), case.params
    switches = int(params["gate"] == "decay"), int(params["place"] == "acc")
    scratch = [plan.slots[name].start if name in plan.slots else 0 for name in _CHUNK_SCRATCH]
    fields = delta_net.fields(case, _delta_net_place(plan))
    return [*fields, n.chunk, n.chunks, n.blocks, *switches, *scratch]


def _gated_delta_net_chunk(case: Case, plan: Plan) -> list[Dispatch]:
    n, params = delta_net.Sizes(case), case.params
    matrices = n.sequences * n.heads * n.chunks
    square, blocks = matrices * n.chunk**2, matrices * n.blocks * delta_net.BLOCK**2
    found: list[Dispatch] = []
    if params["l2norm"]:
        found += _sliced(CHUNK_NORM, n.sequences * n.tokens * n.key_heads, 4 * n.keys)
    found += _sliced(CHUNK_GATES, matrices * n.gates, n.chunk)
    found += _sliced(CHUNK_SCALE, matrices * n.chunk * n.keys, 0)
    if n.gates == 1:
        found += _sliced(CHUNK_DECAY, square, 0)
    if params["form"] == "whole":
        found += _sliced(CHUNK_WHOLE, square, n.keys)
    else:
        found += _sliced(CHUNK_BLOCKS, blocks, n.keys + n.chunk // delta_net.BLOCK)
        found += _sliced(CHUNK_CLEAR, square, 0)
        found += _sliced(CHUNK_PLACE, blocks, n.chunk // delta_net.BLOCK)
    found += _sliced(CHUNK_SOLVE, matrices * (n.keys + n.values), n.chunk * (n.chunk + 1) // 2)
    columns, rows = n.sequences * n.heads * n.values, n.chunks * (n.chunk + n.keys)
    some_rows = _parts(rows, columns, lambda row: 1 + max(n.chunk, n.keys))
    found += [Dispatch(columns, [columns, *some], CHUNK_STATES) for some in some_rows]
    return [*found, *_sliced(CHUNK_OUT, n.tokens * columns, n.keys + n.chunk)]


def _mla_absorbed_table(case: Case, plan: Plan) -> list[int]:
    scratch = [plan.slots[name].start if name in plan.slots else 0 for name in _MLA_SCRATCH]
    return [*mla.fields(case, lambda name: _place(case, plan, name)), *scratch]


def _mla_absorbed(case: Case, plan: Plan) -> list[Dispatch]:
    n, form = mla.Sizes(case), case.params["form"]
    width, scores = n.d_c + n.d_r, n.all_queries * n.rows
    found = _sliced(MLA_QUERY, n.all_queries * n.d_c, n.d_n)

    def walk(part: int, items: int, steps: int, turns: int) -> list[Dispatch]:
        return [Dispatch(items, [items, *keys], part) for keys in _parts(steps, items, lambda step: turns)]

    if form != "two_part":
        found += _sliced(MLA_JOIN_QUERIES, n.all_queries * width, 0)
        found += _sliced(MLA_JOIN_ROWS, n.sequences * n.rows * width, 0)
    if form == "flash":
        turns = _MLA_TILE * (width + n.d_c + 2) + n.d_c + 1
        found += walk(MLA_FLASH, n.all_queries, -(-n.kv_len // _MLA_TILE), turns)
    else:
        found += _sliced(MLA_SCORES if form == "two_part" else MLA_JOINED_SCORES, scores, width)
        found += walk(MLA_TOP, n.all_queries, n.rows, 1)
        found += _sliced(MLA_WEIGHTS, scores, 0)
        found += walk(MLA_TOTAL, n.all_queries, n.rows, 1)
        found += _sliced(MLA_DIVIDE, scores, 0)
        found += walk(MLA_CONTEXT, n.all_queries * n.d_c, n.kv_len, 1)
    return [*found, *_sliced(MLA_OUT, n.all_queries * n.d_v, n.d_c)]


def _sliced(part: int, items: int, turns: int) -> list[Dispatch]:
    """Dispatches that cover the items of a part, each of `turns` turns; the words are the number of all items and the
    range of those of the dispatch."""
    most = INVOCATIONS * max(TURNS // (turns + 1), 1)
    firsts = range(0, max(items, 1), most)
    return [Dispatch(min(most, items - first), [items, first, min(first + most, items)], part) for first in firsts]


#: Each op's dispatches, in order; there is always one.
DISPATCHES: Mapping[str, Callable[[Case, Plan], list[Dispatch]]] = {
    "acc": _acc,
    "set": _set,
    "cumsum": _cumsum,
    "solve_tri": _solve_tri,
    "gated_delta_net": _gated_delta_net,
    "gated_delta_net_chunk": _gated_delta_net_chunk,
    "mla_absorbed": _mla_absorbed,
    "tri": _tri,
    "diag": _moves,
    "pad": _pad,
    "cont": _moves,
    "cpy": _cpy,
    "sum_rows": _sum_rows,
    "l2_norm": _l2_norm,
    "ssm_conv": _ssm_conv,
}

#: The words that all dispatches of a case share, of the ops with more of them than push constants hold.
TABLES: Mapping[str, Callable[[Case, Plan], list[int]]] = {
    "gated_delta_net": _gated_delta_net_table,
    "gated_delta_net_chunk": _gated_delta_net_chunk_table,
    "mla_absorbed": _mla_absorbed_table,
}

#: The intermediate results of the ops that have some: their names and shapes, outermost first.
SCRATCH: Mapping[str, Callable[[Case], Mapping[str, tuple[int, ...]]]] = {
    "gated_delta_net": delta_net.recurrent_scratch,
    "gated_delta_net_chunk": delta_net.chunk_scratch,
    "mla_absorbed": mla.scratch,
    "l2_norm": lambda case: {"squares": (*case.inputs["x"].shape[:-1], 1)},
}
