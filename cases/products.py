"""Products of matrices: MUL_MAT, MUL_MAT_ID and OUT_PROD, with weights of any type.

The bound follows from what a kernel may do with its operands, which the backend declares case by case (`Numerics`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.selections import one_before
from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import (
    among,
    as_many,
    composite,
    counts,
    few,
    inner_sizes,
    integers,
    rare_forms,
    scales,
    tile_sizes,
)
from opconform.harness.draw.strategies import lengths as long_sizes
from opconform.harness.model import blocks
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import BF16, DTYPES, F16, F32, F64, QUANTISED, DType, Mask, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics, quanta
from opconform.harness.model.op import Composite, Index, Op, Problem

#: The types of weights, the plain ones first, and as often as all quantised ones.
WEIGHTS = ("f32", "f16", "bf16", *QUANTISED)
_DRAWN = ("f32", "f32", "f16", "bf16", *QUANTISED, "f32", "f16", "bf16", "f32", "f16", "q4_0", "q8_0", "q4_K", "q6_K")
_B_DRAWN = ("f32", "f32", "f32", "f16")
_SMALL = (1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 33, 64, 65)
_HALF = F16.unit_roundoff  #: of float16, in which blocks of 32 hold their scale
_HALF_TINY = F16.unit_roundoff * F16.smallest_normal  #: half of its smallest number


@dataclass(frozen=True)
class Operand:
    """One factor: its elements; the sizes of the parts that a kernel adds up apart (see `blocks.magnitudes`), of which
    `offsets` are the minima of blocks, and what centres codes that are multiplied as they are stored; and how far an
    element may be off before it is multiplied."""

    value: F64
    size: F64
    offsets: F64
    off: F64


def weights(raw: Raw, dtype: DType, numerics: Numerics) -> Operand:
    """The weights as a kernel reads them: exact but for the compute precision, flushed denormals and scales.

    `narrow_weights`: what blocks hold is decoded to float16, |error| ≤ max(2^-11·(|scaled| + |minimum|), 2^-25), of
    which anything may come beyond its largest number.
    """
    value = dtype.decode(raw)
    if dtype.block == 1:
        size, offsets = np.abs(value), np.zeros_like(value)
        tiny = (size < dtype.smallest_normal) & numerics.flushes_denormals
    else:
        scaled, offsets = blocks.magnitudes(dtype.name, raw, numerics.stored_codes)
        size = scaled + offsets
        tiny = blocks.with_tiny_scale(dtype.name, raw) & numerics.flushes_denormals
    off = numerics.conversions * numerics.u * size
    if numerics.narrow_weights and dtype.block > 1:
        rounded = np.maximum(_HALF * size, _HALF_TINY)
        if numerics.flushes_denormals:
            rounded = np.where(size < F16.smallest_normal, np.maximum(rounded, size), rounded)
        off = off + np.where(size > F16.largest, np.inf, rounded)
    return Operand(value, size, offsets, np.where(tiny, np.maximum(size, off), off))


def activations(value: F64, its: DType, of: DType, numerics: Numerics) -> Operand:
    """The other operand, beside weights of type `of`. A device may round it, where it declares so.

    `narrow_operands`: to the weights' type of 16 bits, float16 beside blocks, |error| ≤ u·|y|, and 0 for a normal
    number of that type, and for what is of that type already. `block_operands`: to whole multiples of amax/127 in a
    block with the largest size amax, |error| ≤ amax/254; a block of 32 holds its scale in float16, so that the 127
    steps are off by 127·(2^-11·amax/127 + 2^-25) more. 4u·amax are the roundings on that way.
    """
    size = np.abs(value)
    off = numerics.conversions * numerics.u * size
    if numerics.flushes_denormals:
        off = np.where(size < its.smallest_normal, np.maximum(off, size), off)
    narrow = BF16 if of.name == "bf16" else F16
    if numerics.narrow_operands and of.name != "f32" and its.name != narrow.name:
        rounded = np.maximum(narrow.unit_roundoff * size, narrow.smallest_normal * narrow.unit_roundoff)
        if numerics.flushes_denormals:
            rounded = np.where(size < narrow.smallest_normal, np.maximum(rounded, size), rounded)
        rounded = np.where(_is_normal(size, narrow), 0.0, rounded)
        off = off + np.where(size > narrow.largest, np.inf, rounded)
    if numerics.block_operands and of.block > 1:
        off = off + _in_blocks(size, numerics)
    return Operand(value, size, np.zeros_like(value), off)


def _is_normal(size: F64, narrow: DType) -> Mask:
    """Where a size is 0 or a normal number of the type."""
    with np.errstate(over="ignore"):
        same = narrow.decode(narrow.encode(size)) == size
    found: Mask = same & ((size == 0) | (size >= narrow.smallest_normal))
    return found


def _in_blocks(size: F64, numerics: Numerics) -> F64:
    """The error of rounding to 8 bits in blocks along the last axis."""
    block = min(numerics.block_operands, max(size.shape[-1], 1))
    if size.shape[-1] % block or not size.size:
        return np.full(size.shape, np.inf) if size.size else size
    amax = size.reshape(*size.shape[:-1], -1, block).max(-1, keepdims=True)
    off = amax * (1 / 254 + 4 * F32.unit_roundoff)
    if block < 256:
        off = off + amax * _HALF + 127 * _HALF_TINY
        off = np.where(amax / 127 > F16.largest, np.inf, off)
    step = amax / 127
    power = (np.frexp(step)[0] == 0.5) & (step >= F16.smallest_normal) & (step <= F16.largest)
    parts = size.reshape(*amax.shape[:-1], block) / np.where(power, step, 1.0)
    whole = (parts == np.rint(parts)).all(-1, keepdims=True)
    off = np.where((power & whole) | (amax == 0), 0.0, off)
    found: F64 = np.broadcast_to(off, (*off.shape[:-1], block)).reshape(size.shape)
    return found


def product(w: Operand, y: Operand, of: DType, numerics: Numerics) -> Expected:
    """out[.., n, m] = Σ_k y[.., n, k]·w[.., m, k].

    Each operand may be off by δ, its own error. A sum of k products, added in any order, fused or not, is off by γ_k of
    Σ|w||y| (Higham 2002, eq. 3.5 and the remark after it): γ_1 for the products, the rest for k − 1 additions, which
    are off by less where signs are mixed (`Numerics.of_sum`). Blocks add the roundings of their decoding, scale times
    code and minimum apart: |error| ≤ Σ(|w| + δw)·δy + Σδw·|y| + γ_{k+c}·Σ(|w| + δw)(|y| + δy); where there are minima
    their sum is one apart from that of the codes, and either may be larger than what they make together. A block of 32
    with a minimum needs the sum of the other operand's block, which q8_1 holds in float16: 2^-11·Σ|min|(|y| + δy) more.
    A device that flushes may lose 2^-126 in each operation. Where both operands are exact and not in blocks, and no
    order of summing rounds (`Numerics.rounds`), the bound is 0. Where Σ|w||y| passes the largest float32, nothing is
    demanded.
    """
    k = w.value.shape[-1]
    value = _times(y.value, w.value)
    whole_w, whole_y = w.size + w.off, y.size + y.off
    magnitude = _times(whole_y, whole_w)
    with_w, with_y = _times(y.size, w.off), _times(y.off, whole_w)
    roundings = 1.0 + 2 * numerics.conversions + (blocks.ROUNDINGS if of.block > 1 else 0)
    if w.offsets.any():
        summing = numerics.gamma(roundings + k - 1) * magnitude
    else:
        summing = numerics.gamma(roundings) * magnitude
        summing = summing + numerics.of_sum(float(max(k - 1, 0)), magnitude, np.abs(value) + with_w + with_y)
    bound = with_w + with_y + summing + (k + 1) * numerics.underflow
    if numerics.flushes_denormals:
        bound = bound + k * numerics.underflow
    if numerics.block_operands == 32 and w.offsets.any():
        sums = _times(whole_y, w.offsets)
        bound = bound + _HALF * sums + _HALF_TINY * _times(np.ones_like(whole_y), w.offsets)
        bound = np.where(_too_large(whole_y), np.inf, bound)
    if of.block == 1:
        with np.errstate(invalid="ignore"):  # 0·∞: a row that is not exact beside one of zeros
            quantum = _quanta(y)[..., :, None] * _quanta(w)[..., None, :]
        rounding = numerics.rounds(quantum, magnitude)
        bound = np.where(rounding, bound, 0.0)
    return Expected(value, np.where(magnitude + bound <= F32.largest, bound, np.inf))


def _quanta(x: Operand) -> F64:
    """A power of two that all elements of a row are multiples of: ∞ for a row of zeros, 0 for one that is not exact."""
    least: F64 = quanta(x.value).min(-1, initial=np.inf)
    return np.where(x.off.any(-1), 0.0, least)


def _times(y: F64, w: F64) -> F64:
    found: F64 = y @ w.swapaxes(-1, -2)
    return found


def _too_large(y: F64) -> Mask:
    """Rows with a block of 32 whose sum passes float16."""
    sums: F64 = y.reshape(*y.shape[:-1], -1, 32).sum(-1).max(-1, initial=0.0)
    found: Mask = sums[..., None] > F16.largest
    return found


def _spread(w: Raw, y: tuple[int, ...]) -> Raw:
    """Weights repeated over the outer axes: matrix i of y meets matrix i / r."""
    for axis in (0, 1):
        if w.shape[axis] != y[axis]:
            w = np.repeat(w, y[axis] // max(w.shape[axis], 1), axis)
    return w


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[i3, i2, n, m] = Σ_k b[i3, i2, n, k]·a[i3 / r3, i2 / r2, m, k]; the bound is `product`'s."""
    a, b = case.inputs["a"], case.inputs["b"]
    w = weights(_spread(raw["a"], b.shape), a.type, numerics)
    return product(w, activations(b.type.decode(raw["b"]), b.type, a.type, numerics), a.type, numerics)


