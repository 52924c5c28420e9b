"""How a run that has `--minutes` shares them among its pairs of op and device."""

from __future__ import annotations

import bisect
import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from opconform.harness.search.settings import Settings

_GREEDY = 16  #: beside so many pairs that were done in time, one is expected that takes all it gets
_MOST = 3  #: a pair takes so many even shares at most: those to come may need more time than those before
_QUICK = 3  #: of four pairs so many are expected to take next to no time, as long as nothing else is known


class Budget:
    """`seconds` for `pairs`: what one pair leaves is the others'. None: each takes what it needs.

    `processes` that share the pairs take as many at a time. Where the number of cases is chosen too (it has no
    profile's name), whichever comes first ends a pair; else only the time does. Then most pairs are done before their
    time is up, and what those before took tells how much the next ones will leave: a slow pair may have that.
    """

    def __init__(self, pairs: int, settings: Settings, seconds: float | None, processes: int = 1) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._left, self._processes = pairs, processes
        self._lock = threading.Lock()
        self._examples = settings.examples if settings.profile == "" else sys.maxsize
        quick = 0 if self._examples == sys.maxsize else _QUICK
        self._took = [0.0] * quick  #: by pairs that were done in time, in rising order
        self._greedy = 0  #: pairs that were not

    @contextlib.contextmanager
    def pair(self) -> Iterator[dict[str, Any]]:
        """The next pair runs in this context, with these fields of `Settings` changed."""
        if self.deadline is None:
            yield {}
            return
        share = self._share(self.deadline)
        start = time.monotonic()
        try:
            yield {"seconds": share, "examples": self._examples}
        finally:
            self._ends(share, time.monotonic() - start)

    def _share(self, deadline: float) -> float:
        with self._lock:
            seconds = max(deadline - time.monotonic(), 0.0)
            evenly = seconds * self._processes / max(self._left, self._processes)
            self._left -= 1
            share = level(self._took, self._greedy + 1 + len(self._took) // _GREEDY, evenly)
            return min(share, _MOST * evenly, seconds)

    def _ends(self, share: float, took: float) -> None:
        with self._lock:
            if took < share:
                bisect.insort(self._took, took)
            else:
                self._greedy += 1


def level(took: Sequence[float], greedy: int, evenly: float) -> float:
    """The share at which pairs take `evenly` on average, if they are like those before: some took so many seconds, in
    rising order, and `greedy` others, at least one, take whatever they get. It is never below `evenly`."""
    left = evenly * (len(took) + greedy)
    for index, seconds in enumerate(took):
        others = len(took) - index + greedy
        if seconds * others >= left:
            return left / others
        left -= seconds
    return left / greedy
