"""ACC: out = a, and b is added to a view of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opconform.cases import views
from opconform.harness.case import Case
from opconform.harness.dtypes import Raw
from opconform.harness.numerics import Numerics
from opconform.harness.op import Expected, Op


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = a; out.view(nb1, nb2, nb3, offset) += b.

    Outside the view the output is `a`, bit for bit. Inside, one correctly rounded addition: |error| ≤ u·|a + b|
    (Higham 2002, eq. 2.4). An addition whose result is a denormal is exact (Higham 2002, problem 2.19), so underflow
    costs nothing unless the device flushes: then each operand and the result may lose up to 2^-126 each.
    """
    dtype = case.inputs["a"].type
    value = dtype.decode(raw["a"])
    views.through_view(case, value)[...] += dtype.decode(raw["b"])
    inside = np.zeros(value.shape, dtype=bool)
    views.through_view(case, inside)[...] = True
    flushed = 3 * numerics.underflow if numerics.flushes_denormals else 0.0
    bound = np.where(inside, numerics.u * np.abs(value) + flushed, 0.0)
    return Expected(value, bound, exact=~inside, bits=raw["a"])


OP = Op(
    name="acc",
    summary="out = a; out.view(nb1,nb2,nb3,offset) += b",
    inputs=("a", "b"),
    params=views.PARAMS,
    dtypes=("f32",),
    problems=lambda freedom: views.problems(freedom, ("f32",)),
    expect=expect,
    bound="outside the view the bits of a; inside u·|a+b|",
    check=views.check,
    traits=views.traits,
)
