"""Ops that take or give places: GET_ROWS, SET_ROWS, ADD_ID, ARGSORT, TOP_K, ARGMAX and COUNT_EQUAL."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from opconform.cases.families.conversions import ROUNDED, converted, decoded, fitted_to_scales, stored
from opconform.cases.families.encoders import has_top_scales
from opconform.cases.shapes import check_out, is_aligned, rows
from opconform.harness.draw.strategies import (
    among,
    as_many,
    composite,
    counts,
    few,
    inner_sizes,
    rare_forms,
    scales,
)
from opconform.harness.draw.strategies import lengths as long_sizes
from opconform.harness.model import blocks
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, F64, QUANTISED, Raw
from opconform.harness.model.expected import Expect, Expected, Residual
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Index, Op, Problem

Places = npt.NDArray[np.int64]

_TABLES = ("f32", "f16", "bf16", "i32", *QUANTISED)
_GROUP = 1024  #: a longer row takes a GPU's work group several passes
_LONG_ROW = 1 << 14
_WIDE_INTEGERS = 512
_FEW_NAMED = 64  #: as many rows as a table has in the usual form
_STORED = ("f32", "f16", "bf16", *ROUNDED)


def _with_decoder(types: list[str]) -> list[str]:
    """Types that can be decoded here."""
    return types if blocks.available() else [name for name in types if DTYPES[name].block == 1]


@composite
def _length(draw: st.DrawFn, dtype: str) -> int:
    block = DTYPES[dtype].block
    return draw(inner_sizes(draw(scales()))) if block == 1 else block * draw(among((1, 2, 3)))


def _table_forms() -> st.SearchStrategy[str]:
    """What there are many of: tables along i3 or i2, their rows, those that are named; or the rows are long."""
    return rare_forms("i3", "i2", "rows", "named", "long")


def _types_in(form: str, types: list[str]) -> list[str]:
    """Those of `types` that are drawn in a form. A row of few elements holds no block: where there are many rows they
    are of plain types, if any are left."""
    plain = [name for name in types if DTYPES[name].block == 1]
    return types if form in ("usual", "long") else plain or types


@composite
def _table(draw: st.DrawFn, freedom: Freedom, dtype: str, form: str) -> tuple[tuple[int, int], int, int, int]:
    """Tables in two outer dimensions, how many rows each has, how many are named, and their length, in one of
    `_table_forms`; shrinks to one row of one element."""
    if form == "usual":
        rows, outer = draw(among((1, 2, 3, 5, 17, 64))), (draw(among((1, 2, 3))), draw(among((1, 2, 3))))
        return outer, rows, draw(among((1, 2, 3, 4, 7, 33))), draw(_length(dtype))
    block = DTYPES[dtype].block
    if form == "long":
        matrices, rows, named = (draw(few()) for _ in range(3))
        n = as_many(draw(long_sizes()), matrices * max(rows, named), freedom)
        return (1, matrices), rows, named, max(n // block, 1) * block
    sizes, n = {"i3": 1, "i2": 1, "rows": draw(few()), "named": draw(few())}, block * (draw(few()) if block == 1 else 1)
    others = math.prod(sizes[name] for name in ("i3", "i2", "rows") if name != form)
    sizes[form] = as_many(draw(counts()), n * max(others, sizes["named"]), freedom)
    return (sizes["i3"], sizes["i2"]), sizes["rows"], sizes["named"], n


# --- GET_ROWS ---


def _rows_at(raw: Raw, at: Places) -> Raw:
    """[i3, i2, j] is row at[i3, i2, j] of matrix [i3, i2]."""
    i3, i2 = np.ogrid[: at.shape[0], : at.shape[1]]
    found: Raw = raw[i3[..., None], i2[..., None], at]
    return found


def _indices(case: Case, raw: Mapping[str, Raw], name: str) -> Places:
    """The numbers of an argument as they are."""
    return raw[name].view(case.inputs[name].type.native).astype(np.int64)


def get_rows(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[i3, i2, j] = the row b[i3, i2, j] of a[i3, i2], as float32 (whole numbers stay what they are)."""
    at = np.clip(_indices(case, raw, "b")[0], 0, max(case.inputs["a"].shape[2] - 1, 0))
    return decoded(_rows_at(raw["a"], at), case.inputs["a"].type, case.outputs["out"].type, numerics)


