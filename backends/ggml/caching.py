"""Keys that are turned and put into a cache, on ggml: ROPE, a view of a row for each token, SET_ROWS."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from opconform.backends.ggml.nodes import Nodes
from opconform.backends.ggml.ops import OPS
from opconform.backends.ggml.pieces import Steps, computed, steps_of, taken_over
from opconform.harness.model.limits import Limit

#: What gives the rows: the ROPE alone, or one of the other pieces.
STORED: Mapping[str, Steps] = {
    "rope_set_rows": [("turned", OPS["rope"])],
    "rms_norm_mul_rope_set_rows": steps_of("rms_norm_mul_rope", ()),
}


def turn_and_store(nodes: Nodes) -> None:
    """The ops of `STORED`, as llama.cpp has them (src/llama-kv-cache.cpp, cpy_k)."""
    case = nodes.case
    results = nodes.begin_with(("x", "w") if case.params["made"] else ())
    turned = computed(nodes, STORED[case.op], results)
    channels, heads, tokens = nodes.ne(turned)[:3]
    step = nodes.nb(turned)[2]
    flat = nodes.view(turned, (channels * heads, tokens, 1, 1), (4, step, step * tokens, step * tokens))
    nodes.outs.append(nodes.make("set_rows", nodes["cache"], flat, nodes["rows"]))
    if "mid" in case.outputs:
        nodes.write("mid", results[str(case.params["kept"])])


def inherited(limits: Iterable[Limit]) -> Iterator[Limit]:
    """What keys that are normalised have from the two pieces that they are made of. Faults that known cases of those
    pin are only kept away from, but for what a case of their own pins; of element types only the cache's counts."""
    limits = list(limits)
    pinned = {limit.subject for limit in limits if limit.pinned and limit.op == "rms_norm_mul_rope_set_rows"}
    for limit in limits:
        if limit.pinned and limit.subject in pinned:
            continue
        if limit.op == "rope_set_rows" or (limit.op == "rms_norm_mul_rope" and limit.subject != "dtype"):
            yield taken_over(limit, "rms_norm_mul_rope_set_rows")
