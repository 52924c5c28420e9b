"""The formula of a table's row as a kernel computes it: one operation of float32 after the other.

A row of a family needs no kernel of its own to test the tester: its formula is run on `Single` values in place of
`Approx` ones, which have no interval and round as a device does. The reference has the same formula, so that these
kernels say nothing of whether the formula is the right one; the backends' own rows and `torch`'s say that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from opconform.harness.model.approx import Approx
from opconform.harness.model.dtypes import F64
from opconform.harness.model.numerics import EXACT
from opconform.harness.model.op import Op


class Single(Approx):
    """Numbers that are rounded to float32 after each operation."""

    kept: ClassVar[type[np.floating[Any]]] = np.float32  #: what is rounded to the type of the output

    @classmethod
    def holding(cls, values: np.ndarray) -> Single:
        """Elements as a kernel loads them."""
        return cls.exactly(cls.loaded(values))

    @classmethod
    def exactly(cls, values: F64) -> Single:
        values = np.asarray(values, np.float64)
        return cls(values, values, values, EXACT)

    @staticmethod
    def loaded(values: np.ndarray) -> F64:
        return values.astype(np.float64)

    def nearest(self, exact: F64) -> F64:
        """The result of one operation."""
        return np.asarray(exact).astype(np.float32).astype(np.float64)

    def _made(self, value: F64, low: F64, high: F64, rounded: bool = False) -> Single:
        return self.exactly(value)

    def _rounded(self, value: F64, *_: Any, **__: Any) -> Single:
        return self.exactly(self.nearest(value))

    def constant(self, value: float, roundings: int = 1) -> Single:
        return self.exactly(np.asarray(value, np.float32))

    def either(self, other: Approx) -> Approx:
        return self

    def besides(self, *terms: Approx) -> Approx:
        return self

    def _summed(self, may_be_exact: bool) -> Single:
        total = np.zeros(self.value.shape[:-1])
        for i in range(self.value.shape[-1]):
            total = self.nearest(total + self.value[..., i])
        return self.exactly(total[..., None])


@dataclass(frozen=True)
class Row:
    """What a table says of an op: its formula and what wrong kernels may compute instead; of a piece, all results and
    what those before the last are called."""

    formula: Callable[..., Approx]
    mistakes: Mapping[str, Callable[..., Approx]]
    chain: Callable[..., tuple[Approx, ...]] | None = None
    steps: tuple[str, ...] = ()

    @classmethod
    def of(cls, op: Op) -> Row | None:
        """The row of an op, None where the op is in no table of formulas."""
        table = getattr(op.check, "__self__", None)
        formula = getattr(table, "formula", None)
        if formula is None:
            return None
        return cls(formula, table.mistakes, getattr(table, "chain", None), getattr(table, "steps", ()))


def rows() -> dict[str, Row]:
    """All ops that are rows of a table of formulas."""
    from opconform.harness.model.ops import ops  # where a bundle runs a kernel there are no ops to be found

    found = {name: Row.of(op) for name, op in ops().items()}
    return {name: row for name, row in found.items() if row is not None}