def _check_get_rows(case: Case) -> None:
    a, b = case.inputs["a"].shape, case.inputs["b"].shape
    if b[0] != 1 or b[1:3] != a[:2]:
        raise CaseError(f"b has shape {b}; it must be (1, {a[0]}, {a[1]}, any): indices for each matrix of a, {a}")
    if case.dtype != ("i32" if case.inputs["a"].dtype == "i32" else "f32"):
        raise CaseError(f"out is {case.dtype}; rows of {case.inputs['a'].dtype} come as f32, of i32 as i32")
    check_out(case, (*b[1:], a[3]))


@composite
def _get_rows_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Some rows of tables; shrinks to one row of one element."""
    form = draw(_table_forms())
    dtype = draw(among(_types_in(form, _with_decoder(freedom.choices("table", _TABLES)))))
    outer, table, count, n = draw(_table(freedom, dtype, form))
    if not freedom.choices("wide_integers", (True,)) and dtype == "i32":
        n = min(n, _WIDE_INTEGERS)
    shapes = {"a": (*outer, table, n), "b": (1, *outer, count)}
    goes = "i32" if dtype == "i32" else "f32"
    return Problem({}, goes, shapes, (*outer, count, n), dtypes={"a": dtype, "b": "i32"})


def _row_traits(case: Case) -> dict[str, str | bool]:
    """table: the type of a. wide_integers: whether rows of i32 are longer than 512."""
    a = case.inputs["a"]
    return {
        "table": a.dtype,
        "aligned": is_aligned(case),
        "wide_integers": a.dtype == "i32" and a.shape[-1] > _WIDE_INTEGERS,
    }


def one_before(expect: Expect, name: str) -> Expect:
    """The op with each index of the argument `name` less 1; nothing is said of outputs with an index of 0, for what a
    kernel finds before the first row is anybody's guess. The output has a row for each index, as the argument has them
    along its last two axes (one matrix) or its last three."""

    def before(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        index = _indices(case, raw, name)
        expected = expect(case, {**raw, name: np.maximum(index - 1, 0).astype(raw[name].dtype)}, numerics)
        free = (index == 0).reshape(*expected.value.shape[:-1], 1)
        exact = None if expected.exact is None else expected.exact & ~free
        return replace(expected, bound=np.where(free, np.inf, expected.bound), exact=exact)

    return before


def _wrong_rows(image: Image) -> Iterator[Hypothesis]:
    """Faults of the indices."""
    case, b = image.case, image.raw["b"]
    count = case.inputs["a"].shape[2]
    in_order = np.broadcast_to(np.arange(b.shape[-1]) % max(count, 1), b.shape).astype(b.dtype)
    yield Hypothesis("indices are ignored: rows come in order", partial(image.with_inputs, b=in_order))
    later = ((b.astype(np.int64) + 1) % max(count, 1)).astype(b.dtype)
    yield Hypothesis("each index is taken one too large", partial(image.with_inputs, b=later))
    yield Hypothesis("each index is taken one too small", partial(image.with_expect, one_before(get_rows, "b")))
    for axis, k in ((1, 2), (2, 1)):
        if b.shape[axis] > 1:
            first = np.broadcast_to(b.take([0], axis), b.shape)
            yield Hypothesis(f"every matrix has the indices of i{k} = 0 of b", partial(image.with_inputs, b=first))


# --- SET_ROWS ---


def set_rows(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = a, but row c[i3 mod n3, i2 mod n2, j] of a[i3, i2] is b[i3, i2, j] in the type of a.

    Rows that no index names keep their bits. The others are exact where the type holds the value, else rounded once to
    nearest (`conversions.converted`); of a quantised type they are as near as its encoders come (`encoders.ENCODERS`).
    """
    a, b = case.inputs["a"], case.inputs["b"]
    at = _indices(case, raw, "c")[0]
    at = np.tile(at, (b.shape[0] // max(at.shape[0], 1), b.shape[1] // max(at.shape[1], 1), 1))
    at = np.clip(at, 0, max(a.shape[2] - 1, 0))
    i3, i2 = np.ogrid[: at.shape[0], : at.shape[1]]
    place = (i3[..., None], i2[..., None], at)
    value, bits = a.type.decode(raw["a"]), raw["a"].copy()
    bound, exact = np.zeros(a.shape), np.ones(a.shape, dtype=bool)
    new, new_bound, new_bits = stored(raw["b"], b.type, a.type, numerics)
    value[place], bound[place] = new, new_bound
    if new_bits is not None:
        found = converted(raw["b"], b.type, a.type, numerics)
        exact[place] = found.exact if found.exact is not None else True
        bits[place] = new_bits
    else:
        exact[place] = False
    return Expected(value, bound, exact=exact, bits=bits)


def _check_set_rows(case: Case) -> None:
    a, b, c = (case.inputs[name].shape for name in ("a", "b", "c"))
    if (a[0], a[1], a[3]) != (b[0], b[1], b[3]):
        raise CaseError(f"a has shape {a} and b {b}; all but the number of rows must agree")
    if c[0] != 1 or c[3] != b[2] or b[1] % max(c[2], 1) or b[0] % max(c[1], 1):
        raise CaseError(f"c has shape {c}; it must be (1, n3, n2, {b[2]}), n3 and n2 divisors of {b[:2]}")
    if b[2] > a[2]:
        raise CaseError(f"b has {b[2]} rows for the {a[2]} of a; each index must differ from the others")
    if case.inplace != "a":
        raise CaseError("case.inplace must be 'a': set_rows writes into it")
    if case.outputs["out"].shape != a:
        raise CaseError(f"out has shape {case.outputs['out'].shape}; in place it must be that of a, {a}")


def _set_rows_traits(case: Case) -> dict[str, str | bool]:
    """loose_blocks: whether a is of a quantised type, and an argument starts where a storage buffer may not.
    shortens_nan: whether NaN of any payload lose half of their bits. top_scales: as `has_top_scales` tells."""
    return {
        "source": case.inputs["b"].dtype,
        "index": case.inputs["c"].dtype,
        "aligned": is_aligned(case),
        "loose_blocks": case.inputs["a"].type.block > 1 and not is_aligned(case),
        "shortens_nan": (case.inputs["b"].dtype, case.dtype, case.recipe) == ("f32", "bf16", "special"),
        "top_scales": has_top_scales(case.inputs["a"].dtype, case.recipe),
    }


@composite
def _set_rows_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows of caches; shrinks to one row of one element."""
    form = draw(_table_forms())
    dtype = draw(among(_types_in(form, _with_decoder(freedom.choices("dtype", _STORED)))))
    outer, table, count, n = draw(_table(freedom, dtype, form))
    if count > table:  # each names another row
        table, count = (count, count) if count > _FEW_NAMED else (table, table)
    c = (1, draw(among((outer[0], 1))), draw(among((outer[1], 1))), count)
    shapes = {"a": (*outer, table, n), "b": (*outer, count, n), "c": c}
    kinds = {
        "b": draw(among(freedom.choices("source", ("f32", "f16")))),
        "c": draw(among(freedom.choices("index", ("i64", "i32")))),
    }
    return Problem({}, dtype, shapes, shapes["a"], "a", dtypes=kinds)


# --- ADD_ID ---


def add_id(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[t, u] = a[t, u] + b[ids[t, u]]: one rounding, u·|sum| (Higham 2002, eq. 2.4)."""
    a, b = case.inputs["a"], case.inputs["b"]
    at = np.clip(_indices(case, raw, "ids")[0, 0], 0, max(b.shape[2] - 1, 0))
    one, other = a.type.decode(raw["a"]), b.type.decode(raw["b"])[0, 0][at][None]
    value = one + other
    operands = np.abs(one) + np.abs(other)
    bound = numerics.u * np.abs(value) + numerics.conversions * numerics.u * (1 + numerics.u) * operands
    bound = bound + (3 * numerics.underflow if numerics.flushes_denormals else 0.0)
    return Expected(value, np.where(np.abs(value) > a.type.largest, np.inf, bound))


def _check_add_id(case: Case) -> None:
    a, b, ids = (case.inputs[name].shape for name in ("a", "b", "ids"))
    if a[0] != 1 or b[:2] != (1, 1) or b[3] != a[3] or ids != (1, 1, a[1], a[2]):
        raise CaseError(f"b has shape {b}, ids {ids}; for a, {a}, they are (1, 1, n, {a[3]}), (1, 1, {a[1]}, {a[2]})")
    check_out(case, a)


@composite
def _add_id_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows of some tokens, each of which uses some experts; shrinks to one element."""
    form = draw(rare_forms("tokens", "experts", "long"))
    if form == "usual":
        n = draw(inner_sizes(draw(scales())))
        tokens, used, experts = (draw(among(sizes)) for sizes in ((1, 2, 3, 17), (1, 2, 3, 4), (1, 2, 4, 33)))
    else:
        tokens, used, experts = (draw(few()) for _ in range(3))
        n = as_many(draw(long_sizes()), max(tokens * used, experts), freedom) if form == "long" else draw(few())
        tokens = as_many(draw(counts()), used * n, freedom) if form == "tokens" else tokens
        experts = as_many(draw(counts()), n, freedom) if form == "experts" else experts
    a = (1, tokens, used, n)
    shapes = {"a": a, "b": (1, 1, experts, n), "ids": (1, 1, tokens, used)}
    return Problem({}, "f32", shapes, a, dtypes={"ids": "i32"})


def _wrong_ids(image: Image) -> Iterator[Hypothesis]:
    ids = image.raw["ids"]
    yield Hypothesis("ids are ignored: every row uses number 0", partial(image.with_inputs, ids=np.zeros_like(ids)))
    first = np.broadcast_to(ids[:, :, :1], ids.shape)
    yield Hypothesis("every token uses the first token's ids", partial(image.with_inputs, ids=first))
    yield Hypothesis("each id is taken one too small", partial(image.with_expect, one_before(add_id, "ids")))


# --- ARGSORT, TOP_K, ARGMAX ---


def _keys(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> F64:
    """What is compared; denormals are equal to 0 where the device flushes them."""
    x = case.inputs["x"]
    values = x.type.decode(raw["x"])
    if numerics.flushes_denormals:
        values = np.where(np.abs(values) < x.type.smallest_normal, 0.0, values)
    return values


def _is_down(case: Case) -> bool:
    return case.params.get("order", "desc") == "desc"


def argsort(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The places of the elements of each row, in the order of their values; equal ones in any order."""
    keys = _keys(case, raw, numerics)
    order = np.argsort(-keys if _is_down(case) else keys, axis=-1, kind="stable")[..., : case.outputs["out"].shape[-1]]
    return Expected(order.astype(np.float64), np.zeros(order.shape))


def _found(case: Case, raw: Mapping[str, Raw], got: F64, numerics: Numerics) -> tuple[F64, F64, npt.NDArray[np.bool_]]:
    """The keys; those at the places that were returned; and which of these are no place, or one that came before."""
    keys = _keys(case, raw, numerics)
    n = keys.shape[-1]
    outside = ~((got >= 0) & (got < n))
    at = np.where(outside, 0, got).astype(np.int64)
    order = np.argsort(at, axis=-1, kind="stable")
    ordered = np.take_along_axis(at, order, -1)
    twice = np.zeros(at.shape, dtype=bool)
    again = np.zeros(at.shape, dtype=bool)
    again[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
    np.put_along_axis(twice, order, again, -1)
    return keys, np.take_along_axis(keys, at, -1), outside | twice


def _judge_order(case: Case, raw: Mapping[str, Raw], expected: Expected, got: F64, numerics: Numerics) -> Residual:
    """An element is wrong that is no place of the row, or one named before, or whose value another place should have.

    Equal values may stand in any order, so that values are compared, and not places.
    """
    keys, found, bad = _found(case, raw, got, numerics)
    wanted = np.sort(keys, axis=-1)
    wanted = (wanted[..., ::-1] if _is_down(case) else wanted)[..., : got.shape[-1]]
    return Residual(np.where(bad | (found != wanted), 1.0, 0.0), np.zeros(got.shape))


def _judge_set(case: Case, raw: Mapping[str, Raw], expected: Expected, got: F64, numerics: Numerics) -> Residual:
    """An element is wrong that is no place of the row, or one named before, or whose value is below the k-th largest:
    k different places with values as large as that are the k largest, whichever of the equal ones they are. Where too
    few are larger than the k-th one, a larger one was left out."""
    keys, found, bad = _found(case, raw, got, numerics)
    k = got.shape[-1]
    least = np.sort(keys, axis=-1)[..., keys.shape[-1] - k : keys.shape[-1] - k + 1]
    missing = (found > least).sum(-1, keepdims=True) < (keys > least).sum(-1, keepdims=True)
    wrong = bad | (found < least) | (missing & (found == least))
    return Residual(np.where(wrong, 1.0, 0.0), np.zeros(got.shape))


def argmax(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The place of the largest element of each row; of equal ones any."""
    keys = _keys(case, raw, numerics)[0, 0]
    return Expected(np.argmax(keys, axis=-1).astype(np.float64)[None, None, None], np.zeros((1, 1, 1, len(keys))))


def _judge_largest(case: Case, raw: Mapping[str, Raw], expected: Expected, got: F64, numerics: Numerics) -> Residual:
    """An element is wrong that is no place of the row, or whose value is not the largest."""
    keys = _keys(case, raw, numerics)[0, 0]
    at = got.reshape(-1)
    outside = ~((at >= 0) & (at < keys.shape[-1]))
    found = np.take_along_axis(keys, np.where(outside, 0, at).astype(np.int64)[:, None], -1)[:, 0]
    wrong = outside | (found != keys.max(-1))
    return Residual(np.where(wrong, 1.0, 0.0).reshape(got.shape), np.zeros(got.shape))


@composite
def _argsort_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    shape = draw(rows(freedom, 4))
    if shape[-1] > _LONG_ROW:  # a sort in all steps of a bitonic network takes seconds for several
        shape = (1, 1, 1, shape[-1])
    order = draw(among(freedom.choices("order", ("asc", "desc"))))
    return Problem({"order": order}, "i32", {"x": shape}, shape, dtypes={"x": "f32"})


@composite
def _top_k_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    shape = draw(rows(freedom, 4).filter(lambda shape: 0 not in shape))
    if not freedom.choices("long", (True,)):
        shape = (*shape[:-1], min(shape[-1], _GROUP))
    least = 1 if freedom.choices("single", (True,)) else 2
    shape = (*shape[:-1], max(shape[-1], least))
    ks = {k for k in (1, 2, 3, 4, 8, 10, 40, 100) if least <= k <= shape[-1]} | {shape[-1]}
    k = draw(among(sorted(ks)))
    return Problem({"k": k}, "i32", {"x": shape}, (*shape[:-1], k), dtypes={"x": "f32"})


@composite
def _argmax_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    form = draw(rare_forms("rows", "long"))
    n, count = draw(few()), draw(few())
    if form == "usual":
        n, count = draw(inner_sizes(draw(scales()))), draw(inner_sizes(33))
    elif form == "rows":
        count = as_many(draw(counts()), n, freedom)
    else:
        n = as_many(draw(long_sizes()), count, freedom)
    return Problem({}, "i32", {"x": (1, 1, count, n)}, (1, 1, 1, count), dtypes={"x": "f32"})


def _check_top_k(case: Case) -> None:
    shape, k = case.inputs["x"].shape, int(case.params["k"])
    if not 1 <= k <= shape[-1]:
        raise CaseError(f"k is {k}; it must be from 1 to {shape[-1]}, the length of a row")
    check_out(case, (*shape[:-1], k))


def _check_order(case: Case) -> None:
    if case.params["order"] not in ("asc", "desc"):
        raise CaseError(f"order is {case.params['order']!r}; it must be one of asc, desc")
    check_out(case, case.inputs["x"].shape)


def _check_argmax(case: Case) -> None:
    x = case.inputs["x"].shape
    if x[:2] != (1, 1):
        raise CaseError(f"x has shape {x}; its two outer sizes must be 1")
    check_out(case, (1, 1, 1, x[2]))


# --- COUNT_EQUAL ---


def count_equal(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """How many elements of a and b are equal: a whole number, with no error."""
    count = np.full((1, 1, 1, 1), np.count_nonzero(raw["a"] == raw["b"]), dtype=np.float64)
    return Expected(count, np.zeros(count.shape))


def _check_count(case: Case) -> None:
    if case.inputs["a"].shape != case.inputs["b"].shape:
        raise CaseError(f"a has shape {case.inputs['a'].shape} and b {case.inputs['b'].shape}; they must be the same")
    check_out(case, (1, 1, 1, 1))


@composite
def _count_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    shape = draw(rows(freedom, 4))
    if not freedom.choices("matrix", (False,)):
        shape = (1, 1, *shape[2:])
    return Problem({}, "i64", {"a": shape, "b": shape}, (1, 1, 1, 1), dtypes={"a": "i32", "b": "i32"})


def _sorts(case: Case) -> dict[str, bool]:
    return {"aligned": is_aligned(case), "short": case.inputs["x"].shape[-1] <= 1024}


OPS = (
    Op(
        name="get_rows",
        summary="the rows of a that b names, as float32",
        inputs=("a", "b"),
        params={},
        dtypes=("f32", "i32"),
        argument_dtypes={"a": _TABLES, "b": ("i32",)},
        problems=_get_rows_problems,
        expect=get_rows,
        bound="the bits of a, γ_c·(|scale·code| + |minimum|) of blocks",
        check=_check_get_rows,
        traits=_row_traits,
        hypotheses=_wrong_rows,
        indices={"b": Index("a", 2)},
        pointwise=True,
    ),
    Op(
        name="set_rows",
        summary="out = a, with rows of b in the places that c names",
        inputs=("a", "b", "c"),
        params={},
        dtypes=_STORED,
        argument_dtypes={"b": ("f32", "f16"), "c": ("i64", "i32")},
        problems=_set_rows_problems,
        expect=set_rows,
        bound="the bits of a; one rounding of b, half a step or so of a block",
        check=_check_set_rows,
        traits=_set_rows_traits,
        indices={"c": Index("a", 2, unique=True)},
        pointwise=True,
        composite=Composite(shape_values=fitted_to_scales("b")),
    ),
    Op(
        name="add_id",
        summary="a + the rows of b that ids name",
        inputs=("a", "b", "ids"),
        params={},
        dtypes=("f32",),
        argument_dtypes={"ids": ("i32",)},
        problems=_add_id_problems,
        expect=add_id,
        bound="u·|a+b|",
        check=_check_add_id,
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=_wrong_ids,
        indices={"ids": Index("b", 2)},
        pointwise=True,
    ),
    Op(
        name="argsort",
        summary="the places of the elements of each row in the order of their values",
        inputs=("x",),
        params={"order": str},
        dtypes=("i32",),
        argument_dtypes={"x": ("f32",)},
        problems=_argsort_problems,
        expect=argsort,
        bound="every place once; values in order",
        check=_check_order,
        traits=_sorts,
        composite=Composite(judge=_judge_order),
    ),
    Op(
        name="top_k",
        summary="the places of the k largest elements of each row, in any order",
        inputs=("x",),
        params={"k": int},
        dtypes=("i32",),
        argument_dtypes={"x": ("f32",)},
        problems=_top_k_problems,
        expect=argsort,
        bound="k different places of the largest values",
        check=_check_top_k,
        traits=lambda case: {
            **_sorts(case),
            "single": case.params["k"] == 1,
            "long": case.inputs["x"].shape[-1] > _GROUP,
        },
        composite=Composite(judge=_judge_set),
    ),
    Op(
        name="argmax",
        summary="the place of the largest element of each row",
        inputs=("x",),
        params={},
        dtypes=("i32",),
        argument_dtypes={"x": ("f32",)},
        problems=_argmax_problems,
        expect=argmax,
        bound="a place of the largest value",
        check=_check_argmax,
        traits=_sorts,
        composite=Composite(judge=_judge_largest),
    ),
    Op(
        name="count_equal",
        summary="how many elements of a and b are equal",
        inputs=("a", "b"),
        params={},
        dtypes=("i64",),
        argument_dtypes={"a": ("i32",), "b": ("i32",)},
        problems=_count_problems,
        expect=count_equal,
        bound="the whole number itself",
        check=_check_count,
        traits=lambda case: {"aligned": is_aligned(case), "matrix": case.inputs["a"].shape[:2] == (1, 1)},
        indices={"a": Index(below=4), "b": Index(below=4)},
    ),
)
