"""Where the elements of a tensor stand in memory: shape, byte strides, byte offset, element type."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import SupportsInt

import numpy as np

from opconform.harness.model.dtypes import DTYPES, DType
from opconform.harness.model.lazy import lazy

MARKED = 1 << 28  #: elements of memory that are marked one by one to see whether two elements meet


class LayoutClass(IntEnum):
    """How much freedom a layout takes; each class includes the ones before it.

    PACKED: contiguous at offset 0. CONTIGUOUS: any offset. ROWS: rows are contiguous (nb0 is the element size), the
    outer dimensions are padded or permuted at will. STRIDED: any strides that keep elements apart. BROADCAST: a
    stride of 0 too.
    """

    PACKED = 0
    CONTIGUOUS = 1
    ROWS = 2
    STRIDED = 3
    BROADCAST = 4

    def __str__(self) -> str:
        return self.name.lower()


def axes_named(index: Iterable[SupportsInt], first: int = 0) -> str:
    """An index, innermost first, with the names of its axes from `first` on: "(i0=3,i1=0)"."""
    return "(" + ",".join(f"i{axis}={int(i)}" for axis, i in enumerate(index, first)) + ")"


def contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Byte strides of a C-contiguous tensor; a size of 0 counts as 1, as ggml counts it."""
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def blocks_of(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
    """`shape` in blocks, which stand along the innermost axis."""
    return shape if block == 1 or not shape else (*shape[:-1], -(-shape[-1] // block))


@dataclass(frozen=True)
class Layout:
    """A tensor's place in memory.

    `shape` and `strides` (bytes) are outermost first, as in NumPy; `ne` and `nb` are the same innermost first, as in
    ggml. `offset` is in bytes from the start of the tensor's memory. Sizes count elements; of a quantised type the
    innermost stride is that from block to block.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def contiguous(cls, dtype: str, shape: tuple[int, ...], offset: int = 0) -> Layout:
        """The packed layout of `shape` (outermost first), `offset` bytes into its memory."""
        its = DTYPES[dtype]
        return cls(dtype, shape, contiguous_strides(blocks_of(shape, its.block), its.itemsize), offset)

    @property
    def type(self) -> DType:
        return DTYPES[self.dtype]

    @property
    def ne(self) -> tuple[int, ...]:
        """Sizes, innermost first."""
        return self.shape[::-1]

    @property
    def nb(self) -> tuple[int, ...]:
        """Byte strides, innermost first."""
        return self.strides[::-1]

    @lazy
    def blocks(self) -> tuple[int, ...]:
        """The sizes in raw elements, outermost first: `shape`, but blocks of a quantised type along the last axis."""
        return blocks_of(self.shape, self.type.block)

    @property
    def is_whole(self) -> bool:
        """Whether its rows are whole blocks."""
        return self.shape[-1] % self.type.block == 0

    @lazy
    def size(self) -> int:
        """The number of elements."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @lazy
    def end(self) -> int:
        """Bytes from the start of the memory to just past the last element."""
        if self.size == 0:
            return self.offset
        last = sum((extent - 1) * stride for extent, stride in zip(self.blocks, self.strides))
        return self.offset + last + self.type.itemsize

    @lazy
    def kind(self) -> LayoutClass:
        """The narrowest class that this layout belongs to."""
        spread = [(n, s) for n, s in zip(self.blocks, self.strides) if n > 1]
        if any(stride == 0 for _, stride in spread) or self.overlaps:
            return LayoutClass.BROADCAST
        if self.shape and self.strides[-1] != self.type.itemsize:
            return LayoutClass.STRIDED
        step = self.type.itemsize
        for extent, stride in reversed(spread):
            if stride != step:
                return LayoutClass.ROWS
            step *= extent
        return LayoutClass.CONTIGUOUS if self.offset else LayoutClass.PACKED

    @property
    def is_contiguous(self) -> bool:
        return self.kind <= LayoutClass.CONTIGUOUS

    @lazy
    def overlaps(self) -> bool:
        """Whether two elements share a byte.

        Strides that nest (each at least the extent of those below it) keep elements apart; anything else is decided
        by marking the addresses that are reached (strides are multiples of the element size). A tensor whose strides
        do not nest and that spans more than `MARKED` elements counts as one whose elements meet.
        """
        if self.size <= 1:
            return False
        extent = self.type.itemsize
        for stride, size in sorted((s, n) for n, s in zip(self.blocks, self.strides) if n > 1):
            if stride < extent:
                return self._shares_addresses()
            extent = stride * (size - 1) + extent
        return False

    def _shares_addresses(self) -> bool:
        itemsize = self.type.itemsize
        span = (self.end - self.offset) // itemsize
        count = math.prod(self.blocks)
        if count > span or span > MARKED:
            return True
        reached = np.zeros(span, dtype=bool)
        strides = tuple(stride // itemsize for stride in self.strides)
        np.ndarray(self.blocks, bool, reached.data, 0, strides)[...] = True
        return int(np.count_nonzero(reached)) < count

    def packed(self) -> Layout:
        """The contiguous layout of the same shape at offset 0."""
        return Layout.contiguous(self.dtype, self.shape)

    def array(self, memory: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
        """The raw elements as a strided view of `memory` (uint8, starting at the tensor's own start)."""
        view: np.ndarray = np.ndarray(self.blocks, dtype or self.type.raw, memory.data, self.offset, self.strides)
        return view
