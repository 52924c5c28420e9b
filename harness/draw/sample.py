"""What a strategy gives without a search: examples of it, and some cases of an op."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from opconform.harness.draw.strategies import batches
from opconform.harness.draw.variants import variants
from opconform.harness.model.case import Case
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op

T = TypeVar("T")


def examples(strategy: SearchStrategy[T], count: int, number: int = 0) -> list[T]:
    """`count` examples of a strategy at most; the same for the same arguments."""
    found: list[T] = []

    @seed(number)
    @settings(
        max_examples=count,
        phases=(Phase.generate,),
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(example: T) -> None:
        found.append(example)

    draw()
    return found


def cases_drawn(op: Op, freedom: Freedom, problems: int, number: int = 0) -> list[Case]:
    """The cases of so many problems of an op within `freedom`; the same for the same arguments."""
    return [
        variant.case(op, problem)
        for problem, chosen in examples(batches(op, freedom), problems, number)
        for variant in variants(op, problem, chosen, freedom)
    ]


def sample(op: Op, freedom: Freedom, count: int) -> list[Case]:
    """Up to `count` cases within `freedom`, at most four of a problem; the same for the same arguments."""
    found: list[Case] = []
    for problem, chosen in examples(batches(op, freedom), count):
        if len(found) >= count:
            break
        found.extend(variant.case(op, problem) for variant in variants(op, problem, chosen, freedom)[:4])
    return found[:count]
