"""GATED_DELTA_NET in chunks: the same function as token by token, computed a chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from opconform.cases.delta_net import chunk_stages, faults, relations, values
from opconform.cases.delta_net.chunk_stages import BLOCK
from opconform.cases.delta_net.chunks import chunk_tolerance
from opconform.cases.delta_net.rule import Rule, decoded, grouped, rule_of, stored_state, token_order, walk
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem

CHUNKS = (16, 32, 64)


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = scale·Sᵀq after each token and the last state, by the float64 recurrence.

    The bound is that of the chunked computation: `chunks.chunk_tolerance` derives it.
    """
    rule = rule_of(case, decoded(case, raw), numerics)

    def compute(some: Rule) -> tuple[F64, ...]:
        exact = walk(some)
        tolerance = chunk_tolerance(some, exact, int(case.params["chunk"]), numerics)
        return exact.out, tolerance.out, exact.states[-1:], tolerance.states[-1:]

    out, out_bound, state, state_bound = grouped(rule, compute)
    return Expected(
        token_order(case, out),
        token_order(case, out_bound),
        others={"state_out": Expected(stored_state(case, state[0]), stored_state(case, state_bound[0]))},
    )


def check(case: Case) -> None:
    """Raises `CaseError` for parameters or shapes that do not fit together."""
    values.check(case, 1)
    params = case.params
    if params["chunk"] not in CHUNKS:
        raise CaseError(f"chunk is {params['chunk']}; it must be one of {', '.join(map(str, CHUNKS))}")
    if params["form"] not in ("whole", "blockwise") or params["place"] not in ("acc", "set"):
        raise CaseError(f"form and place are {params['form']!r}, {params['place']!r}: whole or blockwise, acc or set")
    if params["form"] == "blockwise" and int(params["chunk"]) <= BLOCK:
        raise CaseError(f"a chunk of {params['chunk']} has no {BLOCK}×{BLOCK} blocks to place: form must be whole")


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Up to two chunks and a few tokens, or several chunks; shrinks to one token in a chunk of 16, whole."""
    chunk = draw(among(freedom.choices("chunk", (*CHUNKS, 16, 32))))  # the large one less often: it costs its square
    forms = ("whole", "blockwise") if chunk > BLOCK else ("whole",)
    form = draw(among(freedom.choices("form", forms)))
    place = draw(among(freedom.choices("place", ("set", "acc") if form == "blockwise" else ("set",))))
    edges = (chunk - 1, chunk, chunk + 1, chunk + 5, 2 * chunk, 2 * chunk + 2)
    tokens = among((1, 2, 3, 5, 8, 13, 15, 16, 17, 20, *edges))
    long = among((64, 65, 3 * chunk, 3 * chunk + 1, 4 * chunk + 5))
    return draw(values.problems(freedom, tokens, long, {"chunk": chunk, "form": form, "place": place}))


def flops(case: Case) -> int:
    """The matrix products of whole chunks of C tokens, those of triangles counted as triangles: Akk and Aqk take C²·K
    each, the solution for u and w C²·(K + V), w S, q S and the new state 2·C·K·V each, Aqk v' C²·V."""
    sequences, tokens, heads, v = case.inputs["v"].shape
    k, chunk = case.inputs["k"].shape[-1], int(case.params["chunk"])
    chunks = sequences * heads * -(-tokens // chunk)
    return chunks * (chunk**2 * (3 * k + 2 * v) + 6 * chunk * k * v)


OP = Op(
    name="gated_delta_net_chunk",
    summary="the gated delta rule, a chunk of 16, 32 or 64 tokens at a time",
    inputs=values.INPUTS,
    params={**values.PARAMS, "chunk": int, "form": str, "place": str},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="per chunk |Δv'| ≤ (I − |T||ΔL|)^-1(…), ‖ΔS⁺‖ ≤ ‖P‖‖ΔS‖ + ‖δ‖, T = (I + Akk)^-1, P the chunk's steps",
    check=check,
    traits=values.traits,
    alone=lambda case: (0,),
    free="a triangular solve on the way there may fail in float32 (‖N‖ ≥ 1), or some order of summing overflows",
    hypotheses=faults.hypotheses,
    composite=Composite(
        optional=("state",),
        more_outputs=("state_out",),
        recipes=values.RECIPES,
        shape_values=values.shape_values,
        packs={("q", "k", "v"): 2},
        batch_axes=(0,),
        stages=chunk_stages.chunked,
        metamorphic=relations.CHUNKED,
    ),
    flops=flops,
)
