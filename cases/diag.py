"""DIAG: square matrices with given diagonals."""

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


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out_ij = x_j where i = j, else +0: x [.., 1, n] gives [.., n, n]. Every element has the source's bits."""
    return moves.moved(case, raw, source(case))


def source(case: Case, above: int = 0) -> moves.Places:
    """Which element of x each element of the output is; -1 outside the diagonal (of number `above`, 0 is the main one,
    along which x keeps its columns)."""
    rows, columns = np.ogrid[: case.outputs["out"].shape[-2], : case.outputs["out"].shape[-1]]
    return np.where(columns - rows == above, moves.flat(case.inputs["x"]), -1)


def check(case: Case) -> None:
    """Raises `CaseError` unless x has one row a matrix and the output is square."""
    shape = case.inputs["x"].shape
    if shape[2] != 1:
        raise CaseError(f"x has shape {shape}; its second last size must be 1")
    check_out(case, (*shape[:2], shape[3], shape[3]))


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Diagonals up to 257 long; shrinks to one element."""
    dtype = draw(st.sampled_from(freedom.choices("dtype", moves.DTYPES)))
    out = draw(squares(freedom, DTYPES[dtype].itemsize))
    return Problem({}, dtype, {"x": (*out[:2], 1, out[3])}, out)


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of DIAG's own: another diagonal, every row a copy, zeros left out."""
    case = image.case
    for above, words in ((1, "above"), (-1, "below")):
        says = f"the diagonal stands one place {words} its own"
        yield Hypothesis(says, partial(image.with_expect, moves.moves(source(case, above))))
    if case.inputs["x"].shape[-1] > 1:
        turned = np.where(source(case) < 0, -1, source(case)[..., ::-1, ::-1])
        yield Hypothesis("the diagonal runs backwards", partial(image.with_expect, moves.moves(turned)))
        rows = np.broadcast_to(moves.flat(case.inputs["x"]), case.outputs["out"].shape)
        yield Hypothesis("every row is x: there are no zeros", partial(image.with_expect, moves.moves(rows)))
        only = np.where(source(case) < 0, -1, moves.flat(case.outputs["out"]))
        yield Hypothesis("the diagonal is written, the zeros are not", partial(image.with_source, only))


OP = Op(
    name="diag",
    summary="square matrices with given diagonals",
    inputs=("x",),
    params={},
    dtypes=moves.DTYPES,
    problems=problems,
    expect=expect,
    bound="the bits of x on the diagonal, +0 elsewhere",
    check=check,
    alone=lambda case: True,
    hypotheses=hypotheses,
    sources=lambda case: {"x": source(case)},
)
