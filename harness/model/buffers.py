"""The memory of a case: one arena of bytes with a slot per argument, guards around every slot, poison in every gap.

A slot is `GUARD` bytes, the argument's own memory, and `GUARD` bytes again. In the memory of an input every byte that
no element owns is poison: all ones, which reads as NaN in every float type (integers get a pattern that no recipe
draws). In an output the bytes that no element owns hold a position-dependent pattern, and its elements start as
`UNWRITTEN`. Reading a gap spoils the result; writing one breaks the pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.dtypes import DType, Raw
from opconform.harness.model.layouts import Layout

GUARD = 256
ALIGNMENT = 256  # at least as strict as any device's storage buffer offset alignment
#: Signalling NaNs: arithmetic sets their quiet bit, so that only what was never written still looks like this.
_UNWRITTEN = {
    "f32": 0x7F80DEAD,
    "f16": 0x7CAD,
    "bf16": 0x7F9E,
    "f64": 0x7FF0DEADBEEFDEAD,
    "i8": 0x5B,
    "i16": 0x5BAD,
    "i32": 0x5BADC0DE,
    "i64": 0x5BADC0DE5BADC0DE,
}
_UNWRITTEN_BYTE = b"\x5b"  #: of a block
_INTEGER_POISON = 0xA5
_PATTERN = ((np.arange(1 << 16, dtype=np.uint32) * 167 + 91) % 251).astype(np.uint8)


def unwritten(dtype: DType) -> Any:
    """The raw value that every output element holds before the run: a NaN with a payload of its own, a number that
    hardly any kernel writes of integers and blocks."""
    if dtype.block > 1:
        return np.frombuffer(_UNWRITTEN_BYTE * dtype.itemsize, dtype.raw)[0]
    return _UNWRITTEN[dtype.name]


def _pattern(size: int) -> np.ndarray:
    return _PATTERN[:size] if size <= _PATTERN.size else np.resize(_PATTERN, size)


@dataclass(frozen=True)
class Slot:
    """An argument's place in the arena: its memory is `arena[start:start + size]`, with `GUARD` bytes either side."""

    name: str
    layout: Layout
    start: int
    size: int


@dataclass(frozen=True)
class Plan:
    """Where every argument of a case stands in an arena of `size` bytes. An in-place output shares its input's slot,
    and so do inputs that lie in one memory (`Case.shares`)."""

    slots: Mapping[str, Slot]
    size: int

    @classmethod
    def of(cls, case: Case) -> Plan:
        slots: dict[str, Slot] = {}
        position = 0
        for name, layout in case.inputs.items():
            if name not in case.shares:
                ends = [case.inputs[other].end for other, owner in case.shares.items() if owner == name]
                position = _add(slots, name, layout, max([layout.end, *ends]), position)
        for name, owner in case.shares.items():
            slots[name] = Slot(name, case.inputs[name], slots[owner].start, slots[owner].size)
        for index, (name, layout) in enumerate(case.outputs.items()):
            if index == 0 and case.inplace:
                shared = slots[case.inplace]
                slots[name] = Slot(name, layout, shared.start, shared.size)
            else:
                position = _add(slots, name, layout, layout.end, position)
        return cls(slots, position)


def _add(slots: dict[str, Slot], name: str, layout: Layout, end: int, position: int) -> int:
    size = -(-max(end, 1) // ALIGNMENT) * ALIGNMENT
    slots[name] = Slot(name, layout, position + GUARD, size)
    return position + GUARD + size + GUARD


class Buffers:
    """What a backend gets and gives: the memory of every argument.

    `memory` is the whole arena (uint8). After a run it must hold what the device's memory holds, inputs and gaps
    included, for that is how a stray write is found.
    """

    def __init__(self, case: Case, memory: np.ndarray, plan: Plan | None = None) -> None:
        self.case = case
        self.plan = plan or Plan.of(case)
        self.memory = memory[: self.plan.size]

    def bytes_of(self, name: str) -> np.ndarray:
        """An argument's own memory (uint8, guards left out); its layout's offset counts from here."""
        slot = self.plan.slots[name]
        return self.memory[slot.start : slot.start + slot.size]

    def array(self, name: str) -> np.ndarray:
        """An argument's elements as a strided array in NumPy's type (bfloat16 as uint16 bits); writes go through."""
        slot = self.plan.slots[name]
        return slot.layout.array(self.bytes_of(name), slot.layout.type.native)

    def raw(self, name: str) -> Raw:
        """An argument's elements as a strided array of unsigned integers; writes go through."""
        return self.plan.slots[name].layout.array(self.bytes_of(name))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every argument's elements, by name."""
        return {name: self.array(name) for name in self.plan.slots}

    def fill(self, values: Mapping[str, Raw]) -> None:
        """Lay out the inputs' raw elements, poison every gap, and set the outputs to `UNWRITTEN`."""
        case = self.case
        self.memory[:] = _pattern(self.memory.size)
        for name, layout in case.inputs.items():
            if name == case.inplace or name in case.shares:
                continue
            slot = self.plan.slots[name]
            poison = 0xFF if layout.type.is_float else _INTEGER_POISON
            self.memory[slot.start - GUARD : slot.start + slot.size + GUARD] = poison
        for name in case.outputs:
            self.raw(name)[...] = unwritten(case.outputs[name].type)
        for name in case.inputs:
            self.raw(name)[...] = values[name]
