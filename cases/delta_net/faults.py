"""Faults of delta-net kernels: what a wrong one would return, for the hint of a failure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from opconform.cases.delta_net import chunks
from opconform.cases.delta_net.rule import (
    Rule,
    Walk,
    decoded,
    recurrent_tolerance,
    rule_of,
    stored_state,
    times,
    token_order,
)
from opconform.cases.delta_net.values import usual_scale
from opconform.harness.model.case import Case, Param
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image, Reading
from opconform.harness.model.numerics import Numerics


@dataclass(frozen=True)
class Wrong:
    """What a wrong kernel does otherwise.

    decays_late: S decays after the update. reads: which S the output is made of, "updated" (right), "decayed" or
    "previous". restarts: the state of each chunk is the first one. reads_transposed, writes_transposed: the state's
    last two axes, where the heads are square. oldest_first: the order of snapshots. turned: sequences in reverse order.
    """

    decays_late: bool = False
    reads: str = "updated"
    restarts: bool = False
    reads_transposed: bool = False
    writes_transposed: bool = False
    oldest_first: bool = False
    turned: bool = False


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """The faults that both ops know, the plainest first."""
    case, params = image.case, image.case.params
    chunked = "chunk" in params
    shape = case.inputs["v"].shape
    key_heads, keys = case.inputs["k"].shape[2:]

    def other_params(says: str, **changed: Param) -> Hypothesis:
        return Hypothesis(says, lambda: Reading(replace(case, params={**params, **changed}), image.raw))

    def other_values(says: str, **changed: F64) -> Hypothesis:
        raw = {name: case.inputs[name].type.encode(x) for name, x in changed.items()}
        return Hypothesis(says, partial(image.with_inputs, **raw))

    def other_way(says: str, **changed: bool | str) -> Hypothesis:
        return Hypothesis(says, partial(image.with_expect, partial(expect, Wrong(**changed))))  # type: ignore[arg-type]

    g = case.inputs["g"].type.decode(image.raw["g"])
    beta = case.inputs["beta"].shape
    if key_heads not in (1, shape[2]):
        shared = {"tiled": "interleaved (h_v // (H_v/H_k))", "interleaved": "tiled (h_v % H_k)"}
        other = "interleaved" if params["heads"] == "tiled" else "tiled"
        yield other_params(f"value heads share key heads the other way: {shared[str(params['heads'])]}", heads=other)
    yield other_values("β is left out: taken as 1", beta=np.ones(beta))
    if params["scale"] != 1:
        yield other_params("scale is left out", scale=1.0)
        yield other_params("scale is applied twice", scale=float(params["scale"]) ** 2)
    if shape[3] != keys:
        yield other_params("scale is 1/√V instead of the one asked for", scale=usual_scale(shape[3]))
    if params["scale"] != usual_scale(keys):
        yield other_params("scale is 1/√K instead of the one asked for", scale=usual_scale(keys))
    if "state" in case.inputs:
        yield other_values("the initial state is ignored: taken as 0", state=np.zeros(case.inputs["state"].shape))
    if params["l2norm"]:
        yield other_params("q and k are not normalised", l2norm=False)
    else:
        yield other_params("q and k are normalised, which was not asked for", l2norm=True, eps=1e-6)
    if params["gate"] == "log":
        yield other_values("the sign of the gate is turned: the state grows", g=-g)
        yield other_values("the gate is ignored: the state does not decay", g=np.zeros(g.shape))
        yield other_params("the log gate is taken as the decay itself", gate="decay")
    else:
        yield other_values("the gate is ignored: the state does not decay", g=np.ones(g.shape))
        yield other_params("the decay is taken as a log gate", gate="log")
    yield other_way("the state decays after the update instead of before it", decays_late=True)
    if chunked:
        yield other_way("the diagonal of Aqk is left out: a token does not see itself", reads="decayed")
    else:
        yield other_way("out reads the state before the token's update", reads="decayed")
        yield other_way("out reads the state of the token before, not yet decayed", reads="previous")
    if keys == shape[3]:
        if "state" in case.inputs:
            yield other_way("the initial state is read transposed", reads_transposed=True)
            yield other_way("both states are transposed", reads_transposed=True, writes_transposed=True)
        yield other_way("state_out is written transposed", writes_transposed=True)
    if int(params.get("snapshots", 1)) > 1:
        yield other_way("the snapshots stand oldest first", oldest_first=True)
    if shape[0] > 1:
        yield other_way("the sequences are in the wrong order", turned=True)
    if chunked and shape[1] > int(params["chunk"]):
        yield other_way("each chunk starts from the initial state: none is carried on", restarts=True)


def expect(wrong: Wrong, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """What a kernel gives that is wrong in one way, with four times the bound that a right one has on these values."""
    values = decoded(case, raw)
    if wrong.reads_transposed:
        values["state"] = values["state"].swapaxes(-1, -2)
    chunk = int(case.params.get("chunk", 0))
    rule = rule_of(case, values, numerics)
    exact = _walk(rule, wrong, chunk)
    if chunk:
        tolerance = chunks.chunk_tolerance(rule, exact, chunk, numerics)
    else:
        tolerance = recurrent_tolerance(rule, exact, numerics)
    kept = min(int(case.params.get("snapshots", 1)), rule.tokens)
    out, state_out = _outputs(case, wrong, exact.out, exact.states[-kept:], 0.0)
    out_bound, state_bound = _outputs(case, wrong, 4 * tolerance.out, 4 * tolerance.states[-kept:], np.inf)
    return Expected(out, out_bound, others={"state_out": Expected(state_out, state_bound)})


def _outputs(case: Case, wrong: Wrong, out: F64, states: F64, fill: float) -> tuple[F64, F64]:
    """out [B, T, H, V] and state_out, of values or of bounds."""
    sequences = case.inputs["v"].shape[0]
    newest_first = states[::-1]
    found = np.full((int(case.params.get("snapshots", 1)), *states.shape[1:]), fill)
    found[: len(newest_first)] = states if wrong.oldest_first else newest_first
    state_out = stored_state(case, found.reshape(-1, *states.shape[2:]))
    out = token_order(case, out)
    if wrong.writes_transposed:
        state_out = state_out.swapaxes(-1, -2)
    if wrong.turned:
        out = out[::-1]
        state_out = state_out.reshape(-1, sequences, *state_out.shape[1:])[:, ::-1].reshape(state_out.shape)
    return out, state_out


def _walk(rule: Rule, wrong: Wrong, chunk: int) -> Walk:
    """The recurrence of a wrong kernel."""
    states = np.empty((rule.tokens + 1, *rule.state.shape))
    deltas, read = np.empty(rule.v.shape), np.empty((rule.tokens, *rule.state.shape))
    states[0] = state = rule.state
    for t in range(rule.tokens):
        gate, key = rule.gate[t][..., None], rule.k[t]
        previous = state = rule.state if wrong.restarts and t % chunk == 0 else state
        decayed = state = state if wrong.decays_late else gate * state
        deltas[t] = rule.beta[t] * (rule.v[t] - times(key, state))
        state = state + key[..., None] * deltas[t][:, None, :]
        state = gate * state if wrong.decays_late else state
        read[t] = {"updated": state, "decayed": decayed, "previous": previous}[wrong.reads]
        states[t + 1] = state
    return Walk(states, deltas, rule.scale * times(rule.q, read))
