"""SET: out = a, and b is written over a view of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from opconform.cases import views
from opconform.harness.case import Case
from opconform.harness.dtypes import Raw
from opconform.harness.numerics import Numerics
from opconform.harness.op import Expected, Op

DTYPES = ("f32", "f16", "bf16", "i32")


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = a; out.view(nb1, nb2, nb3, offset) = b. Nothing is computed, so every element has the source's bits."""
    bits = raw["a"].copy()
    views.through_view(case, bits)[...] = raw["b"]
    value = case.inputs["a"].type.decode(bits)
    return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=bits)


OP = Op(
    name="set",
    summary="out = a; out.view(nb1,nb2,nb3,offset) = b",
    inputs=("a", "b"),
    params=views.PARAMS,
    dtypes=DTYPES,
    problems=lambda freedom: views.problems(freedom, DTYPES),
    expect=expect,
    bound="the bits of a outside the view, of b inside",
    check=views.check,
    traits=views.traits,
)
