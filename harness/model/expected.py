"""The right answer of a case, how far from it a correct backend may be, and how one output compares with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import F64, Mask, Raw
from opconform.harness.model.numerics import Numerics


@dataclass(frozen=True)
class Expected:
    """The right answer and how far from it a correct backend may be.

    `value` and `bound` are float64 of the output's shape. A bound of infinity leaves an element free (where float32
    itself overflows, or where the op promises nothing). Where `exact` is true the output must hold the very bits of
    `bits` (a NaN may change its payload, a denormal may be flushed where the device says so). `others` are the
    expectations of an op's further outputs, by name.
    """

    value: F64
    bound: F64
    exact: Mask | None = None
    bits: Raw | None = None
    others: Mapping[str, Expected] = field(default_factory=dict)


@dataclass(frozen=True)
class Residual:
    """A judgement on what the backend returned instead of on its distance from `Expected.value`.

    `error` and `bound` are float64 of the output's shape.
    """

    error: F64
    bound: F64


Expect = Callable[[Case, Mapping[str, Raw], Numerics], Expected]


@dataclass(frozen=True)
class Comparison:
    """One output (`name`) against its reference, element by element (all arrays of the output's shape).

    `error` and `bound` are float64; `wrong` marks the elements that no correct backend returns; `free` counts those
    of which nothing can be demanded, because float32 overflows there or the reference is NaN.
    """

    name: str
    got: F64
    raw: Raw
    expected: Expected
    error: F64
    bound: F64
    wrong: Mask
    free: int

    @property
    def nmse(self) -> float:
        """Normalised mean squared error as upstream's test-backend-ops computes it: Σ(got − want)² / Σ want²."""
        want = self.expected.value
        with np.errstate(all="ignore"):
            return float(np.sum((self.got - want) ** 2) / np.sum(want**2))
