"""ACC: out = a, and b is added to a view of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from opconform.cases import views
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image, Reading
from opconform.harness.model.numerics import Numerics, holds_sum
from opconform.harness.model.op import Op


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = a; out.view(nb1, nb2, nb3, offset) += b.

    Outside the view the output is `a`, bit for bit. Inside, one correctly rounded addition: |error| ≤ u·|a + b|
    (Higham 2002, eq. 2.4), 0 where float32 holds the sum. An addition whose result is a denormal is exact (Higham 2002,
    problem 2.19), so underflow costs nothing unless the device flushes: then each operand and the result may lose up to
    2^-126 each. A sum of two zeros has the sign that both have; +0, in every rounding mode but the one toward −∞, where
    they differ (IEEE 754-2019, section 6.3).
    """
    dtype = case.inputs["a"].type
    a, b = dtype.decode(raw["a"]), dtype.decode(raw["b"])
    value, bound, exact, bits = a.copy(), np.zeros(a.shape), np.ones(a.shape, dtype=bool), np.array(raw["a"])
    covered = np.array(views.through_view(case, value))
    total, operands = covered + b, np.abs(covered) + np.abs(b)
    rounded = numerics.u * np.abs(total)
    if not numerics.conversions:
        rounded[holds_sum(covered, b)] = 0.0
    flushed = 3 * numerics.underflow if numerics.flushes_denormals else 0.0
    off = rounded + numerics.conversions * numerics.u * (1 + numerics.u) * operands + flushed
    too_large = np.abs(total) > dtype.largest
    if numerics.any_rounding:  # rounded up, the last of the finite ones are infinite
        too_large |= np.abs(total) + off > dtype.largest
    zero = operands == 0
    if numerics.any_rounding:
        zero &= np.signbit(covered) == np.signbit(b)
    views.through_view(case, value)[...] = total
    views.through_view(case, bound)[...] = np.where(too_large, np.inf, off)
    views.through_view(case, exact)[...] = zero
    if zero.any():
        within = views.through_view(case, bits)
        within[...] = np.where(zero, dtype.encode(total), within)
    return Expected(value, bound, exact=exact, bits=bits)


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of ACC's own: wrong views, and other things done with a and b."""
    right = views.places(image.case.inputs["b"], views.view_of(image.case).nb, views.view_of(image.case).offset)
    for says, where in views.misplaced(image.case):
        yield Hypothesis(says, partial(image.with_expect, _into(where)))
    yield Hypothesis("b replaces what it should be added to (SET instead of ACC)", _read(image, right, of_a=0))
    yield Hypothesis("b is added twice", _read(image, right, of_b=2))
    yield Hypothesis("b is subtracted", _read(image, right, of_b=-1))
    yield Hypothesis(views.NOT_COPIED, partial(image.with_source, views.inside_only(image.case)))


def _read(image: Image, where: views.Places, of_a: int = 1, of_b: int = 1) -> Callable[[], Reading]:
    return partial(image.with_expect, _into(where, of_a, of_b))


def _into(where: views.Places, of_a: int = 1, of_b: int = 1) -> Expect:
    """of_a·a + of_b·b at the flat indices `where`, with a rounding for each time that b is added; `a` elsewhere."""

    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        a, b = (case.inputs[name].type.decode(raw[name]) for name in ("a", "b"))
        terms, _ = views.put(np.zeros(a.shape), where, of_b * b)
        _, inside = views.put(a, where, b)
        value = np.where(inside, of_a * a + terms, a)
        flushed = 3 * numerics.underflow if numerics.flushes_denormals else 0.0
        bound = np.where(inside, numerics.u * (np.abs(value) + (abs(of_b) - 1) * np.abs(a + terms / 2)) + flushed, 0.0)
        return Expected(value, bound, exact=~inside, bits=raw["a"])

    return expect


OP = Op(
    name="acc",
    summary="out = a; out.view(nb1,nb2,nb3,offset) += b",
    inputs=("a", "b"),
    params=views.PARAMS,
    dtypes=("f32",),
    problems=lambda freedom: views.problems(freedom, ("f32",)),
    expect=expect,
    bound="outside the view the bits of a; inside u·|a+b|, 0 where float32 holds the sum, and the sign of −0 + −0",
    check=views.check,
    traits=views.traits,
    alone=views.alone,
    hypotheses=hypotheses,
    pointwise=True,
    stacks=True,
    sources=views.sources,
    flops=lambda case: case.inputs["b"].size,
    moves=views.moves,
)
