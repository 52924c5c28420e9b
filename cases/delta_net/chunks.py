"""The gated delta rule in chunks of tokens: its matrices in float64, and the error bound of a float32 computation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opconform.cases.delta_net.rule import EXP_UNDERFLOW, Relative, Rule, Tolerance, Walk, length
from opconform.harness.model.dtypes import F32, F64
from opconform.harness.model.numerics import Numerics


@dataclass(frozen=True)
class Chunks:
    """A rule cut into N chunks of C tokens (of T tokens, where there are fewer).

    q, k [N, G, C, K], v [N, G, C, V], beta [N, G, C, 1] and log_gate [N, G, C, 1 or K], zeros beyond the last token;
    sums [N, G, C, 1 or K]: G, the inclusive sums of the log gates in a chunk.
    """

    q: F64
    k: F64
    v: F64
    beta: F64
    log_gate: F64
    sums: F64


def cut(rule: Rule, x: F64, chunk: int) -> F64:
    """[T, G, n] as [N, G, C, n], padded with zeros."""
    size = min(chunk, rule.tokens)
    count = -(-rule.tokens // size)
    padded = np.zeros((count * size, *x.shape[1:]))
    padded[: len(x)] = x
    found: F64 = np.ascontiguousarray(padded.reshape(count, size, *x.shape[1:]).swapaxes(1, 2))
    return found


def joined(rule: Rule, x: F64) -> F64:
    """[N, G, C, n] as [T, G, n]."""
    found: F64 = x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])[: rule.tokens]
    return found


def chunks_of(rule: Rule, chunk: int) -> Chunks:
    """The rule cut into chunks."""
    q, k, v, beta, log_gate = (cut(rule, x, chunk) for x in (rule.q, rule.k, rule.v, rule.beta, rule.log_gate))
    return Chunks(q, k, v, beta, log_gate, np.cumsum(log_gate, axis=2))


def gaps_of(sums: F64) -> F64:
    """G_i − G_j [..., C, C, 1 or K], −inf for i < j."""
    rows = np.arange(sums.shape[-2])
    gaps = sums[..., :, None, :] - sums[..., None, :, :]
    return np.where((rows[:, None] >= rows)[..., None], gaps, -np.inf)


def products(left: F64, right: F64, decay: F64) -> F64:
    """Σ_d left_id right_jd Γ_ijd as [..., C, C]; decay is Γ [..., C, C, 1 or K]."""
    found: F64
    if decay.shape[-1] == 1:
        found = (left @ right.swapaxes(-1, -2)) * decay[..., 0]
    else:
        found = ((decay * right[..., None, :, :]) @ left[..., :, :, None])[..., 0]
    return found


def inverse(lower: F64) -> F64:
    """(I + A)^-1 for strictly lower triangular A, by substitution."""
    size = lower.shape[-1]
    found: F64 = np.broadcast_to(np.eye(size), lower.shape).copy()
    for i in range(1, size):
        found[..., i, :i] = -(lower[..., i : i + 1, :i] @ found[..., :i, :i])[..., 0, :]
    return found


def log_error(rule: Rule) -> F64:
    """The absolute error of a computed log of a decay, where the case gives the decay itself.

    The widest of the specifications: 2^-21 near 1 and 3 units in the last place elsewhere (Vulkan specification,
    "Precision of core SPIR-V instructions"; 3 units in the OpenCL C specification).
    """
    return 2.0**-21 + 6 * 2.0**-24 * np.abs(rule.log_gate)


def chunk_tolerance(rule: Rule, exact: Walk, chunk: int, numerics: Numerics) -> Tolerance:
    """How far any float32 computation in chunks may end from the exact recurrence.

    In a chunk that begins with state S (the form is that of Yang et al., "Parallelizing Linear Transformers with the
    Delta Rule", 2024; with gates: "Gated Delta Networks", 2025), with L = I + A, T = L^-1:

        A_ij = β_i Σ_d k_id k_jd Γ_ijd (i > j),  B_ij = Σ_d q_id k_jd Γ_ijd (i ≥ j),  Γ_ij = e^{G_i − G_j}
        v' = T (βv − (β e^G k) S),  o = scale ((q e^G) S + B v'),  S⁺ = e^{G_C} S + (k e^{G_C − G})ᵀ v'

    v' are the deltas of the recurrence. The error ΔS of the state a chunk begins with passes on exactly linearly, with
    w = T (β e^G k): Δv' = −w ΔS, Δo = scale (q e^G − B w) ΔS, ΔS⁺ = P ΔS, P = diag(e^{G_C}) − (k e^{G_C − G})ᵀ w; P is
    the product of the chunk's steps (I − βkkᵀ) diag(a), and ‖P‖₂ at most the product of their norms (see
    `rule.recurrent_tolerance`) and its Frobenius norm. ΔS has a componentwise bound c and a normwise one n per
    value column, each cut by the other. To that comes, per chunk, on the values that are there (|Ŝ| ≤ |S| + c):

    * G is a sum of up to i gates in any order: ΔG_i = γ_{i−1} Σ|g|, and the error of log where the decay was given. For
      j ≤ i a computed e^{G_i − G_j} is off by R_i = (1 + E)²(1 + u) exp(2ΔG_i + u(Σ|g| + 2ΔG_i)) − 1 of itself, E being
      the error of an exp of an exponent up to Σ|g|, twice for forms that split G_i − G_j at a token between. No form
      may exponentiate a positive sum: where it overflows nothing bounds the error.
    * ΔA = ((1 + R_i)(1 + ν)²(1 + γ_{K+2}) − 1) |β| Σ|k||k|Γ, ΔB alike, with ψ for all that o is made of.
    * The unit triangular solve, by substitution in any order: (L + ΔL) Ŷ = X, |ΔL| ≤ ΔA + γ_C |L| (Higham 2002, theorem
      8.5), so that |Ŷ − Y| ≤ N|Ŷ| + |T||ΔX|, N = |T||ΔL|. Explicit inverses that solve L T̂ = I in the same way, column
      by column, and multiply, have |T̂ − T| ≤ N|T̂| and γ_C |T̂||X| more. A blocked inverse is assumed to have such a
      residual too, |L T̂ − I| ≤ γ_C |L||T̂| (section 14.2 there). Whether w and u are formed or v' is solved for at once,
      with Z = |T|(|βv| + |β e^G k||Ŝ|):

          ε_v = (I − N)^-1 [(N + γ_C + γ_{K+4}) Z + |T|(ω |β e^G k|)|Ŝ|],  ω = (1 + R)(1 + ν)(1 + γ_2) − 1

      where (I − N)^-1 x ≤ x + ρ/(1 − ρ) max x, ρ = ‖N‖_∞ < 1; nothing is demanded from a chunk on whose solve may fail.
    * o: |scale| (|B| ε_v + (ψ B⁺)|v̂'| + (ψ|q|e^G)|Ŝ|) with B⁺ = Σ|q||k|Γ, ψ = (1 + R)(1 + ν)²(1 + γ_{K+C+4}) − 1 and
      |v̂'| ≤ |v'| + |wΔS| + ε_v.
    * S⁺: |k e^{G_C − G}|ᵀ ε_v + (χ|k|e^{G_C − G})ᵀ|v̂'| + χ e^{G_C}|Ŝ|, χ = (1 + R_C)(1 + ν)(1 + γ_{C+3}) − 1.

    Underflow and overflow as in `rule.recurrent_tolerance`.
    """
    relative = Relative(rule, numerics)
    count, nu, keys = relative.count, relative.norm, rule.keys
    its = chunks_of(rule, chunk)
    number, heads, size = its.k.shape[:3]
    begin = exact.states[:-1:size]
    deltas = cut(rule, exact.deltas, chunk)
    size_q, size_k, size_d, size_s = np.abs(its.q), np.abs(its.k), np.abs(deltas), np.abs(begin)
    beta = np.abs(its.beta)

    # The decays and their relative errors.
    sums = np.cumsum(np.abs(its.log_gate), axis=2)
    rows = np.arange(1.0, size + 1)[:, None]
    sums_error = numerics.gamma(rows - 1 + numerics.conversions) * sums + 2 * rows * numerics.underflow
    if rule.exact_gate:
        sums_error = sums_error + np.cumsum(cut(rule, log_error(rule), chunk), axis=2)
    error = (1 + numerics.exp_error(sums)) ** 2 * (1 + numerics.u)
    error = error * np.exp(2 * sums_error + numerics.u * (sums + 2 * sums_error)) - 1
    decay = np.exp(gaps_of(its.sums))
    from_start, to_end = np.exp(its.sums), np.exp(its.sums[:, :, -1:] - its.sums)

    # Akk and Aqk, their errors, and the solve.
    strictly = np.tri(size, size, -1)
    eta = 2 * numerics.underflow * (keys + size + 4)
    lost = eta + 2 * EXP_UNDERFLOW * (keys + 2)
    row = 1 + (size_k.sum(axis=3, keepdims=True) + size_q.sum(axis=3, keepdims=True)) * cut(rule, rule.unnormed, chunk)
    lost_square = lost * row * row.swapaxes(-1, -2)
    factor = (1 + error) * (1 + nu) ** 2 * (1 + count(keys + 2)) - 1
    lower = its.beta * products(its.k, its.k, decay) * strictly
    lower_error = beta * (products(size_k * factor, size_k, decay) + (1 + beta) * lost_square) * strictly
    square = products(its.q, its.k, decay)
    factor = (1 + error) * (1 + nu) ** 2 * (1 + count(keys + size + 4)) - 1
    square_error = products(size_q * factor, size_k, decay) + lost_square
    solve = inverse(lower)
    size_solve = np.abs(solve)
    amplified = size_solve @ (lower_error + count(size) * (np.abs(lower) + np.eye(size)))
    radius = amplified.sum(axis=3).max(axis=2)[..., None, None]
    again = np.where(radius < 1, radius / np.maximum(1 - radius, 1e-300), np.inf)

    # What a chunk does to the error of its state, and the errors of its own.
    keyed = its.beta * from_start * its.k
    w, size_w = solve @ keyed, size_solve @ np.abs(keyed)
    key_factor = (1 + error) * (1 + nu) * (1 + count(2)) - 1
    wrong_w = size_solve @ (np.abs(keyed) * key_factor + lost * row * beta)
    magnitude = size_solve @ np.abs(its.beta * its.v) + size_w @ size_s
    amplified = amplified + (count(size) + count(keys + 4)) * np.eye(size)
    wrong_w = amplified @ size_w + wrong_w
    totals = size_s.sum(axis=2, keepdims=True) + np.abs(its.v)
    wrong = amplified @ magnitude + (wrong_w - amplified @ size_w) @ size_s
    wrong = wrong + size_solve @ (row * (eta + lost * totals))
    passed_out = from_start * its.q - square @ w
    ended = to_end * its.k
    passed_on = -(ended.swapaxes(-1, -2) @ w)
    channel = np.arange(keys)
    passed_on[..., channel, channel] += np.broadcast_to(from_start[:, :, -1], (number, heads, keys))
    norms = np.sum(its.k * its.k, axis=3)
    steps = np.maximum(1, np.abs(1 - its.beta[..., 0] * norms)) * np.exp(its.log_gate).max(axis=3)
    growth = np.minimum(np.prod(steps, axis=2), np.sqrt(np.sum(passed_on**2, axis=(2, 3))))[..., None]
    end_factor = (1 + error[:, :, -1:]) * (1 + nu) * (1 + count(size + 3)) - 1
    wrong_decay = (end_factor * from_start[:, :, -1:])[:, :, 0, :, None]
    read = factor * from_start * size_q

    states, moved = np.empty((number, *rule.state.shape)), np.empty(deltas.shape)
    through = np.empty(deltas.shape)
    c, n = np.zeros(rule.state.shape), np.zeros(rule.v.shape[1:])
    for i in range(number):
        own = wrong[i] + wrong_w[i] @ c
        own = own + again[i] * own.max(axis=1, keepdims=True)
        here = size_s[i] + c
        found = size_d[i] + np.minimum(np.abs(w[i]) @ c, length(w[i]) * n[:, None, :]) + own
        state_in = np.minimum(np.abs(passed_out[i]) @ c, length(passed_out[i]) * n[:, None, :])
        moved[i] = state_in + np.abs(square[i]) @ own + square_error[i] @ found + read[i] @ here
        through[i] = found + magnitude[i] + size_w[i] @ c
        local = np.abs(ended[i]).swapaxes(1, 2) @ own
        local = local + (end_factor[i] * np.abs(ended[i])).swapaxes(1, 2) @ found + wrong_decay[i] * here
        local = local + eta + lost * (here + np.sum(row[i] * found, axis=1, keepdims=True))
        n = growth[i] * n + length(local, 1)[:, 0]
        c = np.abs(passed_on[i]) @ c + local
        n = np.minimum(n, length(c, 1)[:, 0])
        states[i] = c = np.minimum(c, n[:, None, :])
    scale = abs(rule.scale)
    small = eta + lost * (row * totals + np.sum(row * through, axis=2, keepdims=True))
    out = scale * moved + max(1.0, scale) * small

    peak = np.maximum(through.max(axis=2), np.abs(states).max(axis=2) + size_s.max(axis=2))
    sizes = np.abs(square) @ size_d + (from_start * size_q) @ size_s + moved
    peak = np.maximum(peak, max(1.0, scale) * sizes.max(axis=2))
    whole = np.maximum(size_solve.max(axis=(2, 3)), size_w.max(axis=(2, 3)))
    whole = np.maximum(whole, np.maximum(np.abs(lower).max(axis=(2, 3)), np.abs(square).max(axis=(2, 3))))
    over = np.maximum(peak, whole[..., None]) > F32.largest / 4
    over = np.maximum.accumulate(over | rule.too_large[:, None] | (radius[..., 0] >= 1), axis=0)
    states[np.broadcast_to(over[:, :, None, :], states.shape) | np.isnan(states)] = np.inf
    out[np.broadcast_to(over[:, :, None, :], out.shape) | np.isnan(out)] = np.inf
    return Tolerance(states, joined(rule, out))
