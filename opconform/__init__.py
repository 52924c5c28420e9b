"""Opconform: does a compute backend compute tensor ops correctly, for every shape, stride and offset?

The names a backend author needs are here; the rest lives in `opconform.harness`, `opconform.cases`,
`opconform.backends` and `opconform.reports`. A name is imported at its first use: the pytest plugin is loaded into
every pytest run of its environment, and most of those need none of this.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opconform.harness.model.version import VERSION

if TYPE_CHECKING:
    from opconform.harness.model.buffers import Buffers
    from opconform.harness.model.case import Case, CaseError
    from opconform.harness.model.expected import Expected
    from opconform.harness.model.layouts import Layout, LayoutClass
    from opconform.harness.model.limits import Limit
    from opconform.harness.model.numerics import Numerics
    from opconform.harness.model.op import Op, Problem
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

_PLACES = {
    "Backend": "run.backend",
    "CannotWriteError": "run.script",
    "Script": "run.script",
    "ScriptRequest": "run.script",
    "Buffers": "model.buffers",
    "Case": "model.case",
    "CaseError": "model.case",
    "Device": "run.backend",
    "Expected": "model.expected",
    "Layout": "model.layouts",
    "LayoutClass": "model.layouts",
    "Limit": "model.limits",
    "Numerics": "model.numerics",
    "Op": "model.op",
    "Problem": "model.op",
    "Unavailable": "run.backend",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'opconform' has no attribute {name!r}")
    found = getattr(import_module(f"opconform.harness.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
