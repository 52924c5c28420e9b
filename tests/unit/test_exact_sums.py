"""Sums that no order rounds: the bound is 0 there, and no right kernel is beyond it."""

from __future__ import annotations

import numpy as np
import pytest

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import EXACT, Numerics, quanta
from tests.judge import Bench, drawn_cases
from tests.kernels import odd, small_odd
from tests.kernels.base import Kernel
from tests.kernels.correct import Correct

FLUSHING = Numerics(flushes_denormals=True)


def of_row(op: str, row: list[float], **params: float | bool | str | int) -> Bench:
    x = np.array(row, np.float32)
    layout = Layout.contiguous("f32", (1, 1, 1, len(row)))
    out = Layout.contiguous("f32", (1, 1, 1, 1)) if op == "sum_rows" else layout
    return Bench(Case(op, params, {"x": layout}, {"out": out}).with_data({"x": x.tobytes()}))


def test_a_number_is_a_multiple_of_the_last_bit_it_has() -> None:
    x = np.array([1.0, -3.0, 6.0, 0.75, 2.0**-149, 3 * 2.0**-149, 1 + 2.0**-23, 2.0**127, 0.0, -0.0, np.inf, np.nan])
    wanted = [1, 1, 2, 0.25, 2.0**-149, 2.0**-149, 2.0**-23, 2.0**127, np.inf, np.inf, 0, 0]
    assert quanta(x).tolist() == wanted


@pytest.mark.parametrize(
    ("row", "exact"),
    [
        ([1.0, 2.0, -3.0], True),
        ([2.0**24 - 1, 1.0], True),
        ([2.0**24, 1.0], False),  # 2^24 + 1 has 25 bits
        ([2.0**23, -(2.0**23), 1.0, 1.0], False),  # the sum of the sizes has, and in some order a part may have
        ([2.0**20 - 0.0625, 0.0625], True),
        ([2.0**20, 0.0625], False),
        ([0.0, -0.0], True),
        ([3e38, 3e38], False),
        ([np.nan, 1.0], False),
        ([2.0**-149, 2.0**-148], True),
    ],
    ids=str,
)
@pytest.mark.parametrize("op", ["sum_rows", "cumsum"])
def test_the_bound_is_zero_where_no_order_rounds(op: str, row: list[float], exact: bool) -> None:
    params: dict[str, float | bool | str | int] = {"axis": 0, "exclusive": False, "reverse": False}
    bench = of_row(op, row, **(params if op == "cumsum" else {}))
    assert (bench.expected().bound.flat[-1] == 0) == exact


def test_a_device_that_flushes_may_flush_a_sum_of_denormals_and_no_other() -> None:
    assert of_row("sum_rows", [2.0**-149, 2.0**-148]).expected(FLUSHING).bound.flat[0] > 0
    assert of_row("sum_rows", [2.0**-126, 2.0**-125]).expected(FLUSHING).bound.flat[0] == 0


def test_nothing_is_exact_where_operands_are_rounded_to_a_lower_precision() -> None:
    assert of_row("sum_rows", [1.0, 2.0]).expected(Numerics(roundoff=2.0**-11)).bound.flat[0] > 0


def test_the_products_of_a_convolution_count_too() -> None:
    x, c = Layout.contiguous("f32", (1, 1, 1, 4)), Layout.contiguous("f32", (1, 1, 1, 3))
    out = Layout.contiguous("f32", (1, 1, 2, 1))
    case = Case("ssm_conv", {}, {"x": x, "c": c}, {"out": out}, recipe="whole")
    assert not Bench(case).expected().bound.any()
    assert Bench(Case("ssm_conv", {}, {"x": x, "c": c}, {"out": out}, recipe="normal")).expected().bound.all()


def of_product(a: list[list[float]], b: list[list[float]], dtype: str = "f32") -> Bench:
    """Rows of a by rows of b."""
    values = {"a": (dtype, a), "b": ("f32", b)}
    inputs = {name: Layout.contiguous(of, (1, 1, len(its), len(its[0]))) for name, (of, its) in values.items()}
    case = Case("mul_mat", {}, inputs, {"out": Layout.contiguous("f32", (1, 1, len(b), len(a)))})
    data = {name: DTYPES[of].encode(np.array(its)).tobytes() for name, (of, its) in values.items()}
    return Bench(case.with_data(data))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_the_products_of_a_matrix_are_exact_row_by_row(dtype: str) -> None:
    a, b = [[1.0, -3.0], [0.0, 0.0], [0.5, 2.0]], [[4.0, 7.0], [2.0**24 - 1, 1.0], [0.1, 3e38], [np.inf, 1.0]]
    bound = of_product(a, b, dtype).expected().bound[0, 0]
    assert (bound == 0).tolist() == [[True, True, True], [False, True, False], [False, True, False], [False] * 3]


class Multiplies(Kernel):
    """Right: in float32, one product after the other from the last one on."""

    def mul_mat(self, case: Case, buffers: Buffers) -> None:
        a, b = self.read(buffers, "a"), self.read(buffers, "b")
        total = np.zeros((*b.shape[:-1], a.shape[-2]), np.float32)
        for k in reversed(range(a.shape[-1])):
            total += b[..., :, None, k] * a[..., None, :, k]
        self.write(buffers, "out", self.made(total))

    def made(self, total: np.ndarray) -> np.ndarray:
        return total


