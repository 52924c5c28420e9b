"""What DeepSeek-V4 brought: LIGHTNING_INDEXER, and the hyper-connections DSV4_HC_COMB, DSV4_HC_PRE and DSV4_HC_POST."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import among, as_many, composite, counts, inner_sizes, rare_forms, scales
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem

_CACHES = ("f32", "f16", "bf16")
_TAME = ("small_int", "normal", "signed_zero")
_STEPS = "the rounding of each step, carried through the formula"
_STREAMS = 4


def _argument(case: Case, raw: Mapping[str, Raw], name: str, numerics: Numerics) -> Approx:
    its = case.inputs[name].type
    return Approx.of(its.decode(raw[name]), its, numerics)


def _moved(x: Approx, change: Callable[[F64], F64]) -> Approx:
    value, low, high = (np.ascontiguousarray(change(it)) for it in (x.value, x.low, x.high))
    return Approx(value, low, high, x.numerics, rounded=x.rounded)


def _others(function: Callable[..., Expected], faults: Mapping[str, str], image: Image) -> Iterator[Hypothesis]:
    for says, wrong in faults.items():
        yield Hypothesis(says, partial(image.with_expect, partial(function, wrong=wrong)))


# --- LIGHTNING_INDEXER ---


def lightning_indexer(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[b, t, j] = Σ_h w[b, t, h]·max(q[b, t, h]·k[b, j], 0) + mask[b mod n, t, j]: how much token t needs key j
    (DeepSeek-AI 2025, "DeepSeek-V3.2-Exp", eq. 1). Where the mask is −infinity, so is the output."""
    return _indexed(case, raw, numerics)


