"""How a run's minutes are shared among its pairs."""

from __future__ import annotations

import sys

import pytest

from opconform import budget
from opconform.budget import Budget, level
from opconform.harness.search.settings import Settings


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


def taken(clock: Clock, shared: Budget, needs: list[float]) -> list[float]:
    """What each pair got of what it needs, one after the other."""
    got = []
    for need in needs:
        with shared.pair() as share:
            got.append(min(need, share["seconds"]))
            clock.now += got[-1]
    return got


@pytest.mark.parametrize(
    ("took", "greedy", "expected"),
    [
        ([], 1, 3.0),
        ([], 4, 3.0),
        ([1.0], 1, 5.0),  # (1 + 5) / 2 = 3
        ([1.0, 1.0, 2.0], 1, 8.0),
        ([1.0, 9.0], 1, 4.0),  # (1 + 4 + 4) / 3 = 3: the second would take more than there is
        ([4.0, 5.0], 1, 3.0),
    ],
)
def test_the_level_is_where_pairs_like_those_before_take_the_even_share_on_average(
    took: list[float], greedy: int, expected: float
) -> None:
    assert level(took, greedy, 3.0) == pytest.approx(expected)


def test_a_slow_pair_has_what_the_quick_ones_leave(clock: Clock) -> None:
    needs = ([0.5] * 9 + [40.0]) * 10
    got = taken(clock, Budget(len(needs), Settings(examples=1000, profile=""), 100.0), needs)
    slow = got[9::10]
    assert sum(got) <= 100.0 + 1e-9
    assert sum(got) > 95.0  # the time is used
    assert max(slow[:-1]) < 3 * min(slow)  # and no slow pair has all of it, but what is left at the end
    assert all(each == 0.5 for each in got if each not in slow)


def test_where_only_the_time_ends_a_pair_all_get_the_same(clock: Clock) -> None:
    got = taken(clock, Budget(50, Settings(profile="default"), 100.0), [1e9] * 50)
    assert got == pytest.approx([2.0] * 50)


def test_where_a_number_may_end_it_the_first_pairs_get_more_until_they_turn_out_to_be_slow(clock: Clock) -> None:
    got = taken(clock, Budget(50, Settings(examples=1000, profile=""), 100.0), [1e9] * 50)
    assert got[0] == pytest.approx(6.0)
    assert sum(got) == pytest.approx(100.0)
    assert min(got) > 1.0


def test_two_processes_take_twice_as_much(clock: Clock) -> None:
    with Budget(50, Settings(profile="default"), 100.0, processes=2).pair() as share:
        assert share == {"seconds": pytest.approx(4.0), "examples": sys.maxsize}


def test_without_minutes_nothing_is_changed() -> None:
    with Budget(50, Settings(), None).pair() as share:
        assert share == {}
