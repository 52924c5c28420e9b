"""The host's own memory: a copy in it and data that fills the CPU's caches, as measures; and freed memory kept."""

from __future__ import annotations

import contextlib
import ctypes
from functools import cache
from pathlib import Path

import numpy as np

_UNKNOWN = 32 << 20  #: bytes of a last cache of which the system does not tell
_MOST = 256 << 20

_KEPT = 1 << 28  #: bytes that are kept at most, and that one array may have of them
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  #: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees: each reference takes a dozen arrays, and pages that come anew from
    the system take as long as what is computed in them. Only glibc has such a switch."""
    with contextlib.suppress(OSError, AttributeError):
        change = ctypes.CDLL(None).mallopt
        change(_TRIM_THRESHOLD, _KEPT)
        change(_MMAP_THRESHOLD, _KEPT)


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
