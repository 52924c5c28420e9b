"""MLA absorbed: multi-head latent attention (DeepSeek-V2, Kimi-Linear) computed on the latent rows of its cache.

Each head's keys and values are W_UK c and cᵀ W_UV of one latent row c that all heads share, beside a rotary part of
the key. A kernel need not decompress them: q·(W_UK c) = (q W_UK)·c, and Σ w (cᵀ W_UV) = (Σ w c)ᵀ W_UV. The reference
here does decompress them, in float64, so that absorption itself is checked.

Shapes, outermost first: q_nope [B,H,T,d_n], q_pe [B,H,T,d_r], c_kv [B,1,N,d_c], k_pe [B,1,N,d_r], w_uk [1,H,d_n,d_c],
w_uv [1,H,d_c,d_v], mask [B or 1,1,T,N], out [B,T,H,d_v]. Rows of the cache from kv_len on are padding: they hold NaN
and belong to nobody. Query i of T stands at position kv_len − T + i.
"""

from __future__ import annotations

from opconform.cases.mla.attention import expect
from opconform.cases.mla.faults import hypotheses
from opconform.cases.mla.problems import CACHES, RECIPES, check, problems, shape_values, traits
from opconform.cases.mla.relations import RELATIONS
from opconform.cases.mla.stages import stages
from opconform.harness.model.case import Case
from opconform.harness.model.op import Composite, Op
from opconform.harness.model.work import bytes_of, everything_once


def flops(case: Case) -> int:
    """The products of the absorbed computation, without the softmax: q_nope W_UK and context W_UV once for each query
    of each head, and for each row of the cache that it sees d_c + d_r products for the score and d_c for the sum."""
    sequences, heads, queries, d_n = case.inputs["q_nope"].shape
    d_c, d_r, d_v = (case.inputs[name].shape[-1] for name in ("c_kv", "k_pe", "w_uv"))
    rows = int(case.params["kv_len"])
    seen = queries * rows
    if case.params["causal"]:
        seen = sum(min(max(rows - queries + i + 1, 0), rows) for i in range(queries))
    return 2 * sequences * heads * (queries * d_c * (d_n + d_v) + seen * (2 * d_c + d_r))


def moves(case: Case) -> int:
    """Bytes of every argument; of the cache only those of the rows that are read."""
    cache = [case.inputs[name] for name in ("c_kv", "k_pe")]
    rows = int(case.params["kv_len"])
    unread = sum(bytes_of(layout) * (layout.shape[2] - rows) // max(layout.shape[2], 1) for layout in cache)
    return everything_once(case) - unread


OP = Op(
    name="mla_absorbed",
    summary="multi-head latent attention on the latent rows of the cache",
    inputs=("q_nope", "q_pe", "c_kv", "k_pe", "w_uk", "w_uv", "mask"),
    params={"scale": float, "form": str, "causal": bool, "kv_len": int, "k_scale": float, "v_scale": float},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="Σ w(e^d − 1)|v − out| + γ_{2n}|out| + γ_{2n}·Σ w|c|·|W_UV| + γ_{d_c}·|context||W_UV|, d from the scores",
    check=check,
    argument_dtypes={"c_kv": CACHES, "k_pe": CACHES, "mask": ("f32", "f16")},
    traits=traits,
    alone=lambda case: (0,),
    hypotheses=hypotheses,
    composite=Composite(
        optional=("mask",),
        recipes=RECIPES,
        shape_values=shape_values,
        packs={("c_kv", "k_pe"): 3},
        batch_axes=(0,),
        stages=stages,
        metamorphic=RELATIONS,
    ),
    flops=flops,
    moves=moves,
)
