"""How a run that has `--minutes` shares them among its pairs of op and device."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from typing import Any

from opconform.harness.search.settings import Settings


class Budget:
    """`seconds` for `pairs`, shared evenly: what one pair leaves is the others'. None: each takes what it needs.

    `processes` that share the pairs take as many at a time. Where the number of cases is chosen too (it has no
    profile's name), whichever comes first ends a pair; else only the time does.
    """

    def __init__(self, pairs: int, settings: Settings, seconds: float | None, processes: int = 1) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self._left, self._processes = pairs, processes
        self._lock = threading.Lock()
        self._examples = settings.examples if settings.profile == "" else sys.maxsize

    def next(self, settings: Settings) -> Settings:
        """The settings with which the next pair runs."""
        return replace(settings, **self.share())

    def share(self) -> dict[str, Any]:
        """The fields of `Settings` that the next pair's share changes."""
        if self.deadline is None:
            return {}
        with self._lock:
            share = max(self.deadline - time.monotonic(), 0.0) * self._processes / max(self._left, self._processes)
            self._left -= 1
        return {"seconds": share, "examples": self._examples}