def check(case: Case) -> None:
    """Raises `CaseError` for shapes that do not fit together."""
    a, b = case.inputs["a"].shape, case.inputs["b"].shape
    if a[-1] != b[-1]:
        raise CaseError(f"a has rows of {a[-1]} and b of {b[-1]}; they must be of one length")
    if any(n % max(m, 1) or (m == 0) != (n == 0) for n, m in zip(b[:2], a[:2])):
        raise CaseError(f"a has shape {a}, b {b}; the outer sizes of b must be multiples of those of a")
    check_out(case, (*b[:-1], a[-2]))


def traits(case: Case) -> dict[str, str | bool]:
    """weights: the type of a. factors: those of a and b, as "f16-f32". aligned: see `is_aligned`. repeats: whether a is
    repeated over outer axes of b, and repeats_ne3 over the outermost."""
    a, b = case.inputs["a"], case.inputs["b"]
    repeats, outermost = a.shape[:2] != b.shape[:2], a.shape[0] != b.shape[0]
    return {
        "weights": a.dtype,
        "factors": f"{a.dtype}-{b.dtype}",
        "aligned": is_aligned(case),
        "repeats": repeats,
        "repeats_ne3": outermost,
    }


def traits_outer(case: Case) -> dict[str, str | bool]:
    """The same; narrow_repeats: whether weights that are not f32 are repeated."""
    found = traits(case)
    return {**found, "narrow_repeats": found["repeats"] and found["weights"] != "f32"}


