"""The bounds: no right kernel is beyond them, and little more than the bound is already caught.

`python -m tests.unit.test_bounds` prints the two figures that keep the oracle honest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from opconform.harness.judge.oracle import compare
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F16, F32, F64
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT, Numerics
from tests.judge import Bench, drawn_cases
from tests.kernels.correct import Correct
from tests.kernels.odd import (
    AwayFromZero,
    Flushing,
    HalfPrecision,
    LooseDivision,
    LooseReciprocal,
    Reciprocal,
    TowardZero,
    Vulkan,
)
from tests.kernels.wrong import ByInverse, HalfDots, SkipsLastRow

ANY_ROUNDING = Numerics(any_rounding=True)
LOOSE = Numerics(division_ulps=2.5)
COMPUTING = pytest.mark.parametrize("op", ["acc", "cumsum", "solve_tri"])
MEASURED = pytest.mark.parametrize("op", ["acc", "cumsum", "solve_tri", "sum_rows", "l2_norm", "ssm_conv"])
CASES = 400


def packed(shape: tuple[int, ...]) -> Layout:
    return Layout.contiguous("f32", shape)


def cumsum_of(values: list[float], **params: bool) -> Bench:
    """CUMSUM of one row of exact values."""
    layout = packed((1, 1, 1, len(values)))
    case = Case("cumsum", {"axis": 0, "exclusive": False, "reverse": False, **params}, {"x": layout}, {"out": layout})
    return Bench(case.with_data({"x": np.array(values, np.float32).tobytes()}))


def acc_of(a: list[float], b: list[float]) -> Bench:
    """ACC of one row of exact values on another."""
    layout = packed((1, 1, 1, len(a)))
    step = 4 * len(a)
    case = Case(
        "acc", {"nb1": step, "nb2": step, "nb3": step, "offset": 0}, {"a": layout, "b": layout}, {"out": layout}
    )
    data = {"a": np.array(a, np.float32).tobytes(), "b": np.array(b, np.float32).tobytes()}
    return Bench(case.with_data(data))


def solve_of(a: F64, b: F64) -> Bench:
    """SOLVE_TRI with a lower triangle of exact values."""
    shapes = (1, 1, *a.shape), (1, 1, *b.shape)
    params = {"left": True, "lower": True, "unit": False}
    case = Case("solve_tri", params, {"a": packed(shapes[0]), "b": packed(shapes[1])}, {"out": packed(shapes[1])})
    return Bench(case.with_data({"a": a.astype(np.float32).tobytes(), "b": b.astype(np.float32).tobytes()}))


# --- no false alarm: the corners that drawn values do not reach ---


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [3e38, 3e38],
        [3e38, 3e38, -3e38],
        [-3e38, -3e38, 1.0, 3e38],
        [np.inf, 1.0],
        [1.0, np.inf, 1.0, -np.inf, 1.0],
        [np.nan, 1.0],
        [1.0, -np.inf, np.nan],
    ],
    ids=str,
)
def test_sums_that_float32_cannot_hold_are_left_free(values: list[float], exclusive: bool) -> None:
    assert cumsum_of(values, exclusive=exclusive).passes(Correct())


@pytest.mark.parametrize(
    ("a", "b"), [(3e38, 3e38), (-3e38, -3e38), (np.inf, 1.0), (np.inf, -np.inf), (1.0, np.nan), (-np.inf, -np.inf)]
)
def test_additions_that_float32_cannot_hold_are_left_free(a: float, b: float) -> None:
    assert acc_of([a, 1.0], [b, 1.0]).passes(Correct())


def test_an_overflow_leaves_the_other_elements_bound() -> None:
    bench = cumsum_of([1.0, 2.0, 3e38, 3e38])
    assert np.isfinite(bench.expected().bound.reshape(-1)[:3]).all()


@pytest.mark.parametrize("diagonal", [1.5, 1000.0, 3e10])
@pytest.mark.parametrize(
    ("kernel", "numerics"),
    [
        (Correct, EXACT),
        (TowardZero, ANY_ROUNDING),
        (AwayFromZero, ANY_ROUNDING),
        (LooseDivision, LOOSE),
        (LooseReciprocal, LOOSE),
        (Flushing, Numerics(flushes_denormals=True)),
        (Vulkan, Numerics(flushes_denormals=True, any_rounding=True, division_ulps=2.5)),
    ],
)
def test_quotients_that_are_denormal_may_be_off_by_what_the_device_rounds(
    kernel: type[Correct], numerics: Numerics, diagonal: float
) -> None:
    rng = np.random.default_rng(1)
    b = rng.uniform(-1, 1, (1, 500)) * diagonal * 2.0**-130
    assert solve_of(np.array([[diagonal]]), b).passes(kernel(), numerics)


def test_products_that_are_denormal_may_be_off_by_what_the_device_rounds() -> None:
    rng = np.random.default_rng(1)
    n = 30
    a = np.tril(rng.uniform(0.5, 1, (n, n)) * 2.0**-4, -1) + np.eye(n)
    for kernel in (TowardZero, AwayFromZero):
        assert solve_of(a, rng.uniform(-1, 1, (n, 64)) * 2.0**-128).passes(kernel(), ANY_ROUNDING)


def test_dividing_by_a_one_by_one_matrix_may_use_a_reciprocal() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        bench = solve_of(rng.uniform(1, 2, (1, 1)), rng.standard_normal((1, 1000)))
        assert bench.passes(Reciprocal())
        assert bench.passes(LooseReciprocal(), LOOSE)


@COMPUTING
def test_a_backend_that_declares_half_precision_may_round_its_operands_to_it(op: str) -> None:
    """Where float16 holds them as normal numbers: a roundoff says nothing of what it makes of smaller ones."""
    numerics, judged = Numerics(roundoff=2.0**-11), 0
    for case in drawn_cases(op, CASES, 1 << 16):
        if case.recipe in ("small_int", "normal", "signed_zero"):
            bench = Bench(case)
            sizes = [np.abs(F32.decode(raw)) for raw in bench.values.values()]
            if not any(((size > 0) & (size < F16.smallest_normal)).any() for size in sizes):
                assert bench.passes(HalfPrecision(), numerics), case
                judged += 1
    assert judged > 50


def test_either_pixel_beside_a_whole_quotient_is_right_to_the_last_bit() -> None:
    x, out = (Layout.contiguous("f32", (1, 1, n, 1)) for n in (16, 2))
    bench = Bench(Case("upscale", {"mode": "nearest+align_corners"}, {"x": x}, {"out": out}, recipe="wide", seed=186))
    pixels = bench.values["x"][0, 0, :, 0]

    def taken(place: int) -> bool:
        got = pixels[[0, place]].reshape(out.shape)
        return not compare(bench.case, bench.op, bench.values, bench.expected(), got, EXACT).wrong.any()

    assert taken(15)
    assert taken(14)  # 1 / (1 / 15) may be rounded below 15
    assert not taken(12)
    value = pixels.view(np.float32).astype(np.float64)
    assert bench.expected().bound[0, 0, -1, 0] == abs(value[15] - value[14])


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_a_pixel_that_is_not_finite_may_be_taken_and_its_neighbour_is_still_judged(odd: float) -> None:
    x, out = (Layout.contiguous("f32", (1, 1, n, 1)) for n in (2, 4))
    pixels = np.array([odd, 1.0], np.float32)
    case = Case("upscale", {"mode": "nearest"}, {"x": x}, {"out": out}).with_data({"x": pixels.tobytes()})
    bench = Bench(case)

    def wrong(got: list[float]) -> list[bool]:
        raw = np.array(got, np.float32).reshape(out.shape).view(np.uint32)
        found = compare(case, bench.op, bench.values, bench.expected(), raw, EXACT)
        return [bool(each) for each in found.wrong.ravel()]

    assert wrong([odd, odd, 1, 1]) == [False] * 4
    assert wrong([odd, odd, 1, 2]) == [False, False, False, True]


def test_a_bound_of_more_roundings_than_the_precision_has_is_no_bound() -> None:
    assert Numerics(roundoff=2.0**-11).gamma(5000) == np.inf


def norm_of(values: list[float], eps: float, mode: str = "max") -> Bench:
    """L2_NORM of one row of exact values."""
    layout = packed((1, 1, 1, len(values)))
    case = Case("l2_norm", {"eps": eps, "eps_mode": mode}, {"x": layout}, {"out": layout})
    return Bench(case.with_data({"x": np.array(values, np.float32).tobytes()}))


@pytest.mark.parametrize("mode", ["max", "add"])
@pytest.mark.parametrize(
    "values",
    [[1e30, 1e30], [3e19, 1.0], [np.inf, 1.0], [np.nan, 1.0], [1e-30, 1e-30], [2e-23, 1e-38], [0.0, 0.0]],
    ids=str,
)
def test_norms_whose_squares_float32_cannot_hold_are_left_free(values: list[float], mode: str) -> None:
    """A kernel that squares first, and one that scales by the largest element first, are both right."""
    for eps in (0.0, 1e-12, 1e-6):
        bench = norm_of(values, eps, mode)
        assert bench.passes(Correct())
        assert bench.passes(InFloat64())


class InFloat64(Correct):
    """L2_NORM in float64, where no square overflows or underflows."""

    def normalised(self, case: Case, x: np.ndarray, squares: np.ndarray) -> np.ndarray:
        exact = (x.astype(np.float64) ** 2).sum(-1, keepdims=True)
        return super().normalised(case, x, exact).astype(np.float32)


def test_a_norm_that_float32_holds_is_bound() -> None:
    assert np.isfinite(norm_of([3.0, 4.0, 1e-30], 1e-6).expected().bound).all()
    assert np.isfinite(norm_of([1e-30, 1e-30], 1e-6).expected().bound).all()
    assert np.isinf(norm_of([1e-30, 1e-30], 0.0).expected().bound).all()
    assert np.isinf(norm_of([1e30, 1.0], 1e-6).expected().bound).all()


# --- tightness ---


def factors(op: str, count: int, max_bytes: int = 1 << 18) -> Iterator[float]:
    """For each drawn case: how many times the largest error of the plain float32 kernel its bound is."""
    for case in drawn_cases(op, count, max_bytes):
        bench = Bench(replace(case, keep=None))
        comparison = bench.comparison(bench.after(Correct()))
        judged = (comparison.error > 0) & np.isfinite(comparison.bound)
        if judged.any():
            yield float((comparison.bound[judged] / comparison.error[judged]).min())


def corrupted(bench: Bench, place: tuple[int, ...], delta: float) -> bool:
    """Whether the plain kernel's output is caught when one element of it is off by `delta`."""
    left = bench.after(Correct())
    raw = np.array(left.raw("out"))
    raw[place] = F32.encode(F32.decode(raw[place][None]) + delta)[0]
    comparison = compare(bench.case, bench.op, bench.values, bench.expected(), raw, EXACT)
    return bool(comparison.wrong.any())


