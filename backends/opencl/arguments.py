"""What every op's kernels get: the launches, and the fields of `struct arguments` in the order the kernel names them.

Every field is a 64-bit unsigned integer. Places are bytes from the start of the argument's own buffer, which begins
with a guard; sizes are elements, innermost first; a float32 parameter is its bits in the low half (`as_float`).

An op with intermediate results names them in `SCRATCH`, with their shapes: each is a packed float32 buffer of its own,
full of NaN before the first launch, that lasts from the first launch to the last. A launch takes them by name, as it
takes the arguments; their names must not be those of arguments. After the last launch the harness can ask for all of
them, and judges those that bear the name of a stage of the op: so give each stage's buffer the shape of the stage.
An argument that the case leaves out reaches the kernel as a null pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opconform.backends import delta_net, mla
from opconform.backends.fields import bits, four_nb, four_ne, view_of
from opconform.harness.buffers import GUARD
from opconform.harness.case import Case
from opconform.harness.layouts import Layout

CPY_TYPES = ("f32", "f16", "bf16", "i32")  #: as cpy.cl numbers them


@dataclass(frozen=True)
class Launch:
    """One run of a kernel: its name, its number of work-items (0 is run too: the kernel must do nothing), the fields
    of its struct, and the arguments and scratch whose buffers follow."""

    kernel: str
    items: int
    fields: list[int]
    buffers: tuple[str, ...]


def _place(case: Case, name: str) -> list[int]:
    """Where an argument's elements stand in its buffer: the first one, and the strides."""
    layout = case.layouts[name]
    return [GUARD + layout.offset, *four_nb(layout)]


def _through_view(case: Case, more: list[int]) -> list[Launch]:
    a, b = case.inputs["a"], case.inputs["b"]
    fields = [*four_ne(a), *_place(case, "a"), *_place(case, "out"), *four_ne(b), *_place(case, "b")]
    fields += [*view_of(case), *more]
    copy = Launch(f"{case.op}_copy", a.size, fields, ("a", "out"))
    view = Launch(f"{case.op}_view", b.size, fields, ("b", "out"))
    return [view] if case.inplace else [copy, view]


def _acc(case: Case) -> list[Launch]:
    return _through_view(case, [])


def _set(case: Case) -> list[Launch]:
    return _through_view(case, [case.inputs["a"].type.itemsize])


def _cumsum(case: Case) -> list[Launch]:
    x, axis = case.inputs["x"], int(case.params["axis"])
    lines = x.size // max(four_ne(x)[axis], 1)
    fields = [*four_ne(x), *_place(case, "x"), *_place(case, "out"), axis]
    fields += [int(case.params["exclusive"]), int(case.params["reverse"])]
    return [Launch("cumsum", lines, fields, ("x", "out"))]


