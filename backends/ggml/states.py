"""Ops of one node whose result holds their outputs packed one after another, from which they are copied."""

from __future__ import annotations

from opconform.backends.ggml.nodes import Build, Nodes
from opconform.backends.ggml.ops import OPS


def packed(op: str) -> Build:
    """What builds the node of `op` and the copies of its results."""

    def build(nodes: Nodes) -> None:
        row = OPS[op]
        nodes.site.library.c.require(row.symbol)
        node = nodes.call(row.symbol, *row.values(nodes.case, nodes.__getitem__, nodes.null))
        nodes.write_results(row, nodes.ask(node, op))

    return build
