"""What a case takes at least: bytes that must be moved, and operations on floating-point numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.op import Op


@dataclass(frozen=True)
class Work:
    """moved: bytes that are read and written where each element is touched once. flops: additions, multiplications,
    divisions and functions of floating-point numbers, 0 for an op that only moves elements."""

    moved: int
    flops: int

    @classmethod
    def of(cls, op: Op, case: Case) -> Work:
        """The work of a case, as its op counts it."""
        moved = everything_once(case) if op.moves is None else op.moves(case)
        return cls(moved, op.flops(case))


def everything_once(case: Case) -> int:
    """Bytes of all elements, each input read and each output written once."""
    return sum(bytes_of(layout) for layout in case.layouts.values())


def bytes_of(layout: Layout) -> int:
    """Bytes of a tensor's distinct elements, or blocks of them: one that is repeated by a stride of 0 is read once."""
    different = [size for size, stride in zip(layout.blocks, layout.strides) if stride or not size]
    return math.prod(different) * layout.type.itemsize
