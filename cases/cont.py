"""CONT: the same elements in memory of their own, as models make a permuted view contiguous."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

from opconform.cases import moves
from opconform.cases.shapes import check_out, rows
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = x, wherever the elements of either stand. Nothing is computed, so every element has the source's bits."""
    return moves.moved(case, raw, moves.flat(case.inputs["x"]))


def check(case: Case) -> None:
    """Raises `CaseError` for an output of another shape."""
    check_out(case, case.inputs["x"].shape)


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Tensors of any sizes (layouts are the variants' business); shrinks to one element."""
    dtype = draw(st.sampled_from(freedom.choices("dtype", moves.DTYPES)))
    shape = draw(rows(freedom, DTYPES[dtype].itemsize))
    turned = draw(st.integers(0, 3))  # a long axis is worth as much in every place once the strides are permuted
    shape = (*shape[turned:], *shape[:turned])
    return Problem({}, dtype, {"x": shape}, shape)


OP = Op(
    name="cont",
    summary="the same elements in memory of their own",
    inputs=("x",),
    params={},
    dtypes=moves.DTYPES,
    problems=problems,
    expect=expect,
    bound="the bits of x",
    check=check,
    alone=lambda case: True,
    sources=lambda case: {"x": moves.flat(case.inputs["x"])},
    copies=True,
)
