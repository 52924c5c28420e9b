"""Problems one after the other until one fails, and that one shrunk.

Hypothesis reads problems from random bytes, through its entry for fuzzers (`fuzz_one_input`). That costs half of what
its engine takes to look for problems that it has not seen, and the variants differ anyway. What fails goes into a
database in memory; the engine takes it from there and shrinks it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.database import InMemoryExampleDatabase
from hypothesis.strategies import SearchStrategy

from opconform.harness.model.op import Problem

_LEAST_BYTES, _MOST_BYTES = 1 << 9, 1 << 16  #: of one problem; most take less than a hundred
_TRIES = 100  #: how often a problem is drawn anew where a strategy rejects what it has drawn


class _Failed(Exception):
    """Raised inside Hypothesis to say that an example fails."""


class Problems:
    """The problems of a strategy, each told to `fails`.

    `fails` says whether a problem fails. After the first that does it is asked about smaller and smaller ones.
    """

    def __init__(self, strategy: SearchStrategy[Problem], fails: Callable[[Problem], bool]) -> None:
        self._told = 0
        self._bytes = _LEAST_BYTES

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
            self._told += 1
            if fails(problem):
                raise _Failed

        test: Any = examine  # Hypothesis gives it an attribute that its types do not name
        self._shrink: Callable[[], None] = test
        self._read: Callable[[bytes], object] = test.hypothesis.fuzz_one_input

    def simplest(self) -> None:
        """Tell the problem in which every choice is the first one, which is where shrinking would end."""
        self._tell(lambda: bytes(self._bytes))

    def next(self, random: Random) -> None:
        """Tell one more problem; the same for a generator in the same state.

        Raises ValueError where the strategy rejects whatever it draws.
        """
        self._tell(lambda: random.randbytes(self._bytes))

    def _tell(self, source: Callable[[], bytes]) -> None:
        told, tries = self._told, 0
        try:
            while self._told == told:
                if (tries := tries + 1) > _TRIES:
                    raise ValueError(f"none of {_TRIES} problems drawn was one: the op's strategy rejects them all")
                self._read(source())
                if self._told == told and self._bytes < _MOST_BYTES:
                    self._bytes *= 2  # it may have come to the end of the bytes
        except _Failed:
            with contextlib.suppress(_Failed):
                self._shrink()
