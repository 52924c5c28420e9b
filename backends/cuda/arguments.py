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


def _place(case: Case, name: str) -> list[int]:
    """Where an argument's elements stand in its buffer: the first one, and the strides."""
    layout = case.layouts[name]
    return [GUARD + layout.offset, *four_nb(layout)]


def _through_view(case: Case, more: list[int]) -> list[Launch]:
    a, b = case.inputs["a"], case.inputs["b"]
    fields = [*four_ne(a), *_place(case, "a"), *_place(case, "out"), *four_ne(b), *_place(case, "b")]
    fields += [*view_of(case), *more]
    copy = _each(f"{case.op}_copy", a.size, fields, ("a", "out"))
    view = _each(f"{case.op}_view", b.size, fields, ("b", "out"))
    return [view] if case.inplace else [copy, view]


def _acc(case: Case) -> list[Launch]:
    return _through_view(case, [])


def _set(case: Case) -> list[Launch]:
    return _through_view(case, [case.inputs["a"].type.itemsize])


def _cumsum(case: Case) -> list[Launch]:
    x, axis = case.inputs["x"], int(case.params["axis"])
    length = four_ne(x)[axis]
    fields = [*four_ne(x), *_place(case, "x"), *_place(case, "out"), axis]
    fields += [int(case.params["exclusive"]), int(case.params["reverse"])]
    return [_blocks("cumsum", x.size // max(length, 1), _threads(length), fields, ("x", "out"))]


def _solve_tri(case: Case) -> list[Launch]:
    b, params = case.inputs["b"], case.params
    unknowns = four_ne(b)[1 if params["left"] else 0]
    fields = [*four_ne(b), *_place(case, "a"), *_place(case, "b"), *_place(case, "out")]
    fields += [int(params["left"]), int(params["lower"]), int(params["unit"])]
    return [_each("solve_tri", b.size // max(unknowns, 1), fields, ("a", "b", "out"))]


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
    fields = _delta_net(case, n.chunk, n.chunks, n.blocks, *switches)
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


def _elements(case: Case, *more: int) -> list[int]:
    """The fields that all ops from x to out begin with, then those of the op's own."""
    x, out = case.inputs["x"], case.outputs["out"]
    return [*four_ne(out), *_place(case, "out"), *four_ne(x), *_place(case, "x"), *more]


def _moves(case: Case, *more: int) -> list[Launch]:
    """An op that moves elements: a thread for each element of out."""
    fields = _elements(case, case.inputs["x"].type.itemsize, *more)
    return [_each(case.op, case.outputs["out"].size, fields, ("x", "out"))]


def _tri(case: Case) -> list[Launch]:
    kind = str(case.params["kind"])
    return _moves(case, int(kind.startswith("lower")), int(kind.endswith("_diag")))


def _pad(case: Case) -> list[Launch]:
    return _moves(case, *(int(case.params[f"lp{k}"]) for k in range(4)))


def _cpy(case: Case) -> list[Launch]:
    types = [TYPES.index(layout.dtype) for layout in (case.inputs["x"], case.outputs["out"])]
    return [_each("cpy", case.outputs["out"].size, _elements(case, *types), ("x", "out"))]


def _rows(case: Case, *more: int) -> list[Launch]:
    """An op on rows: a block for each row of x."""
    x = case.inputs["x"]
    n0, n1, n2, n3 = four_ne(x)
    return [_blocks(case.op, n1 * n2 * n3, _threads(n0), _elements(case, *more), ("x", "out"))]


def _l2_norm(case: Case) -> list[Launch]:
    return _rows(case, bits(float(case.params["eps"])), int(case.params["eps_mode"] == "add"))


def _ssm_conv(case: Case) -> list[Launch]:
    fields = _elements(case, case.inputs["c"].ne[0], *_place(case, "c"))
    return [_each("ssm_conv", case.outputs["out"].size, fields, ("x", "c", "out"))]


def _mla_absorbed(case: Case) -> list[Launch]:
    n, fields = mla.Sizes(case), mla.fields(case, lambda name: _place(case, name))
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
