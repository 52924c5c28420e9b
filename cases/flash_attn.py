"""FLASH_ATTN_EXT: attention of many heads on a cache of keys and values, with all that ggml's op takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases import products
from opconform.cases.families.choices import choice, drawn_params
from opconform.cases.mla.attention import Narrow, attention_error, gamma, softmax_of, unshifted
from opconform.cases.mla.faults import of_any_attention
from opconform.cases.shapes import check_out, is_aligned
from opconform.cases.softmax import slopes
from opconform.harness.draw.strategies import among, as_many, composite, counts, few, lengths, rare_forms
from opconform.harness.model import blocks
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import DTYPES, F32, F64, DType, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem

CACHES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
_DRAWN = ("f16", "f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
_POWER = 32.0  #: roundings of a power: 16 ulps
_SCALE = choice(0.125, 1.0, 0.08838834764831845, without=1.0)
_BIAS = choice(0.0, 0.0, 8.0, without=0.0, least=0.0, most=64.0)
_CAP = choice(0.0, 0.0, 30.0, 2.0, 0.0, 1.7, without=0.0, least=0.0, most=1e6)
_RECIPES = ("small_int", "normal", "signed_zero", "denormal")


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[t, h] = Σ_j w_j·v_j, w = softmax over j of cap(scale·q·k_j) + slope·mask_j and of the head's sink.

    Head h reads head h / r of k and v. cap(s) = c·tanh(s/c) where c = logit_softcap is above 0. A sink is one more key
    without a value.

    Scores. q·k_j is off as a product is (`products.product`: q rounded to the type of k, or to blocks, where the device
    declares it). scale, c and their quotient are rounded and cost a multiplication each: γ_4·|s|. tanh moves no error
    apart, and adds c times its own. A slope is a power of a rounded power: γ_{32(2h+2)}·|slope·mask|. Adding the mask
    and passing to base 2 round three times: γ_3·(|s| + |slope·mask|).

    Weights and sums are bounded as in absorbed latent attention (`mla/attention.py`, `expect`): for any order of keys,
    in one pass or online. A device with `narrow_sums` adds up values of float16 in float16. Values in blocks are off by
    γ_6·(|scale·code| + |minimum|) each. A row that sees nothing is 0.
    """
    return _attended(case, raw, numerics, {})


def _attended(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: Mapping[str, Any]) -> Expected:
    params = {**case.params, **wrong}
    q, k, v = (case.inputs[name] for name in ("q", "k", "v"))
    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    group = "interleaved" if wrong.get("interleaved") else ""
    rows = products.weights(_shared(raw["k"], q.shape, group), k.type, numerics)
    asked = products.activations(q.type.decode(raw["q"]), q.type, k.type, numerics)
    dots = products.product(rows, asked, k.type, numerics)
    scores, error = _capped(dots, params, numerics)
    seen = np.ones((q.shape[0], heads, queries, keys), dtype=bool)
    if "mask" in case.inputs and not wrong.get("unmasked"):
        mask = _mask_of(case, raw)
        seen = mask != -np.inf
        max_bias = float(params["max_bias"])
        slope = slopes(heads, max_bias).reshape(-1, 1, 1) if max_bias > 0 else np.ones((heads, 1, 1))
        powers: F64 = _POWER * (2 * np.arange(heads, dtype=np.float64).reshape(-1, 1, 1) + 2) * (max_bias > 0)
        added = slope * np.where(seen, mask, 0.0)
        error = error + gamma(numerics, powers) * np.abs(added) + gamma(numerics, 3) * (np.abs(scores) + np.abs(added))
        scores = scores + added
    if "keys" in wrong:
        seen = seen & (np.arange(keys) < wrong["keys"])
    values = _shared(v.type.decode(raw["v"]), q.shape, group)
    off = _value_error(v.type, _shared(raw["v"], q.shape, group), numerics)
    is_empty, spoilt = ~seen.any(-1, keepdims=True), np.isnan(scores).any(-1, keepdims=True)
    sunk = "sinks" in case.inputs and not wrong.get("unsunk")
    if wrong.get("mean") and not sunk:
        scores, error, seen = np.where(is_empty, 0.0, scores), np.where(is_empty, 0.0, error), seen | is_empty
        is_empty = np.zeros_like(is_empty)
    if sunk:
        sink = F32.decode(raw["sinks"]).reshape(-1, 1, 1)
        scores = np.concatenate([scores, np.broadcast_to(sink, (*scores.shape[:3], 1))], -1)
        error = np.concatenate([error, np.zeros((*scores.shape[:3], 1))], -1)
        seen = np.concatenate([seen, np.ones((*scores.shape[:3], 1), dtype=bool)], -1)
        values, off = (np.concatenate([it, np.zeros((*it.shape[:2], 1, it.shape[3]))], 2) for it in (values, off))
    found = _weighed(scores, error, seen, values, off, v.type, numerics)
    of_none = np.nan if wrong.get("nan") and not sunk else 0.0
    value, bound = np.where(is_empty, of_none, found.value), np.where(is_empty, 0.0, found.bound)
    value = np.where(spoilt, np.nan, value)  # NaN − ∞ is NaN, even where no key is seen
    if wrong.get("unshifted"):
        of_keys = np.where(seen, scores, -np.inf)[..., :keys]
        value, bound = unshifted(of_keys.max(-1, keepdims=True), value, bound)
    return Expected(value.swapaxes(1, 2), bound.swapaxes(1, 2))


