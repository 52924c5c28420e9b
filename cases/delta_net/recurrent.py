"""GATED_DELTA_NET: the gated delta rule, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from opconform.cases.delta_net import faults, relations, stages, values
from opconform.cases.delta_net.chunks import chunk_tolerance
from opconform.cases.delta_net.rule import (
    Rule,
    Walk,
    decoded,
    grouped,
    recurrent_tolerance,
    rule_of,
    stored_state,
    token_order,
    walk,
)
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = scale·Sᵀq after each token; state_out: the last `snapshots` states, newest first.

    The bound is a running one per sequence, head and value column: `rule.recurrent_tolerance` derives it. It holds for
    a computation token by token. A device that computes the op in chunks declares it (`Numerics.delta_chunk`), and the
    bound of `chunks.chunk_tolerance` stands beside the other one: whichever is wider counts. Of a snapshot from before
    the first token nothing is demanded.
    """
    several = raw["v"].ndim - len(case.inputs["v"].shape)
    return _expect_each(case, raw, numerics) if several else _expect(case, raw, numerics)


def _expect_each(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The expectations of cases that differ in their values alone. Sequences do not meet, so that those of all of them
    are computed as the sequences of one; a snapshot of all of them stands before the next one."""
    count = len(raw["v"])
    rows = {name: its.reshape(-1, *its.shape[2:]) for name, its in raw.items()}
    inputs = {name: Layout.contiguous(layout.dtype, rows[name].shape) for name, layout in case.inputs.items()}
    of_all = _expect(replace(case, inputs=inputs), rows, numerics)
    kept, sequences = int(case.params["snapshots"]), case.inputs["v"].shape[0]

    def apart(x: F64, snapshots: int = 1) -> F64:
        each = x.reshape(snapshots, count, sequences, *x.shape[1:]).swapaxes(0, 1)
        found: F64 = each.reshape(count, snapshots * sequences, *x.shape[1:])
        return found

    state = of_all.others["state_out"]
    state_out = Expected(apart(state.value, kept), apart(state.bound, kept))
    return Expected(apart(of_all.value), apart(of_all.bound), others={"state_out": state_out})


def _expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    rule = rule_of(case, decoded(case, raw), numerics)
    kept = min(int(case.params["snapshots"]), rule.tokens)

    def compute(some: Rule) -> tuple[F64, ...]:
        exact = walk(some)
        tolerance = recurrent_tolerance(some, exact, numerics)
        newest_first = slice(-1, -kept - 1, -1)
        out, states = tolerance.out, tolerance.states[newest_first]
        if numerics.delta_chunk:
            out, states = _in_chunks(some, exact, tolerance.out, states, numerics)
        return exact.out, out, exact.states[1:][newest_first], states

    out, out_bound, states, states_bound = grouped(rule, compute)
    state_out = Expected(snapshots(case, states, 0.0), snapshots(case, states_bound, np.inf))
    return Expected(
        token_order(case, out),
        token_order(case, out_bound),
        others={"state_out": state_out},
    )


def _in_chunks(rule: Rule, exact: Walk, out: F64, states: F64, numerics: Numerics) -> tuple[F64, F64]:
    """The bounds on out and on the newest states, widened to those of chunks; a snapshot may end a short chunk."""
    chunk = numerics.delta_chunk
    wider = np.maximum(out, chunk_tolerance(rule, exact, chunk, numerics).out)
    found = [
        np.maximum(state, chunk_tolerance(rule.first(tokens), exact.first(tokens), chunk, numerics).states[-1])
        for state, tokens in zip(states, range(rule.tokens, 0, -1))
    ]
    return wider, np.stack(found)


def snapshots(case: Case, states: F64, fill: float) -> F64:
    """States [n, B·H, K, V] as the case's state_out, with `fill` for snapshots from before the first token."""
    found = np.full((int(case.params["snapshots"]), *states.shape[1:]), fill)
    found[: len(states)] = states
    return stored_state(case, found.reshape(-1, *states.shape[2:]))


def check(case: Case) -> None:
    """Raises `CaseError` for parameters or shapes that do not fit together."""
    values.check(case, int(case.params["snapshots"]))


_TOKENS = among((1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 20, 2, 3, 5, 33))


_LONG = among((64, 65, 100, 129, 257))
_SNAPSHOTS = (1, 2, 3, 5, 1, 2, 3, 5, 1, 2, 3, 5, 8, 17, 33)


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """One to 33 tokens, now and then more; shrinks to one token, one head of size 1, no initial state."""
    kept = draw(among(freedom.choices("snapshots", _SNAPSHOTS)))
    enough = among((kept - 1, kept, kept + 1, 2 * kept))  # older snapshots are nobody's
    return draw(values.problems(freedom, _TOKENS if kept < 8 else enough, _LONG, {"snapshots": kept}))


def flops(case: Case) -> int:
    """A token of a head decays the state (K·V products), takes Sᵀk and Sᵀq (2·K·V each) and adds k dᵀ (2·K·V)."""
    sequences, tokens, heads, v = case.inputs["v"].shape
    return 7 * sequences * tokens * heads * v * case.inputs["k"].shape[-1]


OP = Op(
    name="gated_delta_net",
    summary="the gated delta rule, token by token: out = scale·Sᵀq",
    inputs=values.INPUTS,
    params={**values.PARAMS, "snapshots": int},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="a running bound per column of S: ‖ε'‖ ≤ max(1, |1 − β‖k‖²|)·max a·‖ε‖ + ‖δ‖, δ one step's roundings",
    check=check,
    traits=values.traits,
    alone=lambda case: (0,),
    free="the snapshot is from before the first token, or some order of summing overflows float32",
    hypotheses=faults.hypotheses,
    stacks=True,
    composite=Composite(
        optional=("state",),
        more_outputs=("state_out",),
        recipes=values.RECIPES,
        shape_values=values.shape_values,
        packs={("q", "k", "v"): 2},
        batch_axes=(0,),
        stages=stages.recurrent,
        metamorphic=relations.RECURRENT,
    ),
    flops=flops,
)
