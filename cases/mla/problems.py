"""What absorbed latent attention is tried on: sizes, forms, types, and values with the structure that scores need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.mla.attention import factor_of
from opconform.harness.draw.strategies import EDGES, among, composite, few, outer_sizes
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import F64
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Problem

FORMS = ("two_part", "concat", "flash")
CACHES = ("f32", "f16", "bf16")
MASKS = ("none", "f32", "f16")
RECIPES = ("small_int", "flat", "sparse", "normal", "peaked", "large_logits")
#: How many elements of a row are not 0 in the recipe "sparse", and of which of the argument's axes.
_SPARSE = {"q_nope": (4, 3), "q_pe": (2, 3), "c_kv": (8, 3), "k_pe": (2, 3), "w_uv": (64, 2)}

_WORK = 1 << 21  #: multiplications of one drawn case


def shape_values(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Scores of about ±2, a mask with blocks of −inf and whole rows of it, and NaN in every padding row.

    small_int: multiples of 1/4, so that products are exact. flat: all queries are 0, so that only the mask tells keys
    apart. sparse: few elements of a row are not 0, so that its sums have few terms and their bounds are narrow; some
    keys stand out. peaked: one cache row is eight times the others. large_logits: scores of ±50 to ±1000.
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
    if case.recipe == "sparse":
        _thin_out(case, values, rng)
    if case.recipe == "peaked" and kv_len:
        row = int(rng.integers(kv_len))
        values["c_kv"][:, :, row] *= 8
        values["k_pe"][:, :, row] *= 8
    if case.recipe == "large_logits":
        spread = abs(factor_of(case)) * math.sqrt(values["c_kv"].shape[-1] + values["k_pe"].shape[-1])
        times = float(rng.choice([50.0, 200.0, 1000.0])) / (3 * max(spread, 1e-3))
        values["q_nope"] *= times
        values["q_pe"] *= times
    if "mask" in values:
        _shape_mask(values["mask"], case.recipe, rng)
    values["c_kv"][:, :, kv_len:] = np.nan
    values["k_pe"][:, :, kv_len:] = np.nan


def _thin_out(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Few elements in each row, and scores of about ±3."""
    for name, (count, axis) in _SPARSE.items():
        order = rng.random(values[name].shape).argsort(axis)
        values[name][order >= count] = 0.0
    kept = (min(_SPARSE[name][0], values[name].shape[3]) for name in ("q_nope", "c_kv", "q_pe", "k_pe"))
    q_nope, c_kv, q_pe, k_pe = kept
    values["w_uk"] *= math.sqrt(values["w_uk"].shape[2] / q_nope)
    shared = (c_kv + q_pe * k_pe / values["q_pe"].shape[3], abs(factor_of(case)))
    times = 3 / max(math.sqrt(shared[0]) * shared[1], 1e-3)
    values["q_nope"] *= times
    values["q_pe"] *= times


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
    """cache: the type of c_kv and k_pe. mask: its type, or "none". form_mask: form and mask, as in "flash f16". padded:
    whether the cache has padding rows. d_n, d_r, d_c, d_v: the widths. scaled: whether k_scale or v_scale is not 1."""
    inputs, params = case.inputs, case.params
    mask = inputs["mask"].dtype if "mask" in inputs else "none"
    return {
        "cache": inputs["c_kv"].dtype,
        "mask": mask,
        "form_mask": f"{params['form']} {mask}",
        "padded": int(params["kv_len"]) < inputs["c_kv"].shape[2],
        "d_n": inputs["q_nope"].shape[3],
        "d_r": inputs["q_pe"].shape[3],
        "d_c": inputs["c_kv"].shape[3],
        "d_v": inputs["w_uv"].shape[3],
        "scaled": params["k_scale"] != 1 or params["v_scale"] != 1,
    }


