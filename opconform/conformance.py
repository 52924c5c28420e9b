"""The conformance suite: one test per op and device. `pytest --pyargs opconform.conformance --backend X`, or
`from opconform.conformance import *` in a test file of one's own.
"""

from __future__ import annotations

from typing import Any

__all__ = ["test_conformance"]


def test_conformance(opconform_pair: Any) -> None:
    """The device computes the op within its error bound on every case drawn, and on every known case."""
    opconform_pair.run()
