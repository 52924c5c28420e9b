"""TRI: one triangle of square matrices, zeros in the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases import moves
from opconform.cases.shapes import check_out, squares
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

#: The triangles by name, as ggml has them: with the diagonal or without it.
KINDS = ("lower", "lower_diag", "upper", "upper_diag")
_WORDS = {
    "lower": "the lower triangle without its diagonal is kept",
    "lower_diag": "the lower triangle with its diagonal is kept",
    "upper": "the upper triangle without its diagonal is kept",
    "upper_diag": "the upper triangle with its diagonal is kept",
}


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out_ij = x_ij where the triangle `kind` has (i, j), i counting rows; else +0.

    lower: j < i, lower_diag: j ≤ i, upper: j > i, upper_diag: j ≥ i. Nothing is computed, so every element has the
    source's bits.
    """
    return moves.moved(case, raw, source(case))


def source(case: Case) -> moves.Places:
    """Which element of x each element of the output is; -1 outside the triangle."""
    x = case.inputs["x"]
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    kind = str(case.params["kind"])
    kept = columns < rows if kind.startswith("lower") else columns > rows
    if kind.endswith("_diag"):
        kept = kept | (columns == rows)
    return np.where(kept, moves.flat(x), -1)


def check(case: Case) -> None:
    """Raises `CaseError` unless x is made of square matrices and the triangle has a name that exists."""
    x, kind = case.inputs["x"], case.params["kind"]
    if kind not in KINDS:
        raise CaseError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if len(x.shape) < 2 or x.shape[-1] != x.shape[-2]:
        raise CaseError(f"x has shape {x.shape}; its last two sizes must be equal")
    check_out(case, x.shape)


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Matrices up to 257 wide; shrinks to one element and its strict lower triangle, which is a zero."""
    kind = draw(st.sampled_from(freedom.choices("kind", KINDS)))
    dtype = draw(st.sampled_from(freedom.choices("dtype", moves.DTYPES)))
    shape = draw(squares(freedom, DTYPES[dtype].itemsize))
    return Problem({"kind": kind}, dtype, {"x": shape}, shape)


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of TRI's own: another triangle, all of x, zeros left out."""
    case = image.case
    for kind in KINDS:
        if kind != case.params["kind"]:
            yield Hypothesis(_WORDS[kind], partial(image.with_params, kind=kind))
    everything = moves.flat(case.inputs["x"])
    yield Hypothesis("x is copied whole", partial(image.with_expect, moves.moves(everything)))
    kept = np.where(source(case) < 0, -1, everything)
    yield Hypothesis("the triangle is written, the zeros are not", partial(image.with_source, kept))


OP = Op(
    name="tri",
    summary="one triangle of square matrices, zeros in the other",
    inputs=("x",),
    params={"kind": str},
    dtypes=moves.DTYPES,
    problems=problems,
    expect=expect,
    bound="the bits of x inside the triangle, +0 outside",
    check=check,
    alone=lambda case: True,
    hypotheses=hypotheses,
    sources=lambda case: {"x": source(case)},
)
