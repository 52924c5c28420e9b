"""The gated delta rule in float64, with a running error bound: what both delta-net ops share.

Per sequence and value head there is a state S of shape [K, V], and per token (decay a = exp g, or given as it is):

    S ← diag(a) S ;  d = β (v − Sᵀk) ;  S ← S + k dᵀ ;  o = scale · Sᵀq        (o reads the updated S)

(Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2025; with a decay per key channel: Kimi Team, "Kimi Linear",
2025.) Heads do not meet: everything below is computed for all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F32, F64, Mask, Raw
from opconform.harness.model.numerics import Numerics

#: An exp whose result is below the normal numbers may give 0 on any device: their fast forms flush.
EXP_UNDERFLOW = 2.0**-126
#: Heads are walked in groups whose states over all tokens hold so many elements: they stay in the cache.
_GROUP = 1 << 17


@dataclass(frozen=True)
class Rule:
    """A case's arguments as float64, tokens first, every value head beside its key head.

    q, k [T, G, K] (normalised where the case asks for it), v [T, G, V], gate [T, G, 1 or K] (the decay a, from 0 to 1),
    log_gate (log a), beta [T, G, 1], state [G, K, V]; G = B·H_v counts value heads of all sequences. `exact_gate`: the
    decay was given as it is. `norm_error` is the relative error of a computed element of q and k, `unnormed` [T, G, 1]
    what an absolute error before the normalisation is multiplied with, `too_large` [G] whether a sum of squares
    overflows.
    """

    q: F64
    k: F64
    v: F64
    gate: F64
    log_gate: F64
    beta: F64
    state: F64
    scale: float
    exact_gate: bool
    norm_error: float
    unnormed: F64
    too_large: Mask

    @property
    def tokens(self) -> int:
        return len(self.q)

    @property
    def keys(self) -> int:
        return int(self.q.shape[2])

    def heads(self, chosen: slice) -> Rule:
        """The rule of some of the value heads."""
        return replace(
            self,
            **{
                name: getattr(self, name)[:, chosen] for name in ("q", "k", "v", "gate", "log_gate", "beta", "unnormed")
            },
            state=self.state[chosen],
            too_large=self.too_large[chosen],
        )

    def first(self, tokens: int) -> Rule:
        """The rule of the first tokens alone."""
        by_token = ("q", "k", "v", "gate", "log_gate", "beta", "unnormed")
        return replace(self, **{name: getattr(self, name)[:tokens] for name in by_token})

    def groups(self) -> Iterator[slice]:
        """Value heads in groups that are worth computing together."""
        count = max(_GROUP // max(self.tokens * self.state[0].size if len(self.state) else 1, 1), 1)
        for start in range(0, len(self.state), count):
            yield slice(start, start + count)


def decoded(case: Case, raw: Mapping[str, Raw]) -> dict[str, F64]:
    """The inputs as float64."""
    return {name: layout.type.decode(raw[name]) for name, layout in case.inputs.items()}


def rule_of(case: Case, values: Mapping[str, F64], numerics: Numerics, normalised: bool = False) -> Rule:
    """The rule that `case` poses for `values` of its inputs; `normalised`: q and k have been normalised already.

    An element x / √(Σx² + eps) is computed with a relative error of at most γ_{K+3}/2 from the sum (K products, K
    additions, eps rounded to float32; half of it passes the root), that of the root (or of 1/√ with its 2 units in the
    last place), and of a division or a product.
    """
    q, k = (_key_heads(case, values[name]) for name in ("q", "k"))
    error, unnormed, too_large = 0.0, np.ones((*q.shape[:2], 1)), np.zeros(q.shape[1], dtype=bool)
    if case.params["l2norm"] and not normalised:
        sums = [np.sum(x * x, axis=-1, keepdims=True) + float(case.params["eps"]) for x in (q, k)]
        q, k = q / np.sqrt(sums[0]), k / np.sqrt(sums[1])
        too_large = np.maximum(*sums).max(axis=(0, 2)) > F32.largest / 2
        error = norm_error(q.shape[-1], numerics)
        unnormed = 1 + 1 / np.sqrt(np.minimum(*sums))
    g = tokens_first(values["g"])
    with np.errstate(divide="ignore"):
        gate, log_gate = (np.exp(g), g) if case.params["gate"] == "log" else (g, np.log(g))
    return Rule(
        q=q,
        k=k,
        v=tokens_first(values["v"]),
        gate=gate,
        log_gate=log_gate,
        beta=tokens_first(values["beta"]),
        state=initial_state(case, values),
        scale=float(case.params["scale"]),
        exact_gate=case.params["gate"] != "log",
        norm_error=error,
        unnormed=unnormed,
        too_large=too_large,
    )


def norm_error(keys: int, numerics: Numerics) -> float:
    """The relative error of an element of a normalised row of `keys` elements (see `rule_of`)."""
    sums = numerics.gamma(float(keys + 3 + 2 * numerics.conversions))
    root = max(numerics.sqrt_error, 4 * numerics.roundoff)
    division = numerics.division_roundings * numerics.u
    return float((1 + sums / 2 / (1 - sums)) * (1 + root) * (1 + division) * (1 + numerics.u) - 1)


def key_head(case: Case) -> np.ndarray:
    """The key head of every value head."""
    heads, key_heads = case.inputs["v"].shape[2], case.inputs["k"].shape[2]
    value_heads = np.arange(heads)
    found: np.ndarray = value_heads % key_heads
    return found if case.params["heads"] == "tiled" else value_heads // (heads // key_heads)


def _key_heads(case: Case, x: F64) -> F64:
    return tokens_first(x[:, :, key_head(case)])


def tokens_first(x: F64) -> F64:
    """[B, T, H, …] as [T, B·H, …]."""
    x = np.moveaxis(x, 1, 0)
    return np.ascontiguousarray(x).reshape(len(x), -1, *x.shape[3:])


def token_order(case: Case, x: F64) -> F64:
    """[T, B·H, …] as [B, T, H, …]."""
    sequences = case.inputs["v"].shape[0]
    found: F64 = np.moveaxis(x.reshape(len(x), sequences, -1, *x.shape[2:]), 0, 1)
    return found


def initial_state(case: Case, values: Mapping[str, F64]) -> F64:
    """The state before the first token as [B·H, K, V]; zeros where none is given."""
    (sequences, _, heads, width), keys = case.inputs["v"].shape, case.inputs["k"].shape[3]
    if "state" not in values:
        return np.zeros((sequences * heads, keys, width))
    state = values["state"].reshape(sequences * heads, *values["state"].shape[2:])
    return state if case.params["state_layout"] == "kv" else state.swapaxes(1, 2)


def stored_state(case: Case, state: F64) -> F64:
    """States [n·B·H, K, V] as the case holds them: [n·B, H, K, V] or [n·B, H, V, K]."""
    state = state if case.params["state_layout"] == "kv" else state.swapaxes(-1, -2)
    return state.reshape(-1, case.inputs["v"].shape[2], *state.shape[1:])


@dataclass(frozen=True)
class Walk:
    """The exact values of a rule: states [T + 1, G, K, V] (the initial one first), deltas d and out [T, G, V]."""

    states: F64
    deltas: F64
    out: F64

    def first(self, tokens: int) -> Walk:
        """That of the first tokens alone."""
        return Walk(self.states[: tokens + 1], self.deltas[:tokens], self.out[:tokens])


def walk(rule: Rule) -> Walk:
    """The recurrence, token by token, in float64."""
    states = np.empty((rule.tokens + 1, *rule.state.shape))
    deltas = np.empty(rule.v.shape)
    states[0] = rule.state
    for t in range(rule.tokens):
        state = np.multiply(rule.gate[t][..., None], states[t], out=states[t + 1])
        deltas[t] = rule.beta[t] * (rule.v[t] - times(rule.k[t], state))
        state += rule.k[t][..., None] * deltas[t][:, None, :]
    return Walk(states, deltas, rule.scale * times(rule.q, states[1:]))


def times(rows: F64, matrices: F64) -> F64:
    """rowᵀ·matrix for stacks of both."""
    found: F64 = (rows[..., None, :] @ matrices)[..., 0, :]
    return found


def length(x: F64, axis: int = -1) -> F64:
    """Euclidean norms, with the axis kept."""
    found: F64 = np.sqrt(np.add.reduce(x * x, axis, keepdims=True))
    return found


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the error of `Walk`: states [T, G, K, V] (from the first token on) and out [T, G, V]."""

    states: F64
    out: F64


