"""Opconform: does a compute backend compute tensor ops correctly, for every shape, stride and offset?

The names a backend author needs are here; the rest lives in `opconform.harness`, `opconform.cases`,
`opconform.backends` and `opconform.reports`.
"""

from opconform.harness.model.buffers import Buffers
from opconform.harness.model.case import Case, CaseError
from opconform.harness.model.expected import Expected
from opconform.harness.model.layouts import Layout, LayoutClass
from opconform.harness.model.limits import Limit
from opconform.harness.model.numerics import Numerics
from opconform.harness.model.op import Op, Problem
from opconform.harness.model.version import VERSION
from opconform.harness.run.backend import Backend, Device, Unavailable
from opconform.harness.run.script import CannotWriteError, Script, ScriptRequest

__version__ = VERSION

__all__ = [
    "Backend",
    "Buffers",
    "CannotWriteError",
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
    "Script",
    "ScriptRequest",
    "Unavailable",
    "__version__",
]