def _indexed(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    q, k, w = (_argument(case, raw, name, numerics) for name in ("q", "k", "weights"))
    batch, _, tokens, keys = case.outputs["out"].shape
    # [B, T, J, H, E]
    products = _moved(q, lambda it: it[:, :, None]) * _moved(k, lambda it: it[:, None, :])
    scores = _moved(products.sum(), lambda it: it[..., 0])
    scores = scores if wrong == "no relu" else scores.maximum(0.0)
    weights = _moved(w, lambda it: it[:, 0, :, None])
    total = _moved((scores if wrong == "unweighted" else scores * weights).sum(), lambda it: it[..., 0])
    its = case.inputs["mask"]
    mask = its.type.decode(raw["mask"])[:, 0]
    mask = np.tile(mask, (batch // max(mask.shape[0], 1), 1, 1))
    if wrong == "first mask":
        mask = np.broadcast_to(mask[:, :1], mask.shape)
    seen = mask != -np.inf
    added = Approx.of(np.where(seen, mask, 0.0), its.type, numerics)
    found = (total if wrong == "unmasked" else total + added).stored(case.outputs["out"].type, (batch, tokens, keys))
    hidden = ~seen & ~np.isnan(found.value) & (wrong != "unmasked")
    value = np.where(hidden, -np.inf, found.value)
    exact = hidden if found.exact is None else hidden | found.exact
    bits = case.outputs["out"].type.encode(value)
    shape = case.outputs["out"].shape
    bound = np.where(hidden, 0.0, found.bound)
    return Expected(value.reshape(shape), bound.reshape(shape), exact.reshape(shape), bits.reshape(shape))


def _check_indexer(case: Case) -> None:
    q, k, w, mask = (case.inputs[name].shape for name in ("q", "k", "weights", "mask"))
    if k != (q[0], k[1], 1, q[3]) or w != (q[0], 1, q[1], q[2]):
        raise CaseError(f"q has shape {q}, k {k}, weights {w}; they are (B, T, H, E), (B, J, 1, E) and (B, 1, T, H)")
    if mask[1:] != (1, q[1], k[1]) or q[0] % max(mask[0], 1):
        raise CaseError(f"mask has shape {mask}; it must be (a part of {q[0]}, 1, {q[1]}, {k[1]})")
    check_out(case, (q[0], 1, q[1], k[1]))


@composite
def _indexer_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """A few tokens on up to 129 keys, now and then many of these or of those; shrinks to one of each."""
    kind = draw(among(freedom.choices("cache", _CACHES)))
    heads = draw(among(freedom.choices("heads", (1, 2, 3, 8, 16, 64))))
    width = draw(among(freedom.choices("width", (1, 2, 8, 17, 32, 64, 128))))
    tokens, keys = draw(among((1, 2, 3, 7))), draw(among((1, 2, 3, 31, 33, 129)))
    batch = draw(among((1, 2, 3)))
    form = draw(rare_forms("tokens", "keys"))
    if form != "usual":
        batch, heads, width = 1, min(freedom.choices("heads", (1, heads))), min(freedom.choices("width", (8, width)))
        tokens, keys = (4097, min(keys, 3)) if form == "tokens" else (min(tokens, 2), draw(among((1025, 2049, 4097))))
    while batch * tokens * keys * heads * width > 1 << 19 and keys > 1:
        keys = max(keys // 4, 1)
    shapes = {
        "q": (batch, tokens, heads, width),
        "k": (batch, keys, 1, width),
        "weights": (batch, 1, tokens, heads),
        "mask": (draw(among(sorted({1, batch}))), 1, tokens, keys),
    }
    return Problem({}, "f32", shapes, (batch, 1, tokens, keys), dtypes={"k": kind, "mask": "f16"})


def _hide(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Later keys are masked, or some, or none."""
    mask, form = values["mask"], rng.integers(0, 3)
    if form == 1:
        row, column = np.ogrid[: mask.shape[2], : mask.shape[3]]
        mask[np.broadcast_to(column - row > mask.shape[3] - mask.shape[2], mask.shape)] = -np.inf
    elif form == 2:
        mask[rng.random(mask.shape) < 0.3] = -np.inf


# --- DSV4_HC_COMB ---


def hc_comb(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The matrices that mix a token's 4 streams, out[t, from, to]: weights that n_iter rounds of Sinkhorn and Knopp
    make nearly doubly stochastic.

    p = softmax over `to` of mixes[t, 8 + 4·from + to]·scale_2 + base[8 + 4·from + to], plus eps. Then columns, and
    n_iter − 1 times rows and columns, are divided by eps + their sum (Xie et al. 2025, "mHC").

    The relative error of an element is at most e^(e + R + C) − 1, where e is what the elements themselves have gathered
    and R, C what the factors of its row and of its column have. p has e = e_0 (`Approx`) and R = C = 0. Dividing by
    eps + Σ multiplies all elements of a column by a factor whose logarithm is off by no more than a mean of those of
    the elements, with weights that add up to θ = Σ/(eps + Σ) < 1 (the rest is eps, which is exact): what all have in
    common goes but for its part 1 − θ. So

        C ← (1 − θ)·C + e + R + ρ,  ρ = −ln(1 − γ_{4+d}),  and each multiplication adds u to e,

    d the roundings of a division; and the same for rows, with R and C exchanged. θ is the least one of all sums, less
    the errors so far.

    R and C grow with each round, because they count twice what a row's factor has in common with those of the columns:
    that is taken out again by the next division. What stays is how far apart errors of factors are, D_R and D_C. The
    logarithm of a column's factor is off by less a mean of e_i + R_i over the rows, weighted by what the column holds.
    Two such means of one set of numbers are apart by at most τ of what the numbers are, where 1 − τ is what the two
    sets of weights have in common at least (Dobrushin's coefficient; Seneta 1981, "Non-negative Matrices and Markov
    Chains", section 4.3), here with weights that are off by e^(±D_R) themselves:

        D_C ← τ·D_R + 2·(e + ρ + ε),  τ = 1 − e^(−D_R)·min_jk Σ_i min(w_ij, w_ik),  ε = (1 − θ)(e + R + C)·e^(e + R + C)

    with ε for eps, which is a number in each mean whose error is none. The factors of an element are then off by
    e + D_R + ρ + ε together, if that is less than R + C.
    """
    return _combined(case, raw, numerics)


def _combined(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    eps, rounds = float(case.params["eps"]), int(case.params["n_iter"])
    start = {"first scale": 0, "second scale": 1}.get(wrong, 2)
    tokens, first = case.inputs["mixes"].shape[2], 2 * _STREAMS
    mixes = _moved(_argument(case, raw, "mixes", numerics), lambda it: it[0, 0, :, first:])
    scale = _moved(_argument(case, raw, "scale", numerics), lambda it: it[0, 0, 0, start : start + 1])
    base = _moved(_argument(case, raw, "base", numerics), lambda it: it[0, 0, :, first:])
    z = _moved(mixes * scale + base, lambda it: it.reshape(tokens, _STREAMS, _STREAMS))
    weights = (z - z.largest()).exp()
    p = weights / weights.sum() + eps
    value: F64 = p.value.swapaxes(-1, -2).copy() if wrong == "transposed" else p.value.copy()
    with np.errstate(all="ignore"):
        own = np.log(np.maximum(p.high / p.value, p.value / p.low)).max((-1, -2), keepdims=True)
    along = {-1: np.zeros(own.shape), -2: np.zeros(own.shape)}
    apart = {-1: np.zeros(own.shape), -2: np.zeros(own.shape)}
    both = np.zeros(own.shape)  # what the two factors of an element have gathered
    rho = -np.log1p(-numerics.gamma(4.0 + numerics.division_roundings))
    axes = [-2, *((-1, -2) * (rounds - 1))]
    if wrong == "rows first":
        axes = [-1, *((-2, -1) * (rounds - 1))]
    if wrong == "one round":
        axes = axes[:1]
    for axis in axes:
        sums = value.sum(axis, keepdims=True)
        other = -3 - axis
        common = _in_common(value / np.where(sums > 0, sums, 1.0), axis)
        value = value / (eps + sums)
        least = (sums * np.exp(-own - both)).min((-1, -2), keepdims=True)
        kept = eps / (eps + least)
        loose = own + along[-1] + along[-2]
        loose = kept * loose * np.exp(loose)
        tied = own + apart[other] + rho + loose
        apart[axis] = (1 - np.exp(-apart[other]) * common) * apart[other] + 2 * (own + rho + loose)
        along[axis] = kept * along[axis] + own + along[other] + rho
        both = np.minimum(along[-1] + along[-2], tied)
        own = own + numerics.u
    bound = value * np.expm1(own + both) + 2 * numerics.underflow
    shape = case.outputs["out"].shape
    return Expected(value.reshape(shape), np.where(np.isnan(bound), np.inf, bound).reshape(shape))


def _in_common(weights: F64, axis: int) -> F64:
    """What the weights of any two columns have in common (of two rows, where they add up along the last axis)."""
    columns = weights if axis == -2 else weights.swapaxes(-1, -2)
    shared: F64 = np.minimum(columns[..., :, None], columns[..., None, :]).sum(-3).min((-1, -2))
    return shared[..., None, None]


def _check_comb(case: Case) -> None:
    mixes, scale, base = (case.inputs[name].shape for name in ("mixes", "scale", "base"))
    size = _STREAMS * (_STREAMS + 2)
    if mixes != (1, 1, mixes[2], size) or base != (1, 1, 1, size) or scale != (1, 1, 1, scale[3]) or scale[3] < 3:
        raise CaseError(
            f"mixes has shape {mixes}, scale {scale}, base {base}; rows are of {size}, 3 or more and {size}"
        )
    if not 0 <= float(case.params["eps"]) <= 1 or not 1 <= int(case.params["n_iter"]) <= 100:
        raise CaseError("eps must be from 0 to 1, n_iter from 1 to 100")
    check_out(case, (1, mixes[2], _STREAMS, _STREAMS))


@composite
def _comb_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Some tokens, now and then many; shrinks to one, in one round."""
    size, tokens = _STREAMS * (_STREAMS + 2), draw(inner_sizes(draw(scales())))
    params = {
        "eps": draw(among((1e-6, 1e-3, 0.1))),
        "n_iter": draw(among((1, 2, 3, 5, 20))),
    }
    if draw(rare_forms("many")) == "many":
        tokens, params["n_iter"] = as_many(draw(counts()), size, freedom), min(params["n_iter"], 2)
    shapes = {"mixes": (1, 1, tokens, size), "scale": (1, 1, 1, 3), "base": (1, 1, 1, size)}
    return Problem(params, "f32", shapes, (1, tokens, _STREAMS, _STREAMS))


# --- DSV4_HC_PRE and DSV4_HC_POST ---


def hc_pre(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[t, i] = Σ_h weights[t, h]·x[t, h, i]: γ_n·Σ|w·x| over the streams h (Higham 2002, eq. 3.5)."""
    return _joined(case, raw, numerics)


def _joined(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    x = _moved(_argument(case, raw, "x", numerics), lambda it: it[0].swapaxes(-1, -2))  # [T, E, H]
    weights = _argument(case, raw, "weights", numerics)
    if wrong == "first weights":
        weights = _moved(weights, lambda it: np.broadcast_to(it[:, :, :1], it.shape))
    found = (x if wrong == "unweighted" else x * _moved(weights, lambda it: it[0, 0, :, None])).sum()
    return _shaped(found, case)


def _shaped(found: Approx, case: Case) -> Expected:
    shape = case.outputs["out"].shape
    return _moved(found, lambda it: it.reshape(shape)).stored(case.outputs["out"].type, shape)


def _check_pre(case: Case) -> None:
    x, weights = case.inputs["x"].shape, case.inputs["weights"].shape
    if x[0] != 1 or weights != (1, 1, *x[1:3]) or not x[2]:
        raise CaseError(f"x has shape {x} and weights {weights}; they must be (1, T, H, E) and (1, 1, T, H)")
    check_out(case, (1, 1, x[1], x[3]))


@composite
def _sizes_of_tokens(draw: st.DrawFn, freedom: Freedom) -> tuple[int, int]:
    """How long a token's part of a stream is, and how many tokens there are."""
    if draw(rare_forms("many")) == "many":
        n = draw(among((1, 2, 3)))
        return n, as_many(draw(counts()), _STREAMS * n, freedom)
    return draw(inner_sizes(draw(scales()))), draw(among((1, 2, 3, 7, 17)))


@composite
def _pre_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Some tokens of some streams, now and then many; shrinks to one element."""
    n, tokens = draw(_sizes_of_tokens(freedom))
    streams = draw(among(freedom.choices("streams", (4, 1, 2, 3))))
    shapes = {"x": (1, tokens, streams, n), "weights": (1, 1, tokens, streams)}
    return Problem({}, "f32", shapes, (1, 1, tokens, n))


def hc_post(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[t, d, i] = x[t, i]·post[t, d] + Σ_s comb[t, s, d]·residual[t, s, i]: γ_{n+1}·Σ|products| over the streams s
    (Higham 2002, eq. 3.5)."""
    return _spread(case, raw, numerics)


def _spread(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: str = "") -> Expected:
    x, residual, post, comb = (_argument(case, raw, name, numerics) for name in ("x", "residual", "post", "comb"))
    own = _moved(x, lambda it: it[0, 0, :, None]) * _moved(post, lambda it: it[0, 0, ..., None])  # [T, D, E]
    turned = comb if wrong == "transposed" else _moved(comb, lambda it: it.swapaxes(-1, -2))
    mixes = _moved(turned, lambda it: it[0, :, :, None])  # [T, D, 1, S]
    terms = _moved(residual, lambda it: it[0].swapaxes(-1, -2)[:, None]) * mixes  # [T, D, E, S]
    if wrong == "no residual":
        return _shaped(own, case)
    if wrong != "no x":
        ends = ((own.value, terms.value), (own.low, terms.low), (own.high, terms.high))
        value, low, high = (np.concatenate([one[..., None], several], -1) for one, several in ends)
        terms = Approx(value, low, high, numerics, rounded=True)
    return _shaped(terms.sum(), case)


def _check_post(case: Case) -> None:
    x, residual, post, comb = (case.inputs[name].shape for name in ("x", "residual", "post", "comb"))
    (_, tokens, streams, n) = residual
    if residual[0] != 1 or x != (1, 1, tokens, n) or post != (1, 1, tokens, streams) or not streams:
        raise CaseError(f"x has shape {x}, residual {residual}, post {post}, which do not fit together")
    if comb != (1, tokens, streams, streams):
        raise CaseError(f"comb has shape {comb}; it must be (1, {tokens}, {streams}, {streams})")
    check_out(case, residual)


@composite
def _post_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Some tokens of some streams, now and then many; shrinks to one element."""
    n, tokens = draw(_sizes_of_tokens(freedom))
    streams = draw(among(freedom.choices("streams", (4, 1, 2, 3))))
    residual = (1, tokens, streams, n)
    shapes = {
        "x": (1, 1, tokens, n),
        "residual": residual,
        "post": (1, 1, tokens, streams),
        "comb": (1, tokens, streams, streams),
    }
    return Problem({}, "f32", shapes, residual)


def _traits(case: Case) -> dict[str, Any]:
    """streams: how many a token has."""
    name = "x" if case.op == "dsv4_hc_pre" else "residual"
    found: dict[str, Any] = {"aligned": is_aligned(case)}
    return {**found, "streams": case.inputs[name].shape[2]} if name in case.inputs else found


def _indexer_traits(case: Case) -> dict[str, Any]:
    """cache: the type of k. heads, width: of q."""
    q = case.inputs["q"].shape
    return {"cache": case.inputs["k"].dtype, "heads": q[2], "width": q[3], "aligned": is_aligned(case)}


OPS = (
    Op(
        name="lightning_indexer",
        summary="Σ_h w_h·max(q_h·k, 0) + mask: how much a token needs each key",
        inputs=("q", "k", "weights", "mask"),
        params={},
        dtypes=("f32",),
        argument_dtypes={"k": _CACHES, "mask": ("f16",)},
        problems=_indexer_problems,
        expect=lightning_indexer,
        bound=_STEPS,
        check=_check_indexer,
        traits=_indexer_traits,
        hypotheses=partial(
            _others,
            _indexed,
            {
                "negative scores count": "no relu",
                "weights are left out": "unweighted",
                "the mask is left out": "unmasked",
                "every token has the mask of the first": "first mask",
            },
        ),
        composite=Composite(recipes=_TAME, shape_values=_hide, batch_axes=(0,)),
    ),
    Op(
        name="dsv4_hc_comb",
        summary="matrices that mix a token's 4 streams, made nearly doubly stochastic",
        inputs=("mixes", "scale", "base"),
        params={"eps": float, "n_iter": int},
        dtypes=("f32",),
        problems=_comb_problems,
        expect=hc_comb,
        bound="out·(e^(e + R + C) − 1), what elements, rows and columns gather in each round",
        check=_check_comb,
        traits=_traits,
        hypotheses=partial(
            _others,
            _combined,
            {
                "mixes are scaled by the first scale": "first scale",
                "mixes are scaled by the second scale": "second scale",
                "rows are divided first, not columns": "rows first",
                "there is one round only": "one round",
                "the matrix is transposed": "transposed",
            },
        ),
        composite=Composite(recipes=_TAME, batch_axes=()),
    ),
    Op(
        name="dsv4_hc_pre",
        summary="the weighted sum of a token's streams",
        inputs=("x", "weights"),
        params={},
        dtypes=("f32",),
        problems=_pre_problems,
        expect=hc_pre,
        bound="γ_n·Σ|w·x| over n streams",
        check=_check_pre,
        traits=_traits,
        hypotheses=partial(
            _others,
            _joined,
            {"weights are left out": "unweighted", "every token has the weights of the first": "first weights"},
        ),
        composite=Composite(recipes=(*_TAME, "wide"), batch_axes=()),
    ),
    Op(
        name="dsv4_hc_post",
        summary="a token's new streams: x·post + the old ones mixed by comb",
        inputs=("x", "residual", "post", "comb"),
        params={},
        dtypes=("f32",),
        problems=_post_problems,
        expect=hc_post,
        bound="γ_{n+1}·Σ|products| over n streams",
        check=_check_post,
        traits=_traits,
        hypotheses=partial(
            _others,
            _spread,
            {"comb is transposed": "transposed", "the residual is left out": "no residual", "x is left out": "no x"},
        ),
        composite=Composite(recipes=(*_TAME, "wide"), batch_axes=()),
    ),
)
