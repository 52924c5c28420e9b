"""Pools over windows of rows and of planes, and the way back of those over planes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families import choice
from opconform.cases.families.choices import check_params, types_of
from opconform.cases.families.taps import Window, crossed, met
from opconform.cases.families.windowed import (
    FAR,
    PADDING,
    STRIDE,
    Params,
    area,
    check_window,
    crowded_axes,
    first,
    params_of,
    shaped,
    window,
)
from opconform.cases.shapes import check_out, is_aligned
from opconform.harness.draw.strategies import among, as_many, composite, counts, integers, rare_forms
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import F32, F64, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image, Places
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

_KIND = choice("max", "avg")
_LEAST = -F32.largest


def _pool_params(number: int) -> dict[str, Any]:
    kernel = choice(1, 2, 3, 4, 5, least=1, most=FAR)
    kinds = (("k", kernel), ("s", STRIDE), ("p", PADDING))
    return {"kind": _KIND, **{f"{name}{axis}": its for name, its in kinds for axis in range(number)}}


def _pool_places(case: Case, shape: tuple[int, ...]) -> Places:
    """For each place of a pooled plane the flat places in one of `shape` that its window has; -1 beside it."""
    number = 2 if "k1" in case.params else 1
    sizes = shape[-number:]
    taps = [
        window(case.params, axis, int(case.params[f"k{axis}"])).taps(n)
        for axis, n in zip(reversed(range(number)), sizes)
    ]
    return crossed(taps, sizes)


def pool(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The largest element, or the mean, of each window, in which nothing of the padding counts as an element.

    POOL_1D takes the mean of the elements that there are, POOL_2D a sum over the size of the kernel. A window with no
    element has a mean of 0, and as its largest the least number of float32, from which ggml's kernels start. The mean
    is a sum of m terms and a division, or a sum of products with 1/m: each rounding is carried through (`Approx`).
    """
    return _pooled(case, raw, numerics)


def _pooled(case: Case, raw: Mapping[str, Raw], numerics: Numerics, by: str = "") -> Expected:
    """`by`: what a mean is divided by, where that is wrong: "size" or "elements"."""
    x, out = case.inputs["x"], case.outputs["out"]
    places = _pool_places(case, x.shape)
    number = places.ndim - 1
    planes = x.type.decode(raw["x"]).reshape(*x.shape[:-number], -1)
    size, flat = places.shape[-1], met(places)
    rows: F64 = np.concatenate([planes, np.zeros((*planes.shape[:-1], 1))], -1)[..., flat]
    elements = Approx.of(rows, x.type, numerics)
    if case.params["kind"] == "max":
        least = np.full(rows.shape, _LEAST)
        inside = np.broadcast_to(flat >= 0, rows.shape)
        found = Approx.where(inside, elements, Approx(least, least, least, numerics)).largest()
    else:
        is_by_elements = (by or ("elements" if number == 1 else "size")) == "elements"
        count = (flat >= 0).sum(-1, keepdims=True) if is_by_elements else np.full((*flat.shape[:-1], 1), size)
        divisor = np.broadcast_to(np.maximum(count, 1).astype(np.float64), (*rows.shape[:-1], 1))
        by_count = Approx(divisor, divisor, divisor, numerics)
        inverse = 1.0 / by_count
        found = (elements.sum() / by_count).either((elements * inverse).sum())
    return first(found.stored(out.type, (*out.shape, 1)))


def _pool_shape(x: tuple[int, ...], params: Params) -> tuple[int, ...]:
    number = 2 if "k1" in params else 1
    if 0 in x:
        raise CaseError(f"x has shape {x}; it must not be empty")
    sizes = [
        check_window(f"ne{axis} of x", window(params, axis, int(params[f"k{axis}"])), x[3 - axis])
        for axis in reversed(range(number))
    ]
    return (*x[:-number], *sizes)


