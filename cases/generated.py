"""Ops whose output follows from numbers, not from elements: ARANGE, FILL and TIMESTEP_EMBEDDING."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
from hypothesis import strategies as st

from opconform.cases.families.choices import check_params, choice, drawn_params, types_of
from opconform.cases.shapes import check_out, is_aligned, tensors
from opconform.harness.draw.strategies import (
    among,
    as_many,
    composite,
    counts,
    inner_sizes,
    lengths,
    rare_forms,
    scales,
)
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.dtypes import DTYPES, F32, F64, Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.image import Hypothesis, Image
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem, Sizes


def _exactly(values: F64, numerics: Numerics) -> Approx:
    """Numbers that every kernel has as they are."""
    return Approx(values, values, values, numerics)


# --- ARANGE ---

_MOST = 1 << 24  #: float32 counts no further


def arange(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out_i = start + i·step: a product and a sum, fused or not.

    The parameters are float32, and i up to 2^24 is one: u·|i·step| of the product, then u of the sum (Higham 2002,
    eq. 2.4). A kernel that adds up steps is off by i of these roundings, and is not right.
    """
    start, step = np.float32(case.params["start"]), np.float32(case.params["step"])
    i = _exactly(np.arange(case.outputs["out"].size, dtype=np.float64).reshape(case.outputs["out"].shape), numerics)
    return (i * float(step) + float(start)).stored(F32, case.outputs["out"].shape)


def steps(start: float, stop: float, step: float) -> int:
    """How many numbers there are from `start` up to `stop`, without it: ⌈(stop − start) / step⌉, in float32."""
    with np.errstate(all="ignore"):
        found = np.ceil((np.float32(stop) - np.float32(start)) / np.float32(step))
    return int(found) if np.isfinite(found) else -1


def _check_arange(case: Case) -> None:
    start, stop, step = (float(case.params[name]) for name in ("start", "stop", "step"))
    if not start < stop or step <= 0 or not np.isfinite([start, stop, step]).all():
        raise CaseError(f"start is {start}, stop {stop}, step {step}; stop must be above start, and step above 0")
    n = steps(start, stop, step)
    if not 1 <= n <= _MOST:
        raise CaseError(f"from {start} to {stop} in steps of {step} there are {n} numbers; from 1 to {_MOST} can be")
    check_out(case, (1, 1, 1, n))


def _arange_sizes(case: Case) -> Sizes:
    """How many numbers there are: `stop` follows, half a step after the last one."""
    start, step = (float(case.params[name]) for name in ("start", "step"))

    def made(its: Mapping[str, int]) -> tuple[dict[str, tuple[int, ...]], dict[str, Param]]:
        return {"out": (1, 1, 1, its["n"])}, {"stop": float(np.float32(start + step * (its["n"] - 0.5)))}

    return Sizes({"n": case.outputs["out"].shape[3]}, made)


@composite
def _arange_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Ranges that end on a step and between two, now and then long ones; shrinks to one number."""
    long = draw(rare_forms("long")) == "long"
    n = min(draw(lengths() if long else inner_sizes(draw(scales()))), max(freedom.max_bytes // 64, 1))
    start = draw(among((0.0, 1.0, -3.0, 0.1, 1000.0, 2.0**20)))
    step = draw(among((1.0, 2.0, 0.5, 0.1, 3.0, 7.25)))
    stop = float(np.float32(start + step * (n - draw(among((0.0, 0.5))))))
    if stop <= start:
        stop = start + step
    n = steps(start, stop, step)
    return Problem({"start": start, "stop": stop, "step": step}, "f32", {}, (1, 1, 1, n))


def _arange_faults(image: Image) -> Iterator[Hypothesis]:
    params = {name: float(value) for name, value in image.case.params.items()}
    if params["start"]:
        yield Hypothesis("start is left out", partial(image.with_params, start=0.0))
    if params["step"] != 1:
        yield Hypothesis("step is left out", partial(image.with_params, step=1.0))
    yield Hypothesis("it counts from 1", partial(image.with_params, start=params["start"] + params["step"]))


# --- FILL ---

_VALUE = {"value": choice(1.0, 0.0, -2.0, 0.1, 65504.0, 1e-3, -0.0, 3.5, -1e4, 0.3)}


def fill(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """Every element is `value`: a float32, rounded once to the type of the output."""
    out = case.outputs["out"]
    value = np.full(out.shape, float(np.float32(case.params["value"])))
    return _exactly(value, numerics).stored(out.type, out.shape)


def _check_fill(case: Case) -> None:
    check_params(case, _VALUE)
    if case.inplace is None:
        check_out(case, case.inputs["x"].shape)
    elif case.outputs["out"].shape != case.inputs["x"].shape:
        raise CaseError("out must have the shape of x")


@composite
def _fill_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Any shape; shrinks to one element."""
    dtype = draw(among(freedom.choices("dtype", ("f32", "f16"))))
    shape = draw(tensors(freedom, DTYPES[dtype].itemsize))
    inplace = draw(among(freedom.choices("inplace", (False, False, True))))
    return Problem(draw(drawn_params(freedom, _VALUE)), dtype, {"x": shape}, shape, "x" if inplace else None)


