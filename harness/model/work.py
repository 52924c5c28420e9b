"""What a case takes at least: bytes that must be moved, and operations on floating-point numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Op
from opconform.harness.model.values import places_of


@dataclass(frozen=True)
class Work:
    """moved: bytes that are read and written where each element is touched once. flops: additions, multiplications,
    divisions and functions of floating-point numbers, 0 for an op that only moves elements."""

    moved: int
    flops: int

    @classmethod
    def of(cls, op: Op, case: Case) -> Work:
        """The work of a case, as its op counts it."""
        moved = _needed_once(op, case) if op.moves is None else op.moves(case)
        return cls(moved, op.flops(case))


def _needed_once(op: Op, case: Case) -> int:
    """Bytes of all elements that count: nothing of an argument whose shape alone matters, and where an index holds
    places in an argument, as much of it as the places that the case names."""
    return sum(round(bytes_of(layout) * _share(op, case, name)) for name, layout in case.layouts.items())


def _share(op: Op, case: Case, name: str) -> float:
    """How much of an argument is read, or written."""
    if name in op.shape_only:
        return 0.0
    shares = [
        len(np.unique(places_of(case, op, index))) / its.size(case)
        for index, its in op.indices.items()
        if its.of == name and index in case.inputs and its.size(case)
    ]
    return min(shares, default=1.0)


def everything_once(case: Case) -> int:
    """Bytes of all elements, each input read and each output written once."""
    return sum(bytes_of(layout) for layout in case.layouts.values())


def bytes_of(layout: Layout) -> int:
    """Bytes of a tensor's distinct elements, or blocks of them: one that is repeated by a stride of 0 is read once."""
    different = [size for size, stride in zip(layout.blocks, layout.strides) if stride or not size]
    return math.prod(different) * layout.type.itemsize
