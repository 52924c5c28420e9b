"""Rows that other packages add to a backend's table of ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opconform.harness.model.ops import registered


def rows_of(backend: str) -> dict[str, Any]:
    """What other packages have registered for their ops, by the op's name.

    An entry point of the group `opconform.rows.BACKEND` names a mapping from ops to what that backend's own table has
    for an op: for `torch` a function of the case and its tensors, for `ggml` an `OpBinding`.
    """
    found: dict[str, Any] = {}
    for point in registered(f"opconform.rows.{backend}").values():
        rows: Mapping[str, Any] = point.load()
        found.update(rows)
    return found
