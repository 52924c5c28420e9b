"""SET: out = a, and b is written over a view of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from opconform.cases import views
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op

DTYPES = ("f32", "f16", "bf16", "i32")


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = a; out.view(nb1, nb2, nb3, offset) = b. Nothing is computed, so every element has the source's bits."""
    bits = raw["a"].copy()
    views.through_view(case, bits)[...] = raw["b"]
    value = case.inputs["a"].type.decode(bits)
    return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=bits)


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of SET's own: wrong views, and b added instead of set."""
    right = views.places(image.case.inputs["b"], views.view_of(image.case).nb, views.view_of(image.case).offset)
    for says, where in views.misplaced(image.case):
        yield Hypothesis(says, partial(image.with_expect, _into(where)))
    yield Hypothesis("b is added to what it should replace (ACC instead of SET)", partial(image.with_expect, _added))
    yield Hypothesis("what b covers is set to 0", partial(image.with_expect, _into(right, times=0)))
    yield Hypothesis(views.NOT_COPIED, partial(image.with_source, views.inside_only(image.case)))


def sources(case: Case) -> dict[str, views.Places]:
    """Which element of `b`, or else of `a`, goes into each element of the output."""
    both = views.sources(case)
    return {"a": np.where(both["b"] < 0, both["a"], -1), "b": both["b"]}


def _into(where: views.Places, times: int = 1) -> Expect:
    """b (or 0) at the flat indices `where`, `a` elsewhere."""

    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        bits, _ = views.put(raw["a"], where, raw["b"] * times)
        value = case.inputs["a"].type.decode(bits)
        return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=bits)

    return expect


def _added(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """a + b, one rounding, inside the view; `a` outside."""
    dtype = case.inputs["a"].type
    value = dtype.decode(raw["a"])
    views.through_view(case, value)[...] += dtype.decode(raw["b"])
    inside = np.zeros(value.shape, dtype=bool)
    views.through_view(case, inside)[...] = True
    unit = max(dtype.unit_roundoff, numerics.u) if dtype.is_float else 0.0
    return Expected(value, np.where(inside, unit * np.abs(value), 0.0), exact=~inside, bits=raw["a"])


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
    alone=views.alone,
    hypotheses=hypotheses,
    pointwise=True,
    stacks=True,
    sources=sources,
    moves=views.moves_without_reading,
)
