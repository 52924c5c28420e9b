"""A run of a kernel, in words that fit every API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]  #: names and shapes of intermediate results, outermost first


@dataclass(frozen=True)
class Launch:
    """One run of a kernel: its name, its number of work-items (0 is run too: the kernel must do nothing), and the
    arguments and intermediate results whose buffers it takes after the struct.

    row: an item is a row of so many elements, which the threads of a block share on CUDA. steps: the item walks over so
    many steps, and could stop after each and go on from there. loop: the turns that its loops make, in each step where
    it walks. Vulkan, whose drivers end long loops, cuts the work by these two.
    """

    kernel: str
    items: int
    buffers: tuple[str, ...]
    row: int | None = None
    steps: int | None = None
    loop: int | Callable[[int], int] = 0

    def turns(self, step: int) -> int:
        """The turns of the loops of one step."""
        return self.loop(step) if callable(self.loop) else self.loop