def thresholds(op: str, count: int, max_bytes: int = 1 << 18, seed: int = 0) -> Iterator[tuple[float, float]]:
    """For one element of each drawn case: the smallest corruption that is caught, as a multiple of the element's unit
    in the last place and of its bound (SOLVE_TRI: its residual's, which moves 1 to 2 times as far as the element)."""
    rng = np.random.default_rng(seed)
    for case in drawn_cases(op, count, max_bytes):
        if case.recipe not in ("normal", "wide") or case.outputs["out"].size == 0:
            continue
        bench = Bench(replace(case, keep=None))
        comparison = bench.comparison(bench.after(Correct()))
        place = tuple(int(rng.integers(size)) for size in case.outputs["out"].shape)
        got, bound = abs(float(comparison.got[place])), float(comparison.bound[place])
        if not (got > 2.0**-100 and np.isfinite(bound)):
            continue
        ulp = float(np.spacing(np.float32(got)))
        for power in range(40):
            if corrupted(bench, place, np.copysign(ulp * 2.0**power, comparison.got[place])):
                yield 2.0**power, ulp * 2.0**power / bound if bound else np.inf
                break


@MEASURED
def test_a_corruption_of_a_few_bounds_is_caught(op: str) -> None:
    """Twice the bound and one unit in the last place at most, rounded up to a power of two."""
    for ulps, bounds in thresholds(op, CASES):
        assert bounds <= 4.1 or ulps <= 2


