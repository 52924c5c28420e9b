"""What the fields of a kernel's arguments are made of, whatever the API: sizes, strides, views, and numbers as bits."""

from __future__ import annotations

import numpy as np

from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout


def four_ne(layout: Layout) -> list[int]:
    """Four sizes, innermost first."""
    return [*layout.ne, 1, 1, 1, 1][:4]


def four_nb(layout: Layout) -> list[int]:
    """Four byte strides, innermost first; 0 along an axis of one element, where the stride is any number at all."""
    steps = [stride if size > 1 else 0 for size, stride in zip(layout.ne, layout.nb)]
    return [*steps, 0, 0, 0, 0][:4]


def view_of(case: Case) -> list[int]:
    """ACC and SET: where b's elements stand in a packed a, the first one and the strides. Zeros where b has none."""
    b, params = case.inputs["b"], case.params
    if b.size == 0:
        return [0, 0, 0, 0, 0]
    steps = [b.type.itemsize, int(params["nb1"]), int(params["nb2"]), int(params["nb3"])]
    return [int(params["offset"]), *(step if size > 1 else 0 for size, step in zip(four_ne(b), steps))]


def bits(value: float) -> int:
    """A number as float32, as the word that holds it."""
    return int(np.float32(value).view(np.uint32))
