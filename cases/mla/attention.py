"""The reference of absorbed latent attention and the bound of its error: scores, softmax and sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F32, F64, Mask, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import Numerics

TINY = 2.0**-126  #: an exponential below this may be 0 on any device


@dataclass(frozen=True)
class Understood:
    """The case as it is understood: the op itself, or what a hypothesis says of it."""

    shift: int = 0  #: query i sees this many keys more than it should
    from_start: bool = False  #: query i stands at position i
    masked: bool = True  #: the mask is added
    mean: bool = False  #: a query that sees no key gets the mean of all values
    nan: bool = False  #: a query that sees no key gets NaN
    unshifted: bool = False  #: the largest score is not subtracted before the exponentials
    keys: int | None = None  #: only so many keys are looked at
    value_start: int = 0  #: the first column of the row (c | k_pe) that is read as the latent value


@dataclass(frozen=True)
class Softmax:
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

    Terms that are 0 count in none of these sums: a product with 0 is exact, and so is the addition of 0.

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
    return expected_of(Understood(), case, raw, numerics)


def expected_of(reading: Understood, case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    values = {name: layout.type.decode(raw[name]) for name, layout in case.inputs.items()}
    c, k_pe = visible_rows(case, values)
    q_pe, w_uk, w_uv = values["q_pe"], values["w_uk"], values["w_uv"]
    keys = c @ turned(w_uk)
    v_scale = float(case.params["v_scale"])
    start = reading.value_start
    latent = np.concatenate([c, k_pe], -1)[..., start : start + c.shape[-1]] if start else c
    v = v_scale * (latent @ w_uv)

    seen, mask = seen_keys(case, values, reading), added_mask(case, values, reading)
    products = values["q_nope"] @ turned(keys) + q_pe @ turned(k_pe)
    scores = factor_of(case) * products + mask
    spoilt = np.isnan(scores).any(-1, keepdims=True)  # NaN beside a key that is not seen: NaN − ∞ is NaN
    if reading.mean:
        scores = np.where(seen.any(-1, keepdims=True), scores, 0.0)
        seen = seen | ~seen.any(-1, keepdims=True)

    q_absorbed = values["q_nope"] @ w_uk
    absorbed_error = dot_error(values["q_nope"], w_uk, 2, numerics)
    error = score_error(case, np.abs(q_absorbed), absorbed_error, q_pe, c, k_pe, mask, numerics)
    softmax = softmax_of(scores, error, seen, numerics)

    value = np.where(spoilt, np.nan, softmax.weights @ v)
    if reading.nan:
        value = np.where(seen.any(-1, keepdims=True), value, np.nan)
    context = softmax.weights @ latent * v_scale
    narrow = narrow_of(case, numerics)
    moved, common, numerator, reach = attention_error(softmax, v, value, latent, v_scale, narrow, numerics)
    present = np.broadcast_to(seen, softmax.weights.shape).astype(np.float32) @ (latent != 0).astype(np.float32) > 0
    decompressed = dot_error(np.abs(context) + reach + numerator, w_uv, 0, numerics, present)
    carried = (1 + gamma(numerics, 2 * softmax.count - 2)) * (numerator @ np.abs(w_uv) + decompressed)
    bound = np.where(softmax.count > 0, moved + common + carried, 0.0)
    heavy = np.abs(c).sum(-2, keepdims=True) * max(abs(v_scale), 1.0)
    overflows = (heavy @ np.abs(w_uv) > F32.largest) | np.isnan(bound) | (np.abs(value) + bound > F32.largest)
    if narrow.sum_unit:
        overflows |= heavy.max(-1, keepdims=True, initial=0.0) > narrow.largest_sum
    bound = np.where(overflows & (softmax.count > 0), np.inf, bound)
    if reading.unshifted:
        value, bound = unshifted(np.where(seen, scores, -np.inf).max(-1, keepdims=True, initial=-np.inf), value, bound)
    return Expected(value.swapaxes(1, 2), bound.swapaxes(1, 2))


def unshifted(largest: F64, value: F64, bound: F64) -> tuple[F64, F64]:
    """What is left where exp(score) itself is computed: ∞ / ∞ above exp's range; below it nothing, as where no key is
    seen; and little that can be said where the weights are denormals."""
    above, below = largest > np.log(F32.largest), largest < np.log(2.0**-150)
    vague = (largest < np.log(TINY)) & ~below
    value = np.where(above, np.nan, np.where(below, 0.0, value))
    return value, np.where(below, 0.0, np.where(vague, np.inf, bound))


def attention_error(
    softmax: Softmax, v: F64, out: F64, latent: F64, v_scale: float, narrow: Narrow, numerics: Numerics
) -> tuple[F64, F64, F64, F64]:
    """A and γ_{2n−2}·(|out| + A) of the result `out` = weights·v; η of the context; how far the weights move it."""
    n = softmax.count
    certain = softmax.weights * np.expm1(softmax.doubt) * softmax.growth
    moved = np.empty(out.shape)
    for t in range(out.shape[-2]):  # one query at a time: [B,H,M,d] and not [B,H,T,M,d]
        moved[..., t, :] = (certain[..., t, None, :] @ np.abs(v - out[..., t, None, :]))[..., 0, :]
    common = gamma(numerics, 2 * n - 2) * (np.abs(out) + moved)
    magnitude = np.abs(latent) * abs(v_scale)
    likely = softmax.weights * np.exp(softmax.doubt) * softmax.growth
    lost = (2 * (n + 1) * TINY + narrow.lost) * magnitude.sum(-2, keepdims=True)
    lost = lost + (4 * n + 4) * numerics.underflow * (1 + abs(v_scale)) + 2 * n * narrow.sum_lost * abs(v_scale)
    roundings = 2 * n + numerics.division_roundings + 3 + 2 * numerics.conversions
    relative = gamma(numerics, roundings) + narrow.unit
    if narrow.sum_unit:
        relative = relative + gamma(Numerics(roundoff=narrow.sum_unit), 2 * n)
    numerator = relative * (likely @ magnitude) + lost
    reach = (likely - softmax.weights) @ magnitude
    return moved, common, numerator, reach


@dataclass(frozen=True)
class Narrow:
    """What a product with the cache loses by rounding its other operand to the cache's type: a relative and an absolute
    error, and the largest operand; and the errors of each sum in that type."""

    unit: float = 0.0
    lost: float = 0.0
    largest: float = np.inf
    sum_unit: float = 0.0
    sum_lost: float = 0.0
    largest_sum: float = np.inf


def narrow_of(case: Case, numerics: Numerics) -> Narrow:
    cache = case.inputs["c_kv"].type
    if cache.itemsize != 2:
        return Narrow()
    errors = (cache.unit_roundoff, cache.unit_roundoff * cache.smallest_normal, cache.largest)
    nothing = (0.0, 0.0, np.inf)
    in_sums = numerics.narrow_sums and cache.name == "f16"
    return Narrow(*(errors if numerics.narrow_operands else nothing), *(errors if in_sums else nothing))


def visible_rows(case: Case, values: Mapping[str, F64]) -> tuple[F64, F64]:
    """The rows of c_kv and k_pe that are no padding."""
    kv_len = int(case.params["kv_len"])
    return values["c_kv"][..., :kv_len, :], values["k_pe"][..., :kv_len, :]


def factor_of(case: Case) -> float:
    return float(case.params["scale"]) * float(case.params["k_scale"])


def seen_keys(case: Case, values: Mapping[str, F64], reading: Understood = Understood()) -> Mask:
    """Which keys each query sees, [B or 1,1,T,kv_len]."""
    kv_len, queries = int(case.params["kv_len"]), case.inputs["q_nope"].shape[2]
    seen = np.ones((1, 1, queries, kv_len), dtype=bool)
    if case.params["causal"]:
        first = 0 if reading.from_start else kv_len - queries
        seen = seen & np.tri(queries, kv_len, first + reading.shift, dtype=bool)
    if "mask" in values and reading.masked:
        seen = seen & (values["mask"][..., :kv_len] != -np.inf)
    return seen if reading.keys is None else seen & (np.arange(kv_len) < reading.keys)


def added_mask(case: Case, values: Mapping[str, F64], reading: Understood = Understood()) -> F64:
    """What is added to the scores, with 0 for -inf."""
    if "mask" not in values or not reading.masked:
        return np.zeros((1, 1, 1, 1))
    mask = values["mask"][..., : int(case.params["kv_len"])]
    return np.where(mask == -np.inf, 0.0, mask)


def turned(matrix: F64) -> F64:
    turned: F64 = matrix.swapaxes(-1, -2)
    return turned


def gamma(numerics: Numerics, count: F64 | float) -> F64:
    """γ of a count that may be below 0 (of sums over nothing)."""
    return np.asarray(numerics.gamma(np.maximum(np.asarray(count, np.float64), 0.0)))


def terms_of(a: Mask, b: Mask) -> F64 | float:
    """How many products of a·b are not 0, for where a and b are not: a product of 0 and its addition are exact, and the
    sum has as many roundings as it has other terms."""
    if a.all() and b.all():
        return float(a.shape[-1])
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float64)


def dot_error(a: F64, b: F64, more: float, numerics: Numerics, present: Mask | None = None) -> F64:
    """The error of a·b (the last axis of a with the last but one of b), each sum in any order, with `more` roundings of
    each product. `present`: where a is not 0, if a itself does not tell. A device that flushes may lose operands,
    products and sums that are denormal."""
    terms = terms_of(a != 0 if present is None else present, b != 0)
    error: F64 = gamma(numerics, terms + more + 2 * numerics.conversions) * (np.abs(a) @ np.abs(b))
    error = error + 2 * terms * numerics.underflow
    if numerics.flushes_denormals:
        flushed = np.abs(a).sum(-1, keepdims=True) + np.abs(b).sum(-2, keepdims=True)
        error = error + numerics.underflow * flushed
    return error


def score_error(
    case: Case, q: F64, q_error: F64 | float, q_pe: F64, c: F64, k_pe: F64, mask: F64, numerics: Numerics
) -> F64:
    """ε of every score, for an absorbed query of magnitude `q`, off by `q_error`; infinite where it may overflow."""
    rows, query = turned(np.concatenate([c, k_pe], -1)), np.concatenate([q + q_error, np.abs(q_pe)], -1)
    magnitude, factor = query @ np.abs(rows), abs(factor_of(case))
    error = factor * dot_error(query, rows, 4, numerics) + 4 * numerics.underflow * (1 + factor)
    if not isinstance(q_error, float):
        error = error + factor * (q_error @ np.abs(turned(c)))
    error = error + gamma(numerics, 3) * (factor * magnitude + np.abs(mask))
    narrow = narrow_of(case, numerics)
    error = error + factor * (narrow.unit * magnitude + narrow.lost * np.abs(rows).sum(-2, keepdims=True))
    largest = magnitude * max(1.0, factor, abs(float(case.params["k_scale"]))) + np.abs(mask)
    overflows = (largest > F32.largest / 2) | (query.max(-1, keepdims=True, initial=0.0) > narrow.largest)
    return np.where(overflows, np.inf, error)


def softmax_of(scores: F64, error: F64, seen: Mask, numerics: Numerics) -> Softmax:
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
    return Softmax(weights, doubt, growth, np.broadcast_to(count, (*scores.shape[:-1], 1)))
