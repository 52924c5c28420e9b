"""The registered ops."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from opconform.harness.model.op import Op
from opconform.harness.model.usage import UsageError, meant


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name, in the order of their names."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


@cache
def ops() -> dict[str, Op]:
    """Every registered op by name. An entry point of `opconform.ops` names one `Op`, or the several of a module.

    Raises `UsageError` for two ops of one name.
    """
    found: dict[str, Op] = {}
    for point in registered("opconform.ops").values():
        loaded = point.load()
        for op in (loaded,) if isinstance(loaded, Op) else tuple(loaded):
            if op.name in found:
                raise UsageError(f"two ops are called {op.name!r}; the second one comes from {point.value}")
            found[op.name] = op
    return dict(sorted(found.items()))


def folder_of_op(name: str) -> Path:
    """The folder of the module that declares an op: files that belong to the op lie beside it."""
    for point in registered("opconform.ops").values():
        loaded = point.load()
        if name in ([loaded.name] if isinstance(loaded, Op) else [op.name for op in loaded]):
            return Path(sys.modules[point.module].__file__ or "").parent
    raise KeyError(name)


def op_names() -> list[str]:
    """The names of the registered ops."""
    return list(ops())


def chosen_ops(names: Iterable[str]) -> list[Op]:
    """The ops that `names` (each one or several with commas) select; all of them where there is none.

    Raises `UsageError` for a name that no op has.
    """
    wanted = [name.strip() for value in names for name in value.split(",") if name.strip()]
    for name in wanted:
        if name not in op_names():
            raise UsageError(f"no op {name!r}; there are {', '.join(op_names())}{meant(name, op_names())}")
    return [op for name, op in ops().items() if not wanted or name in wanted]