def _weighed(
    scores: F64, error: F64, seen: np.ndarray, values: F64, off: F64, its: DType, numerics: Numerics
) -> Expected:
    softmax = softmax_of(scores, error, seen, numerics)
    value = softmax.weights @ values
    narrow = _narrow(its, numerics)
    moved, common, numerator, _ = attention_error(softmax, values, value, values, 1.0, narrow, numerics)
    likely = softmax.weights * np.exp(softmax.doubt) * softmax.growth
    bound = moved + common + (1 + gamma(numerics, 2 * softmax.count - 2)) * (numerator + likely @ off)
    heavy = np.abs(values).sum(-2, keepdims=True)
    overflows = (heavy > F32.largest) | np.isnan(bound) | (np.abs(value) + bound > F32.largest)
    if narrow.sum_unit:
        overflows = overflows | (heavy > narrow.largest_sum)
    return Expected(value, np.where(overflows, np.inf, bound))


def _narrow(its: DType, numerics: Numerics) -> Narrow:
    """What adding up the rows of a cache of 16 bits loses."""
    if its.itemsize != 2 or its.block > 1:
        return Narrow()
    errors = (its.unit_roundoff, its.unit_roundoff * its.smallest_normal, its.largest)
    nothing = (0.0, 0.0, np.inf)
    in_sums = numerics.narrow_sums and its.name == "f16"
    return Narrow(*(errors if numerics.narrow_operands else nothing), *(errors if in_sums else nothing))


def _value_error(its: DType, raw: Raw, numerics: Numerics) -> F64:
    """How far a value may be off before it is added up."""
    if its.block > 1:
        scaled, least = blocks.magnitudes(its.name, raw)
        size = scaled + least
        off = gamma(numerics, float(blocks.ROUNDINGS)) * size
        return np.where(blocks.with_tiny_scale(its.name, raw) & numerics.flushes_denormals, size, off)
    value = np.abs(its.decode(raw))
    tiny = (value < its.smallest_normal) & numerics.flushes_denormals
    return np.where(tiny, value, numerics.conversions * numerics.u * value)


def _capped(dots: Expected, params: Mapping[str, Any], numerics: Numerics) -> tuple[F64, F64]:
    scale, cap = float(params["scale"]), float(params["logit_softcap"])
    scores, error = scale * dots.value, abs(scale) * dots.bound + gamma(numerics, 4.0) * np.abs(scale * dots.value)
    if cap > 0:
        bent = np.tanh(scores / cap)
        own = np.maximum(numerics.ulps(numerics.tanh_ulps) * np.abs(bent), numerics.tanh_absolute)
        scores, error = cap * bent, error + cap * own + gamma(numerics, 2.0) * cap * np.abs(bent)
    return scores, error + 4 * numerics.underflow * (1 + abs(scale))


