"""Cases that say nothing are told from those that say something, and are counted apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.vacuous import searched
from opconform.cases.families.conversions import ROUNDED
from opconform.cases.families.windowed import window
from opconform.harness.draw.sample import problems_drawn
from opconform.harness.judge.judging import Verdict
from opconform.harness.judge.vacuous import vacuous
from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DTYPES
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Freedom
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.ops import ops
from opconform.harness.search.result import Tally
from tests.judge import Bench
from tests.kernels.correct import Correct
from tests.samples import acc


def of_x(op: str, *ne: int, **params: object) -> Case:
    """A case of an op with the one input x and an output of its shape."""
    layout = Layout.contiguous("f32", (*ne, 1, 1, 1)[3::-1])
    return Case(op, params, {"x": layout}, {"out": layout})  # type: ignore[arg-type]


def cumsum(*ne: int, axis: int = 0, **params: bool) -> Case:
    return of_x("cumsum", *ne, axis=axis, **{"exclusive": False, "reverse": False, **params})


def reason(case: Case, **values: np.ndarray) -> str:
    """Why a right kernel's pass of the case says nothing."""
    raw = {name: case.inputs[name].type.encode(np.asarray(it, np.float64)) for name, it in values.items()}
    bench = Bench(case, raw or None)
    verdict = bench.verdict(Correct())
    assert verdict.passed
    return verdict.vacuous


def test_a_case_that_a_kernel_must_compute_says_something() -> None:
    assert reason(cumsum(5, 2)) == ""
    assert reason(acc(3, 2)) == ""


def test_an_output_without_elements_says_nothing() -> None:
    assert reason(cumsum(0, 2)) == "it has no element"


def test_what_zeros_would_pass_says_nothing() -> None:
    assert reason(cumsum(1, 3, exclusive=True)) == "an output of zeros passes too"
    assert reason(cumsum(4), x=np.zeros((1, 1, 1, 4))) == "an output of zeros passes too"
    assert reason(cumsum(4), x=np.array([[[[0, 2**-120, 0, 0]]]])) == ""
    assert (
        reason(cumsum(4), x=np.array([[[[0, 1, -1, 0]]]])) == ""
    )  # the first and the last elements are 0, and not all


def test_what_a_copy_would_pass_says_nothing() -> None:
    assert reason(cumsum(1, 3)) == "a copy of x passes too"
    assert reason(acc(1, a=(2,)), a=np.ones((1, 1, 1, 2)), b=np.zeros((1, 1, 1, 1))) == "a copy of a passes too"


def test_an_op_that_is_a_copy_may_be_passed_by_a_copy() -> None:
    assert reason(of_x("cont", 5, 2)) == ""
    assert reason(of_x("cont", 5, 2), x=np.zeros((1, 1, 2, 5))) == "an output of zeros passes too"


def test_nothing_but_free_elements_says_nothing() -> None:
    assert reason(cumsum(3), x=np.full((1, 1, 1, 3), np.nan)) == "nothing can be demanded of any element"


@pytest.mark.parametrize("seed", range(3))
def test_a_residual_is_judged_too(seed: int) -> None:
    layout, one = Layout.contiguous("f32", (1, 1, 3, 3)), Layout.contiguous("f32", (1, 1, 1, 1))
    params = {"lower": True, "left": True, "unit": True}
    case = Case("solve_tri", params, {"a": layout, "b": layout}, {"out": layout}, seed=seed)
    alone = replace(case, inputs={"a": one, "b": one}, outputs={"out": one})
    assert reason(case) == ""
    assert reason(alone) == "a copy of b passes too"  # X = B for the unit matrix


@pytest.mark.parametrize("recipe", ["small_int", "index", "whole", "signed_zero"])
@pytest.mark.parametrize("op", ["floor", "ceil", "round", "trunc"])
def test_what_is_rounded_has_fractions(op: str, recipe: str) -> None:
    bench = Bench(replace(of_x(op, 33, 3), recipe=recipe))
    assert vacuous(bench.op, bench.case, bench.values, bench.expected(), EXACT) == ""