@pytest.mark.parametrize(
    ("op", "median"),
    [("acc", 8), ("cumsum", 64), ("solve_tri", 256), ("sum_rows", 64), ("l2_norm", 16), ("ssm_conv", 8)],
)
def test_half_of_all_elements_may_be_off_by_a_few_units_in_the_last_place_at_most(op: str, median: float) -> None:
    assert np.median([ulps for ulps, _ in thresholds(op, CASES)]) <= median


@pytest.mark.parametrize(
    ("op", "median"),
    [("acc", 1.5), ("cumsum", 16), ("solve_tri", 32), ("sum_rows", 16), ("l2_norm", 16), ("ssm_conv", 8)],
)
def test_the_bound_is_a_small_multiple_of_the_error_of_a_plain_kernel(op: str, median: float) -> None:
    found = list(factors(op, 4 * CASES))  # row lengths differ a lot, and with them the factors
    assert min(found) >= 1
    assert np.median(found) <= median


def test_an_explicit_inverse_of_an_ill_conditioned_matrix_is_caught() -> None:
    """Its residual grows with |A||A⁻¹||B|, not with |A||X|: the two are far apart here (Higham 2002, section 14.1)."""
    rng = np.random.default_rng(0)
    n = 24
    a = np.tril(-rng.uniform(1, 2, (n, n)), -1) + np.diag(rng.uniform(1, 2, n))
    a = a.astype(np.float32).astype(np.float64)
    bench = solve_of(a, a @ rng.standard_normal((n, 3)))
    assert bench.passes(Correct())
    assert bench.verdict(ByInverse()).kind == "WRONG VALUES"


