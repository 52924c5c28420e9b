"""The delta-net kernels: their intermediate results, what their fields call otherwise, and their launches.

Both ops take the same arguments; `gated_delta_net` walks over the tokens one by one, `gated_delta_net_chunk` over
chunks of them. Where q and k are normalised, or a log gate makes the decay, the kernels that follow read the
intermediate result as if it were the argument: only the places that they get differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from opconform.backends.kernels.fields import Number, four_nb
from opconform.backends.kernels.launch import Launch, Shapes
from opconform.harness.model.case import Case

BLOCK = 16  #: rows and columns of a block of Akk and Aqk in the blockwise form

#: The states after all tokens are kept (and can be shown) up to so many elements; else each overwrites the one before.
_KEPT_STATES = 1 << 22


class Sizes:
    """The sizes of a case by name; `gates` is 1 (one gate per head, GDA) or `keys` (one per key channel, KDA)."""

    def __init__(self, case: Case) -> None:
        self.sequences, self.tokens, self.key_heads, self.keys = case.inputs["q"].shape
        self.heads, self.values = case.inputs["v"].shape[2:]
        self.gates = case.inputs["g"].shape[3]
        self.chunk = int(case.params.get("chunk", 1))
        self.chunks = -(-self.tokens // self.chunk)
        side = self.chunk // BLOCK
        self.blocks = side * (side + 1) // 2  #: those on and below the diagonal


def recurrent_scratch(case: Case) -> Shapes:
    """The intermediate results of `gated_delta_net`."""
    n = Sizes(case)
    found: dict[str, tuple[int, ...]] = _norms(case)
    if case.params["gate"] == "log":
        found["decay"] = case.inputs["g"].shape
    found["delta"] = case.inputs["v"].shape
    state = (n.heads, n.keys, n.values)
    kept = n.tokens if n.sequences * n.tokens * math.prod(state) <= _KEPT_STATES else 1
    return {**found, "states" if kept == n.tokens else "last_state": (n.sequences, kept, *state)}


def chunk_scratch(case: Case) -> Shapes:
    """The intermediate results of `gated_delta_net_chunk`."""
    n = Sizes(case)
    chunks = (n.sequences, n.heads, n.chunks)
    square = (*chunks, n.chunk, n.chunk)
    found: dict[str, tuple[int, ...]] = {**_norms(case), "G": (*chunks, n.chunk, n.gates)}
    if n.gates == 1:
        found["decay"] = square
    if case.params["form"] == "blockwise":
        found |= dict.fromkeys(("Akk_blocks", "Aqk_blocks"), (*chunks, n.blocks, BLOCK, BLOCK))
    found |= dict.fromkeys(("q_decayed", "k_decayed"), (*chunks, n.chunk, n.keys))
    found |= {"Akk": square, "Aqk": square, "w": (*chunks, n.chunk, n.keys)}
    found |= dict.fromkeys(("u", "v_new"), (*chunks, n.chunk, n.values))
    return {**found, "states": (*chunks, n.keys, n.values)}


def _norms(case: Case) -> dict[str, tuple[int, ...]]:
    if not case.params["l2norm"]:
        return {}
    return {f"{name}_norm": case.inputs[name].shape for name in ("q", "k")}


def names(case: Case) -> Mapping[str, str]:
    """q_in and k_in are as the case gives them, q and k what stands for them after the step that may normalise them."""
    suffix = "_norm" if case.params["l2norm"] else ""
    found = {"q_in": "q", "k_in": "k", "q": f"q{suffix}", "k": f"k{suffix}"}
    if case.op == "gated_delta_net":
        found["decay"] = "decay" if case.params["gate"] == "log" else "g"
        found["states"] = "states" if "states" in recurrent_scratch(case) else "last_state"
    return found


def own(case: Case) -> Mapping[str, Number | Sequence[Number]]:
    """The sizes, switches for numbers, and the strides of states along values, keys, heads and sequences, whichever of
    the first two is innermost."""
    n, params = Sizes(case), case.params
    found: dict[str, Number | Sequence[Number]] = dict(vars(n))
    found["chunk_size"] = n.chunk  # its name in GLSL, where fields are global
    found["interleaved"] = params["heads"] == "interleaved"
    found["gates_are_decays"] = params["gate"] == "decay"
    found["accumulate"] = params.get("place") == "acc"
    found["has_state"] = "state" in case.inputs
    if case.op == "gated_delta_net":
        found["kept_states"] = next(shape[1] for name, shape in recurrent_scratch(case).items() if "state" in name)
    for name in ("state", "state_out"):
        if name in case.layouts:
            inner, outer, *rest = four_nb(case.layouts[name])
            found[f"{name}_nb"] = [inner, outer, *rest] if params["state_layout"] == "kv" else [outer, inner, *rest]
    return found


def recurrent(case: Case) -> list[Launch]:
    """The launches of `gated_delta_net`."""
    n, called = Sizes(case), names(case)
    launches = []
    if case.params["l2norm"]:
        rows, buffers = n.sequences * n.tokens * n.key_heads, ("q", "k", "q_norm", "k_norm")
        launches.append(Launch("gated_delta_net_norm", rows, buffers, row=n.keys, loop=4 * n.keys))
    if case.params["gate"] == "log":
        gates = n.sequences * n.tokens * n.heads * n.gates
        launches.append(Launch("gated_delta_net_decay", gates, ("g", "decay")))
    columns, states = n.sequences * n.heads * n.values, called["states"]
    tokens = (called["q"], called["k"], "v", called["decay"], "beta", "state", "delta", states, "out", "state_out")
    walk = Launch("gated_delta_net_tokens", columns, tokens, steps=n.tokens, loop=3 * n.keys + 1)
    return [*launches, walk]


def chunked(case: Case) -> list[Launch]:
    """The launches of `gated_delta_net_chunk`."""
    n, called = Sizes(case), names(case)
    q, k = called["q"], called["k"]
    matrices = n.sequences * n.heads * n.chunks
    square, blocks = matrices * n.chunk**2, matrices * n.blocks * BLOCK**2
    columns = n.sequences * n.heads * n.values
    launches: list[Launch] = []

    def launch(
        step: str, items: int, *buffers: str, row: int | None = None, steps: int | None = None, loop: int = 0
    ) -> None:
        launches.append(Launch(f"gated_delta_net_chunk_{step}", items, buffers, row, steps, loop))

    if case.params["l2norm"]:
        rows = n.sequences * n.tokens * n.key_heads
        launch("norm", rows, "q", "k", "q_norm", "k_norm", row=n.keys, loop=4 * n.keys)
    launch("gates", matrices * n.gates, "g", "G", loop=n.chunk)
    launch("scale", matrices * n.chunk * n.keys, q, k, "G", "q_decayed", "k_decayed")
    if n.gates == 1:
        launch("decay", square, "G", "decay")
    if case.params["form"] == "whole":
        launch("whole", square, q, k, "beta", "G", "decay", "Akk", "Aqk", loop=n.keys)
    else:
        turns = n.keys + n.chunk // BLOCK
        launch("blocks", blocks, q, k, "beta", "G", "decay", "Akk_blocks", "Aqk_blocks", loop=turns)
        launch("clear", square, "Akk", "Aqk")
        launch("place", blocks, "Akk_blocks", "Aqk_blocks", "Akk", "Aqk", loop=n.chunk // BLOCK)
    solved = matrices * (n.keys + n.values)
    launch("solve", solved, k, "v", "beta", "G", "Akk", "w", "u", loop=n.chunk * (n.chunk + 1) // 2)
    states = ("state", "k_decayed", "G", "w", "u", "v_new", "states", "state_out")
    launch("states", columns, *states, steps=n.chunks * (n.chunk + n.keys), loop=1 + max(n.chunk, n.keys))
    outs = ("state", "q_decayed", "Aqk", "v_new", "states", "out")
    launch("out", n.tokens * columns, *outs, loop=n.keys + n.chunk)
    return launches
