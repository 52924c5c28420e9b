"""MLA absorbed: multi-head latent attention (DeepSeek-V2, Kimi-Linear) computed on the latent rows of its cache.

Each head's keys and values are W_UK c and cᵀ W_UV of one latent row c that all heads share, beside a rotary part of
the key. A kernel need not decompress them: q·(W_UK c) = (q W_UK)·c, and Σ w (cᵀ W_UV) = (Σ w c)ᵀ W_UV. The reference
here does decompress them, in float64, so that absorption itself is checked.

Shapes, outermost first: q_nope [B,H,T,d_n], q_pe [B,H,T,d_r], c_kv [B,1,N,d_c], k_pe [B,1,N,d_r], w_uk [1,H,d_n,d_c],
w_uv [1,H,d_c,d_v], mask [B or 1,1,T,N], out [B,T,H,d_v]. Rows of the cache from kv_len on are padding: they hold NaN
and belong to nobody. Query i of T stands at position kv_len − T + i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.harness.draw.strategies import EDGES, outer_sizes
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import F32, F64, Mask, Raw
from opconform.harness.model.expected import Comparison, Expect, Expected
from opconform.harness.model.findings import Kind
from opconform.harness.model.image import Hypothesis, Image, Reading
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Again, Metamorphic, Op, Problem, Stage
from opconform.harness.model.values import data_of

FORMS = ("two_part", "concat", "flash")
CACHES = ("f32", "f16", "bf16")
MASKS = ("none", "f32", "f16")
RECIPES = ("small_int", "flat", "normal", "peaked", "large_logits")

_TINY = 2.0**-126  #: an exponential below this may be 0 on any device
_WORK = 1 << 21  #: multiplications of one drawn case


@dataclass(frozen=True)
class _Reading:
    """The case as it is understood: the op itself, or what a hypothesis says of it."""

    shift: int = 0  #: query i sees this many keys more than it should
    from_start: bool = False  #: query i stands at position i
    masked: bool = True  #: the mask is added
    mean: bool = False  #: a query that sees no key gets the mean of all values
    value_start: int = 0  #: the first column of the row (c | k_pe) that is read as the latent value


@dataclass(frozen=True)
class _Softmax:
    """softmax of scores that are off by up to some error, and what a device can make of it.

    weights: exact, [B,H,T,M]; 0 where masked. doubt: d with w'_j ∈ w_j·[e^−d_j, e^d_j] / Σ w_i e^±d_i. growth: Σ w e^d.
    count: how many keys the query sees, [B or 1,1,T,1].
    """

    weights: F64
    doubt: F64
    growth: F64
    count: F64


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = v_scale · softmax(scale · k_scale · (q_nope·(W_UK c) + q_pe·k_pe) + mask) · (c W_UV), by head.

    The bound holds for the absorbed computation: in two parts or on concatenated rows, with scale and k_scale applied
    to q, to the rows or to the scores, softmax in one pass or online in tiles of any size and in any order, in base e
    or 2, each product fused or not. Each weight is computed once for all channels. γ_n and the rules for it:
    Higham 2002, lemmas 3.1 and 3.3, and section 3.1 for inner products in any order.

    Scores. q̃ = q_nope W_UK is off by E = γ_{d_n+2}·|q_nope||W_UK|. A score sums d_c + d_r products; scale and k_scale
    are rounded to float32 and cost a multiplication each; adding the mask and passing to base 2 rounds the result
    three times. Hence ε_j = |scale·k_scale|·(E·|c_j| + γ_{d_c+d_r+4}·((|q̃| + E)·|c_j| + |q_pe|·|k_pe_j|))
    + γ_3·(|s_j| + |mask_j|).

    Weights. An error e_j in the exponent gives w'_j = w_j e^{e_j} / Σ w_i e^{e_i}. As Σ w_j (v_j − out) = 0, the result
    moves by Σ w_j (e^{e_j} − 1)(v_j − out) / Σ w_i e^{e_i}, thus by A = Σ w_j (e^{d_j} − 1)·|v_j − out|·Σ w_i e^{d_i}
    at most, for |e_j| ≤ d_j and because Σ w e^{−d} · Σ w e^{d} ≥ 1 (Cauchy–Schwarz). What goes into d_j: ε_j; with
    x_j = s_j − max, the subtraction of the maximum and a passage to base 2, 3u·|x_j|; the exponential's error at x_j.
    Online softmax multiplies what it has by exp(old max − new max): the arguments of all these factors and of the
    weight's own exponential have one sign and add up to x_j, so that only the constant part of exp's error comes
    again, at most n − 1 times for n visible keys. A factor exp(0) is 1.

    Sums. The denominator takes n − 1 additions and n − 1 rescalings and is common to all channels:
    γ_{2n−2}·(|out| + A). A numerator takes a product, n − 1 additions, n − 1 rescalings, a division (ρ roundings, one
    more for a reciprocal and a product; of the weights or of the sum) and v_scale (rounded to float32, multiplied):
    η = γ_{2n+ρ+3}·Σ w'_j |c_j| per channel. W_UV sums d_c products: γ_{d_c}·(|context| + η)|W_UV|; η itself is carried
    over as η|W_UV|.

    A backend that computes in a lower precision (`Numerics.roundoff`) rounds every operand of a product once more. One
    that rounds what it multiplies with an f16 or bf16 cache to the cache's type (`Numerics.narrow_operands`: queries
    and weights, with the type's unit roundoff μ or, below its normal numbers, μ times the smallest of these) adds
    μ·(|q̃|·|c_j| + |q_pe|·|k_pe_j|) to the scores and μ·Σ w'_j |c_j| to η; one that adds up in f16 as well
    (`Numerics.narrow_sums`) adds γ_{2n} of f16 to η. An exponential below 2^-126 may be 0. Where a sum may pass the
    largest float32 nothing is demanded. A row in which everything is masked is 0, exactly.
    """
    return _expect(_Reading(), case, raw, numerics)


