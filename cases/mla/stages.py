"""The steps of the absorbed computation, each judged by what the backend itself had before it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opconform.cases.mla.attention import (
    TINY,
    added_mask,
    attention_error,
    dot_error,
    factor_of,
    gamma,
    narrow_of,
    score_error,
    seen_keys,
    softmax_of,
    turned,
    visible_rows,
)
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, Mask
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Stage


def stages(case: Case) -> tuple[Stage, ...]:
    """The steps of the absorbed computation: q_absorbed [B,H,T,d_c], scores and weights [B,H,T,N] (−inf and 0 where a
    query does not see a key), context [B,H,T,d_c], out. Flash attention has no scores and weights to show."""
    absorbed = Stage("q_absorbed", (), _stage_q_absorbed, "q_absorbed (q_nope·W_UK)")
    out = Stage("out", ("context",), _stage_out, "out (context·W_UV)")
    if case.params["form"] == "flash":
        return absorbed, Stage("context", ("q_absorbed",), _stage_flash, "context (flash attention on the cache)"), out
    return (
        absorbed,
        Stage("scores", ("q_absorbed",), _stage_scores, "scores (scale·(q_absorbed·c + q_pe·k_pe) + mask)"),
        Stage("weights", ("scores",), _stage_weights, "weights (softmax of the scores)"),
        Stage("context", ("weights",), _stage_context, "context (weights·c, the latent value)"),
        out,
    )


def _stage_q_absorbed(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    q_nope, w_uk = values["q_nope"], values["w_uk"]
    return Expected(q_nope @ w_uk, dot_error(q_nope, w_uk, 2, numerics))


def _shown_scores(case: Case, values: Mapping[str, F64], numerics: Numerics) -> tuple[F64, F64, Mask]:
    """Scores of the absorbed query as it was shown, their error, and which of them are seen."""
    c, k_pe = visible_rows(case, values)
    seen, mask = seen_keys(case, values), added_mask(case, values)
    query, q_pe = values["q_absorbed"], values["q_pe"]
    scores = factor_of(case) * (query @ turned(c) + q_pe @ turned(k_pe)) + mask
    error = score_error(case, np.abs(query), 0.0, q_pe, c, k_pe, mask, numerics)
    return scores, error, np.broadcast_to(seen, scores.shape)


def _stage_scores(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    scores, error, seen = _shown_scores(case, values, numerics)
    value = np.where(seen | np.isnan(scores), scores, -np.inf)  # NaN stays NaN, whether it is seen or not
    return Expected(_filled(case, value, -np.inf), _filled(case, np.where(seen, error, 0.0), 0.0))


def _stage_weights(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    scores = values["scores"]
    softmax = softmax_of(scores, np.zeros(scores.shape), scores > -np.inf, numerics)
    roundings = gamma(numerics, 2 * softmax.count - 1 + numerics.division_roundings)
    bound = softmax.weights * (np.exp(softmax.doubt) * softmax.growth * (1 + roundings) - 1)
    bound = np.where(scores > -np.inf, bound + 2 * (softmax.count + 1) * TINY + numerics.division_underflow, 0.0)
    return Expected(np.where(np.isnan(scores).any(-1, keepdims=True), np.nan, softmax.weights), bound)


def _stage_context(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    c, _ = visible_rows(case, values)
    weights, v_scale = values["weights"][..., : c.shape[-2]], float(case.params["v_scale"])
    narrow = narrow_of(case, numerics)
    error = dot_error(weights, c, 2, numerics) + (narrow.unit * weights + narrow.lost) @ np.abs(c)
    error = error * abs(v_scale) + 2 * numerics.underflow * (1 + abs(v_scale))
    return Expected(weights @ c * v_scale, np.where(weights.any(-1, keepdims=True), error, 0.0))


def _stage_flash(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    c, _ = visible_rows(case, values)
    scores, error, seen = _shown_scores(case, values, numerics)
    softmax, v_scale = softmax_of(scores, error, seen, numerics), float(case.params["v_scale"])
    context = np.where(np.isnan(scores).any(-1, keepdims=True), np.nan, softmax.weights @ c * v_scale)
    narrow = narrow_of(case, numerics)
    moved, common, numerator, _ = attention_error(softmax, c * v_scale, context, c, v_scale, narrow, numerics)
    bound = moved + common + (1 + gamma(numerics, 2 * softmax.count)) * numerator
    return Expected(context, np.where(softmax.count > 0, bound, 0.0))


def _stage_out(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    context, w_uv = values["context"], values["w_uv"]
    error = np.where(context.any(-1, keepdims=True), dot_error(context, w_uv, 0, numerics), 0.0)
    return Expected((context @ w_uv).swapaxes(1, 2), error.swapaxes(1, 2))


def _filled(case: Case, scores: F64, padding: float) -> F64:
    """[B,H,T,kv_len] with columns of `padding` for the padding rows of the cache."""
    missing = case.inputs["c_kv"].shape[2] - scores.shape[-1]
    return np.concatenate([scores, np.full((*scores.shape[:-1], missing), padding)], -1)
