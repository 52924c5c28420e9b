"""SOFT_MAX: rows as weights that add up to 1, with a mask, ALiBi's slopes, and sinks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.choices import choice, drawn_params
from opconform.cases.families.formulas import parts_of_row
from opconform.cases.shapes import check_out, is_aligned, rows
from opconform.harness.draw.strategies import among, composite
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F16, F32, F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Composite, Op, Problem

_POWER_ULPS = 16  #: of pow (OpenCL C specification, "Relative error as ULPs")
_SCALE = choice(1.0, 0.125, 0.08838834764831845, 2.0, without=1.0)
_BIAS = choice(0.0, 8.0, 4.0, without=0.0, least=0.0, most=64.0)
_TILE = 32  #: as many elements of a row many kernels take at a time
_RECIPES = ("small_int", "normal", "signed_zero", "denormal", "wide")


def slopes(heads: int, max_bias: float) -> F64:
    """ALiBi's slope of each head: 2^(−b·(h+1)/n) for the first n heads, n the largest power of two that is not above
    their number, then 2^(−b/2·(2·(h−n)+1)/n) (Press, Smith and Lewis 2022; ggml's soft_max)."""
    n = 1 << math.floor(math.log2(max(heads, 1)))
    h = np.arange(heads, dtype=np.float64)
    exponents = np.where(h < n, (h + 1) / n, (2 * (h - n) + 1) / (2 * n))
    return np.exp2(-max_bias * exponents)


def sloped(like: Approx, heads: int, max_bias: float) -> Approx:
    """The slopes as a kernel has them: a power of a rounded power, which multiplies the error by the exponent."""
    roundings: F64 = 2.0 * _POWER_ULPS * (np.arange(heads, dtype=np.float64) * 2 + 2)
    value = slopes(heads, max_bias).reshape(-1, 1, 1)
    return like.held(value, roundings.reshape(-1, 1, 1))


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = e^(z − max z) / Σ e^(z − max z) over a row, z = scale·x + slope·mask; a sink is one more z.

    The mask of matrix (i3, i2) is that of (i3 mod n3, i2 mod n2). Elements whose mask is −infinity are 0, and nothing
    is demanded of rows that have no others. Right kernels may add up in parts, each with its own maximum, and join
    them: e^(z − m)·e^(m − max).
    """
    return _weights(case, raw, numerics, {})


def _weights(case: Case, raw: Mapping[str, Raw], numerics: Numerics, wrong: Mapping[str, Any]) -> Expected:
    """`expect`, or what a kernel gives that does `wrong` things."""
    layout = case.inputs["x"]
    x = Approx.of(layout.type.decode(raw["x"]), layout.type, numerics, wrong.get("part"))
    params = {**case.params, **wrong}
    z = x * float(params["scale"])
    seen = np.ones(layout.shape, dtype=bool)
    if "mask" in case.inputs and not wrong.get("unmasked"):
        its = case.inputs["mask"]
        mask = _spread(its.type.decode(raw["mask"]), layout.shape)
        seen = mask != -np.inf
        z = z + _biased(Approx.of(np.where(seen, mask, 0.0), its.type, numerics), params, layout.shape)
    sinks = None
    if "sinks" in case.inputs and not wrong.get("unsunk"):
        sinks = Approx.of(F32.decode(raw["sinks"]).reshape(-1, 1, 1), F32, numerics)
    if wrong.get("unshifted"):
        return _unshifted(z, seen, sinks).stored(case.outputs["out"].type, layout.shape)
    found = normalised(z, seen, sinks, bool(wrong.get("halved"))).stored(case.outputs["out"].type, layout.shape)
    if wrong.get("hidden") and sinks is None:
        spoilt = ~seen[..., :_TILE].any(-1, keepdims=True)
        return replace(found, value=np.where(spoilt, np.nan, found.value))
    return found


def _biased(mask: Approx, params: Mapping[str, Any], shape: tuple[int, ...]) -> Approx:
    max_bias = float(params["max_bias"])
    return mask * sloped(mask, shape[1], max_bias) if max_bias > 0 else mask


def _spread(mask: F64, shape: tuple[int, ...]) -> F64:
    """The mask of each matrix: as many rows as there are, repeated over the outer axes."""
    mask = mask[:, :, : shape[2]]
    return np.tile(mask, (shape[0] // max(mask.shape[0], 1), shape[1] // max(mask.shape[1], 1), 1, 1))


def normalised(z: Approx, seen: np.ndarray, sinks: Approx | None, halved: bool = False) -> Approx:
    """Weights of what is seen. halved: as a wrong kernel has them that stores the reciprocal of the sum in f16."""
    hidden = z.held(np.full(z.value.shape, -np.inf), 0.0)
    largest = Approx.where(seen, z, hidden).largest()
    if sinks is not None:
        largest = largest.maximum(sinks)
    moved = (largest - largest).exp()  # 1, give or take what two maxima may differ by
    weights = (z - largest).exp()
    weights = Approx.where(seen, weights.either(weights * moved), z.held(np.zeros(z.value.shape), 0.0))
    total = weights.sum()
    if sinks is not None:
        total = total + (sinks - largest).exp()
    return weights * (1 / total).through(F16) if halved else weights / total


def _unshifted(z: Approx, seen: np.ndarray, sinks: Approx | None) -> Approx:
    """e^z / Σ e^z itself. Where e^z is infinite in float32, weights are ∞ / ∞, and the others of the row x / ∞ = 0.
    Nothing is said where the sum is 0."""
    none = z.held(np.zeros(z.value.shape), 0.0)
    powers = Approx.where(seen, z.exp(), none)
    total = powers.sum()
    if sinks is not None:
        total = total + sinks.exp()
    beyond = np.where(seen, z.low, -np.inf) > math.log(F32.largest)
    known = beyond.any(-1, keepdims=True) & ~(~beyond & (z.high > math.log(F32.largest)))
    weights = Approx.where(known, z.held(np.where(beyond, np.nan, 0.0), 0.0), powers / total)
    return replace(weights, value=np.where(total.value == 0, 0.0, weights.value))


def check(case: Case) -> None:
    """Raises `CaseError` for shapes that do not fit together."""
    x = case.inputs["x"].shape
    if "mask" in case.inputs:
        mask = case.inputs["mask"].shape
        if mask[3] != x[3] or mask[2] < x[2] or x[1] % max(mask[1], 1) or x[0] % max(mask[0], 1):
            raise CaseError(f"mask has shape {mask}; it must have rows of {x[3]}, {x[2]} at least, and divide {x[:2]}")
    elif float(case.params["max_bias"]) > 0:
        raise CaseError("max_bias must be 0 where there is no mask")
    if "sinks" in case.inputs and case.inputs["sinks"].shape != (1, 1, 1, x[1]):
        raise CaseError(f"sinks have shape {case.inputs['sinks'].shape}; there must be {x[1]} of them, one a head")
    if not 0 <= float(case.params["max_bias"]) <= 64 or not 1e-30 <= abs(float(case.params["scale"])) <= 1e30:
        raise CaseError("scale must be from 1e-30 to 1e30 in size, max_bias from 0 to 64")
    check_out(case, x)


def traits(case: Case) -> dict[str, Any]:
    """masks: the type of the mask, or "none". sunk: whether there are sinks. long_row: whether a row has more than
    16,384 elements. aligned: see `is_aligned`."""
    mask = case.inputs.get("mask")
    return {
        "masks": mask.dtype if mask else "none",
        "sunk": "sinks" in case.inputs,
        "long_row": case.inputs["x"].shape[-1] > 1 << 14,
        "aligned": is_aligned(case),
    }


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows up to 1025 long, with masks that several matrices share; shrinks to one element without a mask."""
    shape = draw(rows(freedom, 8).filter(lambda shape: 0 not in shape))
    shapes, dtypes = {"x": shape}, {}
    params = draw(drawn_params(freedom, {"scale": _SCALE, "max_bias": _BIAS}))
    kind = draw(among(freedom.choices("masks", ("none", "f32", "f16", "f16"))))
    if kind == "none":
        params["max_bias"] = 0.0
    else:
        more = draw(among((0, 0, 1, 7)))
        outer = tuple(draw(among(sorted({1, n}))) for n in shape[:2])
        shapes["mask"], dtypes["mask"] = (*outer, shape[2] + more, shape[3]), kind
    if draw(among(freedom.choices("sunk", (False, True)))):
        shapes["sinks"] = (1, 1, 1, shape[1])
    return Problem(params, "f32", shapes, shape, dtypes=dtypes)


def hide(case: Case, values: dict[str, F64], rng: np.random.Generator) -> None:
    """Some elements of the mask are −infinity: later tokens, a few, many and all before some place, as a window of
    attention has it, or none. Each row keeps one."""
    if "mask" not in values:
        return
    mask = values["mask"]
    form = rng.integers(0, 4)
    column = np.arange(mask.shape[3])
    if form == 1:
        mask[np.broadcast_to(column > np.arange(mask.shape[2])[:, None], mask.shape)] = -np.inf
    elif form in (2, 3) and mask.size:
        hidden = rng.random(mask.shape) < (0.2 if form == 2 else 0.8)
        kept = rng.integers(0, mask.shape[3], (*mask.shape[:3], 1))
        if form == 3:
            hidden |= column < kept
        mask[hidden & (column != kept)] = -np.inf


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Parameters and arguments left out, the largest z not taken off, parts of a row."""
    case = image.case
    faults: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("scale is left out", {"scale": 1.0}),
        ("max_bias is left out: every slope is 1", {"max_bias": 0.0}),
        ("the mask is left out", {"unmasked": True}),
        ("the sinks are left out", {"unsunk": True}),
        ("the largest z is not subtracted before the exponentials: they overflow", {"unshifted": True}),
        (f"a row whose first {_TILE} elements are masked is NaN: −infinity less −infinity", {"hidden": True}),
        ("1 / sum is rounded to f16", {"halved": True}),
        *((says, {"part": part}) for says, part in parts_of_row(case.inputs["x"].shape[-1])),
    )
    for says, wrong in faults:
        yield Hypothesis(says, partial(image.with_expect, _otherwise(wrong)))


def _otherwise(wrong: Mapping[str, Any]) -> Expect:
    return lambda case, raw, numerics: _weights(case, raw, numerics, wrong)


OPS = (
    Op(
        name="soft_max",
        summary="e^z / Σ e^z over each row, z = scale·x + slope·mask",
        inputs=("x", "mask", "sinks"),
        params={"scale": float, "max_bias": float},
        dtypes=("f32",),
        argument_dtypes={"mask": ("f32", "f16")},
        problems=problems,
        expect=expect,
        bound="the rounding of each step, carried through the formula",
        check=check,
        traits=traits,
        hypotheses=hypotheses,
        composite=Composite(optional=("mask", "sinks"), recipes=_RECIPES, shape_values=hide, batch_axes=(0,)),
    ),
)