def _fill_faults(image: Image) -> Iterator[Hypothesis]:
    for value in (0.0, 1.0):
        yield Hypothesis(f"every element is {value:g}", partial(image.with_params, value=value))


# --- TIMESTEP_EMBEDDING ---

_LONGEST = 1 << 16


def timestep_embedding(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    """out[i, j] = cos(t_i·f_j) and out[i, h + j] = sin(t_i·f_j) for j below h = ⌊dim / 2⌋, f_j = period^(−j / h).

    The last element of a row of odd length is 0. A kernel has f_j = e^(−ln(period)·j / h): the roundings of ln, of a
    product, of a division and of e^x are carried through (`Approx`), and so is the product with t_i. What they amount
    to is an angle, by which sine and cosine are off at most.
    """
    return _embedded(case, raw, numerics, "cos sin")


def _embedded(case: Case, raw: Mapping[str, Raw], numerics: Numerics, order: str) -> Expected:
    """`order`: which half of a row is which."""
    x, out, period = case.inputs["x"], case.outputs["out"], float(case.params["max_period"])
    half = int(case.params["dim"]) // 2
    value, bound = np.zeros(out.shape), np.zeros(out.shape)
    if half:
        j = _exactly(np.arange(half, dtype=np.float64), numerics)
        log = _exactly(np.full(half, period), numerics).log()
        rates = ((-log) * j / float(half)).exp().either((-log * (j / float(half))).exp())
        angle = Approx.of(x.type.decode(raw["x"]).reshape(-1, 1), x.type, numerics) * rates
        for part, name in enumerate(order.split()):
            wave = (angle.cos() if name == "cos" else angle.sin()).stored(F32, (x.size, half))
            value[0, 0, :, part * half : (part + 1) * half] = wave.value
            bound[0, 0, :, part * half : (part + 1) * half] = wave.bound
    return Expected(value, bound)


def _other_order(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
    return _embedded(case, raw, numerics, "sin cos")


def _check_time(case: Case) -> None:
    x, dim, period = case.inputs["x"].shape, int(case.params["dim"]), int(case.params["max_period"])
    if x[:3] != (1, 1, 1):
        raise CaseError(f"x has shape {x}; it must have one row")
    if not 1 <= dim <= _LONGEST or not 1 <= period <= 1 << 24:
        raise CaseError(f"dim is {dim} and max_period {period}; from 1 to {_LONGEST}, and from 1 to {1 << 24}")
    check_out(case, (1, 1, x[3], dim))


@composite
def _time_problems(draw: st.DrawFn, freedom: Freedom) -> Problem:
    """Rows of even and odd length for some times, now and then for many; shrinks to one row of one element."""
    dim, n = draw(inner_sizes(draw(scales()))), draw(inner_sizes(33))
    if draw(rare_forms("many")) == "many":
        dim = draw(among((1, 2, 3, 4)))
        n = as_many(draw(counts()), dim, freedom)
    period = draw(among((10000, 1, 2, 1000)))
    n = min(n, max(freedom.max_bytes // 64 // dim, 1))
    return Problem({"dim": dim, "max_period": period}, "f32", {"x": (1, 1, 1, n)}, (1, 1, n, dim))


def _time_faults(image: Image) -> Iterator[Hypothesis]:
    yield Hypothesis("the sines stand before the cosines", partial(image.with_expect, _other_order))
    if image.case.params["max_period"] != 1:
        yield Hypothesis("max_period is left out", partial(image.with_params, max_period=1))
    x = image.raw["x"]
    if x.shape[3] > 1:
        first = np.ascontiguousarray(np.broadcast_to(x[..., :1], x.shape))
        yield Hypothesis("every row is that of the first time", partial(image.with_inputs, x=first))


_ARANGE: Expect = arange
OPS = (
    Op(
        name="arange",
        summary="the numbers from start up to stop, without it, in steps",
        inputs=(),
        params={"start": float, "stop": float, "step": float},
        dtypes=("f32",),
        problems=_arange_problems,
        expect=_ARANGE,
        bound="u·|i·step| + u·|out|",
        check=_check_arange,
        alone=lambda case: "it has one slice",
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=_arange_faults,
        sizes=_arange_sizes,
    ),
    Op(
        name="fill",
        summary="one value everywhere",
        inputs=("x",),
        params=types_of(_VALUE),
        dtypes=("f32", "f16"),
        problems=_fill_problems,
        expect=fill,
        bound="one rounding to the type of the output",
        check=_check_fill,
        alone=lambda case: (0, 1),
        traits=lambda case: {"aligned": is_aligned(case)},
        shape_only=("x",),
        hypotheses=_fill_faults,
    ),
    Op(
        name="timestep_embedding",
        summary="cosines and sines of times, at frequencies that fall from 1 to 1 / max_period",
        inputs=("x",),
        params={"dim": int, "max_period": int},
        dtypes=("f32",),
        problems=_time_problems,
        expect=timestep_embedding,
        bound="the rounding of each step, carried through the formula",
        check=_check_time,
        alone=lambda case: "it has one slice",
        traits=lambda case: {"aligned": is_aligned(case)},
        hypotheses=_time_faults,
    ),
)
