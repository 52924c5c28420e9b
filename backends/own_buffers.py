"""What the kernels of OpenCL and CUDA get alike: the fields of `struct arguments`, in the order each kernel names them,
and buffers for intermediate results. Every argument has a buffer of its own.

Every field is a 64-bit unsigned integer. Places are bytes from the start of the argument's own buffer, which begins
with a guard; sizes are elements, innermost first; a float32 parameter is its bits in the low half (`bits`).

An op with intermediate results names them in `_SCRATCH`, with their shapes: each is a packed float32 buffer of its own,
full of NaN before the first launch, that lasts from the first launch to the last. A launch takes them by name, as it
takes the arguments; their names must not be those of arguments. After the last launch the harness can ask for all of
them, and judges those that bear the name of a stage of the op: so give each stage's buffer the shape of the stage.
An argument that the case leaves out reaches the kernel as a null pointer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from opconform.backends import delta_net, mla
from opconform.backends.fields import four_nb, four_ne, view_of
from opconform.harness.model.buffers import GUARD
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout

Shapes = Mapping[str, tuple[int, ...]]

_SCRATCH: Mapping[str, Callable[[Case], Shapes]] = {
    "gated_delta_net": delta_net.recurrent_scratch,
    "gated_delta_net_chunk": delta_net.chunk_scratch,
    "mla_absorbed": mla.scratch,
}


def scratch_of(case: Case) -> Shapes:
    """The names and shapes of the case's intermediate results, outermost first."""
    return _SCRATCH[case.op](case) if case.op in _SCRATCH else {}


def place(case: Case, name: str) -> list[int]:
    """Where an argument's elements stand in its buffer: the first one, and the strides."""
    layout = case.layouts[name]
    return [GUARD + layout.offset, *four_nb(layout)]


def through_view(case: Case) -> list[int]:
    """The fields of ACC, and the first ones of SET."""
    a, b = case.inputs["a"], case.inputs["b"]
    fields = [*four_ne(a), *place(case, "a"), *place(case, "out"), *four_ne(b), *place(case, "b")]
    return [*fields, *view_of(case)]


def cumsum(case: Case) -> list[int]:
    """The fields of CUMSUM."""
    params = case.params
    fields = [*four_ne(case.inputs["x"]), *place(case, "x"), *place(case, "out"), int(params["axis"])]
    return [*fields, int(params["exclusive"]), int(params["reverse"])]


def solve_tri(case: Case) -> list[int]:
    """The fields of SOLVE_TRI."""
    params = case.params
    fields = [*four_ne(case.inputs["b"]), *place(case, "a"), *place(case, "b"), *place(case, "out")]
    return [*fields, int(params["left"]), int(params["lower"]), int(params["unit"])]


def elements(case: Case, *more: int) -> list[int]:
    """The fields that all ops from x to out begin with, then those of the op's own."""
    x, out = case.inputs["x"], case.outputs["out"]
    return [*four_ne(out), *place(case, "out"), *four_ne(x), *place(case, "x"), *more]


def of_delta_net(case: Case, *more: int) -> list[int]:
    """The fields of both delta-net ops, the places of arguments and of intermediate results among them."""
    scratch = scratch_of(case)

    def of(name: str) -> list[int]:
        return [0, *four_nb(Layout.contiguous("f32", scratch[name]))] if name in scratch else place(case, name)

    decay = of("decay" if case.params["gate"] == "log" else "g") if case.op == "gated_delta_net" else []
    return [*delta_net.fields(case, of), *decay, *more]


def of_mla(case: Case) -> list[int]:
    """The fields of MLA_ABSORBED."""
    return mla.fields(case, lambda name: place(case, name))