def weight_types(freedom: Freedom) -> list[str]:
    """The types of weights that may be drawn; without the decoder none with blocks."""
    found = freedom.choices("weights", _DRAWN)
    return found if blocks.available() else [name for name in found if DTYPES[name].block == 1]


@composite
def lengths(draw: st.DrawFn, dtype: str) -> int:
    """Lengths of a row of weights: whole blocks, mostly few."""
    block = DTYPES[dtype].block
    if block == 1:
        return draw(inner_sizes(draw(scales())))
    return block * draw(among((1, 2, 3, 4, 5) if block < 256 else (1, 1, 2, 3)))


@composite
def _few_blocks(draw: st.DrawFn, dtype: str) -> int:
    """The length of a row where there are many: of one block, or of a few elements."""
    block = DTYPES[dtype].block
    return draw(few()) if block == 1 else block


@composite
def _long(draw: st.DrawFn, freedom: Freedom, dtype: str, rows: int) -> int:
    """The length of some long rows."""
    block = DTYPES[dtype].block
    return max(as_many(draw(long_sizes()), rows, freedom) // block, 1) * block


@composite
def _rare_sizes(draw: st.DrawFn, freedom: Freedom, dtype: str, form: str) -> dict[str, int]:
    """k, m and n (the lengths of a row, and the rows of a and of b) and matrices along i2 and i3, where `form` is one
    of these, and many; "long" rows, or both matrices larger than a tile ("tiles")."""
    sizes = {"k": draw(_few_blocks(dtype)), "m": draw(few()), "n": draw(few()), "i2": 1, "i3": 1}
    if form == "long":
        sizes["k"] = draw(_long(freedom, dtype, max(sizes["m"], sizes["n"])))
    elif form == "tiles":
        block = DTYPES[dtype].block
        sizes |= {"k": draw(tile_sizes()) if block == 1 else block, "m": draw(tile_sizes()), "n": draw(tile_sizes())}
    else:
        k, m, n = sizes["k"], sizes["m"], sizes["n"]
        each = {"m": max(k, n), "n": max(k, m)}.get(form, max(k * m, k * n, m * n))
        sizes[form] = as_many(draw(counts()), each, freedom)
    return sizes


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Matrices of up to 65 rows each, with outer axes over which a is repeated; now and then long rows, many of them,
    many matrices, or two that are larger than a tile. Shrinks to one product."""
    dtype = draw(among(weight_types(freedom)))
    form = draw(rare_forms("m", "n", "i2", "i3", "long", "tiles"))
    if form == "long" and not freedom.choices("many_rows", (True,)):
        form = "usual"  # a driver without a GPU takes long for a long sum, too
    if form == "usual":
        k, m, n = draw(lengths(dtype)), draw(among(_SMALL)), draw(among(_SMALL))
        outer = (draw(among((1, 2, 3))), draw(among((1, 2, 3))))
        repeats = draw(among(((1, 1), (1, 2), (2, 1), (1, 4), (3, 2))))
    else:
        sizes = draw(_rare_sizes(freedom, dtype, form))
        k, m, n = sizes["k"], sizes["m"], sizes["n"]
        outer, repeats = (sizes["i3"], sizes["i2"]), (1, 1)
        may_share = freedom.choices("repeats", (True,)) and (form != "i3" or freedom.choices("repeats_ne3", (True,)))
        if may_share and draw(integers(0, 2)) == 2:  # one matrix for all
            outer, repeats = (1, 1), outer
    if not freedom.choices("repeats", (True,)):
        repeats = (1, 1)
    elif not freedom.choices("repeats_ne3", (True,)):
        repeats = (1, repeats[1])
    b = (outer[0] * repeats[0], outer[1] * repeats[1], n, k)
    shapes = {"a": (*outer, m, k), "b": b}
    return Problem({}, "f32", shapes, (*b[:3], m), dtypes={"a": dtype})


@composite
def problems_of_types(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """The same with b of float16 now and then, where that is taken beside the weights; shrinks to one of float32."""
    problem = draw(problems(freedom))
    pairs = freedom.choices("factors", [f"{problem.dtype_of('a')}-{its}" for its in _B_DRAWN])
    b = draw(among(pairs)).rpartition("-")[2]
    return problem if b == "f32" else replace(problem, dtypes={**problem.dtypes, "b": b})


def whole_steps(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Beside quantised weights every other seed gives activations that rounding to blocks of 8 bits leaves as they are:
    one wrong block of a long row then shows, which is smaller than the rounding of all others."""
    if case.inputs["a"].type.block == 1 or case.seed % 2 == 0:
        return
    codes = rng.integers(-127, 128, values["b"].shape).astype(np.float64)
    codes[..., ::32] = 127.0
    values["b"][...] = codes


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of products: a repeated in another way, parts of the sums left out or added twice."""
    case = image.case
    a, b = case.inputs["a"], case.inputs["b"]
    for axis in (0, 1):
        m, n = a.shape[axis], b.shape[axis]
        if 1 < m < n:
            i, order = f"i{3 - axis}", tuple(i % m for i in range(n))
            says = f"a is repeated as a whole along {i} ({i} mod n), not matrix by matrix ({i} / r)"
            yield Hypothesis(says, partial(image.with_expect, _otherwise(axis, order)))
    for tile in (2, 4, 8, 16, 32, 64, 128, 256):
        if b.shape[-1] % tile:
            whole = b.shape[-1] // tile * tile
            says = f"what a tile of {tile} does not fill is left out of the sums"
            yield Hypothesis(says, partial(image.with_expect, _cut(whole)))
            says = f"what a tile of {tile} does not fill is added twice to the sums"
            yield Hypothesis(says, partial(image.with_expect, _cut(whole, times=2.0)))
    yield Hypothesis("each product is added twice", partial(image.with_expect, _cut(0, times=2.0)))
    if b.shape[-1] > 1:
        yield Hypothesis("the last product is left out of each sum", partial(image.with_expect, _cut(b.shape[-1] - 1)))


def _otherwise(axis: int, order: tuple[int, ...]) -> Expect:
    def wrong(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return expect(case, {**raw, "a": np.take(raw["a"], order, axis)}, numerics)

    return wrong


def _cut(k: int, times: float = 0.0) -> Expect:
    """Sums of the first k products, and of the others so many times."""

    def wrong(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        b = case.inputs["b"].type
        values = b.decode(raw["b"])
        values[..., k:] = times * values[..., k:] if times else 0
        a = case.inputs["a"].type
        w = weights(_spread(raw["a"], values.shape), a, numerics)
        return product(w, activations(values, b, a, numerics), a, numerics)

    return wrong


# --- a matrix chosen for each row ---


def expect_id(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[t, u, m] = Σ_k b[t, u mod n, k]·a[ids[t, u], m, k]: for each token the rows of some experts; the bound is
    `product`'s."""
    a, b, ids = (case.inputs[name] for name in ("a", "b", "ids"))
    chosen = ids.type.decode(raw["ids"])[0, 0].astype(np.int64)
    chosen = np.clip(chosen, 0, a.shape[1] - 1)
    y = b.type.decode(raw["b"])[0]
    y = np.tile(y, (1, chosen.shape[1] // max(y.shape[1], 1), 1))
    w = weights(raw["a"][0], a.type, numerics)
    picked = Operand(*(part[chosen] for part in (w.value, w.size, w.offsets, w.off)))
    rows = activations(y, b.type, a.type, numerics)
    rows = Operand(*(part[:, :, None] for part in (rows.value, rows.size, rows.offsets, rows.off)))
    found = product(picked, rows, a.type, numerics)
    return Expected(found.value[None, :, :, 0], found.bound[None, :, :, 0])


def check_id(case: Case) -> None:
    """Raises `CaseError` for shapes that do not fit together."""
    a, b, ids = (case.inputs[name].shape for name in ("a", "b", "ids"))
    if a[0] != 1 or b[0] != 1 or ids[:2] != (1, 1):
        raise CaseError(f"a, b and ids have shapes {a}, {b}, {ids}; a and b must have ne3 = 1, ids two sizes")
    if ids[3] > a[1]:
        raise CaseError(f"ids has rows of {ids[3]}; a token uses {a[1]} experts at most, each once")
    if a[-1] != b[-1] or ids[2] != b[1] or ids[3] % max(b[2], 1):
        raise CaseError(
            f"b has shape {b}; it must have rows of {a[-1]}, {ids[2]} tokens, and rows that divide {ids[3]}"
        )
    check_out(case, (1, b[1], ids[3], a[2]))


def traits_id(case: Case) -> dict[str, str | bool]:
    """weights: the type of a. aligned: see `is_aligned`. one_token: whether there is one token only."""
    a, b = case.inputs["a"], case.inputs["b"]
    return {"weights": a.dtype, "aligned": is_aligned(case), "one_token": b.shape[1] == 1}


@composite
def problems_id(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Up to 16 experts, of which each token uses some, now and then many of these, many tokens, or many or long rows;
    shrinks to one token and one expert."""
    dtype = draw(among(weight_types(freedom)))
    form = draw(rare_forms("tokens", "experts", "rows", "long"))
    if form == "usual":
        k, m = draw(lengths(dtype)), draw(among(_SMALL))
        experts, tokens = draw(among((1, 2, 3, 4, 8, 16))), draw(among((1, 2, 3, 5, 8, 32, 33)))
    else:
        k, m, experts, tokens = draw(_few_blocks(dtype)), draw(few()), draw(few()), draw(few())
        if form == "tokens":
            tokens = as_many(draw(counts()), experts * max(m, k), freedom)
        elif form == "experts":
            experts = as_many(draw(counts()), m * k, freedom)
        elif form == "rows":
            m = as_many(draw(counts()), max(k, tokens) * experts, freedom)
        else:
            k = draw(_long(freedom, dtype, max(m * experts, tokens)))
    if not freedom.choices("one_token", (False,)):
        tokens = 1
    used = draw(among([n for n in (1, 2, 3, 4, 6, 8) if n <= experts]))
    rows = draw(among((1, used)))
    shapes = {"a": (1, experts, m, k), "b": (1, tokens, rows, k), "ids": (1, 1, tokens, used)}
    return Problem({}, "f32", shapes, (1, tokens, used, m), dtypes={"a": dtype, "ids": "i32"})


def hypotheses_id(image: Image) -> Iterator[Hypothesis]:
    """Faults of the choice: always the first expert, the next one, the first token's."""
    case, ids = image.case, image.raw["ids"]
    experts = case.inputs["a"].shape[1]
    yield Hypothesis("ids are ignored: every row uses expert 0", partial(image.with_inputs, ids=np.zeros_like(ids)))
    turned = ((ids.astype(np.int64) + 1) % max(experts, 1)).astype(ids.dtype)
    yield Hypothesis("every row uses the next expert", partial(image.with_inputs, ids=turned))
    says = "every row uses the expert before: each id is taken one too small"
    yield Hypothesis(says, partial(image.with_expect, one_before(expect_id, "ids")))
    first = np.broadcast_to(ids[:, :, :1], ids.shape)
    yield Hypothesis("every token uses the first token's experts", partial(image.with_inputs, ids=first))


# --- outer products ---


def expect_outer(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[i3, i2, i, j] = Σ_k b[i3, i2, k, i]·a[i3 / r3, i2 / r2, k, j]; the bound is `product`'s."""
    a, b = case.inputs["a"], case.inputs["b"]
    w = weights(_spread(raw["a"], b.shape), a.type, numerics)
    w = Operand(*(part.swapaxes(-1, -2) for part in (w.value, w.size, w.offsets, w.off)))
    y = activations(b.type.decode(raw["b"]).swapaxes(-1, -2), b.type, F32, numerics)
    return product(w, y, a.type, numerics)


def check_outer(case: Case) -> None:
    """Raises `CaseError` for shapes that do not fit together."""
    a, b = case.inputs["a"].shape, case.inputs["b"].shape
    if a[-2] != b[-2]:
        raise CaseError(f"a has {a[-2]} rows and b {b[-2]}; they must have as many")
    if any(n % max(m, 1) or (m == 0) != (n == 0) for n, m in zip(b[:2], a[:2])):
        raise CaseError(f"a has shape {a}, b {b}; the outer sizes of b must be multiples of those of a")
    check_out(case, (*b[:2], b[3], a[3]))


@composite
def problems_outer(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Like those of MUL_MAT, turned; shrinks to one product."""
    dtype = draw(among(weight_types(freedom)))
    form = draw(rare_forms("n", "i2", "i3", "long"))
    if form == "usual":
        m = draw(lengths(dtype))
        k, n = draw(among(_SMALL)), draw(among(_SMALL))
        outer = (draw(among((1, 2))), draw(among((1, 2, 3))))
    elif form == "long":
        m, n, outer = draw(_few_blocks(dtype)), draw(few()), (1, 1)
        k = as_many(draw(long_sizes()), m, freedom)
    else:  # a row of a is as long as one of the output
        sizes = draw(_rare_sizes(freedom, dtype, form))
        m, k, n, outer = sizes["k"], sizes["m"], sizes["n"], (sizes["i3"], sizes["i2"])
    may_repeat = freedom.choices("repeats", (True,))
    if dtype != "f32":
        may_repeat = may_repeat and freedom.choices("narrow_repeats", (True,))
    repeats = draw(among(((1, 1), (1, 2), (2, 1)))) if may_repeat else (1, 1)
    b = (outer[0] * repeats[0], outer[1] * repeats[1], k, n)
    return Problem({}, "f32", {"a": (*outer, k, m), "b": b}, (*b[:2], n, m), dtypes={"a": dtype})


ARGUMENTS = {"a": WEIGHTS, "b": ("f32",)}  #: the types of factors, but for those of MUL_MAT by itself
_BOUND = "Σ|w|δy + Σδw|y| + γ_{k+c}·Σ|w||y| over k products, δ what the device may make of an operand"


def flops(case: Case) -> int:
    """A product and a sum for each of the k terms of an element."""
    return 2 * case.inputs["a"].shape[-1] * case.outputs["out"].size


OPS = (
    Op(
        name="mul_mat",
        summary="products of the rows of b with those of a",
        inputs=("a", "b"),
        params={},
        dtypes=("f32",),
        argument_dtypes={**ARGUMENTS, "b": ("f32", "f16")},
        problems=problems_of_types,
        expect=expect,
        bound=_BOUND,
        check=check,
        traits=traits,
        hypotheses=hypotheses,
        flops=flops,
        independent={3: {"a": 2}},
        composite=Composite(shape_values=whole_steps),
    ),
    Op(
        name="mul_mat_id",
        summary="products of rows with the matrices that ids choose",
        inputs=("a", "b", "ids"),
        params={},
        dtypes=("f32",),
        argument_dtypes={**ARGUMENTS, "ids": ("i32",)},
        problems=problems_id,
        expect=expect_id,
        bound=_BOUND,
        check=check_id,
        traits=traits_id,
        hypotheses=hypotheses_id,
        flops=flops,
        indices={"ids": Index("a", 1, unique=True)},  # no token uses an expert twice: routing picks the k best
        independent={3: {"a": 2}},
        composite=Composite(shape_values=whole_steps),
    ),
    Op(
        name="out_prod",
        summary="sums of outer products of the rows of b with those of a",
        inputs=("a", "b"),
        params={},
        dtypes=("f32",),
        argument_dtypes=ARGUMENTS,
        problems=problems_outer,
        expect=expect_outer,
        bound=_BOUND,
        check=check_outer,
        traits=traits_outer,
        flops=lambda case: 2 * case.inputs["a"].shape[-2] * case.outputs["out"].size,
    ),
)
