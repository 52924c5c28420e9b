"""Rows that other packages add to a backend's table of ops."""

from __future__ import annotations

from typing import Any

from opconform.harness.model.ops import registered


def rows_of(backend: str) -> list[Any]:
    """What other packages have registered for their ops: tables like the backend's own.

    An entry point of the group `opconform.rows.BACKEND` names one: for `torch` a mapping from an op's name to a
    function of the case and its tensors, for `ggml` some `Row`s.
    """
    return [point.load() for point in registered(f"opconform.rows.{backend}").values()]
