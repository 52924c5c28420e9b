"""Intervals of a median, and the claim that one build is slower than another."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from opconform.harness.judge.intervals import (
    CERTAINTY,
    DISSENTERS,
    FEWEST,
    MOST,
    Versus,
    median,
    median_interval,
)


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (10, 2), (15, 4), (20, 6), (30, 10), (50, 18)])
def test_the_ranks_are_those_of_the_sign_test(count: int, rank: int) -> None:
    """The table for 95 % that textbooks have (Conover, Practical Nonparametric Statistics, table A3)."""
    interval = median_interval(range(1, count + 1))
    assert (interval.low, interval.high) == (rank, count + 1 - rank)
    assert interval.confidence >= 0.95


@pytest.mark.parametrize("count", [2, 5, 6, 7, 10])
def test_the_interval_covers_the_median_as_often_as_it_says(count: int) -> None:
    """Whether each sample lies above or below the true median is one of 2^n equally likely patterns."""
    covered = 0
    for signs in itertools.product((-1.0, 1.0), repeat=count):
        interval = median_interval(signs)
        covered += interval.low < 0 < interval.high
    assert math.isclose(covered / 2**count, median_interval(range(count)).confidence)


def test_too_few_samples_give_their_range_and_say_so() -> None:
    interval = median_interval([3.0, 1.0, 2.0])
    assert (interval.low, interval.middle, interval.high, interval.confidence) == (1.0, 2.0, 3.0, 0.75)
    with pytest.raises(ValueError, match="no sample"):
        median_interval([])


def test_the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle() -> None:
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5


def test_precision_is_half_the_width_as_a_part_of_the_median() -> None:
    assert median_interval([90.0, 100.0, 100.0, 100.0, 100.0, 110.0]).precision == 0.1


def ratios(slowness: float, spread: float, rng: random.Random) -> Versus:
    """A comparison whose sittings scatter by `spread`, with the long tail that interruptions give either side."""
    versus = Versus((), 0.1)
    while versus.open:
        ours, other = (rng.lognormvariate(0, spread) + (rng.random() < 0.2) * rng.expovariate(2) for _ in range(2))
        versus = versus.and_then(slowness * ours / other)
    return versus


@pytest.mark.parametrize("spread", [0.001, 0.05, 0.2, 1.0])
def test_the_same_build_is_never_slower_than_itself(spread: float) -> None:
    rng = random.Random(1)
    assert not any(ratios(1.0, spread, rng).slower for _ in range(5000))


def test_a_build_that_is_slower_by_less_than_the_margin_is_not_called_slower() -> None:
    rng = random.Random(2)
    assert not any(ratios(1.08, 0.02, rng).slower for _ in range(500))


def test_a_build_that_is_slower_by_more_than_the_margin_is_found() -> None:
    rng = random.Random(3)
    found = [Versus(tuple(1.3 * rng.lognormvariate(0, 0.05) for _ in range(MOST)), 0.1) for _ in range(200)]
    assert sum(each.slower for each in found) > 190


def test_the_interval_of_a_slower_build_lies_above_the_margin() -> None:
    versus = Versus((1.05, *(1.2 + i / 100 for i in range(MOST - 1))), 0.1)
    assert versus.slower
    assert versus.interval.confidence >= CERTAINTY > 1 - 4e-6
    assert versus.interval.low > 1.1


def test_one_more_sitting_that_contradicts_ends_it() -> None:
    agreeing = (1.5,) * (MOST - DISSENTERS)
    assert Versus((*agreeing, *(1.0,) * DISSENTERS), 0.1).slower
    assert not Versus((*agreeing[1:], *(1.0,) * (DISSENTERS + 1)), 0.1).slower
    assert not Versus((1.5,) * FEWEST + (1.0,) * (DISSENTERS + 1), 0.1).open


def test_a_claim_takes_all_sittings_and_equality_a_few() -> None:
    assert Versus((2.0,) * (MOST - 1), 0.1).open
    assert not Versus((2.0,) * (MOST - 1), 0.1).slower
    assert not Versus((1.0,) * FEWEST, 0.1).open
