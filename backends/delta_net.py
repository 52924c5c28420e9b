"""What the delta-net kernels of all APIs get alike: their intermediate results, sizes and places.

Both ops take the same arguments; `gated_delta_net` walks over the tokens one by one, `gated_delta_net_chunk` over
chunks of them. Where q and k are normalised, or a log gate makes the decay, the kernels that follow read the
intermediate result as if it were the argument: only the places that they get differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from opconform.backends.fields import bits
from opconform.harness.model.case import Case

BLOCK = 16  #: rows and columns of a block of Akk and Aqk in the blockwise form

#: The states after all tokens are kept (and can be shown) up to so many elements; else each overwrites the one before.
_KEPT_STATES = 1 << 22

Shapes = Mapping[str, tuple[int, ...]]
Place = Callable[[str], list[int]]  #: of an argument or intermediate result: its first byte, then four byte strides


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


def used(case: Case, name: str) -> str:
    """What stands for q and k after the step that may normalise them."""
    return f"{name}_norm" if case.params["l2norm"] else name


def fields(case: Case, place: Place) -> list[int]:
    """The fields that the kernels of both ops begin with."""
    n, params = Sizes(case), case.params
    found = [n.sequences, n.tokens, n.key_heads, n.heads, n.keys, n.values, n.gates]
    found += [int(params["heads"] == "interleaved"), bits(float(params["scale"])), bits(float(params["eps"]))]
    for name in ("q", "k", used(case, "q"), used(case, "k"), "v", "g", "beta"):
        found += place(name)
    found += [int("state" in case.inputs), *(_state(case, place("state")) if "state" in case.inputs else [0] * 5)]
    return [*found, *place("out"), *_state(case, place("state_out"))]


def _state(case: Case, place: list[int]) -> list[int]:
    """The strides of a state along values, keys, heads and sequences, whichever of the first two is innermost."""
    start, inner, outer, *rest = place
    return [start, inner, outer, *rest] if case.params["state_layout"] == "kv" else [start, outer, inner, *rest]
