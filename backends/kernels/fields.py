"""What the fields of a kernel's struct hold, by their names, whatever the API.

    NAME_ne      four sizes of an argument or intermediate result, innermost first
    NAME_start   the byte where its first element stands
    NAME_nb      four byte strides, innermost first
    NAME_type    its element type, a place in TYPES
    otherwise    what the op's row in `table.py` says, or else the parameter of the case that is called so

A field of type `float_bits` (in GLSL: `float`) holds a float32, all others whole numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

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
        for argument, fields in struct.groups:
            place = self.place(self.names.get(argument, argument)) if argument else None
            for it in fields:
                if place is None or it.name in self.own:
                    found += self._of(it)
                elif it.what == "start":
                    found.append(place[0])
                elif it.what == "nb":
                    found += four_nb(place[1])
                elif it.what == "ne":
                    found += four_ne(place[1])
                else:
                    found.append(TYPES.index(place[1].dtype))
        return found

    def _of(self, it: Field) -> list[int]:
        """What the op says of a field, or the parameter that is called so; zeros for what the case does not have."""
        value: Number | Sequence[Number] | None = self.own.get(it.name)
        if value is None:
            if it.what and self.names.get(it.argument, it.argument) in self.absent:
                return [TYPES.index("none")] if it.what == "type" else [0] * it.count
            parameter = self.case.params.get(it.name)
            value = parameter if isinstance(parameter, (int, float)) else None
        if value is None:
            raise LookupError(f"{self.case.op} has nothing for the field {it.name}")
        values = (value,) if isinstance(value, (int, float)) else value
        if len(values) != it.count:
            raise LookupError(f"{self.case.op}: the field {it.name} takes {it.count} numbers, not {len(values)}")
        return [bits(number) if it.is_float else int(number) for number in values]


def four_ne(layout: Layout) -> list[int]:
    """Four sizes, innermost first."""
    found = list(layout.shape[::-1])
    return found if len(found) == 4 else [*found, 1, 1, 1, 1][:4]


def four_nb(layout: Layout) -> list[int]:
    """Four byte strides, innermost first; 0 along an axis of one element, where the stride is any number at all."""
    found = [stride if size > 1 else 0 for size, stride in zip(layout.shape[::-1], layout.strides[::-1])]
    return found if len(found) == 4 else [*found, 0, 0, 0, 0][:4]


def bits(value: float) -> int:
    """A number as float32, as the word that holds it."""
    return ctypes.c_uint32.from_buffer(ctypes.c_float(value)).value
