"""The references of the small ops against slow scalar loops written from each op's definition."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from math import isqrt

import numpy as np
import pytest

from opconform.cases.families.gathers import SELDOM
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout
from tests.judge import Bench
from tests.unit.test_reference import gamma, no_order_rounds, places, reader, small


def moved(case: Case, bench: Bench) -> np.ndarray:
    """The output's raw elements, one after the other, as the op's definition names them."""
    x, params = bench.values["x"], case.params
    out = np.zeros(case.outputs["out"].shape, x.dtype)
    for flat, (i3, i2, i1, i0) in enumerate(places(out.shape)):
        place: tuple[int, ...] | None = (i3, i2, i1, i0)
        if case.op == "tri":
            kept = {"lower": i0 < i1, "lower_diag": i0 <= i1, "upper": i0 > i1, "upper_diag": i0 >= i1}
            place = place if kept[str(params["kind"])] else None
        elif case.op == "diag":
            place = (i3, i2, 0, i0) if i0 == i1 else None
        elif case.op == "pad":
            index = [i - int(params[f"lp{k}"]) for k, i in ((3, i3), (2, i2), (1, i1), (0, i0))]
            place = tuple(index) if all(0 <= i < n for i, n in zip(index, x.shape)) else None
        elif case.op == "cpy":
            place = tuple(int(i) for i in np.unravel_index(flat, x.shape))
        if place is not None:
            out[i3, i2, i1, i0] = x[place]
    return out


@pytest.mark.parametrize("op", ["tri", "diag", "pad", "cont"])
def test_every_element_that_is_moved_keeps_its_bits_and_the_others_are_zero(op: str) -> None:
    for case in small(op, 250, 200):
        bench = Bench(case)
        got = bench.expected()
        assert got.exact is not None
        assert got.exact.all()
        assert np.array_equal(got.bits, moved(case, bench))


def nearest(x: float, dtype: str) -> float:
    """The number of an f16 or bf16 nearest to x, ties to even, from their definition: m·2^e, |m| < 2^p."""
    if dtype in ("f32", "i32") or not np.isfinite(x) or x == 0:
        return x
    precision, least, largest = {"f16": (11, -24, 65504.0), "bf16": (8, -133, DTYPES["bf16"].largest)}[dtype]
    exact = Fraction(x)
    exponent = max(int(np.frexp(x)[1]) - precision, least)
    scaled = exact / Fraction(2) ** exponent
    rounded = Fraction(round(scaled)) * Fraction(2) ** exponent  # Python rounds halves to even
    if abs(rounded) > Fraction(largest):
        return float(np.copysign(np.inf, x))
    return float(rounded)


def test_a_conversion_gives_the_nearest_number_and_of_two_the_even_one() -> None:
    seen = set()
    for case in small("cpy", 1380, 200):
        if case.dtype in SELDOM:  # which nothing converts
            continue
        bench = Bench(case)
        got, x = bench.expected(), reader(bench, "x")
        came = [x(*place) for place in places(case.inputs["x"].shape)]
        want = np.array([nearest(value, case.dtype) for value in came]).reshape(got.value.shape)
        assert np.array_equal(got.value, want, equal_nan=True), case
        if case.inputs["x"].dtype == case.dtype:
            assert np.array_equal(got.bits, moved(case, bench))
        seen.add((case.inputs["x"].dtype, case.dtype))
    assert len(seen) == 10


@pytest.mark.parametrize(
    ("dtype", "x", "bits"),
    [
        ("f16", 2049.0, 0x6800),  # a tie: 2048
        ("f16", 2051.0, 0x6802),  # a tie: 2052
        ("f16", 65519.996, 0x7BFF),
        ("f16", 65520.0, 0x7C00),
        ("f16", 2.0**-25, 0x0000),  # a tie between 0 and the smallest denormal
        ("f16", 1.5 * 2.0**-24, 0x0002),
        ("f16", -0.0, 0x8000),
        ("bf16", 257.0, 0x4380),
        ("bf16", 259.0, 0x4382),
        ("bf16", 3.396e38, 0x7F7F),
        ("bf16", 3.397e38, 0x7F80),
        ("bf16", -3.0e38, 0xFF62),
        ("bf16", float("nan"), 0x7FC0),
    ],
)
def test_edges_of_conversions(dtype: str, x: float, bits: int) -> None:
    layout = Layout.contiguous("f32", (1, 1, 1, 1))
    case = Case("cpy", {}, {"x": layout}, {"out": replace(layout, dtype=dtype, strides=(2, 2, 2, 2))})
    bench = Bench(case.with_data({"x": struct.pack("<f", x)}))
    found = bench.expected().bits
    assert found is not None
    assert int(found[0, 0, 0, 0]) == bits


def test_row_sums_are_exact_to_float64() -> None:
    for case in small("sum_rows", 200, 200):
        bench = Bench(replace(case, keep=None))
        x, expected = reader(bench, "x"), bench.expected()
        for place in places(expected.value.shape):
            terms = [Fraction(x(*place[:3], i)) for i in range(case.inputs["x"].shape[3])]
            size = sum(map(abs, terms), Fraction(0))
            assert abs(Fraction(float(expected.value[place])) - sum(terms, Fraction(0))) <= size * Fraction(1, 2**48)
            additions, both = gamma(len(terms) - 1), abs(sum(terms, Fraction(0))) + size
            demanded = Fraction(0) if no_order_rounds(terms) else additions * size
            if len(terms) > 5:  # what an addition rounds lies below the half of `both`
                of_each = (len(terms) - 1) * Fraction(1, 2**24)
                demanded = min(demanded, of_each * (both / 2 + additions * size))
            assert abs(Fraction(float(expected.bound[place])) - demanded) <= demanded * Fraction(1, 2**40)


def test_convolutions_are_exact_to_float64() -> None:
    for case in small("ssm_conv", 200, 150):
        bench = Bench(replace(case, keep=None))
        x, c, got = reader(bench, "x"), reader(bench, "c"), bench.expected()
        for place in places(got.value.shape):
            _, s, t, i = place
            taps = range(case.inputs["c"].shape[3])
            terms = [Fraction(x(0, s, i, t + j)) * Fraction(c(0, 0, i, j)) for j in taps]
            size = sum(map(abs, terms), Fraction(0))
            assert abs(Fraction(float(got.value[place])) - sum(terms, Fraction(0))) <= size * Fraction(1, 2**48)
            bound = Fraction(float(got.bound[place]))
            assert (bound == 0) if no_order_rounds(terms) else (bound >= len(terms) * size / 2**24)


def root(x: Fraction) -> Fraction:
    """√x to 200 bits."""
    return Fraction(isqrt(int(x * 4**400)), 2**400)


def test_norms_are_exact_to_float64() -> None:
    for case in small("l2_norm", 200, 120):
        bench = Bench(replace(case, keep=None))
        x, got, eps = reader(bench, "x"), bench.expected(), Fraction(float(case.params["eps"]))
        for i3, i2, i1 in places(case.inputs["x"].shape[:3]):
            row = [Fraction(x(i3, i2, i1, i0)) for i0 in range(case.inputs["x"].shape[3])]
            squares = sum((term * term for term in row), Fraction(0))
            divisor = max(root(squares), eps) if case.params["eps_mode"] == "max" else root(squares + eps)
            for i0, term in enumerate(row):
                value = float(got.value[i3, i2, i1, i0])
                if divisor == 0:
                    assert np.isnan(value)
                else:
                    assert abs(Fraction(value) - term / divisor) <= abs(term / divisor) * Fraction(1, 2**46)
