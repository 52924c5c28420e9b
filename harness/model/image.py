"""The memory of a case as a wrong kernel may read it, and a hypothesis about one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from opconform.harness.model.buffers import GUARD, Buffers
from opconform.harness.model.case import Case, Param
from opconform.harness.model.dtypes import Raw
from opconform.harness.model.expected import Expect

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """A case as a wrong kernel understands it.

    The kernel computes the op on `case` (other parameters) and `raw` (other elements of the inputs), or, where it is
    given, what `expect` says. `source` tells for each element of `Image.out` which element of that result (a flat
    index) stands there, or -1 where nothing was written; without it each stands where it belongs.
    """

    case: Case
    raw: Mapping[str, Raw]
    expect: Expect | None = None
    source: Places | None = None


@dataclass(frozen=True)
class Hypothesis:
    """A named fault. Across cases it is known by its name; a case that has none of the name is not affected."""

    says: str
    reading: Callable[[], Reading]


class Image:
    """The memory of a case as the backend got it, and what stands at any place of it.

    `raw`: the inputs' elements. `out`: the output that wrong writes are looked for in; by default the first.
    """

    def __init__(self, case: Case, raw: Mapping[str, Raw], out: str = "") -> None:
        self.case = case
        self.raw = raw
        self.out = out or next(iter(case.outputs))

    @cached_property
    def _buffers(self) -> Buffers:
        buffers = Buffers(self.case, np.empty(0, np.uint8))
        buffers = Buffers(self.case, np.empty(buffers.plan.size, np.uint8), buffers.plan)
        buffers.fill(self.raw)
        return buffers

    @cached_property
    def before(self) -> Raw:
        """The output's elements before the run: unwritten, or those of the input whose memory it takes over."""
        return np.array(self._buffers.raw(self.out))

    def read(self, name: str, strides: tuple[int, ...], offset: int) -> Raw:
        """What a kernel finds that reads `name` with other strides and another offset: elements, poison in the gaps
        and, beyond the argument's memory, more of it."""
        slot = self._buffers.plan.slots[name]
        memory = self._buffers.memory[slot.start - GUARD : slot.start + slot.size + GUARD]
        size = slot.layout.type.itemsize
        place = addresses(slot.layout.blocks, strides, offset + GUARD)
        if slot.layout.type.block > 1:  # a guard is no whole number of blocks
            found = memory[np.clip(place[..., None] + np.arange(size), 0, memory.size - 1)]
            blocks: Raw = np.ascontiguousarray(found).view(slot.layout.type.raw)[..., 0]
            return blocks
        elements: Raw = memory.view(slot.layout.type.raw)
        return elements[np.clip(place // size, 0, elements.size - 1)]

    def written(self, strides: tuple[int, ...], offset: int) -> Places:
        """Which element of the result each element of the output holds once a kernel has written with these strides
        and this offset; -1 where it has written nothing."""
        layout = self.case.outputs[self.out]
        size = layout.type.itemsize
        wrong, right = (
            addresses(layout.blocks, *place) // size for place in ((strides, offset), (layout.strides, layout.offset))
        )
        memory = np.full(int(np.max(right, initial=0)) + 1, -1, dtype=np.int64)
        inside = wrong < memory.size
        memory[wrong[inside]] = np.arange(wrong.size).reshape(wrong.shape)[inside]
        return memory[right]

    def with_inputs(self, **changed: Raw) -> Reading:
        """The op computed as it should be, on other elements."""
        return Reading(self.case, {**self.raw, **changed})

    def with_params(self, **changed: Param) -> Reading:
        """The op computed with other parameters."""
        return Reading(replace(self.case, params={**self.case.params, **changed}), self.raw)

    def with_expect(self, expect: Expect) -> Reading:
        """Another function computed on the same elements."""
        return Reading(self.case, self.raw, expect)

    def with_source(self, source: Places) -> Reading:
        """The right result in wrong places."""
        return Reading(self.case, self.raw, source=source)


def addresses(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Places:
    address = np.full((), offset, dtype=np.int64)
    for size, stride in zip(shape, strides):
        address = address[..., None] + np.arange(size) * stride
    return address
