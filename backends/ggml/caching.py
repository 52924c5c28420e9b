"""Keys that are turned and put into a cache, on ggml: ROPE, a view of a row for each token, SET_ROWS."""

from __future__ import annotations

from opconform.backends.ggml.nodes import Nodes
from opconform.backends.ggml.ops import OPS


def turn_and_store(nodes: Nodes) -> None:
    """`rope_set_rows`, as llama.cpp has it (src/llama-kv-cache.cpp, cpy_k)."""
    x = nodes.begin_with("x" if nodes.case.params["made"] else "")["x"]
    row = OPS["rope"]
    nodes.site.library.c.require(row.symbol)
    given = row.values(nodes.case, lambda name: x if name == "x" else nodes[name], nodes.null)
    turned = nodes.ask(nodes.call(row.symbol, *given), row.op)
    channels, heads, tokens = nodes.ne(x)[:3]
    step = nodes.nb(turned)[2]
    flat = nodes.view(turned, (channels * heads, tokens, 1, 1), (4, step, step * tokens, step * tokens))
    nodes.outs.append(nodes.make("set_rows", nodes["cache"], flat, nodes["rows"]))