def _check_pool(case: Case) -> None:
    """Raises `CaseError` for parameters beyond their limits, and where no window fits."""
    check_params(case, _pool_params(2 if "k1" in case.params else 1))
    check_out(case, _pool_shape(case.inputs["x"].shape, case.params))


def _pool_traits(case: Case, name: str = "x") -> dict[str, bool]:
    """aligned: see `is_aligned`. filled: whether every window has an element. tiled: whether windows stand side by side
    without padding, and fill the rows."""
    number = 2 if "k1" in case.params else 1
    windows = [window(case.params, axis, int(case.params[f"k{axis}"])) for axis in range(number)]
    tiled = all(its.padding == 0 and its.stride == its.kernel for its in windows)
    filled = all((its.taps(n) >= 0).any(-1).all() for its, n in zip(windows, case.inputs[name].ne))
    return {"aligned": is_aligned(case), "filled": filled, "tiled": tiled}


@composite
def _pool_problems(draw: st.DrawFn, freedom: Freedom, number: int, source: str = "") -> Problem:
    """Planes with windows, now and then many small ones, or a large one; shrinks to one element."""
    form = draw(rare_forms("many", "wide"))
    windows, sizes = draw(crowded_axes(freedom, number, 8, form))
    params: dict[str, Param] = {"kind": draw(among(freedom.choices("kind", _KIND.values)))}
    tiled, filled = (not freedom.choices(name, (False,)) for name in ("tiled", "filled"))
    windows = [
        Window(
            it.kernel,
            it.kernel if tiled else it.stride,
            0 if tiled else min(it.padding, it.kernel - 1 if filled else 9),
        )
        for it in windows
    ]
    if filled:  # windows beyond the end have none either
        sizes = [max(n, it.kernel) for n, it in zip(sizes, windows)]
    sizes = [it.reached(n) for n, it in zip(sizes, windows)]
    params |= {f"k{axis}": its.kernel for axis, its in enumerate(windows)}
    params |= {name: value for name, value in params_of(windows).items() if name[0] != "d"}
    outer = [draw(among((1, 2, 3))) for _ in range(4 - number)]
    if form != "usual":
        outer = [1] * len(outer)
    if form == "many":
        outer[draw(integers(0, len(outer) - 1))] = as_many(draw(counts()), area(windows, sizes), freedom)
    x = (*outer, *reversed(sizes))
    out = _pool_shape(x, params)
    if source:
        return Problem(params, "f32", {"x": out, source: x}, x)
    came = draw(among(freedom.choices("source", ("f32", "f16"))))
    return Problem(params, "f32", {"x": x}, out, dtypes={"x": came})


def _pool_faults(image: Image) -> Iterator[Hypothesis]:
    case = image.case
    other = "avg" if case.params["kind"] == "max" else "max"
    yield Hypothesis(f"it is a pool of kind {other}", partial(image.with_params, kind=other))
    number = 2 if "k1" in case.params else 1
    places = _pool_places(case, case.inputs["x"].shape)
    if case.params["kind"] == "avg" and (places < 0).any():
        by = "size" if number == 1 else "elements"
        says = "the mean is over the size of the kernel" if number == 1 else "the mean is over the elements alone"
        yield Hypothesis(says, partial(image.with_expect, partial(_pooled, by=by)))


def _pool(number: int) -> Op:
    return Op(
        name=f"pool_{number}d",
        summary=f"the largest element, or the mean, of windows over {'rows' if number == 1 else 'planes'}",
        inputs=("x",),
        params=types_of(_pool_params(number)),
        dtypes=("f32",),
        argument_dtypes={"x": ("f32", "f16")},
        problems=partial(_pool_problems, number=number),
        expect=pool,
        bound="the element itself; for a mean the rounding of each step, carried through",
        check=_check_pool,
        alone=lambda case: (0, 1),
        traits=lambda case: {**_pool_traits(case), "source": case.inputs["x"].dtype},
        hypotheses=_pool_faults,
    )


