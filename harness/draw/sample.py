"""What a search would draw, without the search: problems and cases of an op."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from opconform.harness.draw.problems import Problems, is_affordable
from opconform.harness.draw.variants import variants
from opconform.harness.model.case import Case
from opconform.harness.model.limits import Freedom
from opconform.harness.model.op import Op, Problem


def problems_drawn(op: Op, freedom: Freedom, count: int, number: int = 0) -> list[Problem]:
    """The simplest problem of an op and up to `count` − 1 others within `freedom`; the same for the same arguments."""
    return [problem for problem, _ in _problems(op, freedom, count, number)]


def batches_drawn(op: Op, freedom: Freedom, problems: int, number: int = 0) -> Iterator[list[Case]]:
    """The cases of each of so many problems of an op within `freedom`; the same for the same arguments."""
    for problem, chosen in _problems(op, freedom, problems, number):
        yield [variant.case(op, problem) for variant in variants(op, problem, chosen, freedom)]


def cases_drawn(op: Op, freedom: Freedom, problems: int, number: int = 0) -> list[Case]:
    """The same cases in one list."""
    return [case for batch in batches_drawn(op, freedom, problems, number) for case in batch]


def sample(op: Op, freedom: Freedom, count: int) -> list[Case]:
    """Up to `count` cases within `freedom`, at most four of a problem; the same for the same arguments."""
    found: list[Case] = []
    for batch in batches_drawn(op, freedom, count):
        found.extend(batch[:4])
        if len(found) >= count:
            break
    return found[:count]


def _problems(op: Op, freedom: Freedom, count: int, number: int) -> Iterator[tuple[Problem, int]]:
    """Problems, each with a seed for its variants; those that take too long are drawn and left out."""
    problems, random = Problems(op.problems(freedom)), Random(number)
    for index in range(count):
        drawn = problems.next(random) if index else problems.simplest()
        chosen = random.getrandbits(16)
        if is_affordable(drawn.problem, freedom):
            yield drawn.problem, chosen
