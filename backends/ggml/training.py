"""Optimiser steps on ggml: one node, which writes into weights marked as parameters, and into their moments."""

from __future__ import annotations

from opconform.backends.ggml.declarations import CONSTANTS
from opconform.backends.ggml.nodes import Nodes
from opconform.backends.ggml.ops import OPS

_F32 = CONSTANTS["GGML_TYPE_F32"]
_ONLY_PARAM = "ggml_set_param"


def adamw(nodes: Nodes) -> None:
    """`opt_step_adamw`: the weights are a tensor of their own at the start of x, the moments are views of the rest."""
    row, c = OPS["opt_step_adamw"], nodes.site.library.c
    for symbol in (row.symbol, _ONLY_PARAM):
        c.require(symbol)
    ne = nodes.ne(nodes["grad"])
    weights = nodes.call("ggml_new_tensor_4d", _F32, *ne, name="weights")
    nodes.owners.append((weights, "x"))
    nodes.call(_ONLY_PARAM, weights)
    m, v = (nodes.part(nodes["x"], 3, k * ne[3], ne[3]) for k in (1, 2))
    given = {"x": weights, "m": m, "v": v}
    step = nodes.call(row.symbol, *row.values(nodes.case, lambda name: given.get(name) or nodes[name], nodes.null))
    nodes.outs.append(nodes.ask(step, row.op))


def sgd(nodes: Nodes) -> None:
    """`opt_step_sgd`."""
    row, c = OPS["opt_step_sgd"], nodes.site.library.c
    for symbol in (row.symbol, _ONLY_PARAM):
        c.require(symbol)
    nodes.call(_ONLY_PARAM, nodes["x"])
    step = nodes.call(row.symbol, *row.values(nodes.case, nodes.__getitem__, nodes.null))
    nodes.outs.append(nodes.ask(step, row.op))
