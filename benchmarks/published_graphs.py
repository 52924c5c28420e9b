"""The graphs that published results compare, on ggml: each is a backend that differs from `ggml` in one graph.

`published.py` times them. Those whose result is an op's are judged by its reference before a time of theirs counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from opconform.backends.ggml import GgmlBackend
from opconform.backends.ggml.delta_net import BLOCK, Chunked
from opconform.backends.ggml.graphs import GRAPHS
from opconform.backends.ggml.mla import F16, F32, Attention
from opconform.backends.ggml.nodes import Build, Nodes

_ANY_SIZE = 1 << 62


class _Chunk(Chunked):
    largest = _ANY_SIZE


class _SolvedInTheLoop(_Chunk):
    """Akk is never placed: block row i of u and w is solved from its own diagonal block, once the share of the block
    rows before it is subtracted."""

    def in_blocks(self, q: Any, k: Any, k_beta: Any, gates: Any) -> tuple[Any, Any]:
        self.akk, aqk = self.blocks(q, k, k_beta, gates)
        return None, self.placed("Aqk", aqk)

    def solved(self, akk: Any, *sides: Any) -> list[Any]:
        nodes, make = self.nodes, self.nodes.make
        identity = self.identity(BLOCK)
        count = self.chunk // BLOCK
        diagonals = [make("add", self.akk[i, i], identity) for i in range(count)]
        found = []
        for side in sides:
            rows: list[Any] = []
            for i in range(count):
                right = self.rows_of(side, i)
                for j, before in enumerate(rows):
                    right = make("sub", right, make("mul_mat", nodes.turned(before), self.akk[i, j]))
                rows.append(make("solve_tri", diagonals[i], right, True, True, False))
            whole = rows[0]
            for row in rows[1:]:
                whole = make("concat", whole, row, 1)
            found.append(whole)
        return found


class _Stored(Attention):
    """The op's graph where weights are stored as it multiplies them, as a model's file holds them: none is turned."""

    def turned_weight(self, weight: Any) -> Any:
        return packed(self.nodes, self.nodes.permuted(weight, 1, 0, 2, 3))


def packed(nodes: Nodes, tensor: Any) -> Any:
    """The tensor, copied unless it is packed already."""
    ne, nb = nodes.ne(tensor), nodes.nb(tensor)
    is_packed = nb[0] == 4 and all(nb[i] == nb[i - 1] * ne[i - 1] for i in range(1, 4) if ne[i] > 1)
    return tensor if is_packed else nodes.make("cont", tensor)


class _Decompress(Attention):
    """Keys and values of every head are computed from the latent rows, then plain attention."""

    def build(self) -> None:
        nodes, make = self.nodes, self.nodes.make
        latent = self.as_f32(self.row_part("c_kv"))  # [c,R,1,B]
        keys = self.of_every_head(packed(nodes, nodes["w_uk"]), latent, (0, 2, 1, 3))  # [n,R,H,B]
        values_weight = packed(nodes, nodes.permuted(nodes["w_uv"], 1, 0, 2, 3))
        values = self.of_every_head(values_weight, latent, (2, 0, 1, 3))  # [R,v,H,B]
        q_nope, q_pe = (make("cont", nodes[name]) for name in ("q_nope", "q_pe"))
        products = make("mul_mat", keys, q_nope), make("mul_mat", self.cache_part("k_pe"), q_pe)
        scores = make("scale", make("add", *products), self.scale)  # [R,T,H,B]
        mask = self.mask(F32)
        weights = self.softmax(scores if mask is None else make("add", scores, mask), None, 1.0)
        context = make("mul_mat", values, weights)  # [v,T,H,B]
        nodes.write("out", nodes.permuted(context, 0, 2, 1, 3))

    def of_every_head(self, weight: Any, latent: Any, order: tuple[int, ...]) -> Any:
        """Each head's matrix [c,m,H,1] times latent rows [c,R,1,B], its axes m, H, R, B in another order."""
        nodes, rows = self.nodes, self.nodes.ne(latent)[1]
        inner, outer = nodes.ne(weight)[:2]
        flat = nodes.reshape(weight, inner, outer * self.heads, 1, 1)
        found = nodes.make("mul_mat", flat, latent)
        apart = nodes.reshape(found, outer, self.heads, rows, self.sequences)
        return nodes.make("cont", nodes.permuted(apart, *order))