@dataclass(frozen=True)
class Relative:
    """The relative errors of one step of a rule, from which both ops' bounds are made.

    gate [T, G, 1 or K]: of the decay, beside any rounding. norm: of an element of q and k. `count(n)`: of n roundings.
    """

    rule: Rule
    numerics: Numerics

    @cached_property
    def gate(self) -> F64:
        if self.rule.exact_gate:
            return np.zeros(self.rule.gate.shape)
        return self.numerics.exp_error(self.rule.log_gate)

    @property
    def norm(self) -> float:
        return self.rule.norm_error

    def count(self, n: float) -> float:
        return float(self.numerics.gamma(float(n + 2 * self.numerics.conversions)))


def recurrent_tolerance(rule: Rule, exact: Walk, numerics: Numerics) -> Tolerance:
    """How far any float32 recurrence may end from the exact one: a running bound per head and value column.

    Each column s of S evolves by itself. A computed column ŝ = s + ε takes one step to

        ε' = (I − β k kᵀ) diag(a) ε + δ

    where δ holds the roundings of this one step, on the values that are really there, |ŝ| ≤ |s| + |ε|:

        δ_i = a_i ŝ_i θ + k_i β (v θ' − Σ_j k_j a_j ŝ_j θ_j) + k_i d̂ θ''
        |θ|   ≤ (1 + E_i)(1 + γ_2) − 1              the decay, its product, the last addition
        |θ_j| ≤ (1 + E_j)(1 + ν)(1 + γ_{K+3}) − 1   products with k and a, K additions, β (θ' has neither E nor ν)
        |θ''| ≤ (1 + ν)(1 + γ_2) − 1                the product with k, the last addition

    with E the relative error of the decay (exp, see `Numerics.exp_error`) and ν that of a normalised element. This
    covers k taken before or after the decay, β multiplied with v and k or with their difference, sums in any order,
    fused or not (Higham 2002, lemma 3.1 and section 3.1). Two bounds are carried along:

        componentwise  c' = a c + |k| β r + |δ|,  r = |kᵀ diag(a) ε| ≤ min(|k|ᵀ a c, ‖k‖ ‖diag(a) ε‖)
        normwise       n' = max(1, |1 − β‖k‖²|) · ‖diag(a) ε‖ + ‖δ‖,  ‖diag(a) ε‖ ≤ min(max a · n, ‖a c‖)

    The first alone would grow like Π(1 + β‖k‖²) although I − β k kᵀ contracts for ‖k‖ ≤ 1 and β in [0, 1]: its 2-norm
    is max(1, |1 − β‖k‖²|), a symmetric matrix whose eigenvalues are 1 and 1 − β‖k‖². Outside that regime this is the
    true growth. The second alone forgets where in the column an error stands. After each step each is cut by the other:
    c ≤ n, n ≤ ‖c‖. The output reads the updated state, or S before the update and q·k: in both cases

        |ô − o| ≤ |scale| (min(|q|ᵀc, ‖q‖ n) + ψ |q|ᵀ(a|ŝ| + |k||d̂|)),  ψ = (1 + ν)²(1 + γ_{K+4}) − 1

    two of the roundings for a scale that is itself computed.

    Underflow: η for each product (and, where denormals are flushed, each addition and each operand, scaled by what it
    is multiplied with), 2^-126 for the exp. Where a sum of magnitudes passes the largest float32, some order overflows
    on its way and nothing is demanded from that token on.
    """
    relative = Relative(rule, numerics)
    count, keys, nu = relative.count, rule.keys, relative.norm
    size_k, size_q, beta = np.abs(rule.k), np.abs(rule.q), np.abs(rule.beta)
    size_v, size_d, size_s = np.abs(rule.v), np.abs(exact.deltas), np.abs(exact.states)
    gate = np.abs(rule.gate)
    product = (1 + relative.gate) * (1 + nu) * (1 + count(keys + 3)) - 1
    kept = (1 + relative.gate) * (1 + count(2)) - 1
    update = (1 + nu) * (1 + count(2)) - 1
    read = (1 + nu) ** 2 * (1 + count(keys + 4)) - 1

    # The local errors δ that what stands before each token causes where ε is 0.
    eta, exp_eta = numerics.underflow, 0.0 if rule.exact_gate else EXP_UNDERFLOW
    decayed_k = size_k * gate
    rows = np.broadcast_arrays(decayed_k, decayed_k * product, size_q * gate, 1.0)
    sums, wrong_sums, reads, all_s = np.moveaxis(np.stack(rows, 2) @ size_s[:-1], 2, 0)
    lost = eta * rule.unnormed * (2 * keys + 4 + size_k.sum(axis=2, keepdims=True) + 2 * all_s + size_v + sums)
    delta_error = beta * (count(keys + 3) * size_v + wrong_sums)
    delta_error = delta_error + (1 + beta) * (lost + exp_eta * size_k.max(axis=2, keepdims=True) * all_s)
    rank_one = (1 + update) * delta_error + update * size_d
    local = (kept * gate + exp_eta + eta)[..., None] * size_s[:-1]
    local += size_k[..., None] * rank_one[:, :, None, :]
    local += (eta * rule.unnormed * (4 + size_d))[:, :, None, :]
    local_norm = length(local, 2)[:, :, 0]

    norm_k, norm_q = length(rule.k), length(rule.q)
    contraction = np.maximum(1, np.abs(1 - rule.beta * norm_k**2))
    largest_gate, largest_kept = gate.max(axis=2, keepdims=True), kept.max(axis=2, keepdims=True)
    largest_product = (1 + update) * product.max(axis=2, keepdims=True)
    kept_gate, grown, one_gate = ((1 + kept) * gate)[..., None], contraction + largest_kept, gate.shape[2] == 1
    found = local  # each token's local errors, then all of its errors
    norms, room = np.empty(rule.v.shape), np.empty(rule.state.shape)
    c, n = np.zeros(rule.state.shape), np.zeros(rule.v.shape[1:])
    for t in range(rule.tokens):
        n = largest_gate[t] * n
        if not one_gate:  # with one gate a head ‖a c‖ is no less: c was cut by n, which was cut by ‖c‖
            n = np.minimum(n, length(np.multiply(gate[t][..., None], c, out=room), 1)[:, 0])
        along = times(decayed_k[t], c)
        r = np.minimum(along, norm_k[t] * n)
        wrong = beta[t] * (largest_product[t] * along + update * r)
        n = grown[t] * n + norm_k[t] * wrong + local_norm[t]
        before, c = c, found[t]
        c += np.multiply(kept_gate[t], before, out=room)
        c += np.multiply(size_k[t][..., None], (beta[t] * r + wrong)[:, None, :], out=room)
        norms[t] = n = np.minimum(n, np.sqrt(np.multiply(c, c, out=room).sum(axis=1)))
        np.minimum(c, n[:, None, :], out=c)

    moved = np.minimum(times(size_q, found), norm_q * norms)
    through = reads + np.sum(size_q * size_k, axis=2, keepdims=True) * size_d
    out = abs(rule.scale) * ((1 + read) * moved + read * through)
    after = size_s[1:]
    out = out + eta * max(1.0, abs(rule.scale)) * (
        2 * keys + 4 + rule.unnormed * (size_q.sum(axis=2, keepdims=True) + after.sum(axis=2))
    )
    after += found
    peak = sums + size_v + size_d * np.maximum(1, size_k.max(axis=2, keepdims=True)) + after.max(axis=2)
    peak = np.maximum(peak, max(1.0, abs(rule.scale)) * (through + moved))
    over = np.maximum.accumulate(peak > F32.largest / 4, axis=0) | rule.too_large[:, None]
    if over.any():
        found[np.broadcast_to(over[:, :, None, :], found.shape)] = np.inf
        out[over] = np.inf
    return Tolerance(found, out)


def grouped(rule: Rule, compute: Callable[[Rule], tuple[F64, ...]]) -> tuple[F64, ...]:
    """`compute` on the rule's heads, group by group; its results, heads along axis 1, put together."""
    parts = [compute(rule.heads(chosen)) for chosen in rule.groups()]
    return tuple(np.concatenate(part, axis=1) if len(parts) > 1 else part[0] for part in zip(*parts))
