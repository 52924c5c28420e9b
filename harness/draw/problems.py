"""Problems one after the other until one fails, and that one shrunk.

Hypothesis reads problems from random bytes, through its entry for fuzzers (`fuzz_one_input`). That costs half of what
its engine takes to look for problems that it has not seen, and the variants differ anyway. It reads a few problems at
once, for to begin costs as much as to read one. What fails is read alone, and goes into a database in memory; the
engine takes it from there and shrinks it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

from hypothesis import HealthCheck, Phase, Verbosity, core, given, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase

from opconform.harness.model.limits import MANY_ROWS, Freedom
from opconform.harness.model.op import Problem

TOGETHER = 4  #: problems that are read at once
_LEAST_BYTES, _MOST_BYTES = 1 << 10, 1 << 16  #: of those; most take less than a hundred each
_TRIES = 100  #: how often a problem is drawn anew where a strategy rejects what it has drawn


def rows_of(problem: Problem) -> int:
    """How many rows the largest argument has."""
    return max(math.prod(shape[:-1]) for shape in problem.every_shape)


def size_of(problem: Problem) -> int:
    """How many elements the largest argument has."""
    return max(math.prod(shape) for shape in problem.every_shape)


def is_affordable(problem: Problem, freedom: Freedom) -> bool:
    """Whether a problem has no more rows than may be drawn: some devices take seconds for many."""
    return rows_of(problem) <= MANY_ROWS or bool(freedom.choices("many_rows", (True,)))


class _Failed(Exception):
    """Raised inside Hypothesis to say that an example fails."""


@dataclass(frozen=True)
class Drawn:
    """A problem, and the bytes that it was read from: it is number `place` of those that they hold."""

    problem: Problem
    source: bytes
    place: int


class Problems:
    """The problems of a strategy."""

    def __init__(self, strategy: st.SearchStrategy[Problem]) -> None:
        self._bytes = _LEAST_BYTES
        self._left: list[Drawn] = []  #: of those read last, the next one at the end
        self._hear: Callable[[Problem], bool]

        def hear(*problems: Problem) -> None:
            for problem in problems:
                if self._hear(problem):
                    raise _Failed

        how = settings(
            phases=(Phase.reuse, Phase.shrink),
            database=InMemoryExampleDatabase(),
            deadline=None,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )

        @how
        @given(strategy)
        def one(problem: Problem) -> None:
            hear(problem)

        @how
        @given(st.tuples(*[strategy] * TOGETHER))
        def several(problems: Sequence[Problem]) -> None:
            hear(*problems)

        test, tests = cast("Any", one), cast("Any", several)  # Hypothesis gives them an attribute without a type
        self._shrink: Callable[[], None] = test
        self._read: Callable[[bytes], bytes | None] = test.hypothesis.fuzz_one_input
        self._read_next: Callable[[bytes], object] = tests.hypothesis.fuzz_one_input

    def simplest(self) -> Drawn:
        """The problem in which every choice is the first one, which is where shrinking would end."""
        return self._drawn(lambda: bytes(self._bytes))[0]

    def next(self, random: Random) -> Drawn:
        """One more problem; the same up to `TOGETHER` for a generator in the same state.

        Raises ValueError where the strategy rejects whatever it draws.
        """
        if not self._left:
            self._left = self._drawn(lambda: random.randbytes(self._bytes))[::-1]
        return self._left.pop()

    def _drawn(self, source: Callable[[], bytes]) -> list[Drawn]:
        found: list[Problem] = []

        def hear(problem: Problem) -> bool:
            found.append(problem)
            return False

        self._hear = hear
        for again in range(1, _TRIES + 1):
            read = source()
            self._read_next(read)
            if found:
                return [Drawn(problem, read, place) for place, problem in enumerate(found)]
            self._bytes = min(2 * self._bytes, _MOST_BYTES)  # it may have come to the end of the bytes,
            if again == _TRIES // 2:  # or of what Hypothesis reads for one example
                self._read_next = self._read
        raise ValueError(f"none of {_TRIES} problems drawn was one: the op's strategy rejects them all")

    def _alone(self, drawn: Drawn) -> bytes:
        """The bytes of a problem from its own first one on."""
        source = drawn.source
        self._hear = lambda problem: False
        for _ in range(drawn.place):
            source = source[len(self._read(source) or b"") :]
        return source

    def shrink(self, drawn: Drawn, fails: Callable[[Problem], bool]) -> None:
        """Ask `fails` about smaller and smaller problems, beginning with the one drawn, as long as they fail."""
        source = self._alone(drawn)
        self._hear = fails
        try:
            self._read(source)
        except _Failed:  # it has gone into the database; an empty one would make Hypothesis skip the test at hand
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
