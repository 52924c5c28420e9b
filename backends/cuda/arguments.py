"""The launches that each op takes on CUDA. `own_buffers.py` says what fields and buffers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opconform.backends import delta_net, mla, own_buffers
from opconform.backends.fields import bits, four_ne
from opconform.backends.own_buffers import elements, place, scratch_of
from opconform.harness.model.case import Case

THREADS = 256  #: of a block, where a kernel takes one item per thread; no block has more
TYPES = ("f32", "f16", "bf16", "i32")  #: as elements.cuh numbers them


@dataclass(frozen=True)
class Launch:
    """One run of a kernel: its name, the blocks and the threads of a block along x, y and z, the fields of its struct,
    and the arguments and scratch whose buffers follow.

    Blocks are counted along x alone, which takes 2^31 - 1 of them; y and z take 65535.
    """

    kernel: str
    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]
    fields: list[int]
    buffers: tuple[str, ...]


def _each(kernel: str, items: int, fields: list[int], buffers: tuple[str, ...]) -> Launch:
    """A launch with a thread for each of `items`. One block at least: without items the kernel must do nothing."""
    return Launch(kernel, (max(-(-items // THREADS), 1), 1, 1), (THREADS, 1, 1), fields, buffers)


def _threads(length: int, most: int = THREADS) -> int:
    """Threads of a block that shares `length` elements among them: a power of two, at least one warp."""
    return min(max(1 << max(length - 1, 0).bit_length(), 32), most)


def _blocks(kernel: str, blocks: int, threads: int, fields: list[int], buffers: tuple[str, ...]) -> Launch:
    """A launch with a block for each of `blocks` items; one block at least."""
    return Launch(kernel, (max(blocks, 1), 1, 1), (threads, 1, 1), fields, buffers)


def _through_view(case: Case, *more: int) -> list[Launch]:
    a, b, fields = case.inputs["a"], case.inputs["b"], [*own_buffers.through_view(case), *more]
    copy = _each(f"{case.op}_copy", a.size, fields, ("a", "out"))
    view = _each(f"{case.op}_view", b.size, fields, ("b", "out"))
    return [view] if case.inplace else [copy, view]


def _acc(case: Case) -> list[Launch]:
    return _through_view(case)


def _set(case: Case) -> list[Launch]:
    return _through_view(case, case.inputs["a"].type.itemsize)


def _cumsum(case: Case) -> list[Launch]:
    x, axis = case.inputs["x"], int(case.params["axis"])
    length = four_ne(x)[axis]
    return [_blocks("cumsum", x.size // max(length, 1), _threads(length), own_buffers.cumsum(case), ("x", "out"))]


def _solve_tri(case: Case) -> list[Launch]:
    b, fields = case.inputs["b"], own_buffers.solve_tri(case)
    unknowns = four_ne(b)[1 if case.params["left"] else 0]
    return [_each("solve_tri", b.size // max(unknowns, 1), fields, ("a", "b", "out"))]


def _gated_delta_net(case: Case) -> list[Launch]:
    n, scratch = delta_net.Sizes(case), scratch_of(case)
    q, k = delta_net.used(case, "q"), delta_net.used(case, "k")
    decay = "decay" if case.params["gate"] == "log" else "g"
    states = "states" if "states" in scratch else "last_state"
    fields = own_buffers.of_delta_net(case, int(case.params["snapshots"]), scratch[states][1])
    launches = []
    if case.params["l2norm"]:
        rows = n.sequences * n.tokens * n.key_heads
        buffers: tuple[str, ...] = ("q", "k", "q_norm", "k_norm")
        launches.append(_blocks("gated_delta_net_norm", rows, _threads(n.keys), fields, buffers))
    if decay == "decay":
        gates = n.sequences * n.tokens * n.heads * n.gates
        launches.append(_each("gated_delta_net_decay", gates, fields, ("g", "decay")))
    threads = _threads(n.values)
    columns = n.sequences * n.heads * -(-n.values // threads)
    buffers = (q, k, "v", decay, "beta", "state", "delta", states, "out", "state_out")
    return [*launches, _blocks("gated_delta_net_tokens", columns, threads, fields, buffers)]


def _gated_delta_net_chunk(case: Case) -> list[Launch]:
    n, params = delta_net.Sizes(case), case.params
    switches = int(params["gate"] == "decay"), int(params["place"] == "acc")
    fields = own_buffers.of_delta_net(case, n.chunk, n.chunks, n.blocks, *switches)
    q, k = delta_net.used(case, "q"), delta_net.used(case, "k")
    matrices = n.sequences * n.heads * n.chunks
    square, block = matrices * n.chunk**2, delta_net.BLOCK
    launches: list[Launch] = []

    def each(step: str, items: int, *buffers: str) -> None:
        launches.append(_each(f"gated_delta_net_chunk_{step}", items, fields, buffers))

    if params["l2norm"]:
        rows, buffers = n.sequences * n.tokens * n.key_heads, ("q", "k", "q_norm", "k_norm")
        launches.append(_blocks("gated_delta_net_chunk_norm", rows, _threads(n.keys), fields, buffers))
    each("gates", matrices * n.gates, "g", "G")
    each("scale", matrices * n.chunk * n.keys, q, k, "G", "q_decayed", "k_decayed")
    if n.gates == 1:
        each("decay", square, "G", "decay")
    if params["form"] == "whole":
        each("whole", square, q, k, "beta", "G", "decay", "Akk", "Aqk")
    else:
        grid, names = max(matrices * n.blocks, 1), (q, k, "beta", "G", "decay", "Akk_blocks", "Aqk_blocks")
        launches.append(Launch("gated_delta_net_chunk_blocks", (grid, 1, 1), (block, block, 1), fields, names))
        each("clear", square, "Akk", "Aqk")
        each("place", matrices * n.blocks * block**2, "Akk_blocks", "Aqk_blocks", "Akk", "Aqk")
    each("solve", matrices * (n.keys + n.values), k, "v", "beta", "G", "Akk", "w", "u")
    columns = n.sequences * n.heads * n.values
    each("states", columns, "state", "k_decayed", "G", "w", "u", "v_new", "states", "state_out")
    each("out", n.tokens * columns, "state", "q_decayed", "Aqk", "v_new", "states", "out")
    return launches


def _moves(case: Case, *more: int) -> list[Launch]:
    """An op that moves elements: a thread for each element of out."""
    fields = elements(case, case.inputs["x"].type.itemsize, *more)
    return [_each(case.op, case.outputs["out"].size, fields, ("x", "out"))]


def _tri(case: Case) -> list[Launch]:
    kind = str(case.params["kind"])
    return _moves(case, int(kind.startswith("lower")), int(kind.endswith("_diag")))


def _pad(case: Case) -> list[Launch]:
    return _moves(case, *(int(case.params[f"lp{k}"]) for k in range(4)))


def _cpy(case: Case) -> list[Launch]:
    types = [TYPES.index(layout.dtype) for layout in (case.inputs["x"], case.outputs["out"])]
    return [_each("cpy", case.outputs["out"].size, elements(case, *types), ("x", "out"))]


def _rows(case: Case, *more: int) -> list[Launch]:
    """An op on rows: a block for each row of x."""
    x = case.inputs["x"]
    n0, n1, n2, n3 = four_ne(x)
    return [_blocks(case.op, n1 * n2 * n3, _threads(n0), elements(case, *more), ("x", "out"))]


def _l2_norm(case: Case) -> list[Launch]:
    return _rows(case, bits(float(case.params["eps"])), int(case.params["eps_mode"] == "add"))


def _ssm_conv(case: Case) -> list[Launch]:
    fields = elements(case, case.inputs["c"].ne[0], *place(case, "c"))
    return [_each("ssm_conv", case.outputs["out"].size, fields, ("x", "c", "out"))]


def _mla_absorbed(case: Case) -> list[Launch]:
    n, fields = mla.Sizes(case), own_buffers.of_mla(case)
    launches: list[Launch] = []

    def each(step: str, items: int, *buffers: str) -> None:
        launches.append(_each(f"mla_absorbed_{step}", items, fields, buffers))

    def per_query(step: str, threads: int, *buffers: str) -> None:
        launches.append(_blocks(f"mla_absorbed_{step}", n.all_queries, threads, fields, buffers))

    each("query", n.all_queries * n.d_c, "q_nope", "w_uk", "q_absorbed")
    if case.params["form"] != "two_part":
        width = n.d_c + n.d_r
        each("join_queries", n.all_queries * width, "q_absorbed", "q_pe", "query")
        each("join_rows", n.sequences * n.rows * width, "c_kv", "k_pe", "row")
    if case.params["form"] == "flash":
        per_query("flash", _threads(n.kv_len, most=64), "query", "row", "mask", "top", "total", "context")
    else:
        if case.params["form"] == "two_part":
            parts = ("q_absorbed", "q_pe", "c_kv", "k_pe", "mask", "scores")
            each("scores_two_part", n.all_queries * n.rows, *parts)
        else:
            each("scores_concat", n.all_queries * n.rows, "query", "row", "mask", "scores")
        per_query("softmax", _threads(n.rows), "scores", "weights")
        each("context", n.all_queries * n.d_c, "weights", "c_kv", "context")
    each("out", n.all_queries * n.d_v, "context", "w_uv", "out")
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
    "sum_rows": _rows,
    "l2_norm": _l2_norm,
    "ssm_conv": _ssm_conv,
}
