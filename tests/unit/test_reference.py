"""The references against slow scalar loops written from each op's definition, reading the arena byte by byte."""

from __future__ import annotations

import functools
import itertools
import operator
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F32
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.values import inputs_of
from tests.judge import OPS, Bench, drawn_cases

Read = Callable[..., float]
SIGNED = {"f32": "<f", "f16": "<e", "i32": "<i"}


def reader(bench: Bench, name: str) -> Read:
    """Reads one element of an argument, by its index outermost first, from the bytes a backend gets."""
    layout, start = bench.case.layouts[name], bench.plan.slots[name].start

    def read(*index: int) -> float:
        place = start + layout.offset + sum(i * stride for i, stride in zip(index, layout.strides))
        if layout.dtype == "bf16":
            return float(struct.unpack("<f", b"\0\0" + bench.before[place : place + 2].tobytes())[0])
        return float(struct.unpack_from(SIGNED[layout.dtype], bench.before.data, place)[0])

    return read


def places(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(size) for size in shape))


def small(op: str, count: int, limit: int) -> list[Case]:
    """Drawn cases of at most `limit` elements an argument; the parameters as often as they come."""
    cases = [case for case in drawn_cases(op, 2400, 1 << 12) if max(x.size for x in case.layouts.values()) <= limit]
    assert len(cases) >= count
    return cases[:count]


def fits_float32(x: Fraction) -> bool:
    """Whether x is m·2^e with |m| < 2^24 and e from −149 on."""
    scaled = x * 2**149
    odd = abs(scaled.numerator)
    return scaled.denominator == 1 and odd // max(odd & -odd, 1) < 2**24


def float32_holds_sum(one: float, other: float) -> bool:
    return bool(np.isfinite(one + other)) and fits_float32(Fraction(one) + Fraction(other))


def no_order_rounds(terms: Sequence[Fraction]) -> bool:
    """Whether all terms are multiples of one power of two, and the sum of their magnitudes is at most 2^24 of it."""
    unit = max((term.denominator for term in terms), default=1)
    whole = [int(abs(term) * unit) for term in terms]
    bits = functools.reduce(operator.or_, whole, 0)
    last = bits & -bits
    return (sum(whole) <= last << 24 and last * 2**149 >= unit) or not any(whole)


def gamma(n: int) -> Fraction:
    """n·u / (1 − n·u) (Higham 2002, lemma 3.1), and 0 for less than one operation."""
    return Fraction(max(n, 0), 2**24 - max(n, 0))


def view_loop(case: Case, bench: Bench, combine: Callable[[float, float], float]) -> np.ndarray:
    """out = a; then, for each element of b, the element of `a` whose byte in a packed tensor the view names."""
    a, b, size = reader(bench, "a"), reader(bench, "b"), case.inputs["a"].type.itemsize
    flat = [a(*place) for place in places(case.inputs["a"].shape)]
    nb1, nb2, nb3, offset = (int(case.params[name]) for name in ("nb1", "nb2", "nb3", "offset"))
    for i3, i2, i1, i0 in places(case.inputs["b"].shape):
        target = (offset + i0 * size + i1 * nb1 + i2 * nb2 + i3 * nb3) // size
        flat[target] = combine(flat[target], b(i3, i2, i1, i0))
    return np.array(flat).reshape(case.inputs["a"].shape)


@pytest.mark.parametrize("op", ["acc", "set"])
def test_a_view_of_the_output_is_added_to_or_written(op: str) -> None:
    for case in small(op, 300, 300):
        bench = Bench(case)
        want = view_loop(case, bench, (lambda old, new: old + new) if op == "acc" else (lambda old, new: new))
        got = bench.expected()
        assert np.array_equal(got.value, want, equal_nan=True)
        assert got.exact is not None
        if op == "set":
            assert got.exact.all()
            assert (got.bound == 0).all()
        else:
            one, two = (view_loop(case, bench, lambda old, new, mark=mark: mark) for mark in (1.0, 2.0))
            touched = (one == 1) & (two == 2)
            zeros = touched & (view_loop(case, bench, lambda old, new: 1.0 if old == new == 0 else 0.0) == 1)
            assert np.array_equal(got.exact, ~touched | zeros)
            held = touched & (view_loop(case, bench, float32_holds_sum) == 1) & (np.abs(want) <= F32.largest)
            rounded = np.where(np.abs(want) > F32.largest, np.inf, np.abs(want) * 2.0**-24)
            assert np.array_equal(got.bound, np.where(touched & ~held, rounded, 0.0), equal_nan=True)