_SCALES = among((4, 8, 8, 17, 33, 65, 129))
_HEADS = among((1, 2, 3, 4, 5, 8))
_QUERIES = among((1, 1, 1, 1, 1, 2, 3, 4, 7, 8, 9, 16, 17, 33))
#: What the sizes are like. "usual": few heads over a short cache. The others spend on one thing: heads, rows of the
#: cache, queries, widths as models have them, or more queries of all heads than a grid holds.
_FORMS = among(("usual",) * 12 + ("heads", "rows", "queries", "wide", "many"))
_MANY_HEADS = among((16, 17, 32, 33, 64, 128))
_LONG_CACHES = (512, 513, 1000, 1025, 2049, 4097)
_MANY_QUERIES = among((64, 65, 129, 257))
_BOOLEANS = st.booleans()


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Decode, in two draws of five, and prefill over caches of up to 257 rows, now and then in a rare form.

    Shrinks to one head, one query, one row, all widths 1.
    """
    together = [
        pair.split()
        for pair in freedom.choices(
            "form_mask",
            [f"{form} {mask}" for form in freedom.choices("form", FORMS) for mask in freedom.choices("mask", MASKS)],
        )
    ]
    form = draw(among(list(dict.fromkeys(form for form, _ in together))))
    cache = draw(among(freedom.choices("cache", CACHES)))
    mask = draw(among([mask for other, mask in together if other == form]))
    causal = draw(among(freedom.choices("causal", (False, True))))
    padded = draw(among(freedom.choices("padded", (False, True))))
    scaled = draw(among(freedom.choices("scaled", (False, True))))
    form_of_sizes = draw(_FORMS)
    largest = {"usual": draw(_SCALES), "wide": 513}.get(form_of_sizes, 8 if form_of_sizes != "many" else 2)
    largest = min(largest, max(math.isqrt(freedom.max_bytes // 64), 1))  # weights have two widths
    widths = {name: draw(among(_sizes(freedom, name, largest))) for name in ("d_n", "d_r", "d_c", "d_v")}
    batch = draw(outer_sizes() if form_of_sizes == "usual" else few())
    heads, queries = draw(_HEADS), draw(_QUERIES)
    rows = draw(among(_sizes(freedom, "rows", 2 * largest if form_of_sizes != "wide" else 65)))
    if form_of_sizes == "heads":
        heads = draw(_MANY_HEADS)
    elif form_of_sizes == "rows":
        rows = draw(among(freedom.choices("rows", _LONG_CACHES) or [rows]))
    elif form_of_sizes == "queries":
        queries = draw(_MANY_QUERIES)
    elif form_of_sizes == "many":
        batch, heads, queries = draw(st.permutations((draw(among((65537, 4097))), 1, 1)))
    work = _WORK if form_of_sizes == "usual" else 4 * _WORK
    while batch * heads * _work(queries, rows, widths) > work and rows * queries * heads > 1:
        rows, queries, heads = (-(-n // 2) for n in (rows, queries, heads))
    counts = [batch, heads, queries, rows]
    while _bytes(counts, widths) > freedom.max_bytes // 4 and max(counts) > 1:
        counts[counts.index(max(counts))] = max(counts) // 2
    batch, heads, queries, rows = counts
    padding = draw(among((1, 2, 3, 17))) if padded else 0
    scale = 1 / math.sqrt(widths["d_n"] + widths["d_r"])
    params: dict[str, Param] = {
        "scale": scale * draw(among((1.0, 1.873856, 0.5))),  # DeepSeek-V3 multiplies by mscale², 1.37²
        "form": form,
        "causal": causal,
        "kv_len": rows,
        "k_scale": draw(among((0.5, 1.0, 1.3))) if scaled else 1.0,
        "v_scale": draw(among((2.0, 1.0, 0.7))) if scaled else 1.0,
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


def _bytes(counts: Sequence[int], widths: Mapping[str, int]) -> int:
    """What the arguments take at most; `counts` are those of sequences, heads, queries and rows."""
    batch, heads, queries, rows = counts
    d_n, d_r, d_c, d_v = (widths[name] for name in ("d_n", "d_r", "d_c", "d_v"))
    of_queries, of_rows = batch * heads * queries * (d_n + d_r + d_v), batch * rows * (d_c + d_r + queries)
    return 4 * (of_queries + of_rows + heads * d_c * (d_n + d_v))


def _work(queries: int, rows: int, widths: Mapping[str, int]) -> int:
    """Multiplications for one head."""
    d_n, d_r, d_c, d_v = (widths[name] for name in ("d_n", "d_r", "d_c", "d_v"))
    return queries * (d_n * d_c + rows * (2 * d_c + d_r + d_v) + d_c * d_v)
