"""The launches that each op takes on OpenCL. `own_buffers.py` says what fields and buffers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opconform.backends import delta_net, mla, own_buffers
from opconform.backends.fields import bits, four_ne
from opconform.backends.own_buffers import elements, place, scratch_of
from opconform.harness.model.case import Case

CPY_TYPES = ("f32", "f16", "bf16", "i32")  #: as cpy.cl numbers them


@dataclass(frozen=True)
class Launch:
    """One run of a kernel: its name, its number of work-items (0 is run too: the kernel must do nothing), the fields
    of its struct, and the arguments and scratch whose buffers follow."""

    kernel: str
    items: int
    fields: list[int]
    buffers: tuple[str, ...]


def _through_view(case: Case, *more: int) -> list[Launch]:
    a, b, fields = case.inputs["a"], case.inputs["b"], [*own_buffers.through_view(case), *more]
    copy = Launch(f"{case.op}_copy", a.size, fields, ("a", "out"))
    view = Launch(f"{case.op}_view", b.size, fields, ("b", "out"))
    return [view] if case.inplace else [copy, view]


def _acc(case: Case) -> list[Launch]:
    return _through_view(case)


def _set(case: Case) -> list[Launch]:
    return _through_view(case, case.inputs["a"].type.itemsize)


def _cumsum(case: Case) -> list[Launch]:
    x, axis = case.inputs["x"], int(case.params["axis"])
    lines = x.size // max(four_ne(x)[axis], 1)
    return [Launch("cumsum", lines, own_buffers.cumsum(case), ("x", "out"))]


def _solve_tri(case: Case) -> list[Launch]:
    b, fields = case.inputs["b"], own_buffers.solve_tri(case)
    unknowns = four_ne(b)[1 if case.params["left"] else 0]
    return [Launch("solve_tri", b.size // max(unknowns, 1), fields, ("a", "b", "out"))]


def _gated_delta_net(case: Case) -> list[Launch]:
    n, scratch = delta_net.Sizes(case), scratch_of(case)
    q, k = delta_net.used(case, "q"), delta_net.used(case, "k")
    decay = "decay" if case.params["gate"] == "log" else "g"
    states = "states" if "states" in scratch else "last_state"
    fields = own_buffers.of_delta_net(case, int(case.params["snapshots"]), scratch[states][1])
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
    fields = own_buffers.of_delta_net(case, n.chunk, n.chunks, n.blocks, *switches)
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


def _moves(case: Case, *more: int) -> list[Launch]:
    """An op that moves elements: a work-item for each element of out."""
    fields = elements(case, case.inputs["x"].type.itemsize, *more)
    return [Launch(case.op, case.outputs["out"].size, fields, ("x", "out"))]


def _tri(case: Case) -> list[Launch]:
    kind = str(case.params["kind"])
    return _moves(case, int(kind.startswith("lower")), int(kind.endswith("_diag")))


def _pad(case: Case) -> list[Launch]:
    return _moves(case, *(int(case.params[f"lp{k}"]) for k in range(4)))


def _cpy(case: Case) -> list[Launch]:
    types = [CPY_TYPES.index(layout.dtype) for layout in (case.inputs["x"], case.outputs["out"])]
    return [Launch("cpy", case.outputs["out"].size, elements(case, *types), ("x", "out"))]


def _sum_rows(case: Case) -> list[Launch]:
    return [Launch("sum_rows", case.outputs["out"].size, elements(case), ("x", "out"))]


def _l2_norm(case: Case) -> list[Launch]:
    n1, n2, n3 = four_ne(case.inputs["x"])[1:]
    eps = bits(float(case.params["eps"]))
    return [Launch("l2_norm", n1 * n2 * n3, elements(case, eps, int(case.params["eps_mode"] == "add")), ("x", "out"))]


def _ssm_conv(case: Case) -> list[Launch]:
    fields = elements(case, case.inputs["c"].ne[0], *place(case, "c"))
    return [Launch("ssm_conv", case.outputs["out"].size, fields, ("x", "c", "out"))]


def _mla_absorbed(case: Case) -> list[Launch]:
    n, fields = mla.Sizes(case), own_buffers.of_mla(case)
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