@pytest.mark.parametrize("op", ["sqrt", "log"])
def test_few_of_the_numbers_are_below_zero_where_that_gives_nan(op: str) -> None:
    bench = Bench(replace(of_x(op, 33, 30), recipe="normal"))
    share = np.isnan(bench.expected().value).mean()
    assert 0.01 < share < 0.06


@pytest.mark.parametrize("recipe", ["wide", "denormal", "edges"])
@pytest.mark.parametrize("came", ["f32", "f16"])
@pytest.mark.parametrize("goes", ROUNDED)
def test_what_becomes_a_block_has_a_scale_that_the_type_holds(goes: str, came: str, recipe: str) -> None:
    n = 2 * DTYPES[goes].block
    x, out = Layout.contiguous(came, (1, 2, 3, n)), Layout.contiguous(goes, (1, 2, 3, n))
    c, row = Layout.contiguous("i64", (1, 1, 2, 3)), Layout.contiguous(goes, (1, 2, 5, n))
    copied = Case("cpy_blocks", {}, {"x": x}, {"out": out}, recipe=recipe)
    placed = Case("set_rows", {}, {"a": row, "b": x, "c": c}, {"out": row}, recipe=recipe, inplace="a")
    for bench in (Bench(copied), Bench(placed)):
        assert np.isfinite(bench.expected().bound).all()
        assert vacuous(bench.op, bench.case, bench.values, bench.expected(), EXACT) == ""


@pytest.mark.parametrize("op", ["im2col", "im2col_3d", "conv_2d", "conv_3d", "pool_2d"])
def test_some_window_of_a_drawn_problem_meets_an_element(op: str) -> None:
    for problem in problems_drawn(ops()[op], Freedom(max_bytes=1 << 16), 300):
        x, kernel = problem.shapes["x"], problem.shapes.get("kernel", ())
        for axis in range(sum(name.startswith("s") for name in problem.params)):
            if axis and not problem.params.get("is_2d", True):
                break
            taps = window(problem.params, axis, kernel[-1 - axis] if kernel else int(problem.params[f"k{axis}"]))
            assert (taps.taps(x[-1 - axis]) >= 0).any(), problem


@pytest.mark.parametrize("op", ["acc", "set_rows", "cpy_blocks", "solve_tri", "gated_delta_net", "top_k"])
def test_what_is_right_by_definition_is_never_blamed(op: str) -> None:
    tally = searched(op, 24)
    assert tally.executed > 8
    assert tally.failed == 0


def test_a_vacuous_case_is_counted_apart_and_does_not_count_as_run() -> None:
    tally = Tally()
    tally.count(Verdict(cumsum(3)))
    tally.count(Verdict(cumsum(0), vacuous="it has no element"))
    assert (tally.passed, tally.vacuous, tally.executed) == (1, 1, 1)


def test_free_elements_are_counted_but_for_slices_that_were_spoilt_on_purpose() -> None:
    case = cumsum(2, 1, 1, 2)
    tally = Tally()
    for each in (replace(case, recipe="normal"), replace(case, keep=0)):
        tally.count(replace(Bench(each).verdict(Correct()), vacuous=""))
    assert (tally.free, tally.elements, tally.free_share) == (0, 4, 0.0)
    infinite = np.array([[[[np.inf, 1]]], [[[1, 2]]]])
    bench = Bench(case, {"x": case.inputs["x"].type.encode(infinite)})
    tally.count(bench.verdict(Correct()))
    assert (tally.free, tally.elements, tally.free_share) == (2, 8, 0.25)


def test_what_could_not_be_checked_is_counted_and_travels() -> None:
    tally = Tally()
    for _ in range(2):
        tally.count(Verdict(cumsum(3), unchecked=("batch_invariant: why",)))
    assert Tally.from_json(tally.to_json()).unchecked == {"batch_invariant: why": 2}
