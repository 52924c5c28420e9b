"""CUMSUM: sums of the elements up to each place along one axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.harness.draw.strategies import (
    among,
    composite,
    forms,
    inner_sizes,
    integers,
    outer_sizes,
    rare_sizes,
    scales,
    within,
)
from opconform.harness.explain.hypotheses import TILES
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import F32, F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image, Reading
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics, quanta
from opconform.harness.model.op import Op, Problem


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out_i = Σ x_j over j ≤ i (exclusive: j < i), from the far end where `reverse`.

    A sum of m terms computed with additions in any order, with or without fused ones, is off by at most
    γ_{m−1}·Σ|x_j| (Higham 2002, eq. 4.4 and the remark after it), and by nothing where no order rounds
    (`Numerics.rounds`). The bound holds only for algorithms that sum the terms of each prefix, not for total − suffix,
    whose error grows with terms that do not belong to the result. A device that flushes denormals may lose 2^-126 for
    each term and each addition. Where Σ|x_j| passes the largest float32 some order overflows on its way, and nothing
    is demanded.

    Nor does it hold for an exclusive sum computed as the inclusive one less x_i: that is off by the inclusive one's
    bound and one rounding more, however small the sum itself is. A device that computes so declares it
    (`Numerics.subtracted_sums`).
    """
    axis = _numpy_axis(case)
    x = case.inputs["x"].type.decode(raw["x"])
    value = _prefix(x, case, axis)
    if case.params["exclusive"] and numerics.subtracted_sums:
        return Expected(value, _sum_bound(x, _inclusive(case), axis, numerics, 1))
    return Expected(value, _sum_bound(x, case, axis, numerics))


def _inclusive(case: Case) -> Case:
    return replace(case, params={**case.params, "exclusive": False})


def _sum_bound(x: F64, case: Case, axis: int, numerics: Numerics, more: int = 0) -> F64:
    """The bound of each prefix sum after `more` additions besides its own."""
    magnitude = _prefix(np.abs(x), case, axis)
    terms = _prefix(_ones(x.shape, axis), case, axis)
    bound = numerics.gamma(np.maximum(terms - 1, 0) + more + numerics.conversions) * magnitude
    if numerics.flushes_denormals:
        bound = bound + 2 * (terms + more) * numerics.underflow
    bound = np.where(numerics.rounds(_along(quanta(x), case, axis, np.minimum.accumulate, np.inf), magnitude), bound, 0)
    return np.where(magnitude + bound <= F32.largest, bound, np.inf)


def _ones(shape: tuple[int, ...], axis: int) -> F64:
    return np.ones([size if i == axis else 1 for i, size in enumerate(shape)])


def _prefix(x: F64, case: Case, axis: int) -> F64:
    """The exact sums, up to float64 roundoff (2^-29 of float32's)."""
    return _along(x, case, axis, np.cumsum, 0.0)


def _along(x: F64, case: Case, axis: int, accumulate: Callable[[F64, int], F64], of_none: float) -> F64:
    """What accumulates up to each place, as the case's parameters have it; `of_none` where nothing does."""
    if case.params["reverse"]:
        x = np.flip(x, axis)
    found = accumulate(x, axis)
    if case.params["exclusive"]:
        found = np.roll(found, 1, axis)
        found[(slice(None),) * axis + (slice(0, 1),)] = of_none
    return np.flip(found, axis) if case.params["reverse"] else found


def _numpy_axis(case: Case) -> int:
    return len(case.inputs["x"].shape) - 1 - int(case.params["axis"])


def check(case: Case) -> None:
    """Raises `CaseError` for an axis that x does not have or an output of another shape."""
    x, out = case.inputs["x"], case.outputs["out"]
    if not 0 <= int(case.params["axis"]) < len(x.shape):
        raise CaseError(f"axis is {case.params['axis']}; it counts from the innermost, 0 to {len(x.shape) - 1}")
    if out.shape != x.shape:
        raise CaseError(f"out has shape {out.shape}; it must be that of x, {x.shape}")
    if case.inplace is not None:
        raise CaseError("case.inplace must be null: cumsum does not work in place")


@composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows along any axis, up to 1025 long, or in a rare form; shrinks to one element along ne0."""
    axis = draw(among(freedom.choices("axis", range(4))))
    exclusive = draw(among(freedom.choices("exclusive", (False, True))))
    reverse = draw(among(freedom.choices("reverse", (False, True))))
    form = draw(forms())
    if form == "usual":
        length = draw(inner_sizes(draw(scales())))
        if length == 1 and draw(integers(0, 15)) < 15:  # the sum is x itself, or nothing
            length = 2
        ne = [draw(inner_sizes(9)), draw(inner_sizes(9)), draw(outer_sizes()), draw(outer_sizes())]
        ne[axis] = length
    else:
        ne = draw(rare_sizes(form, range(4), axis, [other for other in range(4) if other != axis]))
        ne[axis] = max(ne[axis], 2)
    if form == "usual" and freedom.choices("empty", (True,)) and draw(integers(0, 31)) == 31:
        ne[draw(integers(0, 3))] = 0
    shape = within(ne, 4, freedom)[::-1]
    params = {"axis": axis, "exclusive": exclusive, "reverse": reverse}
    return Problem(params, "f32", {"x": shape}, shape)


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of CUMSUM's own: parameters ignored, another axis, sums of tiles that are not handed on."""
    case = image.case
    for name, is_asked, is_not in (
        ("exclusive", "exclusive is ignored: each sum includes its own element", "each sum leaves its own element out"),
        ("reverse", "reverse is ignored: sums run forwards", "sums run backwards"),
    ):
        asked = bool(case.params[name])
        yield Hypothesis(is_asked if asked else is_not, partial(image.with_params, **{name: not asked}))
    for axis in range(len(case.inputs["x"].shape)):
        if axis != case.params["axis"]:
            yield Hypothesis(f"sums run along i{axis} instead of the axis asked for", _other_axis(image, axis))
    if case.params["exclusive"]:
        says = "each sum is the inclusive one less its own element, which loses digits (Numerics.subtracted_sums)"
        yield Hypothesis(says, partial(image.with_expect, _subtracted))
    yield Hypothesis("x is copied, not summed", partial(image.with_expect, _copied))
    for tile in TILES:
        for times, words in ((0, "lost"), (2, "added twice")):
            says = f"the carry between tiles of {tile} is {words}"
            yield Hypothesis(says, partial(image.with_expect, _tiled(tile, times)))


def _other_axis(image: Image, axis: int) -> Callable[[], Reading]:
    return partial(image.with_params, axis=axis)


def _subtracted(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    return expect(case, raw, replace(numerics, subtracted_sums=True))


def _copied(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    x = case.inputs["x"].type.decode(raw["x"])
    return Expected(x, np.full(x.shape, numerics.underflow if numerics.flushes_denormals else 0.0))


def _tiled(tile: int, times: int) -> Expect:
    """Sums within tiles of `tile` elements, each with `times` the sum of all tiles before it."""

    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        axis = _numpy_axis(case)
        x = case.inputs["x"].type.decode(raw["x"])
        terms = _carried(_ones(x.shape, axis), case, axis, tile, times)
        magnitude = _carried(np.abs(x), case, axis, tile, times)
        bound = numerics.gamma(np.maximum(terms, 0)) * magnitude
        if numerics.flushes_denormals:
            bound = bound + 2 * terms * numerics.underflow
        return Expected(_carried(x, case, axis, tile, times), bound)

    return expect


def _carried(x: F64, case: Case, axis: int, tile: int, times: int) -> F64:
    """Each prefix sum less the tiles before its own, which are added `times` instead of once."""
    reverse = bool(case.params["reverse"])
    sums = np.moveaxis(np.flip(_prefix(x, case, axis), axis) if reverse else _prefix(x, case, axis), axis, 0)
    whole = np.moveaxis(np.cumsum(np.flip(x, axis) if reverse else x, axis), axis, 0)
    start = np.arange(len(sums)) // tile * tile
    before = np.where((start > 0).reshape(-1, *[1] * (x.ndim - 1)), whole[start - 1], 0.0) if len(sums) else whole
    found = np.moveaxis(sums + (times - 1) * before, 0, axis)
    return np.flip(found, axis) if reverse else found


OP = Op(
    name="cumsum",
    summary="out_i = sum of x_j over j <= i along one axis",
    inputs=("x",),
    params={"axis": int, "exclusive": bool, "reverse": bool},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="γ_{m−1}·Σ|x_j| over the m terms of the sum, 0 where no order rounds",
    check=check,
    alone=lambda case: tuple(axis for axis in (0, 1) if axis != _numpy_axis(case)),
    hypotheses=hypotheses,
    flops=lambda case: case.inputs["x"].size,
)