def _shared(cache: Any, q: tuple[int, ...], group: str) -> Any:
    """A cache's rows for each head of the queries: head h / r."""
    for axis in (0, 1):
        times = q[axis] // max(cache.shape[axis], 1)
        if times == 1:
            continue
        cache = (
            np.tile(cache, [times if a == axis else 1 for a in range(4)]) if group else np.repeat(cache, times, axis)
        )
    return cache


def _mask_of(case: Case, raw: Mapping[str, Raw]) -> F64:
    """The mask of each head and query: as many rows as there are queries, repeated over heads and sequences."""
    q, its = case.inputs["q"].shape, case.inputs["mask"].type
    mask = its.decode(raw["mask"])[:, :, : q[2]]
    return np.tile(mask, (q[0] // max(mask.shape[0], 1), q[1] // max(mask.shape[1], 1), 1, 1))


def check(case: Case) -> None:
    """Raises `CaseError` for shapes that do not fit together."""
    q, k, v = (case.inputs[name].shape for name in ("q", "k", "v"))
    if q[3] != k[3] or k[:3] != v[:3] or q[0] != k[0] or q[1] % max(k[1], 1):
        raise CaseError(f"q has shape {q}, k {k}, v {v}; rows, keys and sequences must agree, k's heads divide q's")
    if "mask" in case.inputs:
        mask = case.inputs["mask"].shape
        if mask[3] != k[2] or mask[2] < q[2] or q[1] % max(mask[1], 1) or q[0] % max(mask[0], 1):
            raise CaseError(f"mask has shape {mask}; it must have rows of {k[2]}, {q[2]} at least, and divide {q[:2]}")
    elif float(case.params["max_bias"]) > 0:
        raise CaseError("max_bias must be 0 where there is no mask")
    if "sinks" in case.inputs and case.inputs["sinks"].shape != (1, 1, 1, q[1]):
        raise CaseError(f"sinks have shape {case.inputs['sinks'].shape}; there must be {q[1]} of them, one a head")
    for name in ("scale", "max_bias", "logit_softcap"):
        if not 0 <= float(case.params[name]) <= 1e6:
            raise CaseError(f"{name} is {case.params[name]}; it must be from 0 to 1e6")
    check_out(case, (q[0], q[2], q[1], v[3]))


def traits(case: Case) -> dict[str, Any]:
    """caches: the types of k and v, as in "f16-f16". masked, sunk: whether there is a mask, or a sink a head.
    padded: whether a kernel in tiles has keys beyond the last to hide, whose scores are capped. head_size: that of k.
    alike: whether k and v have rows of one length. shares: whether several heads read one of k.
    filled_up: whether a mask has rows for whole tiles of 64 queries.
    """
    q, k, v = (case.inputs[name] for name in ("q", "k", "v"))
    return {
        "caches": f"{k.dtype}-{v.dtype}",
        "masked": "mask" in case.inputs,
        "sunk": "sinks" in case.inputs,
        "head_size": k.shape[3],
        "alike": k.shape[3] == v.shape[3],
        "shares": q.shape[1] != k.shape[1],
        "padded": float(case.params["logit_softcap"]) > 0 and q.shape[2] >= 64 and k.shape[2] % 64 != 0,
        "filled_up": "mask" not in case.inputs or case.inputs["mask"].shape[2] >= _whole_tiles(q.shape[2]),
        "aligned": is_aligned(case),
    }


def _whole_tiles(queries: int) -> int:
    """The queries of whole tiles of 64."""
    return -(-queries // 64) * 64


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """A few queries on up to 257 keys, now and then many queries, heads, sequences or keys; shrinks to one of each."""
    kinds = [name for name in _DRAWN if blocks.available() or DTYPES[name].block == 1]
    k = draw(among([name for name in kinds if freedom.choices("caches", (f"{name}-{name}",))]))
    v = draw(among(freedom.choices("caches", [f"{k}-{name}" for name in (k, k, k, *kinds)]))).partition("-")[2]
    sizes = [n for n in freedom.choices("head_size", (8, 16, 32, 40, 64, 80, 96, 128)) if n % DTYPES[k].block == 0]
    form = draw(rare_forms("queries", "heads", "batch", "keys"))
    width = draw(among(sizes)) if form == "usual" else min(sizes)
    other = draw(among([width, width, *(n for n in (32, 64, 128) if freedom.choices("alike", (False,)))]))
    if other % DTYPES[v].block:
        other = width
    if other % DTYPES[v].block:
        v = k
    if form == "usual":
        keys = draw(among((1, 2, 3, 7, 31, 32, 33, 64, 257)))
        queries = draw(among((1, 1, 2, 3, 8, 9, 65)))
        heads, batch = draw(among((1, 2, 3))), draw(among((1, 2)))
    else:
        other = width if width % DTYPES[v].block == 0 else other
        many = as_many(draw(lengths() if form == "keys" else counts()), max(width, other), freedom)
        queries, heads, batch = (many if form == name else 1 for name in ("queries", "heads", "batch"))
        keys = many if form == "keys" else draw(few())
    shared = draw(among((1, 2, 4))) if form == "usual" and freedom.choices("shares", (True,)) else 1
    params: dict[str, Param] = draw(drawn_params(freedom, {"scale": _SCALE, "max_bias": _BIAS, "logit_softcap": _CAP}))
    if not freedom.choices("padded", (True,)) and (form != "queries" or float(params["logit_softcap"])):
        queries = min(queries, 33)
    shapes = {
        "q": (batch, heads * shared, queries, width),
        "k": (batch, heads, keys, width),
        "v": (batch, heads, keys, other),
    }
    if draw(among(freedom.choices("masked", (False, True, True)))):
        shapes["mask"] = (
            draw(among((1, batch))),
            draw(among((1, 1, heads * shared))),
            queries if freedom.choices("filled_up", (False,)) else _whole_tiles(queries),
            keys,
        )
    else:
        params["max_bias"] = 0.0
    if draw(among(freedom.choices("sunk", (False, False, True)))):
        shapes["sinks"] = (1, 1, 1, heads * shared)
    dtypes = {"k": k, "v": v, "mask": "f16"}
    return Problem(params, "f32", shapes, (batch, queries, heads * shared, other), dtypes=dtypes)


def hide(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Later keys are masked, or a few, or most, some queries see none; q is as small as normalised rows are."""
    if "mask" not in values:
        return
    mask, form = values["mask"], rng.integers(0, 4)
    if form == 1:
        row, column = np.ogrid[: mask.shape[2], : mask.shape[3]]
        mask[np.broadcast_to(column - row > mask.shape[3] - mask.shape[2], mask.shape)] = -np.inf
    elif form in (2, 3):
        mask[rng.random(mask.shape) < (0.2 if form == 2 else 0.9)] = -np.inf


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Parameters and arguments left out, heads shared in another way, and what any attention may get wrong."""
    own: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("scale is left out", {"scale": 1.0}),
        ("max_bias is left out: every slope is 1", {"max_bias": 0.0}),
        ("logit_softcap is left out", {"logit_softcap": 0.0}),
        ("the mask is left out", {"unmasked": True}),
        ("the sinks are left out", {"unsunk": True}),
        ("heads share keys and values as h mod n, not as h / r", {"interleaved": True}),
    )
    inputs = image.case.inputs
    for says, wrong in (*own, *of_any_attention(inputs["k"].shape[2], "mask" in inputs)):
        yield Hypothesis(says, partial(image.with_expect, _otherwise(wrong)))


def _otherwise(wrong: Mapping[str, Any]) -> Expect:
    return lambda case, raw, numerics: _attended(case, raw, numerics, wrong)


OPS = (
    Op(
        name="flash_attn_ext",
        summary="attention of many heads on a cache of keys and values",
        inputs=("q", "k", "v", "mask", "sinks"),
        params={"scale": float, "max_bias": float, "logit_softcap": float},
        dtypes=("f32",),
        argument_dtypes={"k": CACHES, "v": CACHES, "mask": ("f16",)},
        problems=problems,
        expect=expect,
        bound="Σ w(e^d − 1)|v − out| + γ·(|out| + Σ w|v|), d the error of a score and of its exponential",
        check=check,
        traits=traits,
        hypotheses=hypotheses,
        composite=Composite(optional=("mask", "sinks"), recipes=_RECIPES, shape_values=hide, batch_axes=(0,)),
    ),
)
