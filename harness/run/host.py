"""The host's own memory as a measure: a copy in it, and data that fills the CPU's caches."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

_UNKNOWN = 32 << 20  #: bytes of a last cache of which the system does not tell
_MOST = 256 << 20


class Copy:
    """A copy of `size` bytes, ready to launch."""

    def __init__(self, size: int) -> None:
        self._source = np.ones(size, np.uint8)
        self._target = np.zeros(size, np.uint8)  # written once, so that no page is missing when it counts

    def launch(self) -> None:
        """Copy."""
        np.copyto(self._target, self._source)

    def fetch(self) -> None:
        """Nothing is left to do."""


def evict() -> None:
    """Write as much memory as fills the CPU's caches twice."""
    other = _other()
    np.add(other, 1, out=other)


@cache
def _other() -> np.ndarray:
    return np.zeros(min(2 * last_cache(), _MOST) // 8, np.int64)


@cache
def last_cache() -> int:
    """Bytes of the CPU's largest cache."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text[:-1].isdecimal() and text[-1] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes, default=_UNKNOWN)
