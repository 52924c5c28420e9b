"""Value and error carried through a formula: no right result is outside the interval, and little more is inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from opconform.cases.activations import gelu
from opconform.harness.model.approx import Approx
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F16, F32, F64, Raw
from opconform.harness.model.numerics import EXACT, Numerics
from tests.judge import Bench, drawn_cases
from tests.kernels.odd import TowardZero, flushed, truncated

FLUSHING = Numerics(flushes_denormals=True)
ANY_ROUNDING = Numerics(any_rounding=True)
VULKAN = Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5, sqrt_ulps=5.0, exp_ulps_per_unit=2.0)
U = 2.0**-24


@pytest.fixture(autouse=True)
def _quiet() -> object:
    with np.errstate(all="ignore"):
        yield


def numbers(seed: int, count: int = 4000, span: int = 150) -> F64:
    """float32 numbers of any size, denormals and infinities to be among them, and zeros of both signs."""
    rng = np.random.default_rng(seed)
    found = np.ldexp(rng.uniform(-2, 2, count), rng.integers(-span, min(span, 127), count)).astype(np.float32)
    found[:2] = 0.0, -0.0
    return found.astype(np.float64)


def of(values: F64, numerics: Numerics = EXACT) -> Approx:
    return Approx.of(values, F32, numerics)


def contains(interval: Approx, results: np.ndarray) -> bool:
    """Whether every result is inside, or nothing is demanded there."""
    results = results.astype(np.float64)
    free = np.isnan(interval.low) | np.isnan(interval.high)
    return bool(((results >= interval.low) & (results <= interval.high) | free).all())


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9, 64])
def test_each_row_is_summed_by_itself_whether_it_is_short_or_long(n: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.integers(-9, 10, (40, n)).astype(np.float64)
    values[::2] *= 1 + 2.0**-23 * rng.integers(1, 1 << 20, (20, n))  # numbers whose sums round
    values[1] = 0.0
    found = of(values.astype(np.float32).astype(np.float64)).sum()
    assert np.allclose(found.value[:, 0], values.astype(np.float32).astype(np.float64).sum(-1), rtol=1e-12, atol=1e-9)
    exact = (found.low == found.high)[:, 0]
    assert exact[1::2].all()
    assert n < 3 or not exact[::2].all()
    assert n > 1 or exact.all()


def test_a_sum_may_round_though_its_first_element_is_whole() -> None:
    found = of(np.array([[4.0, 2.0**-23, 2.0**-30], [4.0, 2.0, 1.0]])).sum()
    assert found.low[0, 0] < found.value[0, 0] < found.high[0, 0]
    assert found.low[1, 0] == found.value[1, 0] == found.high[1, 0]


# --- no false alarm: single operations ---

TWO = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "subtract": (lambda a, b: a - b, lambda a, b: a - b),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b),
    "divide": (lambda a, b: a / b, lambda a, b: a / b),
    "divide by a reciprocal": (lambda a, b: a / b, lambda a, b: a * (np.float32(1) / b)),
    "minimum": (lambda a, b: a.minimum(b), np.minimum),
    "maximum": (lambda a, b: a.maximum(b), np.maximum),
}


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("span", [4, 60, 150])
def test_a_result_of_float32_is_inside(name: str, span: int) -> None:
    formula, kernel = TWO[name]
    a, b = numbers(1, span=span), numbers(2, span=span)
    single = a.astype(np.float32), b.astype(np.float32)
    computed = kernel(*single)
    if "reciprocal" in name:  # 1/b overflows: such a kernel is wrong
        computed = np.where(np.isinf(np.float32(1) / single[1]), single[0] / single[1], computed)
    assert contains(formula(of(a), of(b)), computed)
    assert contains(formula(of(a), of(b)), formula_in_float64(formula, a, b))


def formula_in_float64(formula: Callable[..., Approx], a: F64, b: F64) -> F64:
    return np.array(formula(of(a), of(b)).value)


@pytest.mark.parametrize("span", [4, 60, 150])
def test_a_result_that_is_flushed_is_inside(span: int) -> None:
    a, b = numbers(3, span=span), numbers(4, span=span)
    one, other = flushed(a.astype(np.float32)), flushed(b.astype(np.float32))
    for formula, kernel in (TWO["add"], TWO["multiply"], TWO["divide"], TWO["divide by a reciprocal"]):
        found = formula(of(a, FLUSHING), of(b, FLUSHING))
        computed = flushed(kernel(one, other))
        reciprocal_overflows = np.isinf(np.float32(1) / other)
        assert contains(found, np.where(reciprocal_overflows, found.value, computed))


@pytest.mark.parametrize("span", [4, 60, 120])
def test_a_result_that_is_rounded_either_way_is_inside(span: int) -> None:
    a, b = numbers(5, span=span), numbers(6, span=span)
    kernel = TowardZero()
    one, other = a.astype(np.float32), b.astype(np.float32)
    for formula, computed in (
        (TWO["add"][0], kernel.added(one, other)),
        (TWO["multiply"][0], kernel.multiplied(one, other)),
        (TWO["divide"][0], kernel.divided(one, other)),
    ):
        found = formula(of(a, ANY_ROUNDING), of(b, ANY_ROUNDING))
        finite = np.isfinite(computed)
        assert contains(found, np.where(finite, computed, found.value))


FUNCTIONS: Mapping[str, tuple[Callable[[Approx], Approx], Callable[[F64], F64], float, float]] = {
    "sqrt": (Approx.sqrt, np.sqrt, 0.5, 0.0),
    "rsqrt": (Approx.rsqrt, lambda x: 1 / np.sqrt(x), 2.0, 0.0),
    "exp": (Approx.exp, np.exp, 3.0, 0.0),
    "log": (Approx.log, np.log, 3.0, 0.0),
    "tanh": (Approx.tanh, np.tanh, 5.0, 0.0),
    "erf": (Approx.erf, np.vectorize(math.erf, otypes=[np.float64]), 16.0, 0.0),
    "sin": (Approx.sin, np.sin, 4.0, 0.0),
    "cos": (Approx.cos, np.cos, 4.0, 0.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_may_be_off_by_its_units_and_by_no_more_than_twice_as_many(name: str) -> None:
    """A unit in the last place is between 2^-24 and 2^-23 of a number, and the bound has the larger."""
    formula, exact, ulps, _ = FUNCTIONS[name]
    x = np.abs(numbers(7, span=6)[2:])
    right = exact(x)
    assert contains(formula(of(x)), right)
    spacing = np.spacing(np.abs(right).astype(np.float32)).astype(np.float64)
    usual = (np.abs(right) > 2.0**-100) & np.isfinite(right.astype(np.float32))
    for sign in (-1, 1):
        assert contains(formula(of(x)), np.where(usual, right + sign * ulps * spacing * 0.99, right))
        off = right + sign * (2 * ulps + 1.01) * spacing
        found = formula(of(x))
        outside = (off < found.low) | (off > found.high)
        assert outside[usual & (np.abs(right) < 1e30)].all()


def test_the_absolute_error_of_a_function_counts_where_it_is_more() -> None:
    x = np.array([1e-6, 0.1, 3.0])
    loose = Numerics(tanh_absolute=1e-5)
    found = of(x, loose).tanh()
    assert (found.high - found.value >= 1e-5 * 0.999).all()
    near_one = of(np.array([0.999, 1.001, 5.0]), Numerics(log_absolute=2.0**-21)).log()
    assert (near_one.high - near_one.value)[:2] == pytest.approx(2.0**-21)
    assert (near_one.high - near_one.value)[2] < 2.0**-20


def test_exp_as_a_power_of_two_is_inside_where_the_device_declares_it() -> None:
    x = np.linspace(-87, 88, 5000).astype(np.float32).astype(np.float64)
    power = np.exp2((x.astype(np.float32) * np.float32(np.log2(np.e))).astype(np.float64)).astype(np.float32)
    assert not contains(of(x).exp(), power)
    assert contains(of(x, Numerics(exp_ulps_per_unit=1.0)).exp(), power)


# --- no false alarm: chains of operations, every step rounded at random ---


def at_random(rng: np.random.Generator, exact: F64) -> F64:
    """One of the two float32 neighbours of an exact result, or now and then the result itself, as in a fused step."""
    below, inexact, sign = truncated(np.asarray(exact), 0.0)
    away = np.nextafter(below, np.copysign(np.float32(np.inf), sign).astype(np.float32))
    found = np.where(rng.random(exact.shape) < 0.5, below, np.where(inexact, away, below)).astype(np.float64)
    return np.where(rng.random(exact.shape) < 0.1, exact, found)


@pytest.mark.parametrize("seed", range(20))
def test_chains_of_roundings_stay_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, 9)).astype(np.float32).astype(np.float64)
    y = np.exp2(rng.integers(-8, 8, (200, 9))) * rng.uniform(1, 2, (200, 9)).astype(np.float32).astype(np.float64)

    def step(exact: F64) -> F64:
        return at_random(rng, exact)

    a, b = of(x, ANY_ROUNDING), of(y, ANY_ROUNDING)
    total = x[:, :1]
    for j in rng.permutation(np.arange(1, 9)):
        total = step(total + x[:, j : j + 1])
    assert contains(a.sum(), total)
    quotient = step(step(step(x * y) - y) / step(step(x * x) + 1))
    assert contains((a * b - b) / (a * a + 1), quotient)
    root = step(step(x * x) + y)
    assert contains(a.over_root(a * a + b), step(x / step(np.sqrt(root))))
    assert contains(a.over_root(a * a + b), step(x * step(1 / np.sqrt(root))))
    gated = step(x / step(1 + step(np.exp(-x))))
    assert contains(a / (1 + (-a).exp()), gated)


@pytest.mark.parametrize(
    "numerics", [EXACT, FLUSHING, ANY_ROUNDING, VULKAN], ids=["plain", "flushing", "any", "vulkan"]
)
def test_the_value_itself_is_always_inside(numerics: Numerics) -> None:
    x = numbers(11)
    a = of(x, numerics)
    for found in (a * a + 3, a / 7, 1 / a, a.exp(), abs(a).sqrt(), a.tanh() * a, (a * a).sum(), a.maximum(0.1) - a):
        known = ~np.isnan(found.low) & ~np.isnan(found.value)
        assert (found.low <= found.value)[known].all()
        assert (found.high >= found.value)[known].all()


# --- overflow, NaN, infinities ---


def test_an_overflow_must_be_an_infinity_where_the_device_rounds_to_nearest() -> None:
    x = np.array([[100.0, 88.0, -200.0, 89.0]])
    found = of(x).exp().stored(F32, (1, 4))
    assert found.exact is not None
    assert found.exact.tolist() == [[True, False, False, True]]
    assert found.bits is not None
    assert found.bits[0, 0] == 0x7F800000
    assert np.isfinite(found.bound[0, 1:3]).all()
    assert np.isinf(of(x, ANY_ROUNDING).exp().stored(F32, (1, 4)).bound[0, 0])


def test_what_an_overflow_makes_small_may_be_0_or_exact() -> None:
    """x / (1 + e^−x) for x = −100: e^100 is infinite in float32 and 2.7e43 in float64; e^1000 is infinite in both."""
    far = of(np.array([-1000.0]))
    assert contains(far / (1 + (-far).exp()), np.array([-0.0]))
    assert not contains(far / (1 + (-far).exp()), np.array([-1e-30]))
    x = of(np.array([-100.0]))
    found = x / (1 + (-x).exp())
    assert contains(found, np.array([-0.0]))
    assert contains(found, np.array([-100 / math.exp(100)]))
    assert not contains(found, np.array([1e-30]))


def test_a_sum_that_may_overflow_on_its_way_is_free() -> None:
    assert np.isnan(of(np.array([3e38, 3e38, -3e38])).sum().low).all()
    assert np.isfinite(of(np.array([1e38, -1e38])).sum().low).all()


def test_a_nan_in_an_argument_leaves_the_result_free_and_an_infinity_stays_one() -> None:
    found = (of(np.array([np.nan, np.inf, -np.inf, 1.0])) + 1).stored(F32, (4,))
    assert np.isinf(found.bound).tolist() == [True, False, False, False]
    assert found.exact is not None
    assert found.exact.tolist() == [False, True, True, False]
    assert found.value[1:3].tolist() == [np.inf, -np.inf]
    free = of(np.array([np.inf, 1.0]))
    assert np.isnan((free - free).low).tolist() == [True, False]
    assert np.isnan((free * 0).low[0])


def test_a_divisor_that_may_be_0_leaves_the_quotient_free() -> None:
    tiny = of(np.array([1e-39, 1.0]), FLUSHING)
    assert np.isinf((1 / tiny).high).tolist() == [True, False]
    assert np.isnan((1 / (of(np.array([1.0])) - of(np.array([1.0])).exp() / math.e)).low).all()


# --- constants, choices, narrow outputs ---


def test_a_constant_that_float32_has_is_exact_and_another_is_rounded() -> None:
    x = of(np.ones(3))
    assert (x + 0.0) is x
    for number in (0.5, 3.0):
        assert x.constant(number).low == number
    assert x.constant(0.1).low < np.float32(0.1) < x.constant(0.1).high


def test_either_and_besides_cover_both_ways() -> None:
    x = of(np.array([1000.0, 1001.0, 1002.0]))
    declared = Numerics(one_pass_variance=True)
    one_pass = np.float32(np.sum(x.value**2) / 3) - np.float32(1001**2)  # 0.625 or 0.6875, for float32 has 2^-4 here
    assert not contains(x.variance(), np.array([one_pass]))
    assert contains(of(x.value, declared).variance(), np.array([one_pass]))
    wide = (x - 1000).besides(x)
    assert contains(wide, np.array([0.0, 1.0 + 1000 * U, 2.0]))


def test_where_takes_each_element_from_one_side() -> None:
    x = of(np.array([-1.0, 2.0]))
    found = Approx.where(x.value > 0, x, x.exp())
    assert found.low[1] == found.high[1] == 2.0
    assert found.low[0] < math.exp(-1) < found.high[0]


@pytest.mark.parametrize("numerics", [EXACT, ANY_ROUNDING])
def test_a_narrow_output_is_rounded_once_more(numerics: Numerics) -> None:
    x = np.random.default_rng(1).uniform(-4, 4, (1, 1000)).astype(np.float16).astype(np.float64)
    expected = (Approx.of(x, F16, numerics) * 0.7).stored(F16, (1, 1000))
    near = (x.astype(np.float32) * np.float32(0.7)).astype(np.float16)
    assert (np.abs(near.astype(np.float64) - expected.value) <= expected.bound).all()
    next_one = np.nextafter(near, np.float16(np.inf)).astype(np.float64)
    caught = np.abs(next_one - expected.value) > expected.bound
    assert caught.mean() > (0.9 if numerics is EXACT else 0.1)


def test_an_f16_overflow_must_be_an_infinity() -> None:
    expected = (Approx.of(np.array([60000.0, 300.0]), F16, EXACT) * 2).stored(F16, (2,))
    assert expected.exact is not None
    assert expected.exact.tolist() == [True, False]


# --- as tight as bounds that were derived by hand ---


def summed_by_hand(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> F64:
    """γ_{n−1}·Σ|x| (Higham 2002, eq. 4.4); a device that flushes loses 2^-126 for each term and each addition."""
    x = F32.decode(raw["x"])
    n, magnitude = x.shape[-1], np.abs(x).sum(-1, keepdims=True)
    bound = numerics.gamma(float(max(n - 1, 0) + numerics.conversions)) * magnitude
    if numerics.flushes_denormals:
        bound = bound + 2 * n * numerics.underflow
    return np.where(magnitude + bound <= F32.largest, bound, np.inf)


def normalised_by_hand(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> F64:
    """γ_k·|out| + underflow, k = (n+1)/2 + ρ + 1: a root halves the relative error of a sum of n squares; ρ for the
    root and the division, or for an inverse root of 2 units. As x·r·c by the mean of the squares (half a division
    more), with c = 1/√n of two roundings, it has three more products and constants, and its second product rounds
    denormals once more."""
    x = F32.decode(raw["x"])
    n, eps, size = x.shape[-1], float(case.params["eps"]), np.abs(x)

    def divisor(squares: F64) -> F64:
        return np.maximum(np.sqrt(squares), eps) if case.params["eps_mode"] == "max" else np.sqrt(squares + eps)

    squares = (x * x).sum(-1, keepdims=True)
    root = max(2 * numerics.sqrt_ulps * numerics.roundoff / numerics.u, 1.0) + numerics.division_roundings
    inverse_root = 4 * numerics.roundoff / numerics.u
    by_mean = numerics.division_roundings / 2 + 3
    relative = numerics.gamma((n + 1) / 2 + max(root, inverse_root) + 1 + by_mean + 2 * numerics.conversions)
    lost = 2 * n * numerics.underflow
    value = x / divisor(squares)
    least = size / divisor(squares + lost) * (1 - relative)
    most = size / divisor(np.maximum(squares - lost, 0)) * (1 + relative)
    bound = np.maximum(most - np.abs(value), np.abs(value) - least) + numerics.division_underflow
    if numerics.flushes_denormals:
        bound = bound + numerics.underflow / divisor(np.maximum(squares - lost, 0))
    overflows = squares * (1 + numerics.gamma(float(n + 1))) + lost > F32.largest
    return np.where(overflows | np.isnan(bound), np.inf, bound)


@pytest.mark.parametrize("numerics", [EXACT, FLUSHING, ANY_ROUNDING, VULKAN, Numerics(roundoff=2.0**-11)], ids=repr)
@pytest.mark.parametrize(("op", "by_hand"), [("sum_rows", summed_by_hand), ("l2_norm", normalised_by_hand)])
def test_a_composed_bound_is_as_tight_as_one_derived_by_hand(
    op: str, by_hand: Callable[[Case, Mapping[str, Raw], Numerics], F64], numerics: Numerics
) -> None:
    compared = 0
    for case in drawn_cases(op, 2000, 1 << 14):
        bench = Bench(replace(case, keep=None))
        composed, hand = bench.expected(numerics), by_hand(case, bench.values, numerics)
        judged = np.isfinite(hand) & np.isfinite(composed.value)
        step = 2.0**-149  # no two float32 are nearer
        assert (composed.bound[judged] <= 1.5 * hand[judged] + step).all(), case
        compared += int(judged.any())
    assert compared > 1500


def test_a_table_of_gelu_ends_at_ten() -> None:
    """ggml's on the CPU: beyond, the result is x or 0 and float16 says nothing."""
    x = np.array([-70000.0, -10.0, -9.998, 3.14159, 9.998, 10.003, 70000.0], np.float32).astype(np.float64)
    found = gelu(Approx.of(x, F32, Numerics(half_tables=True)))

    def takes(result: F64) -> list[bool]:
        return ((found.low <= result) & (result <= found.high)).tolist()

    with np.errstate(over="ignore"):
        half = x.astype(np.float16).astype(np.float64)
    table = gelu(Approx.of(half, F32, EXACT)).value.astype(np.float16).astype(np.float64)
    inside = [False, False, True, True, True, False, False]
    assert takes(np.where(inside, table, np.maximum(x, 0.0))) == [True] * len(x)
    assert takes(np.where(inside, table, np.maximum(half, 0.0)))[-2:] == [False, False]
    assert takes(np.where(inside, np.where(x > 0, table + 0.01, table - 0.01), 0.0))[2:5] == [False] * 3
