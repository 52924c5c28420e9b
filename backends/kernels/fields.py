"""What the fields of a kernel's struct hold, by their names, whatever the API.

    NAME_ne      four sizes of an argument or intermediate result, innermost first
    NAME_start   the byte where its first element stands
    NAME_nb      four byte strides, innermost first
    NAME_type    its element type, a place in TYPES
    otherwise    what the op's row in `table.py` says, or else the parameter of the case that is called so

A field of type `float_bits` (in GLSL: `float`) holds a float32, all others whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from opconform.backends.kernels.source import Field, Struct
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout

TYPES = ("f32", "f16", "bf16", "i32", "none")  #: as elements.h and memory.glsl number them

Number = int | float
#: Of an argument or intermediate result: its first byte, and its layout. None where there is none of that name.
Place = Callable[[str], tuple[int, Layout] | None]


@dataclass(frozen=True)
class Values:
    """What a case has for the fields of a struct.

    `place` tells where an argument or intermediate result stands. `own` is what the op says of single fields, `names`
    the arguments that the fields call otherwise, `absent` those that this case does not have: their fields hold 0.
    """

    case: Case
    place: Place
    own: Mapping[str, Number | Sequence[Number]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    absent: Collection[str] = ()

    def numbers(self, struct: Struct) -> list[int]:
        """The numbers of all fields, in their order. Raises `LookupError` for a field that nothing is known of."""
        found: list[int] = []
        for it in struct.fields:
            values = self._of(it)
            if len(values) != it.count:
                raise LookupError(f"{self.case.op}: the field {it.name} takes {it.count} numbers, not {len(values)}")
            found += [bits(float(value)) if it.is_float else int(value) for value in values]
        return found

    def _of(self, it: Field) -> Sequence[Number]:
        called, _, what = it.name.rpartition("_")
        name = self.names.get(called, called)
        if it.name in self.own:
            value = self.own[it.name]
        elif what in _OF_LAYOUT and name in self.absent:
            value = TYPES.index("none") if what == "type" else [0] * it.count
        elif what in _OF_LAYOUT and (stands := self.place(name)) is not None:
            value = _OF_LAYOUT[what](*stands)
        else:
            parameter = self.case.params.get(it.name)
            if not isinstance(parameter, (int, float)):
                raise LookupError(f"{self.case.op} has nothing for the field {it.name}")
            value = parameter
        return value if isinstance(value, Sequence) else (value,)


def four_ne(layout: Layout) -> list[int]:
    """Four sizes, innermost first."""
    return [*layout.ne, 1, 1, 1, 1][:4]


def four_nb(layout: Layout) -> list[int]:
    """Four byte strides, innermost first; 0 along an axis of one element, where the stride is any number at all."""
    steps = [stride if size > 1 else 0 for size, stride in zip(layout.ne, layout.nb)]
    return [*steps, 0, 0, 0, 0][:4]


def bits(value: float) -> int:
    """A number as float32, as the word that holds it."""
    return int(np.float32(value).view(np.uint32))


_OF_LAYOUT: Mapping[str, Callable[[int, Layout], Number | Sequence[Number]]] = {
    "ne": lambda start, layout: four_ne(layout),
    "start": lambda start, layout: start,
    "nb": lambda start, layout: four_nb(layout),
    "type": lambda start, layout: TYPES.index(layout.dtype),
}