class OffByOneUlp(Multiplies):
    def made(self, total: np.ndarray) -> np.ndarray:
        return np.nextafter(total, np.float32(np.inf))


def test_a_product_that_is_off_by_one_ulp_is_wrong_where_no_order_rounds() -> None:
    rng = np.random.default_rng(1)
    whole = of_product(*rng.integers(-9, 10, (2, 3, 640)).astype(float).tolist())
    assert whole.passes(Multiplies())
    assert not whole.passes(OffByOneUlp())
    rounded = of_product(*rng.standard_normal((2, 3, 640)).tolist())
    assert rounded.passes(Multiplies())
    assert rounded.passes(OffByOneUlp())


def test_a_product_is_exact_on_a_device_that_narrows_it_where_nothing_is_lost() -> None:
    bench = of_product([[1.0, 3.0]], [[2047.0, 1.0], [2049.0, 1.0]], "f16")
    assert (bench.expected(Numerics(narrow_operands=True)).bound == 0).flatten().tolist() == [True, False]
    assert bench.expected(Numerics(roundoff=2.0**-11)).bound.all()


@pytest.mark.parametrize("recipe", ["small_int", "index", "whole"])
@pytest.mark.parametrize("op", ["cumsum", "sum_rows", "ssm_conv", "l2_norm", "add", "mul", "acc"])
def test_no_order_and_no_arithmetic_is_blamed_where_nothing_rounds(op: str, recipe: str) -> None:
    kernels = [(each.kernel(), each.numerics) for each in (*odd.ODD, *small_odd.SMALL_ODD) if op in each.ops]
    kernels = kernels or [(Correct(), EXACT)]
    ran = 0
    for case in drawn_cases(op, 1500, 1 << 14):
        if case.recipe == recipe and ran < 25 and hasattr(kernels[0][0], op):
            bench = Bench(case)
            for kernel, numerics in kernels:
                assert bench.passes(kernel, numerics), (type(kernel).__name__, case)
            ran += 1
    assert ran == 25 or not hasattr(kernels[0][0], op)


def test_a_sum_that_stops_after_65535_elements_is_wrong_where_it_is_long() -> None:
    bench = Bench(
        Case(
            "sum_rows",
            {},
            {"x": Layout.contiguous("f32", (1, 1, 1, 100_001))},
            {"out": Layout.contiguous("f32", (1, 1, 1, 1))},
            recipe="whole",
        )
    )

    class Stops(Correct):
        def summed(self, x: np.ndarray) -> np.ndarray:
            return x[..., :65535].sum(-1, dtype=np.float32)

    class Sums(Correct):
        def summed(self, x: np.ndarray) -> np.ndarray:
            return x.sum(-1, dtype=np.float32)

    assert bench.passes(Sums())
    assert not bench.passes(Stops())


# --- the sign of a sum of zeros ---


@pytest.mark.parametrize(("a", "b", "right"), [(-0.0, -0.0, -0.0), (0.0, 0.0, 0.0), (-0.0, 0.0, 0.0), (0.0, -0.0, 0.0)])
def test_a_sum_of_zeros_inside_accs_view_has_the_sign_that_ieee_gives_it(a: float, b: float, right: float) -> None:
    layout = Layout.contiguous("f32", (1, 1, 1, 1))
    params = {"nb1": 4, "nb2": 4, "nb3": 4, "offset": 0}
    case = Case("acc", params, {"a": layout, "b": layout}, {"out": layout})
    data = {"a": np.float32(a).tobytes(), "b": np.float32(b).tobytes()}
    bench = Bench(case.with_data(data))

    class Gives(Correct):
        sign = 1.0

        def added(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.copysign(np.float32(0), np.float32(self.sign)) + np.zeros_like(a) * np.float32(self.sign)

    kernel = Gives()
    kernel.sign = float(np.copysign(1.0, right))
    assert bench.passes(kernel)
    kernel.sign = -kernel.sign
    assert not bench.passes(kernel)
    toward_minus_infinity = Numerics(any_rounding=True)
    assert bench.passes(kernel, toward_minus_infinity) == (np.signbit(a) != np.signbit(b))


@pytest.mark.parametrize("op", ["acc", "add"])
def test_a_sum_that_float64_rounds_to_a_float32_is_not_taken_for_exact(op: str) -> None:
    layout = Layout.contiguous("f32", (1, 1, 1, 3))
    params = {"nb1": 12, "nb2": 12, "nb3": 12, "offset": 0} if op == "acc" else {}
    a, b = np.array([2.0**40, 1.0, 3.0], np.float32), np.array([2.0**-40, -(2.0**-60), 4.0], np.float32)
    case = Case(op, params, {"a": layout, "b": layout}, {"out": layout})
    bench = Bench(case.with_data({"a": a.tobytes(), "b": b.tobytes()}))
    assert (bench.expected().bound > 0).flatten().tolist() == [True, True, False]
    assert bench.passes(odd.AwayFromZero(), Numerics(any_rounding=True))
