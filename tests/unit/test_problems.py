"""Problems are drawn cheaply and shrunk by Hypothesis; the same seed draws the same ones."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from opconform.harness.draw.problems import TOGETHER, Problems
from opconform.harness.draw.strategies import within
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Problem
from opconform.harness.model.ops import ops


def _of(sizes: tuple[int, ...]) -> Problem:
    return Problem({}, "f32", {"a": sizes}, sizes)


_PROBLEMS = st.lists(st.integers(1, 1000), min_size=4, max_size=4).map(tuple).map(_of)


def _told(count: int, seed: int) -> list[tuple[int, ...]]:
    problems, random = Problems(_PROBLEMS), Random(seed)
    return [problems.next(random).problem.out_shape for _ in range(count)]


def test_a_seed_draws_the_same_problems_and_another_one_others() -> None:
    assert _told(20, 1) == _told(20, 1)
    assert not set(_told(20, 1)) & set(_told(20, 2))


def test_the_simplest_problem_comes_when_it_is_asked_for() -> None:
    assert Problems(_PROBLEMS).simplest().problem.out_shape == (1, 1, 1, 1)


def test_what_fails_is_shrunk() -> None:
    problems, random = Problems(_PROBLEMS), Random(3)
    drawn = next(drawn for drawn in iter(lambda: problems.next(random), None) if drawn.problem.out_shape[2] >= 17)
    told: list[tuple[int, ...]] = []

    def fails(problem: Problem) -> bool:
        told.append(problem.out_shape)
        return problem.out_shape[2] >= 17

    problems.shrink(drawn, fails)
    assert told[0] == drawn.problem.out_shape
    assert [shape for shape in told if shape[2] >= 17][-1] == (1, 1, 17, 1)


def test_what_does_not_fail_again_is_left_as_it_is() -> None:
    problems = Problems(_PROBLEMS)
    told: list[Problem] = []

    def passes(problem: Problem) -> bool:
        told.append(problem)
        return False

    drawn = problems.next(Random(1))
    problems.shrink(drawn, passes)
    assert told == [drawn.problem]


@pytest.mark.parametrize("op", ["acc", "mul_mat", "gated_delta_net_chunk", "flash_attn_ext", "top_k"])
def test_a_problem_that_was_read_with_others_is_shrunk_alone(op: str) -> None:
    problems, random = Problems(ops()[op].problems(Freedom())), Random(7)
    for _ in range(2 * TOGETHER):
        drawn = problems.next(random)
        first: list[Problem] = []

        def passes(problem: Problem, told: list[Problem] = first) -> bool:
            told.append(problem)
            return False

        problems.shrink(drawn, passes)
        assert first == [drawn.problem]


def test_an_op_that_draws_much_gets_the_bytes_it_needs() -> None:
    @st.composite
    def long(draw: st.DrawFn) -> Problem:
        return _of((len([draw(st.integers(0, 2**64)) for _ in range(500)]), 1, 1, 1))

    assert Problems(long()).next(Random(1)).problem.out_shape == (500, 1, 1, 1)


def test_a_strategy_that_rejects_everything_is_an_error() -> None:
    @st.composite
    def none(draw: st.DrawFn) -> Problem:
        assume(draw(st.just(False)))
        raise AssertionError

    with pytest.raises(ValueError, match="rejects them all"):
        Problems(none()).next(Random(1))


def test_an_error_of_the_op_is_raised_as_it_is() -> None:
    @st.composite
    def broken(draw: st.DrawFn) -> Problem:
        raise KeyError(draw(st.just("shape")))

    with pytest.raises(KeyError, match="shape"):
        Problems(broken()).next(Random(1))


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ((4, 3, 2, 5), (4, 3, 2, 5)),
        ((129, 129, 2, 1), (129, 129, 2, 1)),
        ((257, 257, 1, 1), (128, 257, 1, 1)),
        ((1025, 33, 3, 5), (1025, 33, 1, 1)),  # the batches go, what is long stays
        ((130, 133, 3, 3), (130, 133, 1, 2)),
        ((70001, 3, 1, 1), (70001, 2, 1, 1)),
        ((70001, 7, 2, 1), (70001, 2, 1, 1)),
        ((0, 1025, 1025, 9), (0, 1025, 1025, 9)),
    ],
)
def test_a_large_tensor_loses_its_batches_first(sizes: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert within(sizes, 4, Freedom()) == kept


def test_what_may_be_held_bounds_a_tensor_too() -> None:
    assert within((64, 64, 3, 2), 4, Freedom(max_bytes=64 << 10)) == (8, 16, 3, 2)
