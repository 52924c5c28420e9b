"""SUM_ROWS: the sum of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.shapes import check_out, rows
from opconform.harness.explain.hypotheses import TILES
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F32, F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = Σ x_j over the innermost axis, which keeps one place.

    A sum of n terms computed with additions in any order is off by at most γ_{n−1}·Σ|x_j| (Higham 2002, eq. 4.4 and
    the remark after it). A device that flushes denormals may lose 2^-126 for each term and each addition. Where Σ|x_j|
    passes the largest float32 some order overflows on its way, and nothing is demanded.
    """
    x = F32.decode(raw["x"])
    return _sum(x, max(x.shape[-1] - 1, 0), numerics)


def _sum(x: F64, roundings: int, numerics: Numerics) -> Expected:
    """The sums of the rows of `x`, each element of which goes through `roundings` roundings."""
    value, magnitude = x.sum(-1, keepdims=True), np.abs(x).sum(-1, keepdims=True)
    bound = numerics.gamma(float(roundings + numerics.conversions)) * magnitude
    if numerics.flushes_denormals:
        bound = bound + 2 * x.shape[-1] * numerics.underflow
    return Expected(value, np.where(magnitude + bound <= F32.largest, bound, np.inf))


def check(case: Case) -> None:
    """Raises `CaseError` unless the output has one element for each row."""
    check_out(case, (*case.inputs["x"].shape[:-1], 1))


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows up to 1025 long; shrinks to one element."""
    shape = draw(rows(freedom, 4))
    return Problem({}, "f32", {"x": shape}, (*shape[:-1], 1))


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of SUM_ROWS' own: means, and parts of a row left out."""
    n = image.case.inputs["x"].shape[-1]
    if n > 1:
        yield Hypothesis("the mean of each row is returned, not its sum", partial(image.with_expect, _mean))
        yield Hypothesis("the last element of each row is left out", partial(image.with_expect, _first(n - 1)))
    for tile in TILES:
        if n > tile and n % tile:
            says = f"what a tile of {tile} does not fill is left out of the sum"
            yield Hypothesis(says, partial(image.with_expect, _first(n // tile * tile)))
        if n > tile:
            says = f"only the first tile of {tile} is summed"
            yield Hypothesis(says, partial(image.with_expect, _first(tile)))


def _mean(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    x = F32.decode(raw["x"])
    return _sum(x / x.shape[-1], x.shape[-1] + 1, numerics)


def _first(count: int) -> Expect:
    """The sums of the first `count` elements of each row."""

    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return _sum(F32.decode(raw["x"])[..., :count], max(count - 1, 0), numerics)

    return expect


OP = Op(
    name="sum_rows",
    summary="the sum of each row",
    inputs=("x",),
    params={},
    dtypes=("f32",),
    problems=problems,
    expect=expect,
    bound="γ_{n−1}·Σ|x_j| over the n elements of the row",
    check=check,
    alone=lambda case: True,
    hypotheses=hypotheses,
)