def pool_2d_back(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """The gradient of POOL_2D: what belongs to a window goes to its largest element of y (of equal ones the first, by
    rows), or in parts of 1 / (k0·k1) to all that it has.

    A sum of m terms in any order, each of them divided first for a mean: the roundings are carried through (`Approx`).
    Which element is the largest of some that are NaN, nothing says: nothing is demanded of such a plane.
    """
    return _spread(case, raw, numerics)


def _spread(case: Case, raw: Mapping[str, Raw], numerics: Numerics, last: bool = False) -> Expected:
    """`last`: of equal elements the last one gets all."""
    x, y, out = case.inputs["x"], case.inputs["y"], case.outputs["out"]
    places = _pool_places(case, y.shape)
    windows, plane = places.shape[0] * places.shape[1], y.shape[-2] * y.shape[-1]
    planes = y.type.decode(raw["y"]).reshape(-1, plane)
    gradient = x.type.decode(raw["x"]).reshape(-1, windows)
    taken = places.reshape(windows, -1)
    if case.params["kind"] == "max":
        found = np.concatenate([planes, np.full((len(planes), 1), -np.inf)], -1)[:, taken]
        at = found.shape[-1] - 1 - found[..., ::-1].argmax(-1) if last else found.argmax(-1)
        chosen = np.take_along_axis(np.broadcast_to(taken, found.shape), at[..., None], -1)
    else:
        chosen = np.broadcast_to(taken, (len(planes), *taken.shape))
    most = max((int(np.max(np.bincount(it[it >= 0].reshape(-1), minlength=1))) for it in chosen), default=1)
    terms = np.zeros((len(planes), plane, max(most, 1)))
    for number, its in enumerate(chosen):
        window_of = np.repeat(np.arange(windows), its.shape[-1])
        place = its.reshape(-1)
        window_of, place = window_of[place >= 0], place[place >= 0]
        order = np.argsort(place, kind="stable")
        place, window_of = place[order], window_of[order]
        rank = np.arange(len(place)) - np.searchsorted(place, place)
        terms[number, place, rank] = gradient[number, window_of]
    parts = Approx.of(terms, x.type, numerics)
    if case.params["kind"] == "avg":
        parts = parts / float(taken.shape[-1])
    total = parts.sum().stored(out.type, (len(planes), plane, 1))
    if case.params["kind"] == "max":
        free = np.isnan(planes).any(-1).reshape(-1, 1, 1)
        total = Expected(np.where(free, np.nan, total.value), total.bound, total.exact, total.bits)
    return shaped(total, out.shape)


def _check_back(case: Case) -> None:
    """Raises `CaseError` unless x has the shape that POOL_2D gives y."""
    check_params(case, _pool_params(2))
    want = _pool_shape(case.inputs["y"].shape, case.params)
    if case.inputs["x"].shape != want:
        raise CaseError(f"x has shape {case.inputs['x'].shape}; POOL_2D of y gives {want}")
    check_out(case, case.inputs["y"].shape)


def _back_faults(image: Image) -> Iterator[Hypothesis]:
    other = "avg" if image.case.params["kind"] == "max" else "max"
    yield Hypothesis(f"it is the gradient of a pool of kind {other}", partial(image.with_params, kind=other))
    if image.case.params["kind"] == "max":
        says = "of equal elements the last one gets all"
        yield Hypothesis(says, partial(image.with_expect, partial(_spread, last=True)))


OPS = (
    _pool(1),
    _pool(2),
    Op(
        name="pool_2d_back",
        summary="the gradient of a pool over planes",
        inputs=("x", "y"),
        params=types_of(_pool_params(2)),
        dtypes=("f32",),
        problems=partial(_pool_problems, number=2, source="y"),
        expect=pool_2d_back,
        bound="the rounding of each step, carried through",
        check=_check_back,
        alone=lambda case: (0, 1),
        traits=partial(_pool_traits, name="y"),
        hypotheses=_back_faults,
    ),
)
