"""Windows over axes: which element of an input each tap of a kernel meets, for each place of the output.

A window has `kernel` taps, `dilation` apart; the next window stands `stride` further; `padding` places before and after
the input hold nothing. All are of one axis; `crossed` puts axes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opconform.harness.model.image import Places


@dataclass(frozen=True)
class Window:
    """The windows along one axis."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def count(self, n: int) -> int:
        """How many windows an axis of n has; 0 or less where not one fits."""
        room = n + 2 * self.padding - self.dilation * (self.kernel - 1) - 1
        return room // self.stride + 1 if room >= 0 else 0

    def taps(self, n: int) -> Places:
        """For each window the places on an axis of n that its taps meet; -1 in the padding."""
        start = np.arange(self.count(n))[:, None] * self.stride - self.padding
        found = start + np.arange(self.kernel) * self.dilation
        return np.where((found >= 0) & (found < n), found, -1)

    def reached(self, n: int) -> int:
        """The least size from n on at which there is a window, and one with an element."""
        while (self.taps(n) < 0).all():
            n += 1
        return n

    def back(self, n: int, windows: int) -> Places:
        """For each place on an axis of n, by tap, the window (of so many) of which that tap meets it; -1 for none."""
        from_start = np.arange(n)[:, None] + self.padding - np.arange(self.kernel) * self.dilation
        window = from_start // self.stride
        meets = (from_start % self.stride == 0) & (window >= 0) & (window < windows)
        return np.where(meets, window, -1)


def crossed(taps: Sequence[Places], sizes: Sequence[int]) -> Places:
    """Windows over several axes, the outermost first: [out_1, …, out_k, tap_1·…·tap_k], flat places in `sizes`."""
    rank = len(taps)
    found, missed = np.zeros((1,) * (2 * rank), dtype=np.int64), np.zeros((1,) * (2 * rank), dtype=bool)
    for axis, (each, size) in enumerate(zip(taps, sizes)):
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = each.shape
        one = each.reshape(shape)
        found, missed = found * size + one, missed | (one < 0)
    places: Places = np.where(missed, -1, found)
    return places.reshape(*places.shape[:rank], -1)


def met(places: Places) -> Places:
    """The places that are none of the padding's moved to the front of each row, as many columns as one row needs.

    Zeros add no rounding: a sum of what is met has the bound of its own length.
    """
    most = int(np.max((places >= 0).sum(-1), initial=1))
    order = np.argsort(places < 0, axis=-1, kind="stable")[..., : max(most, 1)]
    return np.take_along_axis(places, order, -1)