class _Decompressed(_Decompress):
    """Plain attention on keys and values that stand in the cache for every head; those of the last T rows, which are
    the queries' own, are computed first and written there. The others are any numbers: only the time counts."""

    def build(self) -> None:
        nodes, make = self.nodes, self.nodes.make
        number = F16 if nodes.case.inputs["c_kv"].dtype == "f16" else F32
        query = make("concat", make("cont", nodes["q_nope"]), make("cont", nodes["q_pe"]), 0)
        width, values = nodes.ne(query)[0], nodes.ne(nodes["w_uv"])[0]
        keys = nodes.unasked("new_tensor_4d", number, width, self.rows, self.heads, self.sequences)
        values_ = nodes.unasked("new_tensor_4d", number, self.rows, values, self.heads, self.sequences)
        old = self.rows - self.queries
        latent, rotary = (
            self.as_f32(nodes.part(self.row_part(name), 1, old, self.queries)) for name in ("c_kv", "k_pe")
        )
        own = self.of_every_head(packed(nodes, nodes["w_uk"]), latent, (0, 2, 1, 3))  # [n,T,H,B]
        rotary = make("repeat_4d", rotary, nodes.ne(rotary)[0], self.queries, self.heads, self.sequences)
        written = make("cpy", make("concat", own, rotary, 0), nodes.part(keys, 1, old, self.queries))
        values_weight = packed(nodes, nodes.permuted(nodes["w_uv"], 1, 0, 2, 3))
        own_values = self.of_every_head(values_weight, latent, (2, 0, 1, 3))  # [T,v,H,B]
        written_values = make("cpy", own_values, nodes.part(values_, 0, old, self.queries))
        nodes.outs += [written, written_values]  # a graph computes what its outputs need, in their order
        scores = make("scale", make("mul_mat", keys, query), self.scale)
        mask = self.mask(F32)
        weights = self.softmax(scores if mask is None else make("add", scores, mask), None, 1.0)
        nodes.write("out", nodes.permuted(make("mul_mat", values_, weights), 0, 2, 1, 3))


class _Sliced(Attention):
    """Scores of `heads_at_once` heads at a time, each slice's result put where it belongs (ik_llama.cpp's -amb)."""

    heads_at_once = 1

    def explicit(self, query: Any, q_pe: Any) -> Any:
        nodes, make = self.nodes, self.nodes.make
        latent, rotary = (self.cache_part(name) for name in ("c_kv", "k_pe"))
        turned = nodes.turned(latent)
        mask = self.mask(F32)
        whole = nodes.filled(0.0, *nodes.ne(query))
        nb = nodes.nb(whole)
        for first in range(0, self.heads, self.heads_at_once):
            count = min(self.heads_at_once, self.heads - first)
            own, own_pe = (make("cont", nodes.part(each, 2, first, count)) for each in (query, q_pe))
            products = make("mul_mat", latent, own), make("mul_mat", rotary, own_pe)
            scores = make("scale", make("add", *products), self.scale)
            weights = self.softmax(scores if mask is None else make("add", scores, mask), None, 1.0)
            whole = make("set_inplace", whole, make("mul_mat", turned, weights), *nb[1:], first * nb[2])
        return whole


class Published(GgmlBackend):
    """`ggml`, with no limit to the size of a tensor."""

    graphs: ClassVar[Mapping[str, Build]] = {**GRAPHS, "gated_delta_net_chunk": lambda nodes: _Chunk(nodes).build()}


class Stored(GgmlBackend):
    graphs: ClassVar[Mapping[str, Build]] = {**GRAPHS, "mla_absorbed": lambda nodes: _Stored(nodes).build()}


class SolvedInTheLoop(GgmlBackend):
    graphs: ClassVar[Mapping[str, Build]] = {
        **GRAPHS,
        "gated_delta_net_chunk": lambda nodes: _SolvedInTheLoop(nodes).build(),
    }


class Decompress(GgmlBackend):
    graphs: ClassVar[Mapping[str, Build]] = {**GRAPHS, "mla_absorbed": lambda nodes: _Decompress(nodes).build()}


class Decompressed(GgmlBackend):
    graphs: ClassVar[Mapping[str, Build]] = {**GRAPHS, "mla_absorbed": lambda nodes: _Decompressed(nodes).build()}


def _sliced(heads: int, nodes: Nodes) -> None:
    found = _Sliced(nodes)
    found.heads_at_once = heads
    found.build()


class Sliced32(GgmlBackend):
    graphs: ClassVar[Mapping[str, Build]] = {**GRAPHS, "mla_absorbed": partial(_sliced, 32)}


class Sliced8(GgmlBackend):
    graphs: ClassVar[Mapping[str, Build]] = {**GRAPHS, "mla_absorbed": partial(_sliced, 8)}


class Sliced2(GgmlBackend):
    graphs: ClassVar[Mapping[str, Build]] = {**GRAPHS, "mla_absorbed": partial(_sliced, 2)}
