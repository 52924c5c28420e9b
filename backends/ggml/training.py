"""Optimiser steps on ggml: one node, which writes into weights marked as parameters, and into their moments."""

from __future__ import annotations

from opconform.backends.ggml.declarations import CONSTANTS
from opconform.backends.ggml.nodes import Nodes
from opconform.backends.ggml.ops import OPS

_F32 = CONSTANTS["GGML_TYPE_F32"]


def adamw(nodes: Nodes) -> None:
    """`opt_step_adamw`: the weights are a tensor of their own at the start of x, the moments are views of the rest."""
    row, c = OPS["opt_step_adamw"], nodes.site.library.c
    c.require(row.symbol)
    c.require("ggml_set_param")
    ne = nodes.ne(nodes["grad"])
    weights = nodes.call("ggml_new_tensor_4d", _F32, *ne, name="weights")
    nodes.owners.append((weights, "x"))
    nodes.call("ggml_set_param", weights)
    m, v = (nodes.part(nodes["x"], 3, k * ne[3], ne[3]) for k in (1, 2))
    given = {"x": weights, "m": m, "v": v}
    step = nodes.call(row.symbol, *row.values(nodes.case, lambda name: given.get(name) or nodes[name], nodes.null))
    nodes.outs.append(nodes.ask(step, row.op))


def sgd(nodes: Nodes) -> None:
    """`opt_step_sgd`."""
    row, c = OPS["opt_step_sgd"], nodes.site.library.c
    c.require(row.symbol)
    c.require("ggml_set_param")
    nodes.call("ggml_set_param", nodes["x"])
    step = nodes.call(row.symbol, *row.values(nodes.case, nodes.__getitem__, nodes.null))
    nodes.outs.append(nodes.ask(step, row.op))
