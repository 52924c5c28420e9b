"""The gated delta rule on ggml: its own node for the recurrence, and a graph of its plain nodes for the chunked form.

The graph is the one that llama.cpp builds for Qwen3-Next and Kimi-Linear, but that it solves for u and w instead of the
inverse. Sizes in the comments are innermost first: K and V the head sizes, C the chunk, N the number of chunks, H the
value heads, B the sequences; a gate has G = 1 element (GDA) or G = K (KDA). Chunked tensors are [.., C, N, H·B]. No
positive sum of gates is exponentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opconform.backends.ggml.binding import RefusedError, Tensor
from opconform.backends.ggml.declarations import CONSTANTS
from opconform.backends.ggml.nodes import Assemble, Nodes
from opconform.backends.ggml.ops import OPS

TRI_LOWER_DIAG, TRI_LOWER = (CONSTANTS[f"GGML_TRI_TYPE_{name}"] for name in ("LOWER_DIAG", "LOWER"))
BLOCK = 16  #: rows and columns of a block of Akk and Aqk in the blockwise form
LARGEST_TENSOR = 1 << 28  #: bytes; the decay of KDA takes C·C·K elements for every chunk and head


def recurrent(nodes: Nodes) -> None:
    """`gated_delta_net` as ggml's own node: value heads share key heads tiled, scale 1/√V, states [V,K], log gates."""
    row, library = OPS["gated_delta_net"], nodes.site.library
    library.c.require(row.symbol)
    values, heads, _, sequences = nodes.ne(nodes["v"])
    if nodes.ne(nodes["k"])[0] != values:
        raise RefusedError("ggml_gated_delta_net wants K = V")
    _check_alignment(nodes)
    given = dict(zip(("q", "k"), _normalised(nodes)))
    state = nodes["state"] if "state" in nodes else nodes.filled(0.0, values, values, heads, sequences)
    if not library.counts_snapshots:
        if nodes.case.params["snapshots"] != 1:
            raise RefusedError(f"the ggml_gated_delta_net of this libggml ({library.build}) gives one state only")
        state = nodes.reshape(state, values * values * heads, 1, sequences, 1)
    given["state"] = state
    both = nodes.call(row.symbol, *row.values(nodes.case, lambda name: given.get(name) or nodes[name], nodes.null))
    nodes.write_results(row, nodes.ask(both, row.op))


def _check_alignment(nodes: Nodes) -> None:
    """Vulkan's GATED_DELTA_NET asserts that every source starts where a storage buffer may."""
    site = nodes.site
    if not site.device.startswith("Vulkan"):
        return
    packed = ("q", "k") if nodes.case.params["l2norm"] else ()
    if any(layout.offset % site.alignment for name, layout in nodes.case.inputs.items() if name not in packed):
        raise RefusedError(
            f"{site.device}'s GATED_DELTA_NET aborts unless every source starts at a multiple of {site.alignment} "
            "bytes (src/ggml-vulkan/ggml-vulkan.cpp, ggml_vk_tensor_subbuffer)"
        )


def _normalised(nodes: Nodes) -> tuple[Tensor, Tensor]:
    """q and k, each divided by √(Σx² + eps) where the case wants it. ggml_l2_norm divides by max(‖x‖, eps) instead."""
    if not nodes.case.params["l2norm"]:
        return nodes["q"], nodes["k"]
    normalised = []
    for name in ("q", "k"):
        x = nodes.make("cont", nodes[name])
        squares = nodes.make("sum_rows", nodes.make("sqr", x))
        length = nodes.make("sqrt", nodes.make("scale_bias", squares, 1.0, nodes.case.params["eps"]))
        normalised.append(nodes.make("div", x, length))
        nodes.show(f"{name}_norm", normalised[-1], _only)
    return normalised[0], normalised[1]


def chunked(nodes: Nodes) -> None:
    """`gated_delta_net_chunk` as a graph of ggml's plain nodes."""
    Chunked(nodes).build()


