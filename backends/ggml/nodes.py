"""The tensors of one case in a context of ggml: its arguments, and the nodes that compute on them.

Sizes and strides are innermost first here, as ggml has them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opconform.backends.ggml.binding import RefusedError, Tensor
from opconform.backends.ggml.declarations import CONSTANTS, DECLARATIONS, TYPES
from opconform.backends.ggml.library import Library
from opconform.backends.ggml.rows import Row
from opconform.harness.model.case import Case
from opconform.harness.model.layouts import Layout, contiguous_strides

NODES = 1 << 14  #: the most tensors of one graph
_F32 = CONSTANTS["GGML_TYPE_F32"]


@dataclass(frozen=True)
class Site:
    """Where tensors are made: a device (its handle, what it is called, how its buffers are aligned), and a context."""

    library: Library
    handle: Any
    device: str
    alignment: int
    context: Any


Assemble = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Shown:
    """An intermediate result: the tensors that hold it, and how their arrays (outermost first) make its value."""

    name: str
    tensors: tuple[Tensor, ...]
    assemble: Assemble


class Nodes:
    """Makes the tensors of one case's graph, without memory yet.

    Whatever makes a node raises `RefusedError` where the build lacks its function or the device says no to it.
    `shown`: whether intermediate results are kept until the end of the run, to be read.
    """

    def __init__(self, site: Site, case: Case, shown: bool = False) -> None:
        self.site = site
        self.case = case
        self.owners: list[tuple[Tensor, str]] = []  #: those that own an argument's memory, with its name
        self.views: list[Tensor] = []  #: of those
        self.outs: list[Tensor] = []  #: the nodes that write the outputs, in order
        self.stages: list[Shown] = []
        self.count = 0  #: of tensors
        self.needs_memory = False  #: whether ggml is to find some for intermediate results
        self.handle: Any = None  #: the graph itself, once the tensors stand in memory
        self._context = site.context
        self._shown = shown
        self._arguments: dict[str, Tensor] = {}
        self._memory_of: dict[Tensor, Tensor] = {}  # the tensor that holds the memory of a view

    # ---- calls. `name` is for subclasses that write them down.

    @property
    def null(self) -> Tensor | None:
        """No tensor."""
        nothing: Tensor = self.site.library.c.null
        return nothing

    def call(self, symbol: str, *arguments: Any, name: str = "") -> Tensor:
        """The tensor that a function of ggml makes of `arguments`, or the one that it changes, where it makes none."""
        function = getattr(self.site.library.c, symbol)
        if symbol not in DECLARATIONS.makers:
            function(*arguments)
            changed: Tensor = arguments[0]
            return changed
        self.count += 1
        if self.count > NODES:
            raise RefusedError(f"its graph has more than {NODES} tensors")
        made: Tensor = function(self._context, *arguments)
        return made

    def strided(self, owner: Tensor, offset: int, ne: Sequence[int], nb: Sequence[int], name: str = "") -> Tensor:
        """A view of `owner`, `offset` bytes on, with any sizes and strides: ggml_view_4d takes no nb0."""
        view = self.call("ggml_view_1d", owner, 1, offset)
        view.ne, view.nb = ne, nb
        return view

    # ---- arguments

    def __contains__(self, name: str) -> bool:
        """Whether the case has this argument."""
        return name in self.case.inputs or name in self.case.outputs

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of an argument."""
        found = self._arguments.get(name)
        if found is None:
            layout = self.case.inputs.get(name) or self.case.outputs[name]
            found = self._arguments[name] = self.argument(name, layout)
        return found

    def argument(self, name: str, layout: Layout) -> Tensor:
        """A tensor for an argument: a plain one where ggml itself would lay it out so, else a view of its memory."""
        number, ne = TYPES[layout.dtype], four_ne(layout)
        if is_plain(layout):
            tensor = self.call("ggml_new_tensor_4d", number, *ne, name=name)
            self.owners.append((tensor, name))
            return tensor
        elements = layout.end // layout.type.itemsize * layout.type.block
        owner = self.call("ggml_new_tensor_1d", number, elements, name=f"{name}_memory")
        self.owners.append((owner, name))
        view = self.strided(owner, layout.offset, ne, four_nb(layout), name)
        self.views.append(view)
        return view

    # ---- nodes

    def one(self, row: Row) -> None:
        """The op as the one node of its row, whose result is the output."""
        self.made_by(row, row.symbol_for(self.case, self.site.library.c.has))

    def made_by(self, row: Row, symbol: str) -> None:
        """The same by the function of this name."""
        case = self.case
        out = next(iter(case.outputs))
        name = "written" if out in row.tensors else out
        node = self.call(symbol, *row.values(case, self.__getitem__, self.null), name=name)
        for function, argument in row.changes(case):
            self.call(function, node, CONSTANTS[argument] if argument in CONSTANTS else self[argument])
        if row.writes_into(case):
            self.views.append(node)
        else:
            self.owners.append((node, out))
        self.outs.append(self.ask(node, row.op))

    def begin_with(self, made: Container[str] = ()) -> dict[str, Tensor]:
        """The inputs, at the start of the graph: a view of strides is a node, and none may stand between nodes that a
        backend computes together. Of those that are `made` it is a copy, which the graph makes."""
        found = {name: self.make("cont", self[name]) if name in made else self[name] for name in self.case.inputs}
        self.outs += found.values()
        return found

    def make(self, function: str, *arguments: Any) -> Tensor:
        """What `ggml_<function>` makes of `arguments`, for the device to compute."""
        return self.ask(self.unasked(function, *arguments), function)

    def unasked(self, function: str, *arguments: Any) -> Tensor:
        """The same, whether the device takes it or not."""
        return self.call(f"ggml_{function}", *arguments)

    def ask(self, node: Tensor, name: str) -> Tensor:
        """The node, called `name`, if the device takes it."""
        if not self.site.library.c.ggml_backend_dev_supports_op(self.site.handle, node):
            raise RefusedError(
                f"{self.site.device} of ggml {self.site.library.build} says no to {name.upper()} through supports_op"
            )
        return node

    def ne(self, tensor: Tensor) -> tuple[int, ...]:
        """The four sizes of a tensor."""
        return tuple(tensor.ne)

    def nb(self, tensor: Tensor) -> tuple[int, ...]:
        """The four byte strides of a tensor."""
        return tuple(tensor.nb)

    def view(self, tensor: Tensor, ne: Sequence[int], nb: Sequence[int], offset: int = 0) -> Tensor:
        """`tensor` with other sizes and strides, `offset` bytes on."""
        return self._view_of(tensor, self.ask(self.strided(tensor, offset, ne, nb), "view_1d"))

    def _view_of(self, tensor: Tensor, view: Tensor) -> Tensor:
        self._memory_of[view] = self._memory_of.get(tensor, tensor)
        return view

    def part(self, tensor: Tensor, axis: int, start: int, count: int) -> Tensor:
        """The elements from `start` on along an axis, as a view."""
        ne, nb = list(self.ne(tensor)), self.nb(tensor)
        ne[axis] = count
        return self.view(tensor, ne, nb, start * nb[axis])

    def reshape(self, tensor: Tensor, *ne: int) -> Tensor:
        """A contiguous tensor with other sizes."""
        return self._view_of(tensor, self.make("reshape_4d", tensor, *ne))

    def permuted(self, tensor: Tensor, *order: int) -> Tensor:
        """A view whose axis i is the tensor's axis order[i], as `numpy.transpose` counts."""
        return self._view_of(tensor, self.make("permute", tensor, *(order.index(axis) for axis in range(4))))

    def turned(self, tensor: Tensor) -> Tensor:
        """The two innermost axes exchanged, packed."""
        return self.make("cont", self.permuted(tensor, 1, 0, 2, 3))

    def filled(self, value: float, *ne: int) -> Tensor:
        """A tensor of float32 that holds `value` everywhere."""
        return self.make("fill", self.make("new_tensor_4d", _F32, *ne), value)

    # ---- results

    def write(self, name: str, tensor: Tensor, start: int = 0, axis: int = 3) -> None:
        """Copy `tensor` into an output, from `start` on along an axis."""
        target = self[name]
        if self.ne(tensor)[axis] != self.ne(target)[axis]:
            target = self.part(target, axis, start, self.ne(tensor)[axis])
        self.outs.append(self.make("cpy", tensor, target))

    def write_results(self, row: Row, node: Tensor) -> None:
        """Copy the outputs that stand packed one after another in `node` to their places."""
        offset = 0
        for name in row.results:
            packed = self.case.outputs[name].packed()
            self.write(name, self.view(node, four_ne(packed), four_nb(packed), offset))
            offset += packed.end

    def show(self, name: str, tensors: Tensor | Sequence[Tensor], assemble: Assemble) -> None:
        """Show an intermediate result; its tensors must be contiguous."""
        several = tuple(tensors) if isinstance(tensors, (list, tuple)) else (tensors,)
        if self._shown:
            for tensor in several:
                self.call("ggml_set_output", self._memory_of.get(tensor, tensor))
        self.stages.append(Shown(name, several, assemble))


#: Builds the graph of one case: makes its nodes, writes its outputs, shows its stages.
Build = Callable[[Nodes], None]


def is_plain(layout: Layout) -> bool:
    """Whether ggml itself would lay a tensor out so."""
    packed = contiguous_strides(layout.blocks, layout.type.itemsize)
    return layout.size == 0 or (layout.offset == 0 and layout.strides == packed)


def four_ne(layout: Layout) -> tuple[int, ...]:
    """Four sizes, innermost first."""
    return (*layout.ne, 1, 1, 1, 1)[:4]


def four_nb(layout: Layout) -> tuple[int, ...]:
    """Four byte strides, innermost first."""
    ne, nb = four_ne(replace(layout, shape=layout.blocks)), layout.nb
    while len(nb) < 4:
        nb = (*nb, nb[-1] * max(ne[len(nb) - 1], 1) if nb else layout.type.itemsize)
    return nb
