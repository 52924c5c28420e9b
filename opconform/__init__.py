"""Opconform: does a compute backend compute tensor ops correctly, for every shape, stride and offset?

The names a backend author needs are here; the rest lives in `opconform.harness`, `opconform.cases`,
`opconform.backends` and `opconform.reports`.
"""

from opconform.harness.backend import Backend, Device, Limit, Unavailable
from opconform.harness.buffers import Buffers
from opconform.harness.case import Case, CaseError
from opconform.harness.layouts import Layout, LayoutClass
from opconform.harness.numerics import Numerics
from opconform.harness.op import Expected, Op, Problem

__version__ = "0.1.0"

__all__ = [
    "Backend",
    "Buffers",
    "Case",
    "CaseError",
    "Device",
    "Expected",
    "Layout",
    "LayoutClass",
    "Limit",
    "Numerics",
    "Op",
    "Problem",
    "Unavailable",
    "__version__",
]