def _solve_tri(case: Case) -> list[Launch]:
    b, params = case.inputs["b"], case.params
    unknowns = four_ne(b)[1 if params["left"] else 0]
    fields = [*four_ne(b), *_place(case, "a"), *_place(case, "b"), *_place(case, "out")]
    fields += [int(params["left"]), int(params["lower"]), int(params["unit"])]
    return [Launch("solve_tri", b.size // max(unknowns, 1), fields, ("a", "b", "out"))]


def _delta_net(case: Case, *more: int) -> list[int]:
    """The fields of both delta-net ops, the places of arguments and of intermediate results among them."""
    scratch = SCRATCH[case.op](case)

    def place(name: str) -> list[int]:
        return [0, *four_nb(Layout.contiguous("f32", scratch[name]))] if name in scratch else _place(case, name)

    decay = place("decay" if case.params["gate"] == "log" else "g") if case.op == "gated_delta_net" else []
    return [*delta_net.fields(case, place), *decay, *more]


def _gated_delta_net(case: Case) -> list[Launch]:
    n, scratch = delta_net.Sizes(case), SCRATCH[case.op](case)
    q, k = delta_net.used(case, "q"), delta_net.used(case, "k")
    decay = "decay" if case.params["gate"] == "log" else "g"
    states = "states" if "states" in scratch else "last_state"
    fields = _delta_net(case, int(case.params["snapshots"]), scratch[states][1])
    buffers = (q, k, "v", decay, "beta", "state", "delta", states, "out", "state_out")
    launches = [Launch("gated_delta_net_tokens", n.sequences * n.heads * n.values, fields, buffers)]
    if decay == "decay":
        gates = n.sequences * n.tokens * n.heads * n.gates
        launches.insert(0, Launch("gated_delta_net_decay", gates, fields, ("g", "decay")))
    if case.params["l2norm"]:
        rows = n.sequences * n.tokens * n.key_heads
        launches.insert(0, Launch("gated_delta_net_norm", rows, fields, ("q", "k", "q_norm", "k_norm")))
    return launches


def _gated_delta_net_chunk(case: Case) -> list[Launch]:
    n, params = delta_net.Sizes(case), case.params
    switches = int(params["gate"] == "decay"), int(params["place"] == "acc")
    fields = _delta_net(case, n.chunk, n.chunks, n.blocks, *switches)
    q, k = delta_net.used(case, "q"), delta_net.used(case, "k")
    matrices = n.sequences * n.heads * n.chunks
    square, blocks = matrices * n.chunk**2, matrices * n.blocks * delta_net.BLOCK**2
    launches: list[Launch] = []

    def launch(step: str, items: int, *buffers: str) -> None:
        launches.append(Launch(f"gated_delta_net_chunk_{step}", items, fields, buffers))

    if params["l2norm"]:
        launch("norm", n.sequences * n.tokens * n.key_heads, "q", "k", "q_norm", "k_norm")
    launch("gates", matrices * n.gates, "g", "G")
    launch("scale", matrices * n.chunk * n.keys, q, k, "G", "q_decayed", "k_decayed")
    if n.gates == 1:
        launch("decay", square, "G", "decay")
    if params["form"] == "whole":
        launch("whole", square, q, k, "beta", "G", "decay", "Akk", "Aqk")
    else:
        launch("blocks", blocks, q, k, "beta", "G", "decay", "Akk_blocks", "Aqk_blocks")
        launch("clear", square, "Akk", "Aqk")
        launch("place", blocks, "Akk_blocks", "Aqk_blocks", "Akk", "Aqk")
    launch("solve", matrices * (n.keys + n.values), k, "v", "beta", "G", "Akk", "w", "u")
    columns = n.sequences * n.heads * n.values
    launch("states", columns, "state", "k_decayed", "G", "w", "u", "v_new", "states", "state_out")
    launch("out", n.tokens * columns, "state", "q_decayed", "Aqk", "v_new", "states", "out")
    return launches


def _elements(case: Case, *more: int) -> list[int]:
    """The fields that all ops from x to out begin with, then those of the op's own."""
    x, out = case.inputs["x"], case.outputs["out"]
    return [*four_ne(out), *_place(case, "out"), *four_ne(x), *_place(case, "x"), *more]


def _moves(case: Case, *more: int) -> list[Launch]:
    """An op that moves elements: a work-item for each element of out."""
    fields = _elements(case, case.inputs["x"].type.itemsize, *more)
    return [Launch(case.op, case.outputs["out"].size, fields, ("x", "out"))]


def _tri(case: Case) -> list[Launch]:
    kind = str(case.params["kind"])
    return _moves(case, int(kind.startswith("lower")), int(kind.endswith("_diag")))


def _pad(case: Case) -> list[Launch]:
    return _moves(case, *(int(case.params[f"lp{k}"]) for k in range(4)))


def _cpy(case: Case) -> list[Launch]:
    types = [CPY_TYPES.index(layout.dtype) for layout in (case.inputs["x"], case.outputs["out"])]
    return [Launch("cpy", case.outputs["out"].size, _elements(case, *types), ("x", "out"))]


def _sum_rows(case: Case) -> list[Launch]:
    return [Launch("sum_rows", case.outputs["out"].size, _elements(case), ("x", "out"))]


def _l2_norm(case: Case) -> list[Launch]:
    n1, n2, n3 = four_ne(case.inputs["x"])[1:]
    eps = bits(float(case.params["eps"]))
    return [Launch("l2_norm", n1 * n2 * n3, _elements(case, eps, int(case.params["eps_mode"] == "add")), ("x", "out"))]


def _ssm_conv(case: Case) -> list[Launch]:
    fields = _elements(case, case.inputs["c"].ne[0], *_place(case, "c"))
    return [Launch("ssm_conv", case.outputs["out"].size, fields, ("x", "c", "out"))]


def _mla_absorbed(case: Case) -> list[Launch]:
    n, fields = mla.Sizes(case), mla.fields(case, lambda name: _place(case, name))
    launches: list[Launch] = []

    def launch(step: str, items: int, *buffers: str) -> None:
        launches.append(Launch(f"mla_absorbed_{step}", items, fields, buffers))

    launch("query", n.all_queries * n.d_c, "q_nope", "w_uk", "q_absorbed")
    if case.params["form"] != "two_part":
        width = n.d_c + n.d_r
        launch("join_queries", n.all_queries * width, "q_absorbed", "q_pe", "query")
        launch("join_rows", n.sequences * n.rows * width, "c_kv", "k_pe", "row")
    if case.params["form"] == "flash":
        launch("flash", n.all_queries, "query", "row", "mask", "top", "total", "context")
    else:
        if case.params["form"] == "two_part":
            parts = ("q_absorbed", "q_pe", "c_kv", "k_pe", "mask", "scores")
            launch("scores_two_part", n.all_queries * n.rows, *parts)
        else:
            launch("scores_concat", n.all_queries * n.rows, "query", "row", "mask", "scores")
        launch("softmax", n.all_queries, "scores", "top", "total", "weights")
        launch("context", n.all_queries * n.d_c, "weights", "c_kv", "context")
    launch("out", n.all_queries * n.d_v, "context", "w_uv", "out")
    return launches


#: Each op's launches, in order; there is always one.
LAUNCHES: Mapping[str, Callable[[Case], list[Launch]]] = {
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

#: The intermediate results of the ops that have some: their names and shapes, outermost first.
SCRATCH: Mapping[str, Callable[[Case], Mapping[str, tuple[int, ...]]]] = {
    "gated_delta_net": delta_net.recurrent_scratch,
    "gated_delta_net_chunk": delta_net.chunk_scratch,
    "mla_absorbed": mla.scratch,
}

#: The element types of each op's kernels, for every argument that `ARGUMENT_DTYPES` does not name.
DTYPES: Mapping[str, tuple[str, ...]] = {
    "acc": ("f32",),
    "set": ("f32", "f16", "bf16", "i32"),
    "cumsum": ("f32",),
    "solve_tri": ("f32",),
    "gated_delta_net": ("f32",),
    "gated_delta_net_chunk": ("f32",),
    "mla_absorbed": ("f32",),
    "tri": ("f32", "f16", "bf16", "i32"),
    "diag": ("f32", "f16", "bf16", "i32"),
    "pad": ("f32", "f16", "bf16", "i32"),
    "cont": ("f32", "f16", "bf16", "i32"),
    "cpy": ("f32", "f16", "bf16", "i32"),
    "sum_rows": ("f32",),
    "l2_norm": ("f32",),
    "ssm_conv": ("f32",),
}

#: The element types of single arguments (op, argument) that need not be those of the op.
ARGUMENT_DTYPES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("mla_absorbed", "c_kv"): ("f32", "f16", "bf16"),
    ("mla_absorbed", "k_pe"): ("f32", "f16", "bf16"),
    ("mla_absorbed", "mask"): ("f32", "f16"),
}
