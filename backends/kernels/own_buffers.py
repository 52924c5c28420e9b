"""What OpenCL and CUDA do alike: every argument has a buffer of its own, guards included, every intermediate result one
too, and all launches of a case take the same `struct arguments` of 64-bit fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from opconform.backends.kernels.source import Struct, files_of, found_in, source_of, struct_in, whole
from opconform.backends.kernels.table import Kernel
from opconform.harness.model.buffers import GUARD, Buffers, Slot
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout

SHARED = Path(__file__).parent  #: where the kernel files are that both APIs compile


@dataclass(frozen=True)
class Source:
    """An op's kernel file, and the texts of it and of all that it includes, by name."""

    file: Path
    files: Mapping[str, str]

    @cached_property
    def text(self) -> str:
        """All of it, for a compiler."""
        return whole(self.file.name, self.files)

    @cached_property
    def struct(self) -> Struct:
        """What every kernel of the file takes."""
        return struct_in(self.text)


def product_source() -> str:
    """The kernel `product`, which multiplies two matrices and belongs to no op; an item computes 4 × 4 elements."""
    return source_of(SHARED / "product.cl")


def source_for(op: str, kernel: Kernel, folders: Sequence[Path], *suffixes: str, glsl: bool = False) -> Source:
    """The kernel file of an op: the one with the first suffix that any folder has."""
    file = found_in(folders, *(kernel.stem(op) + suffix for suffix in suffixes))
    return Source(file, files_of(file, folders, kernel.made(glsl)))


def fields(kernel: Kernel, struct: Struct, case: Case) -> list[int]:
    """The numbers of `struct arguments`: places are bytes from the start of the buffer."""
    scratch = kernel.scratch(case)

    def place(name: str) -> tuple[int, Layout] | None:
        if name in scratch:
            return 0, Layout.contiguous("f32", scratch[name])
        layout = case.layouts.get(name)
        return None if layout is None else (GUARD + layout.offset, layout)

    return kernel.values(case, place, scratch).numbers(struct)


def window(buffers: Buffers, slot: Slot) -> np.ndarray:
    """An argument's memory with the guards either side; the windows of all arguments make up the whole arena."""
    return buffers.memory[slot.start - GUARD : slot.start + slot.size + GUARD]


def windows(buffers: Buffers) -> Mapping[int, np.ndarray]:
    """The memory of all arguments, by where it begins: of those that share it, once."""
    return {slot.start: window(buffers, slot) for slot in buffers.plan.slots.values()}
