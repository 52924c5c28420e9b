"""The stages of the recurrent form, and what both forms share.

A stage is what a step gives for what the backend itself had before it, with a bound.

A bound here is that of one step on the backend's own intermediate results: γ_n times the step's sum of magnitudes
(Higham 2002, section 3.1), the errors of exp and of the normalisation as in `rule.py`, and underflow.
Tokens beyond the last one, where a chunk has room for them, are not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from opconform.cases.delta_net.rule import (
    EXP_UNDERFLOW,
    Rule,
    norm_error,
    rule_of,
    stored_state,
    times,
    token_order,
    tokens_first,
)
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F32, F64
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Stage

Values = Mapping[str, F64]


def recurrent(case: Case) -> tuple[Stage, ...]:
    """The stages of `gated_delta_net`, each per token: q_norm and k_norm [B, T, H_k, K], decay [B, T, H_v, 1 or K],
    delta [B, T, H_v, V], states [B, T, H_v, K, V], then the outputs."""
    norms = norms_of(case)
    decay: tuple[Stage, ...] = ()
    if case.params["gate"] == "log":
        decay = (Stage("decay", (), _decay, "decay: exp of the log gate"),)
    before = tuple(stage.name for stage in (*norms, *decay))
    return (
        *norms,
        *decay,
        Stage("delta", (*before, "states"), _delta, "delta: β(v − Sᵀk) with the decayed state S"),
        Stage("states", (*before, "delta", "states"), _states, "states: S after each token, diag(a) S + k deltaᵀ"),
        Stage("out", (*before, "delta", "states"), _out, "out: scale·Sᵀq, S after the token's own update"),
        Stage("state_out", ("states",), _state_out, "state_out: the last states, newest first, in their layout"),
    )


def norms_of(case: Case) -> tuple[Stage, ...]:
    if not case.params["l2norm"]:
        return ()
    return tuple(Stage(f"{x}_norm", (), partial(_norm, x), f"{x}_norm: {x} / √(Σ{x}² + eps)") for x in ("q", "k"))


def _norm(argument: str, case: Case, values: Values, numerics: Numerics) -> Expected:
    x = values[argument]
    sums = np.sum(x * x, axis=-1, keepdims=True) + float(case.params["eps"])
    value = x / np.sqrt(sums)
    bound = norm_error(x.shape[-1], numerics) * np.abs(value) + numerics.underflow * (1 + 1 / np.sqrt(sums))
    return Expected(value, np.where(sums > F32.largest / 2, np.inf, bound))


def shown_rule(case: Case, values: Values, numerics: Numerics) -> Rule:
    """The rule with q and k as the backend normalised them."""
    shown = {name: values.get(f"{name}_norm", values[name]) for name in ("q", "k")}
    return rule_of(case, {**values, **shown}, numerics, normalised=True)


def roundings(numerics: Numerics, n: int) -> float:
    return float(numerics.gamma(float(n + 2 * numerics.conversions)))


def _decay(case: Case, values: Values, numerics: Numerics) -> Expected:
    g = values["g"]
    return Expected(np.exp(g), numerics.exp_error(g) * np.exp(g) + EXP_UNDERFLOW)


def _token(case: Case, values: Values, numerics: Numerics) -> tuple[Rule, F64, F64, F64]:
    """The rule, and as the backend showed them: the decay, and the states before each token and after it."""
    rule = shown_rule(case, values, numerics)
    decay = tokens_first(values["decay"]) if "decay" in values else rule.gate
    after = tokens_first(values["states"])
    before = np.concatenate([rule.state[None], after[:-1]])
    return rule, decay, before, after


def _delta(case: Case, values: Values, numerics: Numerics) -> Expected:
    rule, decay, before, _ = _token(case, values, numerics)
    decayed, beta = decay[..., None] * before, np.abs(rule.beta)
    value = rule.beta * (rule.v - times(rule.k, decayed))
    sizes = np.abs(rule.v) + times(np.abs(rule.k), np.abs(decayed))
    small = np.sum(np.abs(rule.k), axis=2, keepdims=True) + 2 * np.sum(np.abs(before), axis=2)
    lost = numerics.underflow * (2 * rule.keys + 4 + np.abs(rule.v) + small)
    bound = roundings(numerics, rule.keys + 3) * beta * sizes + (1 + beta) * lost
    return Expected(token_order(case, value), token_order(case, bound))


def _states(case: Case, values: Values, numerics: Numerics) -> Expected:
    rule, decay, before, _ = _token(case, values, numerics)
    delta = tokens_first(values["delta"])
    decayed, update = decay[..., None] * before, rule.k[..., None] * delta[:, :, None, :]
    small = 4 + np.abs(before) + np.abs(delta)[:, :, None, :]
    bound = roundings(numerics, 3) * (np.abs(decayed) + np.abs(update)) + numerics.underflow * small
    return Expected(token_order(case, decayed + update), token_order(case, bound))


def _out(case: Case, values: Values, numerics: Numerics) -> Expected:
    rule, decay, before, after = _token(case, values, numerics)
    delta = np.abs(tokens_first(values["delta"]))
    q, k, scale = np.abs(rule.q), np.abs(rule.k), abs(rule.scale)
    sizes = times(q, np.abs(decay[..., None] * before)) + np.sum(q * k, axis=2, keepdims=True) * delta
    small = 2 * rule.keys + 4 + np.sum(q, axis=2, keepdims=True) + np.sum(np.abs(after), axis=2)
    # 3 more: the state shown has been rounded, which a kernel that adds (q·k) delta does not use
    bound = roundings(numerics, rule.keys + 7) * scale * sizes + numerics.underflow * max(1.0, scale) * small
    return Expected(token_order(case, rule.scale * times(rule.q, after)), token_order(case, bound))


def _state_out(case: Case, values: Values, numerics: Numerics) -> Expected:
    kept = int(case.params["snapshots"])
    newest_first = tokens_first(values["states"])[: -kept - 1 : -1]
    value, bound = (np.full((kept, *newest_first.shape[1:]), fill) for fill in (0.0, np.inf))
    value[: len(newest_first)] = newest_first
    bound[: len(newest_first)] = numerics.u * np.abs(newest_first) + numerics.underflow
    value, bound = (stored_state(case, x.reshape(-1, *x.shape[2:])) for x in (value, bound))
    return Expected(value, bound)
