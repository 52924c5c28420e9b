"""Plain right implementations in float32, for any strides. The other kernels change one step of these."""

from __future__ import annotations

import numpy as np

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case
from tests.kernels.base import F32, lines, lower_left, places, to_left
from tests.kernels.small import Small


class Correct(Small):
    """acc, set, cumsum, solve_tri and the small ops, every operation rounded to float32."""

    name = "correct"

    def acc(self, case: Case, buffers: Buffers) -> None:
        a, b, where = self.read(buffers, "a"), self.read(buffers, "b"), places(case)
        total = self.added(a[where], b)
        out = np.array(a)
        out[where] = total
        self.write(buffers, "out", out)

    def set(self, case: Case, buffers: Buffers) -> None:
        out = self.moved(case, np.array(self.read(buffers, "a")))
        out[places(case)] = self.moved(case, self.read(buffers, "b"))
        self.write(buffers, "out", out)

    def cumsum(self, case: Case, buffers: Buffers) -> None:
        x = lines(case, self.read(buffers, "x"))
        out = np.empty(case.outputs["out"].shape, np.float32)
        if out.size:
            lines(case, out)[...] = self.exclusive(case, x) if case.params["exclusive"] else self.inclusive(case, x)
        self.write(buffers, "out", out)

    def inclusive(self, case: Case, x: F32) -> F32:
        """Prefix sums along axis 0."""
        return np.add.accumulate(x, axis=0, dtype=np.float32)

    def exclusive(self, case: Case, x: F32) -> F32:
        return shifted(self.inclusive(case, x))

    def solve_tri(self, case: Case, buffers: Buffers) -> None:
        a = lower_left(case, self.read(buffers, "a"))
        b = to_left(case, self.read(buffers, "b"))
        out = np.empty(case.outputs["out"].shape, np.float32)
        to_left(case, out)[...] = self.solved(case, a, b)
        self.write(buffers, "out", out)

    def solved(self, case: Case, a: F32, b: F32) -> F32:
        """X of A X = B for lower triangular A: each row, once known, is taken off the rows below it."""
        x = np.array(b)
        for i in range(a.shape[-1]):
            if not case.params["unit"]:
                x[..., i, :] /= a[..., i, i, None]
            x[..., i + 1 :, :] -= a[..., i + 1 :, i, None] * x[..., i, None, :]
        return x


def shifted(sums: F32) -> F32:
    """Exclusive prefix sums from inclusive ones."""
    return np.concatenate([np.zeros_like(sums[:1]), sums[:-1]])