def test_an_inverse_passes_where_blocks_of_its_size_are_declared_and_worse_is_still_caught() -> None:
    rng = np.random.default_rng(0)
    n = 24
    a = np.tril(-rng.uniform(1, 2, (n, n)), -1) + np.diag(rng.uniform(1, 2, n))
    a = a.astype(np.float32).astype(np.float64)
    bench = solve_of(a, a @ rng.standard_normal((n, 3)))
    assert not bench.passes(ByInverse(), Numerics(inverted_blocks=4))
    mild = solve_of(np.tril(a, -1) / n + np.diag(np.diagonal(a)), rng.standard_normal((n, 3)))
    declared = Numerics(inverted_blocks=n)
    assert mild.passes(ByInverse(), declared)
    assert np.isfinite(mild.comparison(mild.after(ByInverse()), declared).bound).all()
    assert not mild.passes(HalfDots(), declared)
    assert not mild.passes(SkipsLastRow(), declared)


def figures(count: int) -> None:
    """Print the tightness figures."""
    for op in ("acc", "cumsum", "solve_tri", "sum_rows", "l2_norm", "ssm_conv"):
        ratios, found = np.array(list(factors(op, count))), np.array(list(thresholds(op, count)))
        print(
            f"{op:10} bound / largest error of the plain kernel: median {np.median(ratios):.3g}, "
            f"1st percentile {np.percentile(ratios, 1):.3g}, least {ratios.min():.3g} ({ratios.size} cases)"
        )
        for column, unit in enumerate(("ulps", "bounds")):
            values = found[np.isfinite(found[:, column]), column]
            print(
                f"{'':10} smallest corruption caught, in {unit}: median {np.median(values):.3g}, "
                f"99th percentile {np.percentile(values, 99):.3g}, most {values.max():.3g} ({values.size} elements)"
            )


if __name__ == "__main__":
    figures(2000)
