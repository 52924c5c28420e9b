"""What the kernels of OpenCL, CUDA and Vulkan are told alike: a row for each op.

An op whose kernel is made from a template has its row in `families.py`. Any other op has a kernel file of its own and a
row in `_OWN`. The fields of a kernel's struct are filled by their names (`fields.py`); a row says what else they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from opconform.backends.kernels import delta_net, mla
from opconform.backends.kernels.families import ELEMENTWISE, GATHERS, ROWS, Elementwise, Gather, Row
from opconform.backends.kernels.fields import Number, Place, Values, four_ne
from opconform.backends.kernels.launch import Launch, Shapes
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout
from opconform.harness.model.limits import Limit

_ALL = ("f32", "f16", "bf16", "i32")
_MOVED = (*_ALL, "i16")  #: a gather moves bits, 16 or 32 at a time
_FLOATS = ("f32", "f16")

Own = Mapping[str, Number | Sequence[Number]]


@dataclass(frozen=True)
class Kernel:
    """What an op's kernels are told.

    launches: the runs, in order; there is always one. own: fields that hold something of the op's own. names: arguments
    that the fields call otherwise. optional: arguments and intermediate results that a case may lack: an argument
    reaches the kernel as a null pointer, and the fields of either hold 0. scratch: intermediate results, each a packed
    float32 array, full of NaN before the first launch, that lasts to the last one. Their names must not be those of
    arguments. After the last launch the harness can ask for all of them, and judges those that bear the name of a stage
    of the op: so they must have the shape of the stage. dtypes: the element types, for every argument that `others`
    does not name. file: the kernel file, if it is not called as the op is; family: the row that it is the template for.
    """

    launches: Callable[[Case], list[Launch]]
    own: Callable[[Case], Own] = lambda case: {}
    names: Callable[[Case], Mapping[str, str]] = lambda case: {}
    optional: tuple[str, ...] = ()
    scratch: Callable[[Case], Shapes] = lambda case: {}
    dtypes: tuple[str, ...] = ("f32",)
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    file: str = ""
    family: Elementwise | Row | Gather | None = None

    def stem(self, op: str) -> str:
        """The name of the op's kernel file, without what ends it."""
        return self.file or op

    def values(self, case: Case, place: Place, scratch: Container[str], also: Own | None = None) -> Values:
        """What the fields of the structs hold. `scratch` are the intermediate results that this case has, `also` fields
        that an API adds."""
        absent = [name for name in self.optional if name not in case.layouts and name not in scratch]
        return Values(case, place, {**self.own(case), **(also or {})}, self.names(case), absent)

    def refusal(self, case: Case, file: str) -> str | None:
        """Why the kernels in `file` do not take the element types of `case`; None where they do."""
        for name, layout in case.layouts.items():
            types = self.others.get(name, self.dtypes)
            if layout.dtype not in types:
                return f"{file} computes {', '.join(types)}, not {layout.dtype}"
        return None

    def made(self, glsl: bool = False) -> Mapping[str, str]:
        """The files that the kernel file includes and that are made for the op."""
        return {"formula.h": self.family.text(glsl)} if self.family else {}


def _out(case: Case) -> Layout:
    return case.outputs["out"]


# ---- families --------------------------------------------------------------------------------------------------------


def _elementwise(row: Elementwise) -> Kernel:
    x, *y = row.arguments
    buffers = (x, *(y or ("y",)), "out")

    def own(case: Case) -> Own:
        return {"parameters": _two([float(case.params[name]) for name in row.parameters])}

    return Kernel(
        lambda case: [Launch("elementwise", _out(case).size, buffers)],
        own,
        lambda case: dict(zip("xy", row.arguments)),
        optional=() if y else ("y",),
        dtypes=_FLOATS,
        file="elementwise",
        family=row,
    )


def _row(row: Row) -> Kernel:
    def own(case: Case) -> Own:
        values = row.values(case) if row.parameters else {}
        return {"parameters": _two([float(values[name]) for name in row.parameters])}

    def launches(case: Case) -> list[Launch]:
        n0, n1, n2, n3 = four_ne(case.inputs["x"])
        return [Launch("row", n1 * n2 * n3, ("x", "out"), row=n0)]

    return Kernel(launches, own, optional=("second_sums",), dtypes=_FLOATS, file="row", family=row)


