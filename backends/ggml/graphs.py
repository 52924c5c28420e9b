"""The ops that take a graph of several nodes, each with what builds it."""

from __future__ import annotations

from collections.abc import Mapping

from opconform.backends.ggml import caching, delta_net, mla, pieces, routing, states, training
from opconform.backends.ggml.nodes import Build

GRAPHS: Mapping[str, Build] = {
    "gated_delta_net": delta_net.recurrent,
    "gated_delta_net_chunk": delta_net.chunked,
    "mla_absorbed": mla.attend,
    **{op: states.packed(op) for op in ("rwkv_wkv6", "rwkv_wkv7", "gated_linear_attn", "ssm_scan")},
    "opt_step_adamw": training.adamw,
    "opt_step_sgd": training.sgd,
    **pieces.BUILDS,
    "moe_routing": routing.route,
    **dict.fromkeys(caching.STORED, caching.turn_and_store),
}