def _expect(reading: _Reading, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    values = {name: layout.type.decode(raw[name]) for name, layout in case.inputs.items()}
    c, k_pe = _cache(case, values)
    q_pe, w_uk, w_uv = values["q_pe"], values["w_uk"], values["w_uv"]
    keys = c @ _turned(w_uk)
    v_scale = float(case.params["v_scale"])
    start = reading.value_start
    latent = np.concatenate([c, k_pe], -1)[..., start : start + c.shape[-1]] if start else c
    v = v_scale * (latent @ w_uv)

    seen, mask = _seen(case, values, reading), _mask(case, values, reading)
    products = values["q_nope"] @ _turned(keys) + q_pe @ _turned(k_pe)
    scores = _factor(case) * products + mask
    spoilt = np.isnan(scores).any(-1, keepdims=True)  # NaN beside a key that is not seen: NaN − ∞ is NaN
    if reading.mean:
        scores = np.where(seen.any(-1, keepdims=True), scores, 0.0)
        seen = seen | ~seen.any(-1, keepdims=True)

    q_absorbed = values["q_nope"] @ w_uk
    absorbed_error = _dot_error(values["q_nope"], w_uk, 2, numerics)
    error = _score_error(case, np.abs(q_absorbed), absorbed_error, q_pe, c, k_pe, mask, numerics)
    softmax = _softmax(scores, error, seen, numerics)

    value = np.where(spoilt, np.nan, softmax.weights @ v)
    context = softmax.weights @ latent * v_scale
    narrow = _narrow(case, numerics)
    moved, common, numerator, reach = _attention_error(softmax, v, value, latent, v_scale, narrow, numerics)
    decompressed = _dot_error(np.abs(context) + reach + numerator, w_uv, 0, numerics)
    carried = (1 + _gamma(numerics, 2 * softmax.count - 2)) * (numerator @ np.abs(w_uv) + decompressed)
    bound = np.where(softmax.count > 0, moved + common + carried, 0.0)
    heavy = np.abs(c).sum(-2, keepdims=True) * max(abs(v_scale), 1.0)
    overflows = (heavy @ np.abs(w_uv) > F32.largest) | np.isnan(bound) | (np.abs(value) + bound > F32.largest)
    if narrow.sum_unit:
        overflows |= heavy.max(-1, keepdims=True, initial=0.0) > narrow.largest_sum
    bound = np.where(overflows & (softmax.count > 0), np.inf, bound)
    return Expected(value.swapaxes(1, 2), bound.swapaxes(1, 2))


def _attention_error(
    softmax: _Softmax, v: F64, out: F64, latent: F64, v_scale: float, narrow: _Narrow, numerics: Numerics
) -> tuple[F64, F64, F64, F64]:
    """A and γ_{2n−2}·(|out| + A) of the result `out` = weights·v; η of the context; how far the weights move it."""
    n = softmax.count
    certain = softmax.weights * np.expm1(softmax.doubt) * softmax.growth
    moved = np.empty(out.shape)
    for t in range(out.shape[-2]):  # one query at a time: [B,H,M,d] and not [B,H,T,M,d]
        moved[..., t, :] = (certain[..., t, None, :] @ np.abs(v - out[..., t, None, :]))[..., 0, :]
    common = _gamma(numerics, 2 * n - 2) * (np.abs(out) + moved)
    magnitude = np.abs(latent) * abs(v_scale)
    likely = softmax.weights * np.exp(softmax.doubt) * softmax.growth
    lost = (2 * (n + 1) * _TINY + narrow.lost) * magnitude.sum(-2, keepdims=True)
    lost = lost + (4 * n + 4) * numerics.underflow * (1 + abs(v_scale)) + 2 * n * narrow.sum_lost * abs(v_scale)
    roundings = 2 * n + numerics.division_roundings + 3 + 2 * numerics.conversions
    relative = _gamma(numerics, roundings) + narrow.unit
    if narrow.sum_unit:
        relative = relative + _gamma(Numerics(roundoff=narrow.sum_unit), 2 * n)
    numerator = relative * (likely @ magnitude) + lost
    reach = (likely - softmax.weights) @ magnitude
    return moved, common, numerator, reach


@dataclass(frozen=True)
class _Narrow:
    """What a product with the cache loses by rounding its other operand to the cache's type: a relative and an absolute
    error, and the largest operand; and the errors of each sum in that type."""

    unit: float = 0.0
    lost: float = 0.0
    largest: float = np.inf
    sum_unit: float = 0.0
    sum_lost: float = 0.0
    largest_sum: float = np.inf


def _narrow(case: Case, numerics: Numerics) -> _Narrow:
    cache = case.inputs["c_kv"].type
    if cache.itemsize != 2:
        return _Narrow()
    errors = (cache.unit_roundoff, cache.unit_roundoff * cache.smallest_normal, cache.largest)
    nothing = (0.0, 0.0, np.inf)
    in_sums = numerics.narrow_sums and cache.name == "f16"
    return _Narrow(*(errors if numerics.narrow_operands else nothing), *(errors if in_sums else nothing))


def _cache(case: Case, values: Mapping[str, F64]) -> tuple[F64, F64]:
    """The rows of c_kv and k_pe that are no padding."""
    kv_len = int(case.params["kv_len"])
    return values["c_kv"][..., :kv_len, :], values["k_pe"][..., :kv_len, :]


def _factor(case: Case) -> float:
    return float(case.params["scale"]) * float(case.params["k_scale"])


def _seen(case: Case, values: Mapping[str, F64], reading: _Reading = _Reading()) -> Mask:
    """Which keys each query sees, [B or 1,1,T,kv_len]."""
    kv_len, queries = int(case.params["kv_len"]), case.inputs["q_nope"].shape[2]
    seen = np.ones((1, 1, queries, kv_len), dtype=bool)
    if case.params["causal"]:
        first = 0 if reading.from_start else kv_len - queries
        seen = seen & np.tri(queries, kv_len, first + reading.shift, dtype=bool)
    if "mask" in values and reading.masked:
        seen = seen & (values["mask"][..., :kv_len] != -np.inf)
    return seen


def _mask(case: Case, values: Mapping[str, F64], reading: _Reading = _Reading()) -> F64:
    """What is added to the scores, with 0 for -inf."""
    if "mask" not in values or not reading.masked:
        return np.zeros((1, 1, 1, 1))
    mask = values["mask"][..., : int(case.params["kv_len"])]
    return np.where(mask == -np.inf, 0.0, mask)


def _turned(matrix: F64) -> F64:
    turned: F64 = matrix.swapaxes(-1, -2)
    return turned


def _gamma(numerics: Numerics, count: F64 | float) -> F64:
    """γ of a count that may be below 0 (of sums over nothing)."""
    return np.asarray(numerics.gamma(np.maximum(np.asarray(count, np.float64), 0.0)))


def _dot_error(a: F64, b: F64, more: float, numerics: Numerics) -> F64:
    """The error of a·b (the last axis of a with the last but one of b), each sum in any order, with `more` roundings of
    each product. A device that flushes may lose operands, products and sums that are denormal."""
    terms = a.shape[-1]
    error: F64 = _gamma(numerics, terms + more + 2 * numerics.conversions) * (np.abs(a) @ np.abs(b))
    error = error + 2 * terms * numerics.underflow
    if numerics.flushes_denormals:
        flushed = np.abs(a).sum(-1, keepdims=True) + np.abs(b).sum(-2, keepdims=True)
        error = error + numerics.underflow * flushed
    return error


def _score_error(
    case: Case, q: F64, q_error: F64 | float, q_pe: F64, c: F64, k_pe: F64, mask: F64, numerics: Numerics
) -> F64:
    """ε of every score, for an absorbed query of magnitude `q`, off by `q_error`; infinite where it may overflow."""
    rows, query = _turned(np.concatenate([c, k_pe], -1)), np.concatenate([q + q_error, np.abs(q_pe)], -1)
    magnitude, factor = query @ np.abs(rows), abs(_factor(case))
    error = factor * _dot_error(query, rows, 4, numerics) + 4 * numerics.underflow * (1 + factor)
    if not isinstance(q_error, float):
        error = error + factor * (q_error @ np.abs(_turned(c)))
    error = error + _gamma(numerics, 3) * (factor * magnitude + np.abs(mask))
    narrow = _narrow(case, numerics)
    error = error + factor * (narrow.unit * magnitude + narrow.lost * np.abs(rows).sum(-2, keepdims=True))
    largest = magnitude * max(1.0, factor, abs(float(case.params["k_scale"]))) + np.abs(mask)
    overflows = (largest > F32.largest / 2) | (query.max(-1, keepdims=True, initial=0.0) > narrow.largest)
    return np.where(overflows, np.inf, error)


def _softmax(scores: F64, error: F64, seen: Mask, numerics: Numerics) -> _Softmax:
    """softmax along the last axis over what is seen; all weights are 0 where nothing is."""
    count = seen.sum(-1, keepdims=True).astype(np.float64)
    nothing = np.full((*scores.shape[:-1], 1), -np.inf)
    scores = np.where(seen, scores, -np.inf)
    top = np.max(np.concatenate([scores, nothing], -1), -1, keepdims=True)
    upper = np.max(np.concatenate([np.where(seen, scores + error, -np.inf), nothing], -1), -1, keepdims=True)
    exponentials = np.where(seen, np.exp(scores - top), 0.0)
    total = exponentials.sum(-1, keepdims=True)
    weights = np.divide(exponentials, total, out=np.zeros_like(exponentials), where=total != 0)
    depth = np.where(seen, upper - scores + error, 0.0)  # |x| as a device may see it
    constant = numerics.exp_error(np.zeros(()))
    relative = count * constant + (numerics.exp_error(depth) - constant) + 3 * numerics.u * depth
    exponent = np.where(relative < 1, relative / np.maximum(1 - relative, 0.0), np.inf)
    doubt = np.where(seen, error + exponent, 0.0)
    spread = np.where(seen, np.exp(scores - top + doubt), 0.0).sum(-1, keepdims=True)
    growth = np.divide(spread, total, out=np.ones_like(spread), where=total != 0)
    return _Softmax(weights, doubt, growth, np.broadcast_to(count, (*scores.shape[:-1], 1)))


# --- stages ---


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
    return Expected(q_nope @ w_uk, _dot_error(q_nope, w_uk, 2, numerics))


def _shown_scores(case: Case, values: Mapping[str, F64], numerics: Numerics) -> tuple[F64, F64, Mask]:
    """Scores of the absorbed query as it was shown, their error, and which of them are seen."""
    c, k_pe = _cache(case, values)
    seen, mask = _seen(case, values), _mask(case, values)
    query, q_pe = values["q_absorbed"], values["q_pe"]
    scores = _factor(case) * (query @ _turned(c) + q_pe @ _turned(k_pe)) + mask
    error = _score_error(case, np.abs(query), 0.0, q_pe, c, k_pe, mask, numerics)
    return scores, error, np.broadcast_to(seen, scores.shape)


def _stage_scores(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    scores, error, seen = _shown_scores(case, values, numerics)
    value = np.where(seen | np.isnan(scores), scores, -np.inf)  # NaN stays NaN, whether it is seen or not
    return Expected(_filled(case, value, -np.inf), _filled(case, np.where(seen, error, 0.0), 0.0))


def _stage_weights(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    scores = values["scores"]
    softmax = _softmax(scores, np.zeros(scores.shape), scores > -np.inf, numerics)
    roundings = _gamma(numerics, 2 * softmax.count - 1 + numerics.division_roundings)
    bound = softmax.weights * (np.exp(softmax.doubt) * softmax.growth * (1 + roundings) - 1)
    bound = np.where(scores > -np.inf, bound + 2 * (softmax.count + 1) * _TINY + numerics.division_underflow, 0.0)
    return Expected(np.where(np.isnan(scores).any(-1, keepdims=True), np.nan, softmax.weights), bound)


def _stage_context(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    c, _ = _cache(case, values)
    weights, v_scale = values["weights"][..., : c.shape[-2]], float(case.params["v_scale"])
    narrow = _narrow(case, numerics)
    error = _dot_error(weights, c, 2, numerics) + (narrow.unit * weights + narrow.lost) @ np.abs(c)
    error = error * abs(v_scale) + 2 * numerics.underflow * (1 + abs(v_scale))
    return Expected(weights @ c * v_scale, np.where(weights.any(-1, keepdims=True), error, 0.0))


def _stage_flash(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    c, _ = _cache(case, values)
    scores, error, seen = _shown_scores(case, values, numerics)
    softmax, v_scale = _softmax(scores, error, seen, numerics), float(case.params["v_scale"])
    context = np.where(np.isnan(scores).any(-1, keepdims=True), np.nan, softmax.weights @ c * v_scale)
    narrow = _narrow(case, numerics)
    moved, common, numerator, _ = _attention_error(softmax, c * v_scale, context, c, v_scale, narrow, numerics)
    bound = moved + common + (1 + _gamma(numerics, 2 * softmax.count)) * numerator
    return Expected(context, np.where(softmax.count > 0, bound, 0.0))


def _stage_out(case: Case, values: Mapping[str, F64], numerics: Numerics) -> Expected:
    context, w_uv = values["context"], values["w_uv"]
    error = np.where(context.any(-1, keepdims=True), _dot_error(context, w_uv, 0, numerics), 0.0)
    return Expected((context @ w_uv).swapaxes(1, 2), error.swapaxes(1, 2))


def _filled(case: Case, scores: F64, padding: float) -> F64:
    """[B,H,T,kv_len] with columns of `padding` for the padding rows of the cache."""
    missing = case.inputs["c_kv"].shape[2] - scores.shape[-1]
    return np.concatenate([scores, np.full((*scores.shape[:-1], missing), padding)], -1)


# --- what is tried ---


def shape_values(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Scores of about ±2, a mask with blocks of −inf and whole rows of it, and NaN in every padding row.

    small_int: multiples of 1/4, so that products are exact. flat: all queries are 0, so that only the mask tells keys
    apart. peaked: one cache row is eight times the others. large_logits: scores of ±50 to ±1000.
    """
    if case.recipe == "small_int":
        for name in ("q_nope", "q_pe", "c_kv", "k_pe", "w_uk", "w_uv"):
            values[name] /= 4
    else:
        values["w_uk"] /= math.sqrt(values["w_uk"].shape[2])
        values["w_uv"] /= math.sqrt(values["w_uv"].shape[2])
    kv_len = int(case.params["kv_len"])
    if case.recipe == "flat":
        values["q_nope"] *= 0
        values["q_pe"] *= 0
    if case.recipe == "peaked" and kv_len:
        row = int(rng.integers(kv_len))
        values["c_kv"][:, :, row] *= 8
        values["k_pe"][:, :, row] *= 8
    if case.recipe == "large_logits":
        spread = abs(_factor(case)) * math.sqrt(values["c_kv"].shape[-1] + values["k_pe"].shape[-1])
        times = float(rng.choice([50.0, 200.0, 1000.0])) / (3 * max(spread, 1e-3))
        values["q_nope"] *= times
        values["q_pe"] *= times
    if "mask" in values:
        _shape_mask(values["mask"], case.recipe, rng)
    values["c_kv"][:, :, kv_len:] = np.nan
    values["k_pe"][:, :, kv_len:] = np.nan


def _shape_mask(mask: F64, recipe: str, rng: np.random.Generator) -> None:
    """0 (small_int) or some number, with −inf in single places, in a block of columns, and along whole rows."""
    if recipe in ("small_int", "flat"):
        mask[...] = 0.0
    single = float(rng.choice([0.0, 0.3, 0.8]))
    mask[rng.random(mask.shape) < single] = -np.inf
    first, last = np.sort(rng.integers(0, mask.shape[-1] + 1, 2))
    if last - first < mask.shape[-1]:
        mask[..., first:last] = -np.inf
    mask[rng.random(mask.shape[:-1]) < 0.2] = -np.inf


def check(case: Case) -> None:
    """Raises `CaseError` for shapes that do not fit together, and for a kv_len beyond the cache."""
    shapes = {name: layout.shape for name, layout in case.layouts.items()}
    batch, heads, queries, d_n = shapes["q_nope"]
    rows, d_c = shapes["c_kv"][2:]
    d_r, d_v = shapes["q_pe"][3], shapes["w_uv"][3]
    wanted = {
        "q_pe": (batch, heads, queries, d_r),
        "c_kv": (batch, 1, rows, d_c),
        "k_pe": (batch, 1, rows, d_r),
        "w_uk": (1, heads, d_n, d_c),
        "w_uv": (1, heads, d_c, d_v),
        "out": (batch, queries, heads, d_v),
    }
    if "mask" in shapes:
        wanted["mask"] = (shapes["mask"][0] if shapes["mask"][0] in (1, batch) else batch, 1, queries, rows)
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise CaseError(f"{name} has shape {shapes[name]}; beside the other arguments it must have {shape}")
    if case.inputs["c_kv"].dtype != case.inputs["k_pe"].dtype:
        raise CaseError("c_kv and k_pe must have one dtype, for they are parts of one cache")
    if not 0 <= int(case.params["kv_len"]) <= rows:
        raise CaseError(f"kv_len is {case.params['kv_len']}; the cache has {rows} rows")
    if case.params["form"] not in FORMS:
        raise CaseError(f"form is {case.params['form']!r}; it must be one of {', '.join(FORMS)}")
    if case.inplace is not None:
        raise CaseError("case.inplace must be null: mla_absorbed does not work in place")


def traits(case: Case) -> dict[str, Any]:
    """cache: the type of c_kv and k_pe. mask: its type, or "none". padded: whether the cache has padding rows. d_n,
    d_r, d_c, d_v: the widths. scaled: whether k_scale or v_scale is not 1."""
    inputs, params = case.inputs, case.params
    return {
        "cache": inputs["c_kv"].dtype,
        "mask": inputs["mask"].dtype if "mask" in inputs else "none",
        "padded": int(params["kv_len"]) < inputs["c_kv"].shape[2],
        "d_n": inputs["q_nope"].shape[3],
        "d_r": inputs["q_pe"].shape[3],
        "d_c": inputs["c_kv"].shape[3],
        "d_v": inputs["w_uv"].shape[3],
        "scaled": params["k_scale"] != 1 or params["v_scale"] != 1,
    }


_SCALES = st.sampled_from((4, 8, 8, 17, 33, 65, 129))
_HEADS = st.sampled_from((1, 2, 3, 4, 5, 8))
_QUERIES = st.sampled_from((1, 2, 3, 4, 7, 8, 9, 16, 17, 33))
_BOOLEANS = st.booleans()


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Decode and prefill over caches of up to 257 rows; shrinks to one head, one query, one row, all widths 1."""
    form = draw(st.sampled_from(freedom.choices("form", FORMS)))
    cache = draw(st.sampled_from(freedom.choices("cache", CACHES)))
    mask = draw(st.sampled_from(freedom.choices("mask", MASKS)))
    causal = draw(st.sampled_from(freedom.choices("causal", (False, True))))
    padded = draw(st.sampled_from(freedom.choices("padded", (False, True))))
    scaled = draw(st.sampled_from(freedom.choices("scaled", (False, True))))
    largest = draw(_SCALES)
    widths = {name: draw(st.sampled_from(_sizes(freedom, name, largest))) for name in ("d_n", "d_r", "d_c", "d_v")}
    batch, heads, queries = draw(outer_sizes()), draw(_HEADS), draw(_QUERIES)
    rows = draw(st.sampled_from(_sizes(freedom, "rows", 2 * largest)))
    while batch * heads * _work(queries, rows, widths) > _WORK and rows * queries * heads > 1:
        rows, queries, heads = (-(-n // 2) for n in (rows, queries, heads))
    padding = draw(st.sampled_from((1, 2, 3, 17))) if padded else 0
    scale = 1 / math.sqrt(widths["d_n"] + widths["d_r"])
    params: dict[str, Param] = {
        "scale": scale * draw(st.sampled_from((1.0, 1.873856, 0.5))),  # DeepSeek-V3 multiplies by mscale², 1.37²
        "form": form,
        "causal": causal,
        "kv_len": rows,
        "k_scale": draw(st.sampled_from((0.5, 1.0, 1.3))) if scaled else 1.0,
        "v_scale": draw(st.sampled_from((2.0, 1.0, 0.7))) if scaled else 1.0,
    }
    rows += padding
    shapes = {
        "q_nope": (batch, heads, queries, widths["d_n"]),
        "q_pe": (batch, heads, queries, widths["d_r"]),
        "c_kv": (batch, 1, rows, widths["d_c"]),
        "k_pe": (batch, 1, rows, widths["d_r"]),
        "w_uk": (1, heads, widths["d_n"], widths["d_c"]),
        "w_uv": (1, heads, widths["d_c"], widths["d_v"]),
    }
    dtypes = {"c_kv": cache, "k_pe": cache}
    if mask != "none":
        shapes["mask"] = (1 if draw(_BOOLEANS) else batch, 1, queries, rows)
        dtypes["mask"] = mask
    return Problem(params, "f32", shapes, (batch, queries, heads, widths["d_v"]), dtypes=dtypes)


def _sizes(freedom: Freedom, subject: str, largest: int) -> list[int]:
    """The sizes up to `largest` that the limits on `subject` allow, more than half of them above its half; where they
    allow none so small, the smallest one they allow."""
    sizes = freedom.choices(subject, [size for size in EDGES if size <= largest])
    large = [size for size in sizes if 2 * size > largest]
    return sizes + large * 2 or freedom.choices(subject, range(1, 1025))[:1]


def _work(queries: int, rows: int, widths: Mapping[str, int]) -> int:
    """Multiplications for one head."""
    d_n, d_r, d_c, d_v = (widths[name] for name in ("d_n", "d_r", "d_c", "d_v"))
    return queries * (d_n * d_c + rows * (2 * d_c + d_r + d_v) + d_c * d_v)


# --- relations between runs ---


def _sequence_isolation(
    op: Op, case: Case, values: Mapping[str, Raw], found: Mapping[str, Comparison], again: Again
) -> str | None:
    batch = case.inputs["q_nope"].shape[0]
    if batch == 1:
        return None
    cut = {name: raw[-1:] for name, raw in values.items()}
    return _compared(_with(case, cut), again, found["out"], lambda got: got[-1:], "its last sequence alone")


def _head_permutation(
    op: Op, case: Case, values: Mapping[str, Raw], found: Mapping[str, Comparison], again: Again
) -> str | None:
    if case.inputs["q_nope"].shape[1] == 1:
        return None
    by_head = ("q_nope", "q_pe", "w_uk", "w_uv")
    turned = {name: raw[:, ::-1] if name in by_head else raw for name, raw in values.items()}
    return _compared(_with(case, turned), again, found["out"], lambda got: got[:, :, ::-1], "its heads reversed")


def _other_form(
    op: Op, case: Case, values: Mapping[str, Raw], found: Mapping[str, Comparison], again: Again
) -> str | None:
    form = FORMS[(FORMS.index(str(case.params["form"])) + 1) % len(FORMS)]
    twin = replace(_with(case, values), params={**case.params, "form": form})
    return _compared(twin, again, found["out"], lambda got: got, f"the form {form}")


def _with(case: Case, values: Mapping[str, Raw]) -> Case:
    """A packed case with these elements, and of their shapes."""
    inputs = {name: Layout.contiguous(case.inputs[name].dtype, raw.shape) for name, raw in values.items()}
    batch, out = values["q_nope"].shape[0], case.outputs["out"]
    outputs = {"out": Layout.contiguous(out.dtype, (batch, *out.shape[1:]))}
    return replace(case, inputs=inputs, outputs=outputs).with_data(data_of(dict(values)))


def _compared(twin: Case, again: Again, found: Comparison, part: Callable[[F64], F64], what: str) -> str | None:
    """What is wrong between a run and its twin: each may be off by its bound, and no more."""
    others = again(twin)
    if others is None:
        return None
    other = others["out"]
    got, bound = part(found.got), other.bound + part(found.bound)
    apart = ~((np.abs(other.got - got) <= bound) | np.isinf(bound) | np.isnan(got))
    if not apart.any():
        return None
    return (
        f"{int(np.count_nonzero(apart))} of {apart.size} elements differ from those of {what} by more than both bounds"
    )


# --- faults of its own ---


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of MLA's own: scales mixed up, the rotary part left out, masks that are off, values read elsewhere."""
    params, inputs = image.case.params, image.case.inputs
    d_c, d_r = inputs["c_kv"].shape[3], inputs["k_pe"].shape[3]
    by_width = 1 / math.sqrt(d_c + d_r)
    if by_width != params["scale"]:
        says = f"scale is 1/√{d_c + d_r} (the width of a cache row) instead of the one asked for"
        yield Hypothesis(says, _with_params(image, scale=by_width))
    if params["scale"] != 1:
        yield Hypothesis("scale is left out", _with_params(image, scale=1.0))
    if params["k_scale"] != params["v_scale"]:
        k_scale, v_scale = float(params["k_scale"]), float(params["v_scale"])
        yield Hypothesis("v_scale is used for the keys", _with_params(image, k_scale=v_scale))
        yield Hypothesis("k_scale is used for the values", _with_params(image, v_scale=k_scale))
        yield Hypothesis("k_scale and v_scale are exchanged", _with_params(image, k_scale=v_scale, v_scale=k_scale))
    for name, value in (("k_scale", params["k_scale"]), ("v_scale", params["v_scale"])):
        if value != 1:
            yield Hypothesis(f"{name} is left out", _with_params(image, **{name: 1.0}))
    for name, says in (("q_pe", "the rotary part (q_pe·k_pe)"), ("q_nope", "the latent part (q_nope·W_UK·c)")):
        nothing = inputs[name].type.encode(np.zeros(inputs[name].shape))
        yield Hypothesis(f"{says} is left out of the scores", partial(image.with_inputs, **{name: nothing}))
    if params["causal"]:
        yield Hypothesis("causal is ignored: queries see keys after them", _with_params(image, causal=False))
        yield Hypothesis(
            "the causal mask is off by one: a query sees the key after it", _read(image, _Reading(shift=1))
        )
        yield Hypothesis("the causal mask is off by one: a query does not see itself", _read(image, _Reading(shift=-1)))
        says = "the causal mask counts from the first key: query i sees keys up to i"
        yield Hypothesis(says, _read(image, _Reading(from_start=True)))
    if "mask" in inputs:
        yield Hypothesis("the mask is ignored", _read(image, _Reading(masked=False)))
    if params["causal"] or "mask" in inputs:
        yield Hypothesis("a query that sees no key gets the mean of all values", _read(image, _Reading(mean=True)))
    if int(params["kv_len"]) < inputs["c_kv"].shape[2]:
        says = "kv_len is ignored: padding rows of the cache are read"
        yield Hypothesis(says, _with_params(image, kv_len=inputs["c_kv"].shape[2]))
    says = f"the value is read from the wrong columns of a cache row: from {d_r} on, where the latent part starts at 0"
    yield Hypothesis(says, _read(image, _Reading(value_start=d_r)))


def _with_params(image: Image, **changed: bool | int | float) -> Callable[[], Reading]:
    case = replace(image.case, params={**image.case.params, **changed})
    return lambda: Reading(case, image.raw)


def _read(image: Image, reading: _Reading) -> Callable[[], Reading]:
    expect: Expect = partial(_expect, reading)
    return partial(image.with_expect, expect)


OP = Op(
    name="mla_absorbed",
    summary="multi-head latent attention on the latent rows of the cache",
    inputs=("q_nope", "q_pe", "c_kv", "k_pe", "w_uk", "w_uv", "mask"),
    params={"scale": float, "form": str, "causal": bool, "kv_len": int, "k_scale": float, "v_scale": float},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="Σ w(e^d − 1)|v − out| + γ_{2n}|out| + γ_{2n}·Σ w|c|·|W_UV| + γ_{d_c}·|context||W_UV|, d from the scores",
    check=check,
    optional=("mask",),
    argument_dtypes={"c_kv": CACHES, "k_pe": CACHES, "mask": ("f32", "f16")},
    recipes=RECIPES,
    packs={("c_kv", "k_pe"): 3},
    shape_values=shape_values,
    traits=traits,
    batch_axes=(0,),
    hypotheses=hypotheses,
    stages=stages,
    metamorphic=(
        Metamorphic(
            "sequence_isolation",
            "a sequence gives the same alone and in company",
            Kind.SEQUENCES_MIXED,
            _sequence_isolation,
        ),
        Metamorphic("head_permutation", "heads do not know each other", Kind.HEADS_MIXED, _head_permutation),
        Metamorphic("form", "two parts, concatenated rows and flash are one function", Kind.FORMS_DIFFER, _other_form),
    ),
)