def test_set_keeps_the_bits_of_what_it_copies() -> None:
    for case in small("set", 200, 300):
        bench = Bench(case)
        bits = bench.expected().bits
        assert bits is not None
        want = bench.values["a"].copy().reshape(-1)
        size = case.inputs["a"].type.itemsize
        nb = [int(case.params[name]) for name in ("nb3", "nb2", "nb1")]
        for place in places(case.inputs["b"].shape):
            byte = int(case.params["offset"]) + size * place[3] + sum(i * step for i, step in zip(place, nb))
            want[byte // size] = bench.values["b"][place]
        assert np.array_equal(bits.reshape(-1), want)


def test_prefix_sums_are_exact_to_float64() -> None:
    choices = list(itertools.product(range(4), (False, True), (False, True)))
    for case, (along, exclusive, reverse) in zip(small("cumsum", 320, 120), choices * 20):
        params = {"axis": along, "exclusive": exclusive, "reverse": reverse}
        case = replace(case, params=params, keep=None)
        bench = Bench(case)
        x, expected = reader(bench, "x"), bench.expected()
        shape, axis = case.inputs["x"].shape, 3 - int(case.params["axis"])
        for place in places(shape):
            own = place[axis]
            reached = range(own, shape[axis]) if reverse else range(own + 1)
            terms = [j for j in reached if not (exclusive and j == own)]
            column = [Fraction(x(*place[:axis], j, *place[axis + 1 :])) for j in terms]
            want, size = sum(column, Fraction(0)), sum(map(abs, column), Fraction(0))
            assert abs(Fraction(float(expected.value[place])) - want) <= size * Fraction(1, 2**48)
            demanded = Fraction(0) if no_order_rounds(column) else gamma(len(column) - 1) * size
            assert abs(Fraction(float(expected.bound[place])) - demanded) <= demanded * Fraction(1, 2**40)


def solve_loop(case: Case, bench: Bench, outer: tuple[int, int]) -> np.ndarray:
    """Substitution in rational numbers, straight from A X = B or X A = B."""
    read_a, read_b = reader(bench, "a"), reader(bench, "b")
    n, (rows, columns) = case.inputs["a"].shape[-1], case.inputs["b"].shape[-2:]
    lower, unit, left = (bool(case.params[name]) for name in ("lower", "unit", "left"))

    def a(i: int, j: int) -> Fraction:
        """A's element, a read one only."""
        if i == j and unit:
            return Fraction(1)
        assert i == j or (i > j) == lower
        return Fraction(read_a(*outer, i, j))

    x = [[Fraction(0)] * columns for _ in range(rows)]
    if left:  # row i of A: sum over j of a(i, j) x[j][c] = b[i][c]
        for i in range(n) if lower else reversed(range(n)):
            known = range(i) if lower else range(i + 1, n)
            for c in range(columns):
                rest = Fraction(read_b(*outer, i, c)) - sum((a(i, j) * x[j][c] for j in known), Fraction(0))
                x[i][c] = rest / a(i, i)
    else:  # column j of A: sum over i of x[r][i] a(i, j) = b[r][j]
        for j in reversed(range(n)) if lower else range(n):
            known = range(j + 1, n) if lower else range(j)
            for r in range(rows):
                rest = Fraction(read_b(*outer, r, j)) - sum((x[r][i] * a(i, j) for i in known), Fraction(0))
                x[r][j] = rest / a(j, j)
    return np.array([[float(value) for value in row] for row in x]).reshape(rows, columns)


def test_solutions_are_those_of_rational_substitution() -> None:
    seen = set()
    for case in small("solve_tri", 250, 150):
        case = replace(case, keep=None)
        if case.inputs["a"].shape[-1] > 7:
            continue
        bench = Bench(case)
        got = bench.expected().value
        for outer in places(case.inputs["a"].shape[:2]):
            want = solve_loop(case, bench, outer)  # type: ignore[arg-type]
            np.testing.assert_allclose(got[outer], want, rtol=1e-11, atol=2.0**-1000)
        seen.add((case.params["left"], case.params["lower"], case.params["unit"]))
    assert len(seen) == 8


def test_the_residual_of_the_exact_solution_is_next_to_nothing_and_its_bound_is_not() -> None:
    for case in small("solve_tri", 150, 150):
        bench = Bench(replace(case, keep=None))
        expected = bench.expected()
        judge = OPS["solve_tri"].composite.judge
        assert judge is not None
        residual = judge(bench.case, bench.values, expected, expected.value, EXACT)
        assert (residual.error <= residual.bound * 2.0**-20).all()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("lower", [False, True])
def test_the_other_triangle_does_not_reach_the_reference(left: bool, lower: bool) -> None:
    a, b = Layout.contiguous("f32", (1, 1, 4, 4)), Layout.contiguous("f32", (1, 1, 4, 4))
    params = {"left": left, "lower": lower, "unit": True}
    case = Case("solve_tri", params, {"a": a, "b": b}, {"out": b}, recipe="normal")
    values = inputs_of(case, OPS["solve_tri"])
    assert np.isnan(F32.decode(values["a"])).sum() == 10
    one = Bench(case, values).expected().value
    triangle = np.tri(4, 4, -1, dtype=bool) if lower else np.tri(4, 4, -1, dtype=bool).T
    other = {**values, "a": np.where(triangle, values["a"], np.uint32(0))}
    assert np.array_equal(one, Bench(case, other).expected().value)
    assert np.isfinite(one).all()