class Chunked:
    """One case's graph. Every method makes the nodes of one step."""

    largest = LARGEST_TENSOR

    def __init__(self, nodes: Nodes) -> None:
        case = nodes.case
        self.nodes = nodes
        self.keys, self.key_heads, self.tokens, self.sequences = nodes.ne(nodes["q"])
        self.values, self.heads = nodes.ne(nodes["v"])[:2]
        self.gates = nodes.ne(nodes["g"])[0]
        self.chunk = int(case.params["chunk"])
        self.chunks = -(-self.tokens // self.chunk)
        self.batch = self.heads * self.sequences
        self.blockwise = case.params["form"] == "blockwise"
        side = BLOCK if self.blockwise else self.chunk
        largest = side * side * self.keys * self.chunks * self.batch * 4
        if self.gates > 1 and largest > self.largest:
            raise RefusedError(
                f"the decay between {side} tokens takes {largest} bytes as one tensor [K,C,C,N·H·B]; the ggml backend "
                f"builds tensors of at most {self.largest}"
            )

    def build(self) -> None:
        nodes, make = self.nodes, self.nodes.make
        q, k = (self._in_chunks(self._for_every_head(x)) for x in _normalised(nodes))  # [K,C,N,HB]
        v, beta = self._in_chunks(nodes["v"]), self._in_chunks(nodes["beta"])  # [V,C,N,HB], [1,C,N,HB]
        gates = self._cumulated()  # [G,C,N,HB]
        k_beta, v_beta = make("mul", k, beta), make("mul", v, beta)
        scores = self.in_blocks if self.blockwise else self._whole
        akk, aqk = scores(q, k, k_beta, gates)  # [C,C,N,HB], the column innermost

        grown = make("exp", gates)
        u, w = self.solved(akk, v_beta, make("mul", k_beta, grown))  # [V,C,N,HB], [K,C,N,HB]
        nodes.show("u", u, self._by_chunk)
        nodes.show("w", w, self._by_chunk)

        last = nodes.part(gates, 1, self.chunk - 1, 1)  # [G,1,N,HB]
        to_last = make("sub", make("repeat_4d", last, *nodes.ne(gates)), gates)
        self._walk(
            make("mul", q, grown), make("mul", k, make("exp", to_last)), aqk, w, u, make("exp", self._cont(last))
        )

    def solved(self, akk: Tensor, *sides: Tensor) -> list[Tensor]:
        """(I + Akk) x = b for each of the right-hand sides [n,C,N,HB]."""
        make = self.nodes.make
        unit_lower = make("add", akk, self.identity(self.chunk))
        return [make("solve_tri", unit_lower, side, True, True, False) for side in sides]

    def identity(self, n: int) -> Tensor:
        """The n×n identity."""
        return self.nodes.make("diag", self.nodes.filled(1.0, n, 1, 1, 1))

    def _walk(self, q_grown: Tensor, k_left: Tensor, aqk: Tensor, w: Tensor, u: Tensor, through: Tensor) -> None:
        """Chunk by chunk: v' = u − w S, out, and the next state. States are [K,V,1,HB], as ggml holds them."""
        nodes, make = self.nodes, self.nodes.make
        state, states, corrected = self._first_state(), [], []
        for n in range(self.chunks):
            v_new = make("sub", self._at(u, n), make("mul_mat", state, self._at(w, n)))
            corrected.append(v_new)  # [V,C,1,HB]
            v_turned = nodes.turned(v_new)
            from_state = make("mul_mat", state, self._at(q_grown, n))
            out = make("add", from_state, make("mul_mat", v_turned, self._at(aqk, n)))  # [V,C,1,HB]
            self._write_out(make("scale", out, self.nodes.case.params["scale"]), n)
            update = make("mul_mat", nodes.turned(nodes.part(k_left, 2, n, 1)), v_turned)  # [K,V,1,HB]
            state = make("add", make("mul", state, nodes.part(through, 2, n, 1)), update)
            states.append(state)
        nodes.show("v_new", corrected, self._of_chunks)
        nodes.show("states", states, lambda arrays: self._of_chunks(arrays).swapaxes(-1, -2))
        state = nodes.reshape(state, self.keys, self.values, self.heads, self.sequences)
        transposed = nodes.case.params["state_layout"] == "kv"
        nodes.write("state_out", nodes.permuted(state, 1, 0, 2, 3) if transposed else state)

    def _cont(self, tensor: Tensor) -> Tensor:
        return self.nodes.make("cont", tensor)

    def _at(self, tensor: Tensor, chunk: int) -> Tensor:
        """One chunk, packed: Vulkan rounds a matrix product's second operand to float16 unless it is contiguous."""
        return self._cont(self.nodes.part(tensor, 2, chunk, 1))

    def _for_every_head(self, x: Tensor) -> Tensor:
        """[K,H_k,T,B] → [K,H,T,B]: each key head once for every value head that shares it."""
        nodes, shared = self.nodes, self.heads // self.key_heads
        if shared == 1:
            return x
        if nodes.case.params["heads"] == "tiled":
            return nodes.make("repeat_4d", self._cont(x), self.keys, self.heads, self.tokens, self.sequences)
        rows = self.tokens * self.sequences
        apart = nodes.reshape(self._cont(x), self.keys, 1, self.key_heads, rows)
        repeated = nodes.make("repeat_4d", apart, self.keys, shared, self.key_heads, rows)
        return nodes.reshape(repeated, self.keys, self.heads, self.tokens, self.sequences)

    def _in_chunks(self, x: Tensor) -> Tensor:
        """[n,H,T,B] → [n,C,N,HB], padded with zeros beyond T."""
        nodes = self.nodes
        by_head = self._cont(nodes.permuted(x, 0, 2, 1, 3))  # [n,T,H,B]
        beyond = self.chunks * self.chunk - self.tokens
        if beyond:
            by_head = nodes.make("pad_ext", by_head, 0, 0, 0, beyond, 0, 0, 0, 0)
        return nodes.reshape(by_head, nodes.ne(x)[0], self.chunk, self.chunks, self.batch)

    def _cumulated(self) -> Tensor:
        """G, the sum of the log gates from the chunk's start: [G,C,N,HB]. ggml sums along ne0, thus over time first."""
        nodes = self.nodes
        in_time = nodes.turned(self._in_chunks(nodes["g"]))  # [C,G,N,HB]
        summed = nodes.turned(nodes.make("cumsum", in_time))
        nodes.show("G", summed, self._by_chunk)
        return summed

    def _first_state(self) -> Tensor:
        nodes = self.nodes
        if "state" not in nodes:
            return nodes.filled(0.0, self.keys, self.values, 1, self.batch)
        order = (1, 0, 2, 3) if nodes.case.params["state_layout"] == "kv" else (0, 1, 2, 3)
        state = self._cont(nodes.permuted(nodes["state"], *order))
        return nodes.reshape(state, self.keys, self.values, 1, self.batch)

    def _write_out(self, rows: Tensor, n: int) -> None:
        """[V,C,1,HB] into the tokens of chunk n of the output [V,H,T,B]; those beyond T are dropped."""
        nodes = self.nodes
        by_head = nodes.reshape(rows, self.values, self.chunk, self.heads, self.sequences)
        count = min(self.chunk, self.tokens - n * self.chunk)
        tokens = nodes.part(by_head, 1, 0, count)
        nodes.write("out", nodes.permuted(tokens, 0, 2, 1, 3), n * self.chunk, axis=2)

    def _whole(self, q: Tensor, k: Tensor, k_beta: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Akk (strictly lower) and Aqk (with its diagonal), each computed at once for all pairs of a chunk's tokens."""
        nodes, make = self.nodes, self.nodes.make
        if self.gates == 1:
            decay = self._decay(gates, gates, masked=True)
            nodes.show("decay", decay, self._by_chunk)
            akk, aqk = (make("mul", make("mul_mat", k, rows), decay) for rows in (k_beta, q))
        else:
            akk, aqk = self._by_channel(k, gates, (k_beta, q))
        akk = make("tri", akk, TRI_LOWER)
        nodes.show("Akk", akk, self._by_chunk)
        nodes.show("Aqk", aqk, self._by_chunk)
        return akk, aqk

    def in_blocks(self, q: Tensor, k: Tensor, k_beta: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """The same from 16×16 blocks: only those on and below the diagonal are computed, and placed into zeros."""
        akk, aqk = self.blocks(q, k, k_beta, gates)
        return self.placed("Akk", akk), self.placed("Aqk", aqk)

    def blocks(
        self, q: Tensor, k: Tensor, k_beta: Tensor, gates: Tensor
    ) -> tuple[dict[tuple[int, int], Tensor], dict[tuple[int, int], Tensor]]:
        """The blocks of Akk and of Aqk by block row and block column."""
        akk: dict[tuple[int, int], Tensor] = {}
        aqk: dict[tuple[int, int], Tensor] = {}
        for i in range(self.chunk // BLOCK):
            for j in range(i + 1):
                akk[i, j], aqk[i, j] = self._block(q, k, k_beta, gates, i, j)
        return akk, aqk

    def placed(self, name: str, blocks: dict[tuple[int, int], Tensor]) -> Tensor:
        nodes = self.nodes
        whole = nodes.filled(0.0, self.chunk, self.chunk, self.chunks, self.batch)
        nb = nodes.nb(whole)
        nodes.show(f"{name}_blocks", list(blocks.values()), self._stacked)
        for (i, j), block in blocks.items():
            whole = nodes.make(str(nodes.case.params["place"]), whole, block, *nb[1:], BLOCK * (i * nb[1] + j * nb[0]))
        nodes.show(name, whole, self._by_chunk)
        return whole

    def _block(self, q: Tensor, k: Tensor, k_beta: Tensor, gates: Tensor, i: int, j: int) -> tuple[Tensor, Tensor]:
        """The blocks of Akk and Aqk in block row i and block column j: [16,16,N,HB], the column innermost."""
        nodes, make = self.nodes, self.nodes.make
        rows = [self.rows_of(x, i) for x in (k_beta, q)]
        keys, row_gates, column_gates = self.rows_of(k, j), self.rows_of(gates, i), self.rows_of(gates, j)
        if self.gates == 1:
            decay = self._decay(row_gates, column_gates, masked=i == j)
            akk, aqk = (make("mul", make("mul_mat", keys, each), decay) for each in rows)
        elif i == j:
            akk, aqk = self._by_channel(keys, row_gates, rows)
        else:
            # The block column's last token stands between all its tokens and those of the rows: both differences are
            # sums of gates, none of them positive.
            between = nodes.part(column_gates, 1, BLOCK - 1, 1)
            since = make("exp", make("sub", row_gates, between))
            until = make("exp", make("sub", make("repeat_4d", between, *nodes.ne(column_gates)), column_gates))
            faded = make("mul", keys, until)
            akk, aqk = (make("mul_mat", faded, make("mul", each, since)) for each in rows)
        return (make("tri", akk, TRI_LOWER) if i == j else akk), aqk

    def rows_of(self, x: Tensor, block: int) -> Tensor:
        """The 16 tokens of a block, packed."""
        return self._cont(self.nodes.part(x, 1, block * BLOCK, BLOCK))

    def _decay(self, rows: Tensor, columns: Tensor, masked: bool) -> Tensor:
        """e^(G_i − G_j) of gates per head, [1,n,N,HB] → [n,n,N,HB], j innermost; 0 for j > i where it is `masked`."""
        make = self.nodes.make
        n = self.nodes.ne(rows)[1]
        g_j = self.nodes.reshape(columns, n, 1, self.chunks, self.batch)
        difference = make("sub", make("repeat_4d", rows, n, n, self.chunks, self.batch), g_j)
        return self._lower_exp(difference) if masked else make("exp", difference)

    def _lower_exp(self, difference: Tensor) -> Tensor:
        """exp on and below the diagonal, 0 above it, where differences are positive and must not be exponentiated."""
        make = self.nodes.make
        return make("tri", make("exp", make("tri", difference, TRI_LOWER_DIAG)), TRI_LOWER_DIAG)

    def _by_channel(self, k: Tensor, gates: Tensor, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Σ_d rows_id k_jd e^(G_id − G_jd) of gates per key channel, for j ≤ i: [n,n,N,HB], j innermost."""
        nodes, make = self.nodes, self.nodes.make
        n, all_chunks = nodes.ne(gates)[1], self.chunks * self.batch
        g = nodes.reshape(nodes.turned(gates), n, 1, self.keys, all_chunks)
        g_i = make("repeat_4d", nodes.reshape(g, 1, n, self.keys, all_chunks), n, n, self.keys, all_chunks)
        decay = self._cont(nodes.permuted(self._lower_exp(make("sub", g_i, g)), 2, 0, 1, 3))  # [K,j,i,NHB]
        faded = make("mul", decay, nodes.reshape(k, self.keys, n, 1, all_chunks))
        scores = (make("mul_mat", faded, nodes.reshape(each, self.keys, 1, n, all_chunks)) for each in rows)
        return tuple(nodes.reshape(each, n, n, self.chunks, self.batch) for each in scores)

    def _by_chunk_of(self, array: np.ndarray) -> np.ndarray:
        """[HB,N,C,n] (outermost first) → [B,H,N,C,n]."""
        return array.reshape(self.sequences, self.heads, *array.shape[1:])

    def _stacked(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """One array [HB,N,16,16] for every block → [B,H,N,blocks,16,16]."""
        return np.stack([self._by_chunk_of(array) for array in arrays], axis=3)

    @property
    def _by_chunk(self) -> Assemble:
        return lambda arrays: self._by_chunk_of(arrays[0])

    def _of_chunks(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """One array [HB,1,a,b] for every chunk → [B,H,N,a,b]."""
        return self._by_chunk_of(np.concatenate(arrays, axis=1))


def _only(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0]
