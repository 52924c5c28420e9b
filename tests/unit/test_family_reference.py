"""The families' references against slow scalar loops written from each op's definition, and what their rows check."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from opconform.cases.families import choice, elementwise, gather, row_op
from opconform.cases.families.gathers import flat
from opconform.cases.shapes import tensors
from opconform.harness.draw.known import checked
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case, CaseError, Param
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT
from tests.judge import OPS, Bench, drawn_cases
from tests.unit.test_reference import places, reader, small

Params = Mapping[str, Any]


def packed(*shape: int) -> Layout:
    return Layout.contiguous("f32", shape)


# --- elements ---

ELEMENTS: dict[str, Callable[[float, Params], float]] = {
    "scale": lambda x, p: float(Fraction(x) * Fraction(p["scale"]) + Fraction(p["bias"])),
    "clamp": lambda x, p: min(max(x, p["min"]), p["max"]),
    "exp": lambda x, p: math.exp(min(x, 700.0)),
    "silu": lambda x, p: x / (1 + math.exp(min(-x, 700.0))),
}


@pytest.mark.parametrize("op", ELEMENTS)
def test_each_element_is_what_the_formula_says(op: str) -> None:
    for case in small(op, 150, 120):
        bench = Bench(replace(case, keep=None))
        x, got = reader(bench, "x"), bench.expected()
        for place in places(case.inputs["x"].shape):
            if not math.isfinite(x(*place)):  # `special` draws them: what they give is what NumPy gives
                continue
            want, value, bound = ELEMENTS[op](x(*place), case.params), got.value[place], got.bound[place]
            if math.isinf(value) or math.isinf(bound):
                assert abs(want) > 1e38 or (case.dtype == "f16" and abs(want) > 65000)
                continue
            size = abs(want) + abs(case.params.get("bias", 0.0))
            assert abs(value - want) <= 2.0**-48 * size + 1e-260, case
            width = {"f32": 2.0**-20, "f16": 2.0**-10}[case.dtype]
            least = {"f32": 2.0**-121, "f16": 2.0**-23}[case.dtype]  # x / (1 + e^−x) may be 0 once e^−x overflows
            assert bound <= width * max(abs(want), 1.0 if op == "scale" else 0.0) + least, case


@pytest.mark.parametrize(("op", "combine"), [("add", lambda a, b: a + b), ("mul", lambda a, b: a * b)])
def test_b_is_repeated_over_a_as_a_whole(op: str, combine: Callable[[Fraction, Fraction], Fraction]) -> None:
    repeated = 0
    for case in small(op, 400, 200):
        bench = Bench(replace(case, keep=None))
        a, b, got = reader(bench, "a"), reader(bench, "b"), bench.expected()
        sizes = case.inputs["b"].shape
        for place in places(case.inputs["a"].shape):
            other = tuple(i % n for i, n in zip(place, sizes))
            if not (math.isfinite(a(*place)) and math.isfinite(b(*other))):
                continue
            want = combine(Fraction(a(*place)), Fraction(b(*other)))
            if math.isfinite(got.value[place]):
                assert abs(Fraction(float(got.value[place])) - want) <= abs(want) * Fraction(1, 2**50)
        repeated += any(1 < m < n for n, m in zip(case.inputs["a"].shape, sizes))
    assert repeated > 20


# --- rows ---


def row_of(bench: Bench, place: tuple[int, ...]) -> list[Fraction]:
    x = reader(bench, "x")
    return [Fraction(x(*place, i)) for i in range(bench.case.inputs["x"].shape[3])]


def root_mean_square(row: list[Fraction], eps: float) -> tuple[list[Fraction], float]:
    return row, math.sqrt(sum((x * x for x in row), Fraction(0)) / len(row) + Fraction(eps))


def deviation(row: list[Fraction], eps: float) -> tuple[list[Fraction], float]:
    mean = sum(row, Fraction(0)) / len(row)
    apart = [x - mean for x in row]
    return apart, math.sqrt(sum((x * x for x in apart), Fraction(0)) / len(row) + Fraction(eps))


@pytest.mark.parametrize(("op", "parts"), [("rms_norm", root_mean_square), ("norm", deviation)])
def test_each_row_is_over_what_the_definition_says(
    op: str, parts: Callable[[list[Fraction], float], tuple[list[Fraction], float]]
) -> None:
    judged = 0
    for case in small(op, 150, 120):
        if case.recipe == "denormal" or not case.inputs["x"].size:
            continue
        bench = Bench(replace(case, keep=None))
        got = bench.expected()
        for place in places(case.inputs["x"].shape[:3]):
            row = row_of(bench, place)
            tops, divisor = parts(row, float(case.params["eps"]))
            for i, top in enumerate(tops):
                value, bound = float(got.value[(*place, i)]), float(got.bound[(*place, i)])
                if divisor == 0 or math.isinf(bound):
                    continue
                largest = float(max(map(abs, row)))
                assert abs(value - float(top) / divisor) <= 2.0**-44 * largest / divisor, case
                judged += 1
    assert judged > 1000


def test_the_variance_of_a_constant_row_is_no_reason_for_a_failure() -> None:
    case = Case("norm", {"eps": 1e-6}, {"x": packed(1, 1, 1, 7)}, {"out": packed(1, 1, 1, 7)})
    bench = Bench(case.with_data({"x": np.full(7, 3.3, np.float32).tobytes()}))
    assert (bench.expected(EXACT).value == 0).all() or (np.abs(bench.expected().value) < 1e-9).all()
    assert (bench.expected().bound > 1e-7).all()


# --- what a row checks ---


def a_case(op: str, params: Mapping[str, Param] | None = None, **shapes: tuple[int, ...]) -> Case:
    inputs = {name: packed(*shape) for name, shape in shapes.items() if name != "out"}
    return Case(op, params or {}, inputs, {"out": packed(*shapes["out"])})


SHAPE = (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (
            a_case("add", a=SHAPE, b=(1, 2, 3, 3), out=SHAPE),
            "b has shape (1, 2, 3, 3); repeated, it must fill that of a",
        ),
        (a_case("add", a=SHAPE, b=(1, 2, 0, 4), out=SHAPE), "repeated, it must fill"),
        (a_case("mul", a=SHAPE, b=SHAPE, out=(1, 2, 3, 1)), "out has shape (1, 2, 3, 1); mul of these inputs"),
        (replace(a_case("mul", a=SHAPE, b=SHAPE, out=SHAPE), inplace="b"), "case.inplace must be null: mul"),
        (a_case("exp", x=SHAPE, out=(1, 2, 4, 3)), "out has shape"),
        (replace(a_case("norm", {"eps": 1e-6}, x=SHAPE, out=SHAPE), inplace="x"), "norm does not work in place"),
        (a_case("norm", {"eps": -1.0}, x=SHAPE, out=SHAPE), "eps is -1.0; it must be from 0 to inf"),
        (a_case("norm", {"eps": 1e-40}, x=SHAPE, out=SHAPE), "its size must be 0 or from 1e-30 to 1e+30"),
        (a_case("l2_norm", {"eps": 1.0, "eps_mode": "mean"}, x=SHAPE, out=SHAPE), "it must be one of max, add"),
        (a_case("tri", {"kind": "left"}, x=(1, 1, 2, 2), out=(1, 1, 2, 2)), "it must be one of lower, lower_diag"),
        (a_case("tri", {"kind": "lower"}, x=SHAPE, out=SHAPE), "its last two sizes must be equal"),
        (a_case("diag", x=SHAPE, out=SHAPE), "its second last size must be 1"),
        (a_case("sum_rows", x=SHAPE, out=SHAPE), "sum_rows of these inputs and parameters gives (1, 2, 3, 1)"),
        (a_case("cpy", x=SHAPE, out=(1, 1, 1, 23)), "out has 23 elements; it must have as many as x, 24"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_one_line(case: Case, says: str) -> None:
    with pytest.raises(CaseError) as error:
        checked(case)
    assert says in str(error.value)


@pytest.mark.parametrize("op", ["add", "mul", "scale", "clamp", "exp", "silu"])
def test_elementwise_ops_work_in_place_now_and_then(op: str) -> None:
    cases = drawn_cases(op, 400, 1 << 14)
    assert 0.05 < np.mean([case.inplace is not None for case in cases]) < 0.6
    assert {OPS[op].traits(case)["inplace"] for case in cases} == {False, True}


def test_repeats_come_along_every_axis() -> None:
    kinds = set()
    for case in drawn_cases("add", 1200, 1 << 14):
        for axis, (n, m) in enumerate(zip(case.inputs["a"].shape, case.inputs["b"].shape)):
            kinds.add((axis, "whole" if m == n else "one" if m == 1 else "part"))
    assert kinds == {(axis, kind) for axis in range(4) for kind in ("whole", "one", "part")}


def test_a_row_needs_only_what_the_op_is() -> None:
    """Every family's shortest row is an op with parameters, problems, a check, hints and the place of its formula."""
    cube = elementwise("cube", "x³", lambda x: x * x * x)
    mean = row_op("mean", "the mean of each row", Approx.mean, to_one=True)
    shifted = elementwise("shifted", "x + by", lambda x, p: x + p["by"], params={"by": choice(1.0, 0.5, without=0.0)})
    backwards = gather("backwards", "x from its end", lambda case: flat(case.inputs["x"])[..., ::-1], shapes=tensors)
    assert cube.where_bound().startswith("tests/unit/test_family_reference.py:")
    assert mean.where_bound().startswith("harness/model/approx.py:")
    assert shifted.params == {"by": float}
    values = {"x": np.array([1.0, 2.0, 3.0, 4.0], np.float32).view(np.uint32).reshape(1, 1, 1, 4)}
    case = Case("cube", {"by": 0.5}, {"x": packed(1, 1, 1, 4)}, {"out": packed(1, 1, 1, 4)})
    assert cube.expect(case, values, EXACT).value.tolist() == [[[[1.0, 8.0, 27.0, 64.0]]]]
    assert shifted.expect(case, values, EXACT).value.tolist() == [[[[1.5, 2.5, 3.5, 4.5]]]]
    assert backwards.expect(case, values, EXACT).value.tolist() == [[[[4.0, 3.0, 2.0, 1.0]]]]
    one = replace(case, outputs={"out": packed(1, 1, 1, 1)})
    assert mean.expect(one, values, EXACT).value.tolist() == [[[[2.5]]]]
