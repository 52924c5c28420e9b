"""Absorbed multi-head latent attention on ggml: explicit scores and soft_max, or flash attention with V a view of K.

Sizes in the comments are innermost first: R = kv_len rows of the cache are read, T queries, H heads, B sequences; c and
r are the widths of the latent row and of its rotary part. The graphs are llama.cpp's for DeepSeek and Kimi-Linear, but
for two things. Explicit scores are computed from a cache converted to float32 (but for two parts on the CPU device),
since matrix products of other types are narrower than float32 in many ways. And where a row may be masked from end to
end, a sink of −3e38 makes it 0: ggml's own softmax asserts that there is no such row (src/ggml-cpu/ops.cpp,
ggml_compute_forward_soft_max_f32) and gives NaN. Its flash attention gives 0 by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opconform.backends.ggml.binding import RefusedError, Tensor
from opconform.backends.ggml.declarations import CONSTANTS
from opconform.backends.ggml.nodes import Assemble, Nodes

F32, F16 = CONSTANTS["GGML_TYPE_F32"], CONSTANTS["GGML_TYPE_F16"]
TRI_UPPER = CONSTANTS["GGML_TRI_TYPE_UPPER"]
PREC_F32 = CONSTANTS["GGML_PREC_F32"]
_LONGEST_MASK = 1 << 14  #: rows of the square that a causal mask is cut from: 1 GiB
_SINK = -3.0e38


def attend(nodes: Nodes) -> None:
    """`mla_absorbed`."""
    Attention(nodes).build()


class Attention:
    """One case's graph."""

    def __init__(self, nodes: Nodes) -> None:
        params = nodes.case.params
        self.nodes = nodes
        self.queries, self.heads, self.sequences = nodes.ne(nodes["q_nope"])[1:]
        self.width, self.total = nodes.ne(nodes["c_kv"])[:2]
        self.rows = int(params["kv_len"])
        self.form = str(params["form"])
        self.causal = bool(params["causal"])
        self.scale = float(params["scale"]) * float(params["k_scale"])
        if self.rows == 0:
            raise RefusedError("kv_len is 0; ggml's matrix products want at least one row")
        if self.form == "flash" and "mask" in nodes and nodes.case.inputs["mask"].dtype != "f16":
            raise RefusedError("ggml_flash_attn_ext asserts that the mask is f16 (src/ggml.c)")

    def build(self) -> None:
        nodes, make = self.nodes, self.nodes.make
        query = make("cont", nodes.permuted(self.by_head(nodes["w_uk"], nodes["q_nope"]), 0, 1, 3, 2))  # [c,T,H,B]
        nodes.show("q_absorbed", query, _only)
        q_pe = make("cont", nodes["q_pe"])
        context = self._flash(query, q_pe) if self.form == "flash" else self.explicit(query, q_pe)
        if nodes.case.params["v_scale"] != 1:
            context = make("scale", context, nodes.case.params["v_scale"])
        nodes.show("context", context, _only)
        nodes.write("out", nodes.permuted(self.by_head(nodes["w_uv"], context), 0, 3, 1, 2))

    def by_head(self, weight: Tensor, x: Tensor) -> Tensor:
        """Each head's matrix [m,n,H,1] times its rows [n,T,H,B]: [m,T,B,H]. The sequences' rows stand under each other,
        since Vulkan's matrix product does not broadcast over ne3."""
        nodes, (width, inner) = self.nodes, self.nodes.ne(weight)[:2]
        rows = nodes.make("cont", nodes.permuted(x, 0, 1, 3, 2))
        rows = nodes.reshape(rows, inner, self.queries * self.sequences, self.heads, 1)
        found = nodes.make("mul_mat", self.turned_weight(weight), rows)
        return nodes.reshape(found, width, self.queries, self.sequences, self.heads)

    def turned_weight(self, weight: Tensor) -> Tensor:
        """A head's matrix with its axes exchanged, packed: the product sums along the innermost one."""
        return self.nodes.turned(weight)

    def explicit(self, query: Tensor, q_pe: Tensor) -> Tensor:
        """softmax of all scores at once: in two parts, or from concatenated rows."""
        nodes, make = self.nodes, self.nodes.make
        if self.form == "two_part":
            latent, rotary = (self.cache_part(name) for name in ("c_kv", "k_pe"))
            products = make("mul_mat", latent, query), make("mul_mat", rotary, q_pe)
            scores = make("scale", make("add", *products), self.scale)  # [R,T,H,B]
            mask = self.mask(F32)
            if mask is not None:
                scores = make("add", scores, mask)
            nodes.show("scores", scores, self._all_rows(-np.inf))
            weights = self.softmax(scores, None, 1.0)
        else:
            keys = self._row(self.as_f32)  # [c+r,R,1,B]
            latent = make("cont", nodes.part(keys, 0, 0, self.width))
            scores = make("mul_mat", keys, make("concat", query, q_pe, 0))
            weights = self.softmax(scores, self.mask(None), self.scale)
        nodes.show("weights", weights, self._all_rows(0.0))
        return make("mul_mat", nodes.turned(latent), weights)  # [c,T,H,B]

    def softmax(self, scores: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        nodes = self.nodes
        weights = nodes.unasked("soft_max_ext", scores, mask or nodes.null, scale, 0.0)
        if self._may_mask_all:
            nodes.call("ggml_soft_max_add_sinks", weights, nodes.filled(_SINK, self.heads, 1, 1, 1))
        return nodes.ask(weights, "soft_max_ext")

    def _flash(self, query: Tensor, q_pe: Tensor) -> Tensor:
        """Flash attention on concatenated rows; V is the view of their first c elements."""
        nodes, make = self.nodes, self.nodes.make
        keys = self._row(lambda part: part)
        values = nodes.part(keys, 0, 0, self.width)
        queries = make("concat", query, q_pe, 0)
        mask = self.mask(F16)
        found = nodes.unasked("flash_attn_ext", queries, keys, values, mask or nodes.null, self.scale, 0.0, 0.0)
        nodes.call("ggml_flash_attn_ext_set_prec", found, PREC_F32)
        nodes.ask(found, "flash_attn_ext")  # [c,H,T,B]
        return make("cont", nodes.permuted(found, 0, 2, 1, 3))

    @property
    def _may_mask_all(self) -> bool:
        return "mask" in self.nodes or (self.causal and self.queries > self.rows)

    def row_part(self, name: str) -> Tensor:
        """c_kv or k_pe without the padding rows, as a view."""
        return self.nodes.part(self.nodes[name], 1, 0, self.rows)

    def cache_part(self, name: str) -> Tensor:
        """The same for a matrix product: the CPU device reads whole rows where they stand, and rounds the other operand
        to their type; else a packed copy in float32."""
        part = self.row_part(name)
        layout = self.nodes.case.inputs[name]
        whole = layout.strides[-1] == layout.type.itemsize
        return part if self.nodes.site.device == "CPU" and whole else self.as_f32(part)

    def _row(self, made: Callable[[Tensor], Tensor]) -> Tensor:
        """The rows (c_kv | k_pe), as they are `made`: one view where the parts lie side by side, else concatenated."""
        nodes, inputs = self.nodes, self.nodes.case.inputs
        latent, rotary = inputs["c_kv"], inputs["k_pe"]
        beside = latent.offset + latent.type.itemsize * self.width == rotary.offset and latent.strides == rotary.strides
        if nodes.case.shares and beside and latent.strides[-1] == latent.type.itemsize:
            ne = (self.width + rotary.shape[-1], self.rows, 1, self.sequences)
            return made(nodes.view(nodes["c_kv"], ne, nodes.nb(nodes["c_kv"])))
        parts = (nodes.make("cont", made(self.row_part(name))) for name in ("c_kv", "k_pe"))
        return nodes.make("concat", *parts, 0)

    def as_f32(self, tensor: Tensor) -> Tensor:
        return self.as_type(F32, tensor)

    def as_type(self, number: int, tensor: Tensor) -> Tensor:
        """A packed copy of a type."""
        nodes = self.nodes
        return nodes.make("cpy", tensor, nodes.unasked("new_tensor_4d", number, *nodes.ne(tensor)))

    def mask(self, number: int | None) -> Tensor | None:
        """What is added to the scores [R,T,1,B or 1], of a type (None: whichever it has); None where nothing is."""
        nodes, make = self.nodes, self.nodes.make
        given = make("cont", nodes.part(nodes["mask"], 0, 0, self.rows)) if "mask" in nodes else None
        if not self.causal:
            wanted = None if given is None or number is None or self._mask_type == number else number
            return given if wanted is None or given is None else self.as_type(wanted, given)
        # Row i of a square, whose columns from i + 1 on are −inf, is the mask of a query at position i.
        side = max(self.queries, self.rows)
        if side > _LONGEST_MASK:
            raise RefusedError(f"ggml makes a causal mask of a square, here of {side} by {side} elements")
        later = make("tri", nodes.filled(-np.inf, side, side, 1, 1), TRI_UPPER)
        seen = nodes.part(nodes.part(later, 0, side - self.rows, self.rows), 1, side - self.queries, self.queries)
        mask = make("cont", seen)
        if given is not None:
            mask = make("add", given if self._mask_type == F32 else self.as_f32(given), mask)
        return self.as_type(F16, mask) if number == F16 else mask

    @property
    def _mask_type(self) -> int:
        return F16 if self.nodes.case.inputs["mask"].dtype == "f16" else F32

    def _all_rows(self, fill: float) -> Assemble:
        """[B,H,T,R] (outermost first) → [B,H,T,N], with `fill` for the padding rows."""

        def assemble(arrays: Sequence[np.ndarray]) -> np.ndarray:
            beyond = ((0, 0), (0, 0), (0, 0), (0, self.total - self.rows))
            return np.pad(arrays[0], beyond, constant_values=fill)

        return assemble


def _only(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0]
