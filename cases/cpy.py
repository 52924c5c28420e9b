"""CPY: elements copied, in flat order, into a tensor of another shape and perhaps another type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases import moves
from opconform.cases.shapes import rows
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.dtypes import DTYPES, F64, DType, Mask, Raw
from opconform.harness.model.expected import Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem

FLOATS = ("f32", "f16", "bf16")

#: The types of x and of the output, the same ones first.
TYPES = tuple(sorted((f"{x}-{out}" for x in FLOATS for out in FLOATS), key=lambda pair: len(set(pair.split("-")))))
TYPES = (*TYPES, "i32-i32")


def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out = x with its elements in flat order, each rounded to nearest, ties to even, where the output's type is
    narrower.

    Where the type stays, or holds the value, every bit counts: a conversion is exact if it can be (IEEE 754-2019,
    section 5.4.2). Elsewhere it has one right answer on a device that rounds to nearest; one past the largest number by
    half a unit or more is an infinity (section 7.4). Where a device may round either way (`any_rounding`), either
    neighbour is right: the error stays below the distance between them, 2u·2^e for values from 2^e to 2^(e+1); an
    overflow may then end at the largest number, and nothing is demanded. A device that flushes may make 0 of a denormal
    of either type.
    """
    came, goes = case.inputs["x"].type, case.outputs["out"].type
    stored = raw["x"].reshape(case.outputs["out"].shape)
    if came is goes:
        value = goes.decode(stored)
        return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=stored)
    x = came.decode(stored)
    bits = goes.encode(x)
    value = goes.decode(bits)
    bound = np.zeros(x.shape)
    exact = np.ones(x.shape, dtype=bool)
    if numerics.any_rounding:
        exact = (value == x) | ~np.isfinite(x)
        spacing = 2 * goes.unit_roundoff * np.exp2(np.floor(np.log2(np.maximum(np.abs(x), goes.smallest_normal))))
        bound = np.where(exact, 0.0, np.where(np.abs(x) > goes.largest, np.inf, spacing))
    if numerics.flushes_denormals:
        denormal = _is_denormal(x, came) | _is_denormal(x, goes)
        exact = exact & ~denormal
        bound = np.where(denormal, np.maximum(bound, np.abs(x)), bound)
    return Expected(np.where(exact, value, x), bound, exact=exact, bits=bits)


def _is_denormal(x: F64, dtype: DType) -> Mask:
    """Which elements are denormal in their type."""
    found: Mask = (x != 0) & (np.abs(x) < dtype.smallest_normal)
    return found


def check(case: Case) -> None:
    """Raises `CaseError` unless the output has as many elements as x and a type that x converts to."""
    x, out = case.inputs["x"], case.outputs["out"]
    if x.size != out.size:
        raise CaseError(f"out has {out.size} elements; it must have as many as x, {x.size}")
    if x.type.is_float != out.type.is_float:
        raise CaseError(f"x is {x.dtype} and out {out.dtype}; cpy converts between {', '.join(FLOATS)} only")
    if case.inplace is not None:
        raise CaseError("case.inplace must be null: cpy does not work in place")


@st.composite
def problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Tensors of any sizes into the same elements in another shape; shrinks to one element of the same type."""
    outs = freedom.choices("dtype", moves.DTYPES)
    types = [pair for pair in freedom.choices("types", TYPES) if pair.partition("-")[2] in outs]
    came, _, dtype = draw(st.sampled_from(types)).partition("-")
    shape = draw(rows(freedom, 4))
    turned = draw(st.integers(0, 3))
    shape = (*shape[turned:], *shape[:turned])
    i3, i2, i1, i0 = shape
    flat, merged = (1, 1, 1, i3 * i2 * i1 * i0), (1, i3, i2, i1 * i0)
    out = draw(st.sampled_from((shape, flat, merged, shape[::-1])))
    return Problem({}, dtype, {"x": shape}, out, dtypes={"x": came})


def traits(case: Case) -> dict[str, str]:
    """types: those of x and of the output, as in "f32-f16"."""
    return {"types": f"{case.inputs['x'].dtype}-{case.dtype}"}


def hypotheses(image: Image) -> Iterator[Hypothesis]:
    """Faults of CPY's own: conversions that cut off, saturate or go through another type."""
    case = image.case
    came, goes = case.inputs["x"].type, case.outputs["out"].type
    if came is not goes and goes.name != "f32":
        yield Hypothesis("conversions cut off instead of rounding", partial(image.with_expect, _truncated))
        yield Hypothesis("conversions saturate instead of giving infinities", partial(image.with_expect, _saturated))
    if {came.name, goes.name} == {"f32", "bf16"} or came.name == goes.name == "bf16":
        yield Hypothesis("elements go through f16 on their way", partial(image.with_expect, _through_f16))


def _bits(bits: Raw, goes: DType) -> Expected:
    value = goes.decode(bits)
    return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=bits)


def _truncated(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """Rounded toward zero: the nearest element, or the one below it in magnitude (their bits are neighbours)."""
    goes = case.outputs["out"].type
    x = case.inputs["x"].type.decode(raw["x"].reshape(case.outputs["out"].shape))
    near = goes.encode(x)
    beyond = np.abs(goes.decode(near)) > np.abs(x)
    return _bits(np.where(beyond, near - 1, near).astype(goes.raw), goes)


def _saturated(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    goes = case.outputs["out"].type
    x = case.inputs["x"].type.decode(raw["x"].reshape(case.outputs["out"].shape))
    return _bits(goes.encode(np.where(np.isfinite(x), np.clip(x, -goes.largest, goes.largest), x)), goes)


def _through_f16(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    goes = case.outputs["out"].type
    x = case.inputs["x"].type.decode(raw["x"].reshape(case.outputs["out"].shape))
    return _bits(goes.encode(DTYPES["f16"].decode(DTYPES["f16"].encode(x))), goes)


def sources(case: Case) -> dict[str, moves.Places]:
    """The output's elements are those of x in flat order; nothing is told where a number that names one is rounded."""
    return {"x": moves.flat(case.outputs["out"])} if case.inputs["x"].type is case.outputs["out"].type else {}


OP = Op(
    name="cpy",
    summary="the elements of x, in flat order, in another shape and type",
    inputs=("x",),
    params={},
    dtypes=moves.DTYPES,
    argument_dtypes={"x": moves.DTYPES},
    problems=problems,
    expect=expect,
    bound="the bits of x where the type stays or holds the value, else one rounding to nearest even",
    check=check,
    traits=traits,
    hypotheses=hypotheses,
    sources=sources,
    copies=True,
)
