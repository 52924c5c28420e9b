"""The routing of a mixture of experts on ggml: the nodes that llama.cpp makes of it, in their order."""

from __future__ import annotations

import math

from opconform.backends.ggml.binding import Tensor
from opconform.backends.ggml.declarations import CONSTANTS
from opconform.backends.ggml.nodes import Nodes

_DESC = CONSTANTS["GGML_SORT_ORDER_DESC"]
_LEAST = 2.0**-14


def route(nodes: Nodes) -> None:
    """`moe_routing`, as build_moe_ffn has it (llama.cpp, src/llama-graph.cpp).

    The weights are asked for first: the graph then holds what they need in the order in which a model has it.
    """
    make, params = nodes.make, nodes.case.params
    logits = nodes.begin_with("x" if params["made"] else "")["x"]
    scores = _scores(nodes, logits)
    experts, tokens = nodes.ne(logits)[:2]
    k = nodes.ne(nodes["ids"])[0]
    keys = make("add", scores, nodes["b"]) if "b" in nodes else scores
    ids = nodes.part(make("argsort", keys, _DESC), 0, 0, k)
    weights = make("get_rows", nodes.reshape(scores, 1, experts, tokens, 1), ids)  # [1,k,tokens]
    if params["form"] == "late":
        chosen = make("soft_max_ext", nodes.reshape(weights, k, tokens, 1, 1), nodes.null, 1.0, 0.0)
        weights = nodes.reshape(chosen, 1, k, tokens, 1)
    if params["normed"]:
        weights = nodes.reshape(weights, k, tokens, 1, 1)
        total = make("clamp", make("sum_rows", weights), _LEAST, math.inf)
        weights = nodes.reshape(make("div", weights, total), 1, k, tokens, 1)
    if params["scale"] != 1:
        weights = make("scale", weights, params["scale"])
    nodes.write("out", weights)
    nodes.write("ids", ids)


def _scores(nodes: Nodes, logits: Tensor) -> Tensor:
    form = str(nodes.case.params["form"])
    if form == "softmax":
        return nodes.make("soft_max_ext", logits, nodes.null, 1.0, 0.0)
    if form == "sqrt_softplus":
        return nodes.make("sqrt", nodes.make("softplus", logits))
    return nodes.make("sigmoid", logits) if form == "sigmoid" else logits
