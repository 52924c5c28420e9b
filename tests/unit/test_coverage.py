"""Coverage: pairs are counted once, what cannot be is no pair, and the draw goes where nothing has been."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Problem
from opconform.harness.search.coverage import Coverage, Covered
from tests.samples import cases_drawn

PARAMS = {"axis": 0, "exclusive": False, "reverse": False}


def problem(*shape: int, **params: object) -> Problem:
    sizes = (1, 1, 1, 1, *shape)[-4:]
    return Problem({**PARAMS, **params}, "f32", {"x": sizes}, sizes)  # type: ignore[dict-item]


def case(its: Problem, offset: int = 0, step: int = 1, recipe: str = "small_int") -> Case:
    shape = its.shapes["x"]
    x = Layout.contiguous("f32", shape, offset)
    x = replace(x, strides=tuple(stride * step for stride in x.strides))
    return Case("cumsum", its.params, {"x": x}, {"out": Layout.contiguous("f32", shape)}, recipe)


def run(coverage: Coverage, its: Problem, *cases: Case, refused: bool = False) -> None:
    coverage.wants(its)
    for each in cases:
        coverage.choose([each])
        coverage.ran(coverage.takes(each), refused)


def test_one_case_covers_the_pairs_of_its_traits() -> None:
    coverage, its = Coverage(), problem(3)
    run(coverage, its, case(its))
    found = coverage.covered
    assert found.pairs == found.possible > 50
    run(coverage, its, case(its))
    assert coverage.covered == found


def test_what_was_drawn_and_did_not_run_is_a_pair_that_is_not_covered() -> None:
    coverage, its = Coverage(), problem(3)
    run(coverage, its, case(its))
    whole = coverage.covered
    coverage.choose([case(its, offset=4)])
    found = coverage.covered
    assert found.pairs == whole.pairs
    assert found.possible > whole.possible
    assert 0.5 < found.share < 1
    coverage.ran(coverage.takes(case(its, offset=4)), refused=False)
    assert coverage.covered.share == 1


def test_a_variant_makes_a_pair_with_every_problem_even_where_the_two_never_met() -> None:
    coverage, one, other = Coverage(), problem(3), problem(3, exclusive=True)
    run(coverage, one, case(one), case(one, step=2))
    run(coverage, other, case(other))
    assert coverage.covered.pairs < coverage.covered.possible
    run(coverage, other, case(other, step=2))
    assert coverage.covered.pairs == coverage.covered.possible


def test_a_pair_that_never_comes_where_chance_would_have_had_it_is_none() -> None:
    """A row of one element has no gaps between rows: the layout class stays what it is."""
    coverage, long, short = Coverage(), problem(3), problem(3, exclusive=True)
    for _ in range(20):
        run(coverage, long, case(long, step=2), case(long))
        run(coverage, short, case(short), case(short))
    assert coverage.covered.share == 1


def test_what_a_device_always_refuses_is_no_pair() -> None:
    coverage, one, other = Coverage(), problem(3), problem(3, exclusive=True)
    run(coverage, one, case(one))
    whole = coverage.covered
    run(coverage, other, case(other), refused=True)
    found = coverage.covered
    assert found.pairs == found.possible == whole.possible


def test_what_says_nothing_each_time_is_no_pair_either() -> None:
    coverage, its = Coverage(), problem(3)
    run(coverage, its, case(its))
    whole = coverage.covered
    coverage.wants(its)
    coverage.choose([case(its, recipe="wide")])
    coverage.says_nothing(case(its, recipe="wide"))
    assert coverage.covered == whole


def test_the_values_of_an_empty_case_are_no_traits() -> None:
    coverage, its = Coverage(), problem(0, 3)
    run(coverage, its, case(its))
    whole = coverage.covered
    run(coverage, its, case(its, recipe="wide"))
    assert coverage.covered == whole


def test_a_problem_promises_the_pairs_that_its_variants_have_not_shown() -> None:
    coverage, its, other = Coverage(), problem(3), problem(3, exclusive=True)
    run(coverage, its, case(its))
    assert coverage.promise(its) == (False, 0)
    first, pairs = coverage.promise(other)
    assert first
    assert pairs > 0  # one of a value that is new, with every trait of a variant
    run(coverage, its, case(its, step=2, recipe="wide"))
    _, before = coverage.promise(other)
    run(coverage, other, case(other))
    assert 0 < coverage.promise(other)[1] < before
    run(coverage, other, case(other, step=2, recipe="wide"))
    assert coverage.promise(other) == (False, 0)


def test_of_several_cases_that_with_most_new_pairs_is_chosen() -> None:
    coverage, its = Coverage(), problem(3)
    run(coverage, its, case(its))
    coverage.wants(its)
    assert coverage.choose([case(its)]) == 0  # no new pair is known of
    assert coverage.choose([case(its), case(its, offset=4)]) == 1
    coverage.wants(its)
    assert coverage.choose([case(its)]) == -1
    assert coverage.choose([case(its), case(its, offset=4)]) == 1
    assert coverage.choose([case(its), case(its, offset=4), case(its, step=2, offset=64, recipe="wide")]) == 2


def test_what_a_case_of_the_same_problem_will_show_is_not_new_any_more() -> None:
    coverage, its = Coverage(), problem(3)
    run(coverage, its, case(its))
    coverage.wants(its)
    coverage.choose([case(its)])
    far, wide = case(its, offset=4), case(its, recipe="wide")
    assert coverage.choose([case(its), far]) == 1
    assert coverage.worth_more()
    coverage.choose([far])
    assert not coverage.worth_more()  # the first of the next place: the one before has what it shows
    assert coverage.choose([far, wide]) == 1
    coverage.wants(its)
    assert not coverage.worth_more()
    coverage.choose([far])
    assert coverage.worth_more()  # none of them was run


def test_what_is_refused_each_time_is_not_drawn_again_but_now_and_then() -> None:
    coverage, its = Coverage(), problem(3)
    for _ in range(4):
        run(coverage, its, case(its, step=2), refused=True)
        run(coverage, its, case(its))
    assert not coverage.refuses(case(its))
    assert [coverage.refuses(case(its, step=2)) for _ in range(64)].count(False) == 2
    run(coverage, its, case(its, step=2))  # it was something else
    assert not any(coverage.refuses(case(its, step=2)) for _ in range(64))


def test_a_problem_that_is_refused_each_time_is_passed_over() -> None:
    coverage, its, other = Coverage(), problem(3, axis=1), problem(3)
    run(coverage, other, case(other))
    for _ in range(3):
        coverage.meets(its)
        coverage.ran(coverage.takes(case(its)), refused=True)
    assert [coverage.wants(its) for _ in range(16)].count(True) == 0
    assert coverage.wants(problem(5, exclusive=True))


@pytest.mark.parametrize(("covered", "text"), [((994, 1000), "99 % of 1,000"), ((5, 5), "100 % of 5"), ((0, 7), "0 %")])
def test_a_share_is_never_rounded_up(covered: tuple[int, int], text: str) -> None:
    assert str(Covered(*covered)).startswith(text)
    assert str(Covered(*covered)).endswith("trait pairs")


def test_nothing_drawn_is_no_share_to_complain_of() -> None:
    assert Covered().share == 1


def test_steering_draws_the_same_cases_for_the_same_seed() -> None:
    assert cases_drawn(5) == cases_drawn(5)
    assert cases_drawn(5) != cases_drawn(6)
