"""What TRI, DIAG, PAD, CONT and CPY share: each element of the output is one of x, or a zero.

Such an op is told by its sources: for each element of the output the flat index (in C order) of the element of `x` that
stands there, or -1 for a zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expect, Expected
from opconform.harness.model.layouts import Layout
from opconform.harness.model.numerics import Numerics

Places = npt.NDArray[np.int64]

DTYPES = ("f32", "f16", "bf16", "i32")


def flat(layout: Layout) -> Places:
    """Each element's own flat index."""
    return np.arange(layout.size, dtype=np.int64).reshape(layout.shape)


def picked(raw: Raw, source: Places) -> Raw:
    """The elements of `raw` at the flat indices `source`, and +0 where that is -1."""
    with_zero = np.append(raw.reshape(-1), raw.dtype.type(0))
    found: Raw = with_zero[source]
    return found


def moved(case: Case, raw: Mapping[str, Raw], source: Places) -> Expected:
    """The bits of the elements of `x` at `source`, and +0 where that is -1. Nothing is computed: every bit counts."""
    bits = picked(raw["x"], source)
    value = case.outputs["out"].type.decode(bits)
    return Expected(value, np.zeros(value.shape), exact=np.ones(value.shape, dtype=bool), bits=bits)


def moves(source: Places) -> Expect:
    """The reference of a wrong kernel that moves the elements at `source` instead."""

    def expect(case: Case, raw: Mapping[str, Raw], numerics: Numerics) -> Expected:
        return moved(case, raw, source)

    return expect
