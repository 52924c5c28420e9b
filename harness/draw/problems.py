"""Problems one after the other until one fails, and that one shrunk.

Hypothesis reads problems from random bytes, through its entry for fuzzers (`fuzz_one_input`). That costs half of what
its engine takes to look for problems that it has not seen, and the variants differ anyway. What fails goes into a
database in memory; the engine takes it from there and shrinks it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, core, given, settings
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.strategies import SearchStrategy

from opconform.harness.model.limits import MANY_ROWS, Freedom
from opconform.harness.model.op import Problem

_LEAST_BYTES, _MOST_BYTES = 1 << 9, 1 << 16  #: of one problem; most take less than a hundred
_TRIES = 100  #: how often a problem is drawn anew where a strategy rejects what it has drawn


def rows_of(problem: Problem) -> int:
    """How many rows the largest argument has."""
    shapes = (*problem.shapes.values(), problem.out_shape, *problem.more_outputs.values())
    return max((math.prod(shape[:-1]) for shape in shapes), default=0)


def is_affordable(problem: Problem, freedom: Freedom) -> bool:
    """Whether a problem has no more rows than may be drawn: some devices take seconds for many."""
    return rows_of(problem) <= MANY_ROWS or bool(freedom.choices("many_rows", (True,)))


class _Failed(Exception):
    """Raised inside Hypothesis to say that an example fails."""


@dataclass(frozen=True)
class Drawn:
    """A problem, and the bytes that it was read from."""

    problem: Problem
    source: bytes


class Problems:
    """The problems of a strategy."""

    def __init__(self, strategy: SearchStrategy[Problem]) -> None:
        self._bytes = _LEAST_BYTES
        self._hear: Callable[[Problem], bool]

        @settings(
            phases=(Phase.reuse, Phase.shrink),
            database=InMemoryExampleDatabase(),
            deadline=None,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def examine(problem: Problem) -> None:
            if self._hear(problem):
                raise _Failed

        test: Any = examine  # Hypothesis gives it an attribute that its types do not name
        self._shrink: Callable[[], None] = test
        self._read: Callable[[bytes], object] = test.hypothesis.fuzz_one_input

    def simplest(self) -> Drawn:
        """The problem in which every choice is the first one, which is where shrinking would end."""
        return self._drawn(lambda: bytes(self._bytes))

    def next(self, random: Random) -> Drawn:
        """One more problem; the same for a generator in the same state.

        Raises ValueError where the strategy rejects whatever it draws.
        """
        return self._drawn(lambda: random.randbytes(self._bytes))

    def _drawn(self, source: Callable[[], bytes]) -> Drawn:
        found: list[Problem] = []

        def hear(problem: Problem) -> bool:
            found.append(problem)
            return False

        self._hear = hear
        for _ in range(_TRIES):
            read = source()
            self._read(read)
            if found:
                return Drawn(found[0], read)
            self._bytes = min(2 * self._bytes, _MOST_BYTES)  # it may have come to the end of the bytes
        raise ValueError(f"none of {_TRIES} problems drawn was one: the op's strategy rejects them all")

    def shrink(self, drawn: Drawn, fails: Callable[[Problem], bool]) -> None:
        """Ask `fails` about smaller and smaller problems, beginning with the one drawn, as long as they fail."""
        self._hear = fails
        with contextlib.suppress(_Failed):
            self._read(drawn.source)  # what fails goes into the database
        with contextlib.suppress(_Failed), _the_same_each_time():
            self._shrink()


@contextlib.contextmanager
def _the_same_each_time() -> Iterator[None]:
    """What the engine tries while it shrinks depends on a generator of its own: here one in a known state. (A seed for
    the test would make it forget its database.) A version without this generator only shrinks in another order."""
    holder, name = getattr(core, "threadlocal", core), "_hypothesis_global_random"
    before = getattr(holder, name, None)
    setattr(holder, name, Random(0))
    try:
        yield
    finally:
        setattr(holder, name, before)
