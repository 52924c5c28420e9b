"""The stages of the chunked form: what each step gives for what the backend itself had before it, and its bound.

Everything is per value head, [G, N, C, …]. The bounds are made like those of `stages.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opconform.cases.delta_net.chunks import gaps_of, inverse, log_error, products
from opconform.cases.delta_net.rule import EXP_UNDERFLOW, initial_state, stored_state, token_order
from opconform.cases.delta_net.stages import Values, norms_of, roundings, shown_rule
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64
from opconform.harness.model.expected import Expected
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Stage

BLOCK = 16  #: rows and columns of a block of Akk and Aqk in the blockwise form

Step = Callable[["_Chunks"], Expected]


def chunked(case: Case) -> tuple[Stage, ...]:
    """The stages of `gated_delta_net_chunk`: q_norm and k_norm [B, T, H_k, K]; with N chunks of C tokens
    G [B, H_v, N, C, 1 or K], decay [B, H_v, N, C, C] (one gate per head only), Akk, Aqk and T [B, H_v, N, C, C],
    w [B, H_v, N, C, K], u and v_new [B, H_v, N, C, V], states [B, H_v, N, K, V]; then the outputs. Blockwise
    there are Akk_blocks and Aqk_blocks [B, H_v, N, blocks, 16, 16]: the lower ones row by row, not placed yet."""
    norms = norms_of(case)
    before = tuple(stage.name for stage in norms)
    how = ""
    if case.params["form"] == "blockwise":
        how = f", its 16×16 blocks placed with {str(case.params['place']).upper()}"
    return (
        *norms,
        Stage("G", (), _chunk(_sums), "G: sums of the log gates in each chunk"),
        *((Stage("decay", ("G",), _chunk(_gammas), "decay: e^(G_i − G_j), i ≥ j"),) if _per_head(case) else ()),
        *(_blockwise(before) if case.params["form"] == "blockwise" else ()),
        Stage("Akk", (*before, "G"), _chunk(_akk), f"Akk: β_i Σ k_i k_j e^(G_i − G_j), i > j{how}"),
        Stage("Aqk", (*before, "G"), _chunk(_aqk), f"Aqk: Σ q_i k_j e^(G_i − G_j), i ≥ j{how}"),
        Stage("T", ("Akk",), _chunk(_inverse), "T: (I + Akk)^-1"),
        Stage("w", (*before, "G", "Akk"), _chunk(_w), "w: (I + Akk)^-1 (β e^G k), a triangular solve"),
        Stage("u", ("Akk",), _chunk(_u), "u: (I + Akk)^-1 (β v), a triangular solve"),
        Stage("v_new", ("w", "u", "states"), _chunk(_v_new), "v_new: u − w S, S before the chunk"),
        Stage(
            "states",
            (*before, "G", "v_new", "states"),
            _chunk(_chunk_states),
            "states: S after each chunk, from tokens up to the last one only",
        ),
        Stage(
            "out",
            (*before, "G", "Aqk", "v_new", "states"),
            _chunk(_chunk_out),
            "out: scale·((q e^G) S + Aqk v_new), S before the chunk",
        ),
        Stage("state_out", ("states",), _chunk(_chunk_state_out), "state_out: the state after the last chunk"),
    )


def _blockwise(norms: tuple[str, ...]) -> tuple[Stage, ...]:
    return (
        Stage("Akk_blocks", (*norms, "G"), _chunk(_in_blocks(_akk)), "Akk's 16×16 blocks, before they are placed"),
        Stage("Aqk_blocks", (*norms, "G"), _chunk(_in_blocks(_aqk)), "Aqk's 16×16 blocks, before they are placed"),
    )


def _per_head(case: Case) -> bool:
    return case.inputs["g"].shape[3] == 1


class _Chunks:
    """What a backend had before a stage, cut into chunks [G, N, C, …], zeros beyond the last token."""

    def __init__(self, case: Case, values: Values, numerics: Numerics) -> None:
        self.case, self.values, self.numerics = case, values, numerics
        self.rule = shown_rule(case, values, numerics)
        self.size = int(case.params["chunk"])
        self.number = -(-self.rule.tokens // self.size)
        self.q, self.k, self.v, self.beta = (
            self.cut(x) for x in (self.rule.q, self.rule.k, self.rule.v, self.rule.beta)
        )
        self.log_gate = self.cut(self.rule.log_gate)
        tokens = np.arange(self.number * self.size).reshape(self.number, self.size)
        self.real = (tokens < self.rule.tokens)[..., None]
        self.last = np.minimum(self.rule.tokens - 1, tokens[:, -1]) - tokens[:, 0]

    def cut(self, x: F64) -> F64:
        padded = np.zeros((self.number * self.size, *x.shape[1:]))
        padded[: len(x)] = x
        return np.moveaxis(padded.reshape(self.number, self.size, *x.shape[1:]), 2, 0)

    def shown(self, name: str) -> F64:
        """A stage [B, H_v, N, …] as [G, N, …]; what stands beyond the last token is 0."""
        x = self.values[name].reshape(-1, *self.values[name].shape[2:])
        if name == "states":
            return x
        x = np.where(self.real, x, 0.0)
        return np.where(self.real.swapaxes(-1, -2), x, 0.0) if x.shape[-1] == self.size and name in _SQUARE else x

    def end(self) -> tuple[F64, F64]:
        """The sum of each chunk's gates [G, N, 1, 1 or K] and how far off it may be: in the last row of a chunk, zeros
        have been added to it, which gives another rounding where sums are made in another order."""
        sums = self.values["G"].reshape(-1, *self.values["G"].shape[2:])
        end = np.take_along_axis(sums, self.last[None, :, None, None], axis=2)
        apart = np.abs(sums[:, :, -1:] - end)
        return end, np.where(apart <= 2 * roundings(self.numerics, self.size) * np.abs(end), apart, 0.0)

    def before(self) -> F64:
        """The states that the chunks begin with [G, N, K, V]."""
        first = initial_state(self.case, self.values)[:, None]
        return np.concatenate([first, self.shown("states")[:, :-1]], axis=1)

    def solve(self) -> tuple[F64, F64]:
        """(I + Akk)^-1 and the bound of its error for one right-hand side of size 1 after the other: by a substitution
        or by an inverse that is multiplied with (see `chunks.chunk_tolerance`)."""
        lower = self.shown("Akk") * np.tri(self.size, self.size, -1)
        value = inverse(lower)
        size, eye = np.abs(value), np.eye(self.size)
        wrong = roundings(self.numerics, self.size) * (size @ (np.abs(lower) + eye))
        radius = wrong.sum(axis=3).max(axis=2)[..., None, None]
        first = (wrong + roundings(self.numerics, self.size) * eye) @ size
        first = first + radius / np.maximum(1 - radius, 0) * first.max(axis=2, keepdims=True)
        lost = self.numerics.underflow * self.size * (size @ (1 + size))
        return value, np.where(radius < 1, first + lost, np.inf)

    def expected(self, value: F64, bound: F64, free: F64 | None = None) -> Expected:
        """A stage as the case holds it, free beyond the last token."""
        bound = np.where(self.real if free is None else free, bound, np.inf)
        shape = (*self.case.inputs["v"].shape[::2][:2], *value.shape[1:])
        return Expected(value.reshape(shape), bound.reshape(shape))


_SQUARE = ("decay", "Akk", "Aqk", "T")


def _chunk(step: Step) -> Callable[[Case, Values, Numerics], Expected]:
    return lambda case, values, numerics: step(_Chunks(case, values, numerics))


def _sums(it: _Chunks) -> Expected:
    rows = np.arange(1.0, it.size + 1)[:, None]
    sizes = np.cumsum(np.abs(it.log_gate), axis=2)
    bound = it.numerics.gamma(rows - 1 + it.numerics.conversions) * sizes + 2 * rows * it.numerics.underflow
    if it.rule.exact_gate:
        bound = bound + np.cumsum(it.cut(log_error(it.rule)), axis=2)
    return it.expected(np.cumsum(it.log_gate, axis=2), bound)


def _exp(numerics: Numerics, exponent: F64) -> tuple[F64, F64]:
    """exp of a difference of two sums and its relative error: the difference rounded, or two exps multiplied."""
    size = np.where(np.isinf(exponent), 0.0, np.abs(exponent))
    error = (1 + numerics.exp_error(size)) ** 2 * (1 + numerics.u) * np.exp(numerics.u * size) - 1
    return np.exp(exponent), error


def _gammas(it: _Chunks) -> Expected:
    value, error = _exp(it.numerics, gaps_of(it.shown("G"))[..., 0])
    below = np.tri(it.size, dtype=bool) & it.real & it.real.swapaxes(-1, -2)
    return it.expected(value, error * value + EXP_UNDERFLOW, below)


def _square(it: _Chunks, left: F64, factor: F64) -> tuple[F64, F64]:
    """factor_i Σ_d left_id k_jd e^{G_id − G_jd} and its bound, one head after the other: these are large."""
    count = roundings(it.numerics, it.rule.keys + 2)
    values, bounds = [], []
    for head in range(len(left)):
        q, k = left[head], it.k[head]
        if "decay" in it.values:
            decay = np.tril(it.shown("decay")[head])[..., None]
            error = np.zeros(decay.shape)
        else:
            decay, error = _exp(it.numerics, gaps_of(it.shown("G")[head]))
        weight = ((1 + error) * (1 + count) - 1) * decay
        sizes = 1 + np.abs(q).sum(axis=2)[..., :, None] + np.abs(k).sum(axis=2)[..., None, :]
        lost = (EXP_UNDERFLOW + it.numerics.underflow) * 2 * (it.rule.keys + 2) * sizes**2
        values.append(factor[head] * products(q, k, decay))
        bounds.append(np.abs(factor[head]) * products(np.abs(q), np.abs(k), weight) + (1 + np.abs(factor[head])) * lost)
    return np.stack(values), np.stack(bounds)


def _akk(it: _Chunks) -> Expected:
    value, bound = _square(it, it.k, it.beta)
    below = np.tri(it.size, it.size, -1, dtype=bool) & it.real & it.real.swapaxes(-1, -2)
    return it.expected(value, bound, below)


def _aqk(it: _Chunks) -> Expected:
    value, bound = _square(it, it.q, np.ones(it.beta.shape))
    bound = np.where(np.tri(it.size, dtype=bool), bound, 0.0)  # what is above the diagonal comes after token i
    return it.expected(value, bound, it.real & it.real.swapaxes(-1, -2))


def _in_blocks(step: Step) -> Step:
    """The blocks on and below the diagonal of what a step gives, row by row."""

    def cut(x: F64, size: int) -> F64:
        places = [(i, j) for i in range(0, size, BLOCK) for j in range(0, i + 1, BLOCK)]
        return np.stack([x[..., i : i + BLOCK, j : j + BLOCK] for i, j in places], axis=3)

    def blocks(it: _Chunks) -> Expected:
        whole = step(it)
        return Expected(cut(whole.value, it.size), cut(whole.bound, it.size))

    return blocks


def _inverse(it: _Chunks) -> Expected:
    value, bound = it.solve()
    return it.expected(value, bound, it.real & it.real.swapaxes(-1, -2))


def _solved(it: _Chunks, right: F64, error: F64) -> Expected:
    value, bound = it.solve()
    lost = 2 * it.size * it.numerics.underflow
    bound = bound @ np.abs(right) + np.abs(value) @ (error + lost * (1 + np.abs(right))) + lost
    return it.expected(value @ right, np.where(np.isnan(bound), np.inf, bound))


def _w(it: _Chunks) -> Expected:
    decay, error = _exp(it.numerics, it.shown("G"))
    right = it.beta * decay * it.k
    error = ((1 + error) * (1 + roundings(it.numerics, 2)) - 1) * np.abs(right)
    lost = 2 * (EXP_UNDERFLOW + it.numerics.underflow) * (1 + np.abs(it.k)) * (1 + np.abs(it.beta))
    return _solved(it, right, error + lost)


def _u(it: _Chunks) -> Expected:
    right = it.beta * it.v
    error = roundings(it.numerics, 1) * np.abs(right)
    return _solved(it, right, error + it.numerics.underflow * (1 + np.abs(it.v) + np.abs(it.beta)))


def _v_new(it: _Chunks) -> Expected:
    w, u, state = it.shown("w"), it.shown("u"), it.before()
    sizes = np.abs(u) + np.abs(w) @ np.abs(state)
    small = np.abs(w).sum(axis=3, keepdims=True) + np.abs(state).sum(axis=2, keepdims=True)
    lost = it.numerics.underflow * (2 * it.rule.keys + 1 + small)
    return it.expected(u - w @ state, roundings(it.numerics, it.rule.keys + 1) * sizes + lost)


def _chunk_states(it: _Chunks) -> Expected:
    sums, state, new = it.shown("G"), it.before(), it.shown("v_new")
    end, apart = it.end()
    kept, kept_error = _exp(it.numerics, end)
    ended, ended_error = _exp(it.numerics, np.where(it.real, end - sums, -np.inf))
    kept_error, ended_error = ((1 + error) * np.exp(apart) - 1 for error in (kept_error, ended_error))
    keys, kept, kept_error = (x.swapaxes(-1, -2) for x in (ended * it.k, kept, kept_error))
    count = roundings(it.numerics, it.size + 3)
    error = ((1 + ended_error) * (1 + count) - 1).swapaxes(-1, -2)
    bound = (np.abs(keys) * error) @ np.abs(new) + ((1 + kept_error) * (1 + count) - 1) * np.abs(kept * state)
    small = np.abs(state) + (1 + np.abs(it.k).sum(axis=3, keepdims=True)).swapaxes(-1, -2) @ np.abs(new)
    lost = EXP_UNDERFLOW * small + it.numerics.underflow * 2 * (it.size + 2)
    return it.expected(kept * state + keys @ new, bound + lost, np.ones((1, 1), bool))


def _chunk_out(it: _Chunks) -> Expected:
    decay, error = _exp(it.numerics, it.shown("G"))
    state, new, aqk, scale = it.before(), it.shown("v_new"), np.tril(it.shown("Aqk")), abs(it.rule.scale)
    keyed = it.q * decay
    count = roundings(it.numerics, it.rule.keys + it.size + 4)
    bound = (np.abs(keyed) * ((1 + error) * (1 + count) - 1)) @ np.abs(state) + count * (np.abs(aqk) @ np.abs(new))
    small = np.abs(aqk).sum(axis=3, keepdims=True) + np.abs(new).sum(axis=2, keepdims=True)
    lost = it.numerics.underflow * (2 * (it.rule.keys + it.size + 2) + small)
    lost = lost + EXP_UNDERFLOW * ((1 + np.abs(it.q)) @ np.abs(state))
    value = it.rule.scale * (keyed @ state + aqk @ new)
    return Expected(_as_tokens(it, value), _as_tokens(it, scale * bound + max(1.0, scale) * lost))


def _as_tokens(it: _Chunks, x: F64) -> F64:
    """[G, N, C, V] as the case's out."""
    tokens = np.moveaxis(x, 0, 2).reshape(-1, len(x), x.shape[3])[: it.rule.tokens]
    return token_order(it.case, tokens)


def _chunk_state_out(it: _Chunks) -> Expected:
    state = it.shown("states")[:, -1]
    return Expected(
        stored_state(it.case, state), stored_state(it.case, it.numerics.u * np.abs(state) + it.numerics.underflow)
    )
