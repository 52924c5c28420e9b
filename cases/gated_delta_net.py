"""GATED_DELTA_NET: the gated delta rule, token by token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from opconform.cases import delta_faults, delta_relations, delta_rule, delta_stages, delta_values
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = scale·Sᵀq after each token; state_out: the last `snapshots` states, newest first.

    The bound is a running one per sequence, head and value column: `delta_rule.recurrent_tolerance` derives it. Of a
    snapshot from before the first token nothing is demanded.
    """
    rule = delta_rule.rule_of(case, delta_rule.decoded(case, raw), numerics)
    kept = min(int(case.params["snapshots"]), rule.tokens)

    def compute(some: delta_rule.Rule) -> tuple[F64, ...]:
        exact = delta_rule.walk(some)
        tolerance = delta_rule.recurrent_tolerance(some, exact, numerics)
        newest_first = slice(-1, -kept - 1, -1)
        return exact.out, tolerance.out, exact.states[1:][newest_first], tolerance.states[newest_first]

    out, out_bound, states, states_bound = delta_rule.grouped(rule, compute)
    state_out = Expected(snapshots(case, states, 0.0), snapshots(case, states_bound, np.inf))
    return Expected(
        delta_rule.token_order(case, out),
        delta_rule.token_order(case, out_bound),
        others={"state_out": state_out},
    )


def snapshots(case: Case, states: F64, fill: float) -> F64:
    """States [n, B·H, K, V] as the case's state_out, with `fill` for snapshots from before the first token."""
    found = np.full((int(case.params["snapshots"]), *states.shape[1:]), fill)
    found[: len(states)] = states
    return delta_rule.stored_state(case, found.reshape(-1, *states.shape[2:]))


def check(case: Case) -> None:
    """Raises `CaseError` for parameters or shapes that do not fit together."""
    delta_values.check(case, int(case.params["snapshots"]))


_TOKENS = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 20, 2, 3, 5, 33))


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """One to 33 tokens; shrinks to one token, one head of size 1, no initial state."""
    own = {"snapshots": draw(st.sampled_from(freedom.choices("snapshots", (1, 2, 3, 5))))}
    return draw(delta_values.problems(freedom, _TOKENS, own))


OP = Op(
    name="gated_delta_net",
    summary="the gated delta rule, token by token: out = scale·Sᵀq",
    inputs=delta_values.INPUTS,
    outputs=("out", "state_out"),
    optional=("state",),
    params={**delta_values.PARAMS, "snapshots": int},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="a running bound per column of S: ‖ε'‖ ≤ max(1, |1 − β‖k‖²|)·max a·‖ε‖ + ‖δ‖, δ one step's roundings",
    check=check,
    recipes=delta_values.RECIPES,
    shape_values=delta_values.shape_values,
    packs={("q", "k", "v"): 2},
    traits=delta_values.traits,
    batch_axes=(0,),
    hypotheses=delta_faults.hypotheses,
    stages=delta_stages.recurrent,
    metamorphic=delta_relations.RECURRENT,
)