def _gather(row: Gather) -> Kernel:
    def own(case: Case) -> Own:
        x, values = case.inputs["x"], row.values(case) if row.parameters else {}
        sizes = four_ne(x)
        if row.repeats:
            sizes = [there if size == 1 else size for size, there in zip(sizes, four_ne(_out(case)))]
        return {
            "x_ne": sizes,
            "itemsize": x.type.itemsize,
            "before": [int(case.params[name]) for name in row.before] or [0, 0, 0, 0],
            "parameters": _two([values[name] for name in row.parameters]),
        }

    return Kernel(
        lambda case: [Launch("gather", _out(case).size, ("x", "out"))], own, dtypes=_MOVED, file="gather", family=row
    )


def _two(numbers: Sequence[Number]) -> list[Number]:
    return [*numbers, 0, 0][:2]


# ---- ops with kernels of their own -----------------------------------------------------------------------------------


def _through_view(case: Case) -> list[Launch]:
    a = case.inputs["a"]
    copy = Launch(_packed_or_not(f"{case.op}_copy", a, _out(case)), a.size, ("a", "out"))
    view = Launch(f"{case.op}_view", case.inputs["b"].size, ("b", "out"))
    return [view] if case.inplace else [copy, view]


def _packed_or_not(kernel: str, *layouts: Layout) -> str:
    """The name of the kernel for these layouts: there is one more for packed ones, which need no index of an axis."""
    return f"{kernel}_packed" if all(layout.is_contiguous for layout in layouts) else kernel


def _cpy(case: Case) -> list[Launch]:
    x, out = case.inputs["x"], _out(case)
    return [Launch(_packed_or_not("cpy", x, out), out.size, ("x", "out"))]


def _view(case: Case) -> Own:
    """Where b's elements stand in a packed a, the first one and the strides. Zeros where b has none."""
    b, params = case.inputs["b"], case.params
    steps = [b.type.itemsize, int(params["nb1"]), int(params["nb2"]), int(params["nb3"])]
    return {
        "view_start": int(params["offset"]) if b.size else 0,
        "view_nb": [step if size > 1 and b.size else 0 for size, step in zip(four_ne(b), steps)],
        "itemsize": b.type.itemsize,
    }


def _cumsum(case: Case) -> list[Launch]:
    x = case.inputs["x"]
    length = four_ne(x)[int(case.params["axis"])]
    return [Launch("cumsum", x.size // max(length, 1), ("x", "out"), row=length, steps=length, loop=1)]


def _solve_tri(case: Case) -> list[Launch]:
    b = case.inputs["b"]
    unknowns = four_ne(b)[1 if case.params["left"] else 0]
    sides, buffers = b.size // max(unknowns, 1), ("a", "b", "out")
    return [Launch("solve_tri", sides, buffers, steps=unknowns, loop=lambda known: known + 1)]


def _ssm_conv(case: Case) -> list[Launch]:
    return [Launch("ssm_conv", _out(case).size, ("x", "c", "out"), steps=case.inputs["c"].ne[0], loop=1)]


_CACHE = ("f32", "f16", "bf16")

_OWN: Mapping[str, Kernel] = {
    "acc": Kernel(_through_view, _view),
    "set": Kernel(_through_view, _view, dtypes=_ALL),
    "cumsum": Kernel(_cumsum),
    "solve_tri": Kernel(_solve_tri),
    "cpy": Kernel(_cpy, dtypes=_ALL),
    "ssm_conv": Kernel(_ssm_conv),
    "gated_delta_net": Kernel(
        delta_net.recurrent, delta_net.own, delta_net.names, ("state",), delta_net.recurrent_scratch
    ),
    "gated_delta_net_chunk": Kernel(
        delta_net.chunked,
        delta_net.own,
        delta_net.names,
        ("state", "decay", "Akk_blocks", "Aqk_blocks"),
        delta_net.chunk_scratch,
    ),
    "mla_absorbed": Kernel(
        mla.launches,
        mla.own,
        optional=("mask", "query", "row", "scores", "weights"),
        scratch=mla.scratch,
        others={"c_kv": _CACHE, "k_pe": _CACHE, "mask": ("f32", "f16")},
    ),
}

#: Every op that has kernels.
KERNELS: Mapping[str, Kernel] = {
    **_OWN,
    **{op: _elementwise(row) for op, row in ELEMENTWISE.items()},
    **{op: _row(row) for op, row in ROWS.items()},
    **{op: _gather(row) for op, row in GATHERS.items()},
}


def limits(table: Mapping[str, Kernel]) -> tuple[Limit, ...]:
    """What the kernels of `table` do not take of ops that move elements of any type."""
    reason, source = "the kernel moves elements of 2 and 4 bytes", "backends/kernels/elements.h"
    return tuple(Limit(op, "dtype", row.dtypes, reason, source) for op, row in table.items() if "i32" in row.dtypes)
